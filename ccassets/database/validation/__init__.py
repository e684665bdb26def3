"""The validator: every invariant of the format as a named check, in one sequential pass over a file of any size."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccassets.database.reader import Database, open_database
from ccassets.database.validation.contents import Contents, read_contents
from ccassets.database.validation.digest_rules import check_digests
from ccassets.database.validation.finding_collector import Report
from ccassets.database.validation.legacy_traces import TRACE_CHECKS, check_traces
from ccassets.database.validation.provenance_rules import check_provenance
from ccassets.database.validation.registry import CHECKS, GROUPS, Check
from ccassets.database.validation.row_rules import check_rows
from ccassets.database.validation.structure_rules import check_structure
from ccassets.database.validation.study_rules import check_study
from ccassets.database.validation.text_rules import check_texts
from ccassets.database.validation.value_rules import BULK_CHECKS, check_logit_parameters, check_values
from ccassets.errors import DatabaseError
from ccassets.findings import Finding
from ccassets.study.schema import Study

__all__ = ["CHECKS", "GROUPS", "Check", "Examination", "examine", "validate_database"]


@dataclass(frozen=True, eq=False)
class Examination:
    """What validation read and found; `unsound` are the rows (increasing) whose features must not be used."""

    findings: list[Finding]
    contents: Contents
    unsound: npt.NDArray[np.int64]


def validate_database(
    path: str | os.PathLike[str],
    study: Study | None = None,
    deep: bool = False,
    *,
    only: Collection[str] | None = None,
) -> list[Finding]:
    """Every finding about a database or a part of one, in the order of its checks; an empty list is a flawless file.

    With `study` the file is compared with what the study asks for. With `deep` every stored digest is recomputed.
    `only` names the checks to report; the pass over features is made only where one of them needs it. Features
    are read once, in file order, in blocks of a few megabytes whatever the size of the file.

    Raises `DatabaseError` when there is no such file, it is not HDF5, or `only` names an unknown check; all else about
    a file's content is a finding.
    """
    wanted = set(CHECKS) if only is None else set(only)
    unknown = sorted(wanted - set(CHECKS))
    if unknown:
        raise DatabaseError(f"There are no checks {unknown}; docs/checks.md lists those there are.")
    with open_database(path) as database:
        return examine(database, study, deep, only=wanted).findings


def examine(
    database: Database,
    study: Study | None = None,
    deep: bool = False,
    *,
    only: Collection[str] = frozenset(CHECKS),
) -> Examination:
    """`validate_database` for a file that is open, giving also what was read and which rows are not sound."""
    wanted = set(only)
    unsound = np.empty(0, np.int64)
    report = Report()
    contents = read_contents(database, report)
    check_structure(contents, report)
    check_rows(contents, report)
    if wanted & TRACE_CHECKS:
        check_traces(contents, report)
    check_logit_parameters(contents, report)
    digests = deep and contents.feature_digest is not None and "feature_digest" in wanted
    if wanted & BULK_CHECKS or digests:
        unsound = check_values(contents, report, digests=digests)
    check_texts(contents, report)
    check_provenance(contents, report)
    if deep:
        check_digests(contents, report)
    if study is not None:
        check_study(contents, study, report)
    order = {name: place for place, name in enumerate(CHECKS)}
    findings = [finding for finding in report.findings if finding.check in wanted]
    return Examination(sorted(findings, key=lambda finding: order[finding.check]), contents, unsound)
