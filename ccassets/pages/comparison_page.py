"""The page of a comparison of encoders, with its tables beside it."""

from __future__ import annotations

from pathlib import Path

from ccassets.analysis import Comparison
from ccassets.analysis.paper_tables import METRICS, write_table
from ccassets.files import write_text
from ccassets.pages.renderer import render


def write_comparison(comparison: Comparison, page: Path) -> list[Path]:
    """Write a comparison as one self-contained page, and beside it its tables as CSV and LaTeX.

    Args:
        comparison: The comparison.
        page: The page, `<name>.html`; the tables are `<name>_results` and `<name>_differences`.

    Returns:
        The files, the page first.

    Raises:
        StorageError: A file cannot be written.
    """
    write_text(page, render("comparison.html", comparison=comparison, titles=METRICS))
    tables = comparison.tables()
    return [
        page,
        *(file for name, rows in tables.items() for file in write_table(page.with_name(f"{page.stem}_{name}"), rows)),
    ]
