"""Output of the commands: texts, JSON, findings and progress bars in the terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ccassets.findings import Finding, count_errors

if TYPE_CHECKING:
    from rich.progress import TaskID

    from ccassets.progress import Listener, Progress


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
"""Characters that command a terminal or turn the reading direction; tabs and line feeds are ours too."""


def printable(text: object) -> str:
    r"""A text as a terminal may show it: control characters as `\u001b`, which JSON reads as the character itself."""
    return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", str(text))


def print_text(text: object, *, err: bool = False) -> None:
    """Print a text, which may hold names from files, on stdout or stderr."""
    typer.echo(printable(text), err=err)


def print_line(text: object) -> None:
    """Print a text as one line; a line feed in it becomes a backslash and an n."""
    print_text(str(text).replace("\n", r"\n"))


def print_json(value: Any) -> None:
    """Print a value as indented JSON on stdout."""
    print_text(json.dumps(value, indent=2, ensure_ascii=False))


def print_findings(file: Path, findings: Sequence[Finding]) -> None:
    """Print one line for each finding on a file, what to do about each failed check, and the verdict."""
    from rich.console import Console
    from rich.text import Text

    from ccassets.database.validation.registry import CHECKS  # It loads h5py, which `--help` does without.

    console = Console(soft_wrap=True)
    for finding in findings:
        style = "red" if finding.severity == "error" else "yellow"
        message = printable(f"{finding.message} [{finding.where}]")
        console.print(Text(f"{finding.severity} {finding.check}", style), Text(message))
    for check in dict.fromkeys(finding.check for finding in findings):
        if check in CHECKS:
            console.print(Text(f"to mend {check}: {CHECKS[check].advice}"))
    errors = count_errors(findings)
    verdict = "not valid" if errors else "valid"
    counts = f"{counted(errors, 'error')}, {counted(len(findings) - errors, 'warning')}"
    console.print(Text(printable(f"{file.name} is {verdict}: {counts}.")))


def counted(number: int, noun: str) -> str:
    """A number with its noun in singular or plural."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


@contextmanager
def progress_bars() -> Iterator[Listener]:
    """Give a listener that draws one progress bar for each task on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task_ids: dict[str, TaskID] = {}

    def update(task: str, done: int, total: int, note: str) -> None:
        if task not in task_ids:
            progress.start()  # Not before the first task, so that an early error is the first line.
            task_ids[task] = progress.add_task(printable(task), total=total, note=note)
        progress.update(task_ids[task], completed=done, total=total, note=note)

    try:
        yield update
    finally:
        if task_ids:
            progress.stop()


@contextmanager
def progress_bar(task: str) -> Iterator[Progress]:
    """Give a progress callback that draws the bar of one task on stderr."""
    with progress_bars() as listener:
        yield lambda done, total: listener(task, done, total, "")
