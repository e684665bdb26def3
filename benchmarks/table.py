"""What was measured, as a page of Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from benchmarks.contest import Target, Times, speed_of


@dataclass(frozen=True)
class Result:
    """What a row's processes gave: its contest, the peak memory of ours, and that at N and 10 N where it was taken."""

    name: str
    work: str
    limit: str
    usual: str | None
    target: Target
    times: Times
    peak: int
    peaks: tuple[int, int] | None = None

    @property
    def ours(self) -> float:
        """Seconds, the median."""
        return statistics.median(self.times.ours)

    @property
    def of_limit(self) -> float:
        return speed_of(self.times.limit, self.times.ours)

    @property
    def of_usual(self) -> float | None:
        return speed_of(self.times.usual, self.times.ours) if self.times.usual else None

    @property
    def misses(self) -> list[str]:
        """The targets that were missed."""
        target = self.target
        beyond = self.ours - statistics.median(self.times.limit)
        reached = {
            "limit": target.of_limit is None or self.of_limit >= target.of_limit,
            "usual": target.of_usual is None or (self.of_usual or 0) >= target.of_usual,
            "seconds": target.seconds is None or self.ours <= target.seconds,
            "seconds beyond the limit": target.beyond_limit is None or beyond <= target.beyond_limit,
        }
        return [name for name, good in reached.items() if not good]


def page(results: Sequence[Result], size: str, machine: Mapping[str, str]) -> str:
    """The whole page: machine, table, memory, and what each row compares."""
    today = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    facts = [f"- {name}: {value}" for name, value in machine.items()]
    rows = [
        (
            result.name,
            _seconds(result.ours),
            f"{result.of_limit:.2f}",
            "–" if result.of_usual is None else f"{result.of_usual:.1f}",
            _target(result),
            f"{result.peak / 1e6:.0f} MB",
        )
        for result in results
    ]
    compared = [(result.name, result.work, result.limit, result.usual or "–") for result in results]
    memory = [(result.name, *(f"{peak / 1e6:.0f} MB" for peak in result.peaks)) for result in results if result.peaks]
    return "\n".join(
        [
            "# Benchmarks",
            "",
            f"Measured {today}, size `{size}`; how to read it: [docs/benchmarks.md](../docs/benchmarks.md).",
            "",
            *facts,
            "",
            *markdown_table(("row", "ours", "÷ limit", "÷ usual", "wanted", "peak memory"), rows),
            "",
            "Speeds: 1.00 is as fast, 2.0 twice as fast. Medians of runs in turns.",
            "",
            *(["## Memory at N and 10 N", "", *markdown_table(("row", "N", "10 N"), memory), ""] if memory else []),
            "## What is compared",
            "",
            *markdown_table(("row", "work", "limit", "usual way"), compared),
            "",
        ]
    )


def _target(result: Result) -> str:
    target = result.target
    bounds = [
        f"{sign} {value:.2g}{unit}"
        for sign, value, unit in (
            ("≥", target.of_limit, " ÷ limit"),
            ("≥", target.of_usual, " ÷ usual"),
            ("≤", target.seconds, " s"),
            ("≤", target.beyond_limit, " s beyond the limit"),
        )
        if value is not None
    ]
    missed = f" (missed: {', '.join(result.misses)})" if result.misses else ""
    return ", ".join(bounds) + missed if bounds else "–"


def _seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
