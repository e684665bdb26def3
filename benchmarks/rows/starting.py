"""Rows about what every command costs before it works: command line, definitions, a build with nothing to do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.contest import Contest, Contestant, Target
from benchmarks.sizes import Size

COMMAND = "from ccassets.cli import main; main()"
BARE_TYPER = "import typer; app = typer.Typer(); app.command()(lambda: None); app()"


def command_line(folder: Path, size: Size) -> Contest:
    return Contest(
        work="`ccassets --help`",
        ours=lambda: _python("-c", COMMAND, "--help"),
        limit=Contestant("the help of a bare typer program", lambda: _python("-c", BARE_TYPER, "--help")),
        target=Target(of_limit=0.5),
    )


def definitions(folder: Path, size: Size) -> Contest:
    return Contest(
        work="loading the definitions of the studies that ship",
        ours=lambda: _python("-c", "from ccassets.definitions import defs; defs()"),
        limit=Contestant("`import dagster`", lambda: _python("-c", "import dagster")),
        target=Target(beyond_limit=0.6),
    )


def empty_build(folder: Path, size: Size) -> Contest:
    root = folder / "full_size"
    environment = {"CCASSETS_HOME": str(root / "home"), "CCASSETS_STORAGE": str(root / "storage")}
    study = root / "studies" / "cells"
    if not (root / "staged").exists():
        # In a process of its own: what staging needs is not to count as memory of the build.
        _python("-m", "benchmarks.full_size", str(root), size.name, environment=environment)
        (root / "staged").touch()

    def ours() -> str:
        return _python("-c", COMMAND, "build", str(study / "defs.yaml"), environment=environment)

    return Contest(
        work=f"`ccassets build` with nothing to do: {size.build_rows:,} rows of {size.build_tokens} patches, 3 splits",
        ours=ours,
        limit=Contestant("`import dagster`", lambda: _python("-c", "import dagster")),
        target=Target(beyond_limit=1.5),
    )


def _python(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What a new Python process says on stderr."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CCASSETS_", "DAGSTER_"))}
    command: Sequence[str] = [sys.executable, *arguments]
    done = subprocess.run(command, env={**kept, **(environment or {})}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments[:3])} ended with {done.returncode}:\n{done.stderr}")
    return done.stderr
