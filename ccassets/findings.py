"""Findings: the named results of validation, and nothing that produces them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One named result of a check.

    `check` is the check's name in `docs/checks.md`, `message` says what was expected and what was found,
    `where` names the place: an HDF5 path, an attribute, a split, a row range, a key.
    """

    check: str
    severity: Severity
    message: str
    where: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def has_errors(findings: Iterable[Finding]) -> bool:
    """Whether any finding is an error; a database with warnings only is valid."""
    return any(finding.severity == "error" for finding in findings)
