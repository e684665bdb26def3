"""The runs of one build, stage by stage: what the automation condition requests, and what is lost."""

from __future__ import annotations

import uuid
from collections.abc import Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.errors import AbsentDataError, BuildError, InterruptedBuildError
from ccassets.extraction import plan_study
from ccassets.extraction.data_loss import require_no_loss
from ccassets.extraction.sources import recorded_card, recorded_manifest, require_own_folder
from ccassets.orchestration.assets import study_assets
from ccassets.orchestration.blocking import failed_blocking_checks
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.conditions import attended
from ccassets.orchestration.dagster_internals import ExecutionResult, execute_job
from ccassets.orchestration.jobs import JobRun, asset_names, first_runs, join_splits
from ccassets.orchestration.names import BUILD, CODE_LOCATION, FRESH, STARTED_BY, asset_key, asset_name, job_name
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import hold_run_lock, watch_for_dead_runs
from ccassets.orchestration.status import StatusSnapshot, changed_encoder, changed_images, lost_assets
from ccassets.study.schema import Study


@dataclass
class BuildResult:
    """The result of a build.

    Attributes:
        path: The path of the database; None where only features of splits were made.
        materialized: What was materialized, in order, as `asset` or `asset:split`; empty if all was fresh.
        notices: Sentences on what could not be read or made although the database is what it should be.
    """

    path: Path | None
    materialized: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Build:
    """One build. Before every stage it evaluates the automation condition, and looks for lost files on the disk."""

    def __init__(
        self,
        study: Study,
        instance: dg.DagsterInstance,
        *,
        store: StoreResource,
        encoder: EncoderResource,
        fresh: bool,
        allow_loss: bool,
    ) -> None:
        self.study = study
        self.instance = instance
        self.store = store.of(study)
        self.encoder = encoder
        self.fresh = fresh
        self.allow_loss = allow_loss
        definitions = definitions_of(study, store=store, encoder=encoder)
        self._repository = definitions.get_repository_def()
        self._conditions = dg.Definitions(
            assets=[asset.map_asset_specs(attended) for asset in study_assets(study)],
            asset_checks=definitions.asset_checks,
            resources=definitions.resources,
        )
        self._result = BuildResult(None)
        self._attempted: set[str] = set()

    def run(self, splits: Sequence[str]) -> BuildResult:
        """Build the study, or with `splits` no more than their features and all texts."""
        require_own_folder(self.study, self.store)
        names = [name for name in asset_names(self.study) if not splits or _is_of_splits(name, splits)]
        with watch_for_dead_runs(self.instance, self.store.runs):
            failed = self._failed_checks()  # A check that fails from now on ends the build.
            due = self._changed_sources(splits or self.study.splits)
            while due or (due := self._due(names, failed)):
                for run in join_splits(self.study, first_runs(due)):
                    if run.job == "extract_images" and not splits:
                        self._require_no_loss()
                    self._materialize(run)
                due = []
        self._result.path = None if splits else self.store.database
        return self._result

    def _changed_sources(self, splits: Sequence[str]) -> list[str]:
        changed = changed_encoder(self.study, self.store, self.encoder)
        try:
            changed |= changed_images(self.study, self.store, splits)
        except AbsentDataError as error:
            snapshot, key = self._snapshot(), asset_key(self.study, "images")
            read = splits if is_partitioned(self.study) else [None]
            if not all(snapshot.is_fresh(key, split) for split in read):
                raise
            # What was read of them is there: words, database and most analyses do without the images.
            self._result.notices.append(f"{error} The last reading of its images is used.")
        return list(changed)

    def _due(self, names: Sequence[str], failed: Set[str]) -> list[str]:
        """The assets that have to run, each at most once in a build."""
        snapshot = self._snapshot()
        due = self._requested() | lost_assets(snapshot, self.study, self.store).keys() | failed
        if self.fresh:
            due |= {name for name in names if not name.startswith(("encoder", "images:"))} - {"images"}
        for pages in (["feature_database", "validation_report"], available_analyses(self.study)):
            if due.intersection(pages):  # The last of them shows what the others hold.
                due.add(pages[-1])
        names = [name for name in names if name not in self._attempted]
        # What the condition holds back says itself why, when it is run.
        return [name for name in names if name in due] or [name for name in names if not self._is_built(snapshot, name)]

    def _requested(self) -> set[str]:
        """What the automation condition asks for."""
        # In a thread of its own: Dagster starts an event loop there, and a notebook already runs one in this thread.
        with ThreadPoolExecutor(1) as thread:
            result = thread.submit(
                dg.evaluate_automation_conditions, self._conditions, self.instance, dg.AssetSelection.all()
            ).result()
        keys = self._repository.asset_graph.materializable_asset_keys
        return {asset_name(key, split) for key in keys for split in result.get_requested_partitions(key)}

    def _failed_checks(self) -> set[str]:
        """Assets that failed one of our blocking checks: they are made again, since the cause may be gone."""
        graph = self._repository.asset_graph
        nodes = [graph.get(key) for key in graph.materializable_asset_keys]
        assets = {
            node.key: node.partitions_def.get_partition_keys() if node.partitions_def else [None] for node in nodes
        }
        failed = failed_blocking_checks(self.instance, assets, graph.asset_check_keys, also_unlisted=False)
        return {asset_name(check.key.asset_key, check.partition) for check in failed if graph.has(check.key)}

    def _is_built(self, snapshot: StatusSnapshot, name: str) -> bool:
        asset, _, split = name.partition(":")
        return snapshot.state(asset_key(self.study, asset), split or None) == "built"

    def _snapshot(self) -> StatusSnapshot:
        return StatusSnapshot(self.instance, self._repository)

    def _require_no_loss(self) -> None:
        """Check before anything is encoded whether the database would refuse a loss at the end."""
        if self.allow_loss or not plan_study(self.study, store=self.store, fresh=self.fresh).to_encode:
            return
        identity = recorded_card(self.study, self.store).identity
        manifests = [recorded_manifest(self.study, split, self.store) for split in self.study.splits]
        require_no_loss(self.study, self.store, self.store.database, identity, manifests)

    def _materialize(self, run: JobRun) -> None:
        """Run a job; where only analyses cannot be made, a notice says so."""
        names = [f"{asset}:{split}" if split else asset for asset in run.assets for split in run.splits or ("",)]
        self._attempted.update(names)
        result = self._execute(run)
        events = result.get_asset_materialization_events()
        made = {asset_name(event.asset_key, event.partition) for event in events if event.asset_key}
        unfinished = [name for name in names if name not in made]
        self._result.materialized += [name for name in names if name in made]
        if result.success:
            return
        failure = _failure(result)
        if run.job != "analyse" or isinstance(failure, InterruptedBuildError):
            raise failure
        self._result.notices.append(f"The database is finished, but not {', '.join(unfinished)}: {failure}")

    def _execute(self, run: JobRun) -> ExecutionResult:
        keys = [asset_key(self.study, asset) for asset in run.assets]
        config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        if self.allow_loss and run.job == "build_database":
            step = asset_key(self.study, "feature_database").to_python_identifier()
            config["ops"] = {step: {"config": {"allow_loss": True}}}
        tags = {STARTED_BY: BUILD, **run.tags}
        if self.fresh:
            tags[FRESH] = "true"
        run_id = str(uuid.uuid4())
        with hold_run_lock(self.store.runs, run_id):
            return execute_job(
                self._repository,
                job_name(self.study, run.job),
                self.instance,
                location=CODE_LOCATION,
                assets=keys,
                run_config=config,
                run_id=run_id,
                tags=tags,
            )


