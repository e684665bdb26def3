"""The rows of the table, by name: the module that holds each, imported only where it is run."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from benchmarks.contest import Contest
from benchmarks.sizes import Size

MODULES = {
    "extraction": "encoding",
    "extraction_published": "encoding",
    "decoding": "decoding",
    "part_writing": "storing",
    "assembly": "storing",
    "template_rebuild": "storing",
    "token_rows": "reading",
    "samples": "reading",
    "token_batches": "reading",
    "one_token": "reading",
    "loader": "reading",
    "loader_workers": "reading",
    "validation": "checking",
    "digests": "checking",
    "search": "searching",
    "search_large": "searching",
    "search_once": "searching",
    "search_many": "searching",
    "patch_cosines_of_all": "searching",
    "patch_cosines_of_one": "searching",
    "token_scores": "searching",
    "export_csv": "exporting",
    "export_parquet": "exporting",
    "command_line": "starting",
    "definitions": "starting",
    "empty_build": "starting",
}

ON_REQUEST = ("extraction_published",)
"""Rows that take minutes and gigabytes: run when they are named."""

SAME_MEMORY = ("extraction", "assembly", "validation", "digests", "export_csv", "export_parquet")
"""Rows whose peak memory must not grow with the number of rows."""


def contest(name: str, folder: Path, size: Size) -> Contest:
    """The contest of a row, its material made in `folder` where it is not there yet."""
    make: Callable[[Path, Size], Contest] = getattr(import_module(f"benchmarks.rows.{MODULES[name]}"), name)
    return make(folder, size)
