"""Findings: the named results of validation. Nothing here produces them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One named result of a check.

    Attributes:
        check: The check's name in `docs/checks.md`.
        severity: `error`, or `warning` where the file is valid all the same.
        message: What the check expected, and what it found.
        where: The place: an HDF5 path, an attribute, a split, a range of rows, a key.
    """

    check: str
    severity: Severity
    message: str
    where: str

    def as_dict(self) -> dict[str, str]:
        """Convert to JSON types.

        Returns:
            The attributes by name.
        """
        return asdict(self)


def count_errors(findings: Iterable[Finding]) -> int:
    """How many findings are errors; the others are warnings."""
    return sum(finding.severity == "error" for finding in findings)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error; a database with warnings only is valid."""
    return any(finding.severity == "error" for finding in findings)
