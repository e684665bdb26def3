"""The command line: the program `ccassets`, its commands by help panel, and the exit codes of errors."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated

import typer

from ccassets import __version__
from ccassets.cli.analysis_commands import apply, compare, duplicates, explore, search, table
from ccassets.cli.build_commands import build, extract, prune, studies, ui
from ccassets.cli.export_commands import explain, export, publish
from ccassets.cli.file_commands import adopt, info, validate
from ccassets.cli.study_commands import bundle, certify, doctor, encoders, new_study, precision_drift
from ccassets.cli.terminal import print_text
from ccassets.errors import (
    AbsentWeightsError,
    AnalysisError,
    CcassetsError,
    DatabaseError,
    DatasetError,
    StudyError,
)
from ccassets.files import own_error

app = typer.Typer(
    help="Build, check and analyse feature databases of medical images and concepts.",
    epilog="Exit codes: 0 done, 1 findings or a failure, 2 wrong use or unreadable input.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "Build": (build, extract, prune, ui, studies),
    "Study": (new_study, encoders, doctor, bundle, precision_drift, certify),
    "File": (info, validate, adopt, export, publish, explain),
    "Analyse": (explore, search, duplicates, apply, table, compare),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)

_INPUT_ERRORS = (StudyError, DatasetError, AbsentWeightsError, DatabaseError, AnalysisError)
"""What the caller named, or what it refers to, is missing or cannot be read."""


def _print_version(requested: bool) -> None:
    if requested:
        print_text(__version__)
        raise typer.Exit


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["CCASSETS_DEBUG"] = "1"


def main() -> None:
    """Run the command line; an error ends it with one message on stderr and an exit code.

    Raises:
        SystemExit: Always; code 0 when the command is done, 1 for findings or a failure, 2 for wrong use or input
            that is missing or cannot be read.
    """
    # Before torch is imported: threads that wait for each other would else take the cores from those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except CcassetsError as error:
        unreadable = isinstance(error, _INPUT_ERRORS) and not error.transient
        _exit_with_error(str(error), 2 if unreadable else 1)
    except Exception as error:
        if refusal := own_error(error):
            _exit_with_error(str(refusal), 1)
        message = f"Unexpected {type(error).__name__}: {error}\nThis is a defect; `ccassets --debug …` shows where."
        _exit_with_error(message, 1)


def _exit_with_error(message: str, code: int) -> None:
    if os.environ.get("CCASSETS_DEBUG"):
        traceback.print_exc()
    else:
        print_text(f"ccassets: {message}", err=True)
    sys.exit(code)
