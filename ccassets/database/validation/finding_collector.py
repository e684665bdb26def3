"""The collector of findings, and the words in which findings name rows, lists and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from ccassets.database.validation.registry import CHECKS
from ccassets.files import system_error_kind
from ccassets.findings import Finding

_RANGES_SHOWN = 4
_ITEMS_SHOWN = 3

RowNumbers = npt.NDArray[np.int64]


class FindingCollector:
    """Findings in the order in which they are made."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def add(self, check: str, where: str, message: str) -> None:
        """Add a finding of the named check, with the severity of that check."""
        self._findings.append(Finding(check, CHECKS[check].severity, _printable(message), _printable(where)))

    def add_unreadable(self, where: str, message: str, error: Exception) -> None:
        """Add a finding for bytes that cannot be read; raises the error where the system refused to read them."""
        if system_error_kind(error):
            raise error
        self.add("unreadable", where, f"{message}: {error}")


def _printable(text: str) -> str:
    """Text that any terminal and any JSON accepts: what is not UTF-8 is escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def rows_text(rows: Iterable[int] | npt.NDArray[np.integer]) -> str:
    """Increasing row numbers in words: `row 5`, `rows 44-79`, `rows 1, 3-5 and 12 more`."""
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
    hidden = int((stops[_RANGES_SHOWN:] - starts[_RANGES_SHOWN:] + 1).sum())
    return f"rows {', '.join(shown)}" + (f" and {hidden} more" if hidden else "")


def listed(items: Sequence[str], limit: int = _ITEMS_SHOWN, separator: str = ", ") -> str:
    """The first items and the number of further ones."""
    hidden = len(items) - limit
    return separator.join(items[:limit]) + (f" and {hidden} more" if hidden > 0 else "")


def count(number: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def shortened(text: str, limit: int = 80) -> str:
    """A quoted text, cut where it is long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")
