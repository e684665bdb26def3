"""Options and arguments that several commands share."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def _set_home(path: Path | None) -> Path | None:
    # The library and every process started from here read it from the environment.
    if path is not None:
        os.environ["CCASSETS_HOME"] = str(path.expanduser().absolute())
    return path


def complete_study(incomplete: str) -> list[str]:
    from ccassets.study.loading import study_files

    return [name for name in study_files() if name.startswith(incomplete)]


HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        file_okay=False,
        callback=_set_home,
        help="Folder of Dagster's records.",
        show_default="CCASSETS_HOME, DAGSTER_HOME, else ./.ccassets",
    ),
]
StudyArgument = Annotated[
    str,
    typer.Argument(metavar="STUDY", autocompletion=complete_study, help="Name of a study, or path to its defs.yaml."),
]
StudyOption = Annotated[
    str | None,
    typer.Option(
        "--study",
        metavar="STUDY",
        autocompletion=complete_study,
        help="Study of the file: its name, or path to its defs.yaml.",
    ),
]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Path of a feature database.")]
DatabaseArgument = Annotated[
    str, typer.Argument(metavar="FILE", help="Path of a feature database, or its address: https://…, s3://….")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="Device, such as cpu or cuda:1.", show_default="a GPU, else cpu")
]
SplitOption = Annotated[str | None, typer.Option("--split", help="Use only the rows of this split.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
CsvOutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", dir_okay=False, help="Also write the result to this CSV file.")
]
