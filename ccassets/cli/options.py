"""The options and arguments that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _use_home(path: Path | None) -> Path | None:
    # The environment is how the library and every process started from here learn of it.
    if path is not None:
        os.environ["CCASSETS_HOME"] = str(path.expanduser().absolute())
    return path


HomeOption = Annotated[
    Path | None,
    typer.Option("--home", callback=_use_home, help="Folder of Dagster's records.", show_default="./.ccassets"),
]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or path to a defs.yaml.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A feature database.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
