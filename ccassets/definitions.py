"""The code location: every study that ships or is one's own, with the location-wide resources."""

from __future__ import annotations

import dagster as dg

from ccassets.orchestration.component import definitions_of
from ccassets.study.loading import load_study, study_files


@dg.definitions
def defs() -> dg.Definitions:
    return definitions_of(*(load_study(path) for path in study_files().values()))
