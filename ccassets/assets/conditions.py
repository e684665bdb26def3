"""Automation conditions: when an asset asks to be materialized, once its study's sensor is turned on."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster import AutomationCondition as When

NIGHT = "0 3 * * *"

_night = When.cron_tick_passed(NIGHT)
_failed = When.execution_failed()
_idle = ~When.in_progress()
_study_changed: dg.AutomationCondition[Any] = When.code_version_changed()
_upstream_changed: dg.AutomationCondition[Any] = When.any_deps_match(When.data_version_changed())

# `eager()` never asks for an asset that is missing when its sensor is first turned on; this does. What failed is
# asked for again when something it depends on changes, and once every night.
_stale = (_upstream_changed | _study_changed).since_last_handled() | (When.missing() & ~_failed) | (_failed & _night)
_ready = ~When.any_deps_missing() & ~When.any_deps_in_progress()

REBUILD_STALE = (_stale & _ready & _idle).with_label("stale, and everything upstream is there")

_never_read = When.missing() & ~_failed
READ_SOURCES = ((_night | _study_changed.since_last_handled() | _never_read) & _idle).with_label(
    "every night, when the study changed, and when it was never read"
)
