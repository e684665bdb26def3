"""The validator: every invariant of the format as a named check, in one sequential pass over a file of any size."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ccassets.database.reader import Database, open_database
from ccassets.database.sandbox import SandboxError, run_in_sandbox
from ccassets.database.validation.contents import Contents, read_contents
from ccassets.database.validation.digest_rules import check_digests
from ccassets.database.validation.finding_collector import FindingCollector
from ccassets.database.validation.legacy_traces import TRACE_CHECKS, check_traces
from ccassets.database.validation.provenance_rules import check_provenance
from ccassets.database.validation.registry import CHECKS, GROUPS, Check, checks_of
from ccassets.database.validation.row_rules import check_rows
from ccassets.database.validation.structure_rules import check_structure
from ccassets.database.validation.study_rules import check_study
from ccassets.database.validation.text_rules import check_texts
from ccassets.database.validation.value_rules import BULK_CHECKS, ValueScan, check_logit_parameters, check_values
from ccassets.errors import DatabaseError
from ccassets.files import reading_errors
from ccassets.findings import Finding

if TYPE_CHECKING:
    from ccassets.study.schema import Study

__all__ = ["CHECKS", "GROUPS", "Check", "CheckResults", "run_checks", "validate_database"]

_TEXT_CHECKS = checks_of("texts") | {"unreadable"}
_DIGEST_CHECKS = checks_of("digests") | {"unreadable"}
_STUDY_CHECKS = checks_of("study") | {"foreign_split"}


@dataclass(frozen=True, eq=False)
class CheckResults:
    """The findings about a file, its content, and what the pass over features gave, if a check needed it."""

    findings: list[Finding]
    contents: Contents
    values: ValueScan


def validate_database(
    path: str | os.PathLike[str],
    study: Study | None = None,
    deep: bool = False,
    sandbox: bool = False,
    *,
    only: Collection[str] | None = None,
) -> list[Finding]:
    """Check a database, or a part of one, against every invariant of the format.

    Features are read once, in file order, in blocks of a few megabytes whatever the size of the file.

    Args:
        path: The HDF5 file.
        study: Compare the file with what this study asks for.
        deep: Recompute every stored digest.
        sandbox: Read the file in a child process with limits of memory and time: for files of unknown origin. A file
            that ends the child is a finding (`unreadable`).
        only: The checks to run, by name; by default all. Features are read where one of the checks needs them.

    Returns:
        All findings, in the order of `docs/checks.md`; empty for a flawless file.

    Raises:
        DatabaseError: There is no such file, it is not HDF5, or `only` names an unknown check.
        StorageError: The operating system refuses to read the file now.
    """
    unknown = sorted(set(only or ()) - set(CHECKS))
    if unknown:
        raise DatabaseError(f"There are no checks {unknown}; docs/checks.md lists all checks.")
    if sandbox:
        return _validate_in_sandbox(path, study, deep, only)
    with open_database(path) as database:
        return run_checks(database, study, deep, only=only).findings


def _validate_in_sandbox(
    path: str | os.PathLike[str], study: Study | None, deep: bool, only: Collection[str] | None
) -> list[Finding]:
    request = {
        "study": None if study is None else study.model_dump(mode="json"),
        "deep": deep,
        "only": None if only is None else list(only),
    }
    try:
        findings = run_in_sandbox("validate", path, **request)
    except SandboxError as error:
        return [Finding("unreadable", "error", f"expected a file that can be read; {error}", "/")]
    return [Finding(**finding) for finding in findings]


def run_checks(
    database: Database, study: Study | None = None, deep: bool = False, *, only: Collection[str] | None = None
) -> CheckResults:
    """Check an open file as `validate_database` does, and give its content and its numbers as well."""
    selected = frozenset(CHECKS if only is None else only)
    with reading_errors(database.path):
        findings = FindingCollector()
        contents = read_contents(database, findings)
        values = ValueScan(np.empty(0, np.int64))
        if selected & checks_of("structure"):
            check_structure(contents, findings)
        if selected & checks_of("counts"):
            check_rows(contents, findings)
        if selected & TRACE_CHECKS:
            check_traces(contents, findings)
        if "logit_parameters" in selected:
            check_logit_parameters(contents, findings)
        compare_digests = deep and contents.feature_digest is not None and "feature_digest" in selected
        if selected & BULK_CHECKS or compare_digests:
            values = check_values(contents, findings, digests=compare_digests)
        if selected & _TEXT_CHECKS:
            check_texts(contents, findings)
        if selected & checks_of("provenance"):
            check_provenance(contents, findings)
        if deep and selected & _DIGEST_CHECKS:
            check_digests(contents, findings)
        if study is not None and selected & _STUDY_CHECKS:
            check_study(contents, study, findings)
        order = {name: number for number, name in enumerate(CHECKS)}
        chosen = [finding for finding in findings if finding.check in selected]
        return CheckResults(sorted(chosen, key=lambda finding: order[finding.check]), contents, values)