def _is_of_splits(name: str, splits: Sequence[str]) -> bool:
    """Whether a build that stops after the features of splits makes an asset."""
    asset, _, split = name.partition(":")
    kind = asset.partition("/")[0]
    return kind in {"encoder", "template_features", "images", "image_features"} and (not split or split in splits)


def _failure(result: ExecutionResult) -> BuildError:
    """The error that ended a run, with the message of the step or check that failed."""
    for check in result.get_asset_check_evaluations():
        if not check.passed and check.blocking and check.severity == dg.AssetCheckSeverity.ERROR:
            key = check.asset_key.to_user_string()
            return BuildError(f"The check {check.check_name} of {key} failed. {check.description}")
    for event in result.all_events:
        if event.is_step_failure:
            failure = event.step_failure_data
            if failure.user_failure_data and failure.user_failure_data.description:
                return BuildError(failure.user_failure_data.description)
            error = failure.error
            while error is not None and error.cause is not None:
                error = error.cause
            if error and error.cls_name == "DagsterExecutionInterruptedError":
                return InterruptedBuildError(
                    f"{event.step_key} was interrupted. What was finished until then is kept: build again to go on."
                )
            reason = error.message.strip() if error else "no reason was recorded"
            return BuildError(f"{event.step_key} failed: {reason}")
    return BuildError(f"The run {result.run_id} failed; `ccassets ui` shows its log.")
