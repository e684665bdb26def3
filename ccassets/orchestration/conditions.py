"""Automation conditions: when an asset asks to be materialized, once its study's sensor is turned on."""

from __future__ import annotations

import dagster as dg
from dagster import AutomationCondition as When

from ccassets.orchestration.blocking import failed_blocking_checks
from ccassets.orchestration.dagster_internals import filter_candidates, stale_candidates
from ccassets.study.schema import Study

NIGHT = "0 3 * * *"


class Stale(dg.AutomationCondition[dg.AssetKey]):
    """Whether an asset is stale as the UI shows it, no matter when it became stale.

    Dagster's own `code_version_changed` and `data_version_changed` see only changes since the sensor's last tick: an
    asset that was stale before the sensor was switched on would stay stale.
    """

    @property
    def name(self) -> str:
        return "stale"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        return stale_candidates(context)


class Blocked(dg.AutomationCondition[dg.AssetKey]):
    """Whether an upstream asset has a failed blocking check.

    Dagster's own `all_deps_blocking_checks_passed` also blocks assets whose upstream was never checked or only has a
    warning; a run of Dagster stops for neither.
    """

    @property
    def name(self) -> str:
        return "blocked by a failed check"

    def evaluate(self, context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
        graph, instance = context.asset_graph, context.asset_graph_view.instance
        parents = [graph.get(key) for key in graph.get(context.key).parent_keys]
        checks = [key for key in graph.asset_check_keys if graph.get(key).blocking]

        def is_blocked(partition: str | None) -> bool:
            read = {
                parent.key: [partition]
                if partition or parent.partitions_def is None
                else parent.partitions_def.get_partition_keys()
                for parent in parents
            }
            return any(failed_blocking_checks(instance, read, checks))

        return filter_candidates(context, is_blocked)


_due = Stale() | When.missing()
_UNATTENDED = "no run of it is in progress, and it did not just fail"
_REBUILD_LABEL = "stale or missing, and everything upstream exists"


def _unattended(study: Study) -> dg.AutomationCondition[dg.AssetKey]:
    # What failed is asked for again every night and when something upstream changes, not once a minute.
    waits = When.execution_failed() & ~_night(study) & ~When.any_deps_updated().since_last_handled()
    return (~waits & ~When.in_progress() & ~When.any_deps_in_progress()).with_label(_UNATTENDED)


def _night(study: Study) -> dg.AutomationCondition[dg.AssetKey]:
    return When.cron_tick_passed(NIGHT, study.timezone)


def rebuild_stale(study: Study) -> dg.AutomationCondition[dg.AssetKey]:
    """The condition of features, database and analyses."""
    return (_due & _unattended(study) & ~When.any_deps_missing() & ~Blocked()).with_label(_REBUILD_LABEL)


def report_stale(study: Study) -> dg.AutomationCondition[dg.AssetKey]:
    """The condition of the validation report, which is made even if the database failed its checks."""
    return (_due & _unattended(study) & ~When.any_deps_missing()).with_label(_REBUILD_LABEL)


def read_sources(study: Study) -> dg.AutomationCondition[dg.AssetKey]:
    """The condition of images and encoder."""
    night = _night(study) & ~When.in_progress()
    return (night | (_due & _unattended(study))).with_label(
        "every night, when the study changed, and when it was never read"
    )


def attended(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The condition of `ccassets build`, where a user waits: failed assets are requested at once."""
    condition = spec.automation_condition
    return spec.replace_attributes(automation_condition=condition and condition.replace(_UNATTENDED, _due))
