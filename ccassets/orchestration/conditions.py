"""Automation conditions: when an asset asks to be materialized, once its study's sensor is turned on."""

from __future__ import annotations

import dagster as dg
from dagster import AutomationCondition as When

from ccassets.orchestration.dagster_internals import stale_candidates

NIGHT = "0 3 * * *"


class Stale(dg.AutomationCondition[dg.AssetKey]):
    """Stale as the UI shows it, whenever it became so.

    Dagster's own `code_version_changed` and `data_version_changed` see only what changed since the sensor's last
    tick: what was stale before its switch was turned on would stay so.
    """

    @property
    def name(self) -> str:
        return "stale"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        return stale_candidates(context)


_night = When.cron_tick_passed(NIGHT)
_failed = When.execution_failed()
_due = Stale() | When.missing()
_upstream_is_there = ~When.any_deps_missing() & ~When.any_deps_in_progress()

# What failed is asked for again every night and when something upstream changes, not once a minute.
_once_more = _failed & (_night | When.any_deps_updated().since_last_handled())

REBUILD_STALE = (((_due & ~_failed) | (_due & _once_more)) & _upstream_is_there & ~When.in_progress()).with_label(
    "stale or missing, and everything upstream is there"
)

READ_SOURCES = ((_night | (_due & ~_failed)) & ~When.in_progress()).with_label(
    "every night, when the study changed, and when it was never read"
)
