"""Automation conditions: when an asset asks to be materialized, once its study's sensor is turned on."""

from __future__ import annotations

import dagster as dg
from dagster import AutomationCondition as When
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus

NIGHT = "0 3 * * *"


class Stale(dg.AutomationCondition[dg.AssetKey]):
    """Stale as the UI shows it, whenever it became so.

    Dagster's own `code_version_changed` and `data_version_changed` see only what changed since the sensor's last
    look: what was stale before its switch was turned on would stay so.
    """

    @property
    def name(self) -> str:
        return "stale"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        view = context.asset_graph_view
        resolver = CachingStaleStatusResolver(view.instance, view.asset_graph, view)
        candidates = context.candidate_subset.expensively_compute_asset_partitions()
        stale = {
            one for one in candidates if resolver.get_status(one.asset_key, one.partition_key) == StaleStatus.STALE
        }
        subset = view.get_asset_subset_from_asset_partitions(context.key, stale)
        return dg.AutomationResult(context, subset)


_night = When.cron_tick_passed(NIGHT)
_failed = When.execution_failed()
_wanted = Stale() | When.missing()
_upstream_is_there = ~When.any_deps_missing() & ~When.any_deps_in_progress()

# What failed is asked for again every night and when something upstream changes, not once a minute.
_once_more = _failed & (_night | When.any_deps_updated().since_last_handled())

REBUILD_STALE = (((_wanted & ~_failed) | (_wanted & _once_more)) & _upstream_is_there & ~When.in_progress()).with_label(
    "stale or missing, and everything upstream is there"
)

READ_SOURCES = ((_night | (_wanted & ~_failed)) & ~When.in_progress()).with_label(
    "every night, when the study changed, and when it was never read"
)
