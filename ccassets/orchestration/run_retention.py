"""Retention of runs: old runs of a home are forgotten, except those that lineage, checks and data versions rest on."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone

import dagster as dg

from ccassets.study.storage import home

_KEPT = 2
"""The newest events of each kind that are kept for an asset, a split or a check: some checks compare the last two."""

_INPUT_TAG = "dagster/input_event_pointer/"
"""Begins the tags of a materialization that give, for an asset it was made from, the event that was the newest then."""

_PAGE = 1000

_OTHER_KINDS = {
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED,
}

Records = Sequence[dg.EventLogRecord]


def forget_old_runs(instance: dg.DagsterInstance, days: int, *, dry_run: bool = False) -> list[str]:
    """Delete runs that ended more than so many days ago, with their events and the output of their steps.

    A run is kept if it holds one of the last two materializations, observations or check evaluations of an asset or a
    partition, or an input of such a materialization. Staleness, data versions and checks therefore do not change.

    Args:
        instance: The instance of a home.
        days: The age in days.
        dry_run: Delete nothing.

    Returns:
        The ids of the runs, the oldest first.
    """
    runs = instance.get_run_records(ascending=True)
    oldest_kept = (datetime.now(timezone.utc) - timedelta(days=days)).timestamp()
    needed = _runs_of_assets(instance) | _runs_of_checks(instance, [record.dagster_run.run_id for record in runs])
    forgotten = [
        record.dagster_run.run_id
        for record in runs
        if record.dagster_run.is_finished
        and (record.end_time or 0) < oldest_kept
        and record.dagster_run.run_id not in needed
    ]
    for run_id in forgotten if not dry_run else ():
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        (home() / "history" / "runs" / f"{run_id}.db").unlink(missing_ok=True)  # Dagster empties it and leaves it.
    return forgotten


def _runs_of_assets(instance: dg.DagsterInstance) -> set[str]:
    """The runs with the newest events of every asset and partition, and with the events those were made from."""
    events = {
        key: [_all_records(fetch, key) for fetch in (instance.fetch_materializations, instance.fetch_observations)]
        for key in instance.get_asset_keys()
    }
    kept = [record for kinds in events.values() for records in kinds for record in _newest(records, _KEPT)]
    # Of an input with partitions Dagster compares the data version of then, which only the event itself holds.
    used = [
        record
        for key, event in {pair for record in kept for pair in _inputs(record)}
        for records in events.get(key, ())
        for record in _newest((record for record in records if record.storage_id <= event), 1)
    ]
    return {record.run_id for record in [*kept, *used]}


def _all_records(fetch: Callable[..., dg.EventRecordsResult], key: dg.AssetKey) -> Records:
    """Every event of an asset, the newest first."""
    records: list[dg.EventLogRecord] = []
    page = fetch(key, limit=_PAGE)
    records += page.records
    while page.has_more:
        page = fetch(key, limit=_PAGE, cursor=page.cursor)
        records += page.records
    return records


def _newest(records: Iterable[dg.EventLogRecord], count: int) -> Iterator[dg.EventLogRecord]:
    """The first records of every partition."""
    seen: dict[str | None, int] = {}
    for record in records:
        seen[record.partition_key] = seen.get(record.partition_key, 0) + 1
        if seen[record.partition_key] <= count:
            yield record


def _inputs(record: dg.EventLogRecord) -> Iterator[tuple[dg.AssetKey, int]]:
    """The assets that a materialization was made from, each with its newest event then."""
    tags: Mapping[str, str] = (record.asset_materialization and record.asset_materialization.tags) or {}
    for name, value in tags.items():
        if name.startswith(_INPUT_TAG) and value.isdigit():
            yield dg.AssetKey.from_user_string(name.removeprefix(_INPUT_TAG)), int(value)


def _runs_of_checks(instance: dg.DagsterInstance, run_ids: Iterable[str]) -> set[str]:
    """The runs with the newest evaluations of every check, and with the newest attempts at every asset and check."""
    newest: dict[Hashable, list[tuple[float, str]]] = {}
    for run_id in run_ids:
        for subject, time in _other_events(instance, run_id):
            newest[subject] = sorted([*newest.get(subject, ()), (time, run_id)], reverse=True)[:_KEPT]
    return {run_id for events in newest.values() for _, run_id in events}


def _other_events(instance: dg.DagsterInstance, run_id: str) -> Iterator[tuple[Hashable, float]]:
    """The check evaluations and the attempts of a run: the check or asset of each, and its time."""
    for entry in instance.all_logs(run_id, of_type=_OTHER_KINDS):
        event = entry.dagster_event
        assert event is not None  # Of these kinds.
        if (evaluation := entry.asset_check_evaluation) is not None:
            yield (evaluation.asset_check_key, evaluation.partition), entry.timestamp
        elif event.event_type == dg.DagsterEventType.ASSET_CHECK_EVALUATION_PLANNED:
            yield event.asset_check_planned_data.asset_check_key, entry.timestamp
        else:
            yield (event.asset_key, event.partition), entry.timestamp
