"""The code blocks of the docs site, and what of them no test runs, each with its reason."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ccassets_tests.documentation.test_site import DOCS, GENERATOR
from ccassets_tests.house.source_tree import ROOT

PAGES = {
    **{path.name: path for path in sorted(DOCS.glob("*.md"))},
    **{page: ROOT / source for page, source in GENERATOR.COPIED.items()},
}
"""The pages that are written by hand, by their name on the site; notebooks and reference have their own tests."""

LISTINGS = {"text"}
"""The language of what is no code: folders, tables, output, files of other programs."""

_SERVES = "it serves until Ctrl-C; {} starts it and ends it"
_NETWORK = "it needs the network; {}"

NOT_RUN: dict[str, dict[str, str]] = {
    "*": {
        "pip install": _NETWORK.format("`make` installs all extras, and `make dist` tries the wheel"),
        "ccassets ui": _SERVES.format("orchestration/test_ui_server.py"),
        "make test": "this is one of its tests",
        "make slow": "this is one of its tests",
    },
    "benchmarks.md": {"make bench": "minutes, and 20 GB of disk; benchmarks/test_benchmarks.py runs every row small"},
    "cluster.md": {
        "sbatch": "it needs SLURM; the command that the script starts is run below it",
        "#SBATCH": "a comment to the shell",
        "ray start": "it needs the extra `ray`; extraction/test_on_ray.py starts a cluster where it is installed",
        "CCASSETS_STORAGE=/shared/ccassets CCASSETS_RUNNER=ray": "it needs that cluster; extraction/test_on_ray.py",
    },
    "contributing.md": {
        "make check": "CI runs it beside the tests",
        "make format": "it changes the checkout",
        "make test-lowest": "it installs gigabytes; a job of the workflow runs it",
        "make docs": "CI runs it beside the tests",
        "make guarantees": "it runs tests such as this one for minutes; campaigns/test_guarantees_page.py",
        "make bench": "minutes, and 20 GB of disk; benchmarks/test_benchmarks.py runs every row small",
        "make coverage": "it measures for ten minutes",
        ".venv/bin/pre-commit install": "it changes the checkout",
    },
    "dagster.md": {
        "DAGSTER_HOME=$PWD/.ccassets dagster dev": _SERVES.format("orchestration/test_daemon.py runs its daemon, and"),
    },
    "data.md": {"ccassets new-study blood --huggingface": _NETWORK.format("tools/test_new_study.py reads a folder")},
    "deploy.md": {
        "cd deploy": "it needs Docker; deploy/test_deploy.py runs the services as processes",
        "cp .env.example": "it needs Docker; deploy/test_deploy.py reads the example",
        "docker compose": "it needs Docker; deploy/test_deploy.py runs the services as processes",
    },
    "encoders.md": {
        "hf download": _NETWORK.format("encoders/test_open_clip_dual.py lays the two folders side by side")
    },
    "explorer.md": {"ccassets explore": _SERVES.format("pages/test_explorer.py")},
    "guarantees.md": {
        "make guarantees": "it runs tests such as this one for minutes; campaigns/test_guarantees_page.py",
    },
    "index.md": {
        "make ui": _SERVES.format("orchestration/test_ui_server.py"),
        "ccassets explore demo": _SERVES.format("pages/test_explorer.py"),
    },
    "object_stores.md": {
        "aws s3": "it needs an object store and its program",
        "rclone copy": "it needs an object store and its program",
    },
    "own_data.md": {
        "ccassets new-study cells --table": "it would write the study of the next block; tools/test_new_study.py",
        "ccassets new-study cells --huggingface": _NETWORK.format("tools/test_new_study.py reads a folder"),
    },
    "phantom.md": {
        "OMP_NUM_THREADS=1 python training/train_phantom.py": "it trains for hours",
        "python training/phantom_evaluation.py": "it evaluates what was trained for hours",
    },
}
"""By page and beginning of a line of a shell: why the test of the pages leaves the line out. `*` is every page."""


@dataclass(frozen=True)
class Block:
    """A code block; `line` is where its fence stands in the file."""

    page: str
    line: int
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    matches = re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(page, text.count("\n", 0, m.start()) + 1, m[1], m[2]) for m in matches]


def shell_lines(block: Block) -> list[str]:
    """The lines of a block of a shell, those that a backslash continues as one."""
    return block.text.replace("\\\n", " ").splitlines()


def reason_not_to_run(page: str, line: str) -> str | None:
    """Why a line of a shell is left out; None where it is run."""
    reasons = NOT_RUN["*"] | NOT_RUN.get(page, {})
    return next((reason for beginning, reason in reasons.items() if line.startswith(beginning)), None)


def runnable_script(
    block: Block,
    replaced: Mapping[str, str] = MappingProxyType({}),
    exit_codes: Mapping[str, int] = MappingProxyType({}),
) -> str:
    """The lines of a block that can be run, as a script: texts replaced; `exit_codes` has those that are not 0."""
    lines = []
    for line in shell_lines(block):
        if reason_not_to_run(block.page, line):
            continue
        code = next((code for beginning, code in exit_codes.items() if line.startswith(beginning)), 0)
        for before, after in replaced.items():
            line = line.replace(before, after)
        command = re.sub(r"\s+#\s.*$", "", line)
        if command.startswith("python -m benchmarks"):
            command += " --help"  # Reads every option, and measures nothing.
        lines.append(f"{command} || test $? -eq {code}" if code else command)
    return "\n".join(lines)


def run_shell(script: str, folder: Path) -> str:
    """Run lines of a shell in which `ccassets` and `python` are these; every line has to end well."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("CCASSETS_HOME", None)  # The pages use the home of a new user.
    command = ["bash", "-euo", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (script, result.stdout, result.stderr)
    return result.stdout
