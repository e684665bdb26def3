"""How checks report: the collector of findings, and the words for rows, lists and places."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ccassets.database.validation.registry import CHECKS
from ccassets.findings import Finding

_RANGES_SHOWN = 4
_ITEMS_SHOWN = 3

Rows = npt.NDArray[np.int64]


class Report:
    """Findings in the order in which they are made."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []

    def add(self, check: str, where: str, message: str) -> None:
        """A finding of the named check, with the severity that the check has."""
        self.findings.append(Finding(check, CHECKS[check].severity, _printable(message), _printable(where)))

    def has(self, *checks: str) -> bool:
        """Whether any of the named checks has found something."""
        return any(finding.check in checks for finding in self.findings)


def _printable(text: str) -> str:
    """Text that any terminal and any JSON takes, though it quotes what is no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def rows_text(rows: Iterable[int] | npt.NDArray[np.integer]) -> str:
    """Row numbers in words: `row 5`, `rows 44-79`, `rows 1, 3-5 and 12 more`; `rows` must be increasing."""
    numbers = np.asarray(rows if isinstance(rows, np.ndarray) else list(rows), np.int64)
    if len(numbers) == 1:
        return f"row {numbers[0]}"
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.r_[0, breaks + 1]]
    stops = numbers[np.r_[breaks, len(numbers) - 1]]
    shown = [
        f"{start}" if start == stop else f"{start}-{stop}"
        for start, stop in zip(starts[:_RANGES_SHOWN].tolist(), stops[:_RANGES_SHOWN].tolist(), strict=True)
    ]
    rest = int((stops[_RANGES_SHOWN:] - starts[_RANGES_SHOWN:] + 1).sum())
    return f"rows {', '.join(shown)}" + (f" and {rest} more" if rest else "")


def listed(items: Sequence[str], most: int = _ITEMS_SHOWN, separator: str = ", ") -> str:
    """The first items and how many more there are."""
    rest = len(items) - most
    return separator.join(items[:most]) + (f" and {rest} more" if rest > 0 else "")


def count(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(text: str, most: int = 80) -> str:
    """A quoted text, cut where it is long."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")
