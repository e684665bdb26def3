"""The one module with private names of Dagster, each with the public interface that is missing.

`ccassets_tests/orchestration/test_dagster_internals.py` names what breaks when another release of Dagster moves them.
Definitions load with this module: code that only runs need, with SQLAlchemy and Alembic, is imported where it is used.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster._check import CheckError
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

# Missing: the graph of assets that a backfill wants.
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

# Missing: a public call for the staleness that the UI shows. `dagster_graphql` has it, behind a workspace; the public
# conditions `code_version_changed` and `data_version_changed` see only what changed since their last evaluation.
from dagster._core.definitions.data_version import (
    CachingStaleStatusResolver as CachingStaleStatusResolver,
    StaleStatus as StaleStatus,
)
from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION

# Missing: the type of what the public `define_asset_job` returns; for annotations only.
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition
from dagster._core.execution.api import execute_run
from dagster._core.execution.execution_result import ExecutionResult as ExecutionResult

# Missing: the versions of what a step read, and a result or a check result of one partition of a run that has several.
from dagster._core.execution.plan.execute_step import (
    _build_data_version_tags,
    _get_code_version,
    _get_input_provenance_data,
)

# Missing: a public object that holds the records of many assets for the resolver, which demands one; the public
# `get_asset_records` fetches them for us alone, and the resolver fetches each of them again.
from dagster._core.loader import LoadingContext
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._serdes import ConfigurableClassData as ConfigurableClassData

if TYPE_CHECKING:
    from dagster._core.storage.event_log.base import AssetEntry
    from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager as LocalComputeLogManager

Job = dg.JobDefinition | UnresolvedAssetJobDefinition


def __getattr__(name: str) -> Any:
    # Missing: a public module of the log manager that Dagster uses by itself, which has no folder relative to the home.
    if name == "LocalComputeLogManager":
        from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager

        return LocalComputeLogManager
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _Loaders(LoadingContext):
    """The records that were read of an instance."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self._instance = instance
        self._loaders: dict[type, Any] = {}

    @property
    def instance(self) -> dg.DagsterInstance:
        return self._instance

    @property
    def loaders(self) -> dict[type, Any]:
        return self._loaders


