"""The registry of checks, read from `checks.yaml`: severity, reason and advice of each. No check runs here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ccassets.files import read_package_yaml
from ccassets.findings import Severity


@dataclass(frozen=True)
class Check:
    """A named check: `reason` says what breaks where it fails, `advice` what to do about it."""

    name: str
    group: str
    severity: Severity
    reason: str
    advice: str


_TABLE: dict[str, Any] = read_package_yaml(__package__, "checks.yaml")

GROUPS: Mapping[str, str] = MappingProxyType({group: section["heading"] for group, section in _TABLE.items()})
"""Groups of checks, each with its heading; a group is what runs together as one Dagster asset check."""

CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        name: Check(name, group, **check)
        for group, section in _TABLE.items()
        for name, check in section["checks"].items()
    }
)
"""Every check by name, in the order of its group."""


def checks_of(group: str) -> frozenset[str]:
    """The names of a group's checks."""
    return frozenset(check.name for check in CHECKS.values() if check.group == group)


def checks_page() -> str:
    """`docs/checks.md`: one table for each group, one row for each check."""
    lines = [
        "# Checks",
        "",
        "Validation reports everything it finds at once, each finding under the name of a check. An *error* means that",
        "the file must not be used as it is; a *warning* is something to know before it is used. `ccassets validate`",
        "exits with 1 when there is an error. Every finding says what was expected, what was found, and where.",
        "",
        "This page is generated from the registry of the validator.",
    ]
    for group, heading in GROUPS.items():
        lines += ["", f"## {heading}", "", f"Group `{group}`.", ""]
        lines += ["| check | severity | reason | what to do |", "|---|---|---|---|"]
        lines += [
            f"| `{check.name}` | {check.severity} | {check.reason} | {check.advice} |"
            for check in CHECKS.values()
            if check.group == group
        ]
    return "\n".join(lines) + "\n"
