"""The command line: the program `ccassets` with its commands, and how errors end it."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ccassets import __version__
from ccassets.cli.analysis_commands import apply, duplicates, search
from ccassets.cli.build_commands import build, extract, prune, studies, ui
from ccassets.cli.file_commands import adopt, info, validate
from ccassets.cli.study_commands import doctor, drift, fetch, new_study
from ccassets.errors import AnalysisError, CcassetsError, DatabaseError, StudyError

app = typer.Typer(
    help="Medical images and concepts become one checked feature database.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_PANELS = {
    "Build": (build, extract, prune, ui, studies),
    "Study": (new_study, doctor, fetch, drift),
    "File": (info, validate, adopt),
    "Analyse": (search, duplicates, apply),
}
for _panel, _commands in _PANELS.items():
    for _command in _commands:
        app.command(rich_help_panel=_panel)(_command)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def global_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["CCASSETS_DEBUG"] = "1"


def main() -> None:
    """Run the command line; our own errors end in one clear message on stderr."""
    # Before torch is imported: threads that wait for each other would else take the cores from those that decode.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except CcassetsError as error:
        if os.environ.get("CCASSETS_DEBUG"):
            raise
        typer.echo(f"ccassets: {error}", err=True)
        sys.exit(2 if isinstance(error, (StudyError, DatabaseError, AnalysisError)) else 1)
