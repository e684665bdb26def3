"""Running commands for tests, in this process or in one of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from typing import Any

import pytest
import typer.main

from ccassets.cli import app, main

COMMANDS: dict[str, Any] = dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Result:
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in ("CCASSETS_DEBUG", "CCASSETS_HOME"):  # What options set ends with the command.
            patch.setenv(name, os.environ.get(name, ""))
        patch.setenv("COLUMNS", "200")
        patch.setattr(sys, "argv", ["ccassets", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            return Result(int(end.code or 0), out.getvalue(), err.getvalue())
    return Result(0, out.getvalue(), err.getvalue())


def run_in_process(*arguments: object, **environment: str) -> Result:
    """Run a command in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "ccassets.cli", *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return Result(result.returncode, result.stdout, result.stderr)
