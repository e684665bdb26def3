"""What `ccassets doctor` says, asked as the command line does."""

from __future__ import annotations

from ccassets.orchestration.dagster_diagnoses import diagnose_home, diagnose_records
from ccassets.study.schema import Study
from ccassets.tools.doctor import Diagnosis, diagnose


def doctor_lines(study: Study | None = None, *, deep: bool = False) -> list[Diagnosis]:
    return diagnose(study, deep=deep, diagnose_home=diagnose_home, diagnose_records=diagnose_records)