class AssetRecords:
    """Dagster's records of the assets of a repository, read when first asked for and never again."""

    def __init__(self, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> None:
        from dagster._core.storage.event_log.base import AssetRecord

        graph = repository.asset_graph
        self._records = AssetRecord
        self._loaders = _Loaders(instance)
        AssetRecord.prepare(self._loaders, graph.materializable_asset_keys)  # One query for all of them.
        self._resolver = CachingStaleStatusResolver(instance, graph, self._loaders)

    def stale_status(self, key: dg.AssetKey, split: str | None = None) -> StaleStatus:
        """The staleness of an asset, or of one split of it, as the UI shows it."""
        return self._resolver.get_status(key, split)

    def entry(self, key: dg.AssetKey) -> AssetEntry | None:
        """The last run and the last materialization of an asset; None where it never ran."""
        record = self._records.blocking_get(self._loaders, key)
        return record.asset_entry if record else None


def loaded_checks(context: dg.AssetExecutionContext) -> Collection[dg.AssetCheckKey]:
    """The checks of the definitions that a step was loaded with; none where a job runs without its definitions."""
    # Missing: a public way to ask whether a step has a repository; `repository_def` raises this where it has none.
    try:
        return context.repository_def.asset_graph.asset_check_keys
    except CheckError:
        return ()


def partition_materialization(
    context: dg.AssetExecutionContext, partition: str, result: dg.MaterializeResult[None]
) -> dg.AssetMaterialization:
    """What a run of several partitions records of one of them: its own result and data version."""
    # Missing: a result of one partition; Dagster records one data version for all partitions of a run.
    step, key = context.get_step_execution_context(), context.asset_key
    assert result.data_version is not None
    inputs = _get_input_provenance_data(key, step)
    tags = _build_data_version_tags(result.data_version, _get_code_version(key, step), inputs, True)
    return dg.AssetMaterialization(key, partition=partition, metadata=result.metadata, tags=tags)


def recorded_result() -> dg.MaterializeResult[None]:
    """The result of an asset's step that recorded its partitions itself, so that downstream steps continue."""
    # Missing: an output without a materialization. Dagster gives it to the sources that it observes by itself.
    return dg.MaterializeResult(metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def check_evaluation(
    context: dg.AssetCheckExecutionContext | dg.AssetExecutionContext,
    spec: dg.AssetCheckSpec,
    partition: str | None,
    result: dg.AssetCheckResult,
) -> dg.AssetCheckEvaluation:
    """What a step records of a check by itself: of a partition, or of an asset of another step."""
    # Missing: a check result of one partition.
    records = dg.AssetRecordsFilter(spec.asset_key, [partition] if partition else None)
    targets = [
        AssetCheckEvaluationTargetMaterializationData(
            storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp
        )
        for record in context.instance.fetch_materializations(records, limit=1).records
    ]
    return dg.AssetCheckEvaluation(
        asset_key=spec.asset_key,
        check_name=spec.name,
        passed=result.passed,
        metadata=result.metadata,
        target_materialization_data=next(iter(targets), None),
        severity=result.severity,
        description=result.description,
        blocking=spec.blocking,
        partition=partition,
    )


def filter_candidates(
    context: dg.AutomationContext[dg.AssetKey], accept: Callable[[str | None], bool]
) -> dg.AutomationResult[dg.AssetKey]:
    """Keep the candidates of an automation condition, partitions or the one asset, that are accepted."""
    candidates = context.candidate_subset.expensively_compute_asset_partitions()
    accepted = {candidate for candidate in candidates if accept(candidate.partition_key)}
    subset = context.asset_graph_view.get_asset_subset_from_asset_partitions(context.key, accepted)
    return dg.AutomationResult(context, subset)


def stale_candidates(context: dg.AutomationContext[dg.AssetKey]) -> dg.AutomationResult[dg.AssetKey]:
    """Keep the candidates of an automation condition that the UI shows as stale."""
    view = context.asset_graph_view
    resolver = CachingStaleStatusResolver(view.instance, view.asset_graph, view)
    return filter_candidates(
        context, lambda partition: resolver.get_status(context.key, partition) == StaleStatus.STALE
    )


class _LoadedJob(InMemoryJob):
    """A job whose steps have access to the definitions of its repository."""

    def __init__(self, job: dg.JobDefinition, repository: dg.RepositoryDefinition) -> None:
        super().__init__(job)
        self._repository = repository

    def get_repository_definition(self) -> dg.RepositoryDefinition:
        return self._repository

    def get_subset(self, **_: Any) -> _LoadedJob:
        return self  # It is one already.


def execute_job(
    repository: dg.RepositoryDefinition,
    name: str,
    instance: dg.DagsterInstance,
    *,
    location: str,
    assets: Sequence[dg.AssetKey],
    run_config: Mapping[str, Any],
    run_id: str,
    tags: Mapping[str, str],
) -> ExecutionResult:
    """Run assets of a job in this process, as a run of the code location that the UI shows.

    Args:
        repository: The definitions that hold the job.
        name: The name of the job.
        instance: The instance that records the run.
        location: The name under which the UI has the definitions.
        assets: The assets that are materialized.
        run_config: The configuration of the run.
        run_id: The id of the run.
        tags: The tags of the run; that of its partition is one of them.

    Returns:
        What happened; a step that failed raises nothing.
    """
    # Missing: a public run in this process that has an origin; the timeline of the UI leaves out what has none.
    job = repository.get_job(name).get_subset(asset_selection=set(assets))
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(location), repository.name).get_job_origin(name)
    run = instance.create_run_for_job(
        job, run_id=run_id, run_config=run_config, tags=tags, asset_selection=set(assets), remote_job_origin=origin
    )
    return execute_run(_LoadedJob(job, repository), run, instance)


def start_backfill(
    instance: dg.DagsterInstance, assets: Sequence[dg.AssetsDefinition], *, title: str, tags: Mapping[str, str]
) -> str:
    """Have the daemon materialize assets, with all their partitions, as *Materialize all* does.

    Args:
        instance: The instance whose daemon starts the runs.
        assets: The assets.
        title: What the UI calls the backfill.
        tags: The tags of all its runs.

    Returns:
        The id of the backfill.
    """
    # Missing: a public call that starts a backfill; the webserver has it, behind GraphQL.
    from dagster._core.execution.backfill import PartitionBackfill

    graph = AssetGraph.from_assets(assets)
    backfill = PartitionBackfill.from_asset_partitions(
        backfill_id=uuid.uuid4().hex[:8],
        asset_graph=graph,
        partition_names=None,
        asset_selection=sorted(graph.materializable_asset_keys),
        backfill_timestamp=time.time(),
        tags=tags,
        dynamic_partitions_store=instance,
        all_partitions=True,
        title=title,
        description=None,
        run_config=None,
    )
    instance.add_backfill(backfill)
    return backfill.backfill_id


@contextmanager
def webserver_app(instance: dg.DagsterInstance, workspace: Path) -> Iterator[Callable[..., Awaitable[None]]]:
    """Give Dagster's webserver as an ASGI application, as long as the block lasts.

    Args:
        instance: The instance that it shows.
        workspace: A workspace.yaml whose code servers answer already.
    """
    # Missing: a public way to the application itself; the command `dagster-webserver` serves it, but wraps it in
    # nothing. Imported here: only the UI needs a webserver.
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.version import __version__

    # The values of that command.
    instance.optimize_for_webserver(statement_timeout=15_000, pool_recycle=3600, max_overflow=20)
    with WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace)]), version=__version__) as process:
        yield create_app_from_workspace_process_context(process, live_data_poll_rate=2000)


def rename_location(instance: dg.DagsterInstance, old: str, new: str) -> list[str]:
    """Give the sensors and schedules of a code location the switches and cursors that they had under its old name.

    A sensor or schedule that was switched on or off under the new name is left alone.

    Args:
        instance: The instance whose records are changed.
        old: The name of the code location until now.
        new: The name of the code location from now on.

    Returns:
        The names of the sensors and schedules that are on now because they were on under the old name.
    """
    # Missing: a public call that renames a location; a sensor that is started anew would begin without its cursor.
    states = instance.all_instigator_state()
    known = {state.selector_id for state in states}
    switched_on = []
    for state in states:
        repository: Any = state.origin.repository_origin
        location = repository.code_location_origin
        if location.location_name != old:
            continue
        renamed_repository = repository._replace(code_location_origin=location._replace(location_name=new))
        renamed = state._replace(origin=state.origin._replace(repository_origin=renamed_repository))
        if renamed.selector_id not in known:
            instance.add_instigator_state(renamed)
            if state.is_running:
                switched_on.append(state.name)
        instance.delete_instigator_state(state.instigator_origin_id, state.selector_id)
    return switched_on
