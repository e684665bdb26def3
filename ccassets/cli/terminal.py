"""Output of the commands: progress bars, findings and JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ccassets.findings import Finding


def print_findings(file: Path, findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    for finding in findings:
        style = "red" if finding.severity == "error" else "yellow"
        console.print(Text(f"{finding.severity} {finding.check}", style), Text(f"{finding.message} [{finding.where}]"))
    errors = sum(finding.severity == "error" for finding in findings)
    verdict = "valid" if not errors else "not valid"
    console.print(Text(f"{file.name} is {verdict}: {errors} errors, {len(findings) - errors} warnings."))


@contextmanager
def progress_bars() -> Iterator[Any]:
    """A listener that draws a bar for everything that is counted, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    tasks: dict[str, Any] = {}

    def listen(what: str, done: int, total: int, note: str = "") -> None:
        if what not in tasks:
            progress.start()  # Not before there is something to show: an error is the first line then.
            tasks[what] = progress.add_task(what, total=total, note=note)
        progress.update(tasks[what], completed=done, total=total, note=note)

    try:
        yield listen
    finally:
        if tasks:
            progress.stop()
