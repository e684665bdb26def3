"""Blocking checks across runs: a failure on the newest materialization of an asset stops what is downstream.

In Dagster itself, a failed blocking check stops only the steps of its own run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from ccassets.errors import BuildError
from ccassets.orchestration.dagster_internals import loaded_checks
from ccassets.orchestration.partitions import is_partitioned, splits_of
from ccassets.study.schema import Study

_EVALUATIONS_A_PARTITION = 20
"""How many evaluations of a check are looked through for each partition of its asset, newest first."""


@dataclass(frozen=True)
class FailedCheck:
    """A blocking check that failed on the newest materialization of an asset, or of one partition of it."""

    key: dg.AssetCheckKey
    partition: str | None
    description: str

    def __str__(self) -> str:
        asset = self.key.asset_key.to_user_string() + (f" ({self.partition})" if self.partition else "")
        return f"The check {self.key.name} of {asset} failed: {self.description}"


def failed_blocking_checks(
    instance: dg.DagsterInstance,
    parents: Mapping[dg.AssetKey, Sequence[str | None]],
    checks: Iterable[dg.AssetCheckKey],
    *,
    also_unlisted: bool = True,
) -> Iterator[FailedCheck]:
    """Find the failed blocking checks of assets.

    A check counts as failed if, for the newest materialization of an asset or a partition, its newest evaluation failed
    with severity error.

    Args:
        instance: The instance with the records.
        parents: The assets, each with its partitions, or with None alone.
        checks: Checks of the assets.
        also_unlisted: Look in the logs of the newest materializations for checks that ran with them, such as those of a
            project that are not among `checks`.

    Yields:
        Every check that failed, once for each partition.
    """
    newest: dict[int, str | None] = {}
    runs: set[str] = set()
    for key, partitions in parents.items():
        for partition in partitions:
            records = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
            for record in instance.fetch_materializations(records, limit=1).records:
                newest[record.storage_id] = partition
                runs.add(record.run_id)
    known = {key for key in checks if key.asset_key in parents}
    for run in filter(instance.has_run, runs if also_unlisted else ()):
        for entry in instance.all_logs(run, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
            ran = entry.get_dagster_event().asset_check_evaluation_data
            if ran.blocking and ran.asset_key in parents:
                known.add(ran.asset_check_key)
    for check in sorted(known):
        limit = _EVALUATIONS_A_PARTITION * len(parents[check.asset_key])
        evaluated: set[int] = set()
        for execution in instance.event_log_storage.get_asset_check_execution_history(check, limit=limit):
            evaluation = execution.evaluation
            if not isinstance(evaluation, dg.AssetCheckEvaluation):
                continue  # Only planned.
            target = evaluation.target_materialization_data
            if target is None or target.storage_id not in newest.keys() - evaluated:
                continue
            evaluated.add(target.storage_id)
            if evaluation.blocking and not evaluation.passed and evaluation.severity == dg.AssetCheckSeverity.ERROR:
                partition = newest[target.storage_id]
                yield FailedCheck(check, partition, evaluation.description or "it says no more")


def require_passed_checks(
    context: dg.AssetExecutionContext, study: Study, keys: Iterable[dg.AssetKey], splits: Sequence[str] = ()
) -> None:
    """Stop a step with a BuildError if a blocking check of an asset that it reads has failed.

    For assets by split, the checks of `splits` count, by default those of the run.
    """
    splits = splits or splits_of(context, study)
    by_split = is_partitioned(study)
    parents = {key: splits if by_split and key.path[-1] in ("images", "image_features") else [None] for key in keys}
    if failed := list(failed_blocking_checks(context.instance, parents, loaded_checks(context))):
        advice = "Fix what it found and run the check again, or materialize its asset again."
        raise BuildError("\n".join([*map(str, failed), advice]))
