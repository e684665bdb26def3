"""The runs of one build, in the order of the study's graph, leaving out what is fresh."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.errors import AbsentDataError, BuildError, InterruptedBuildError
from ccassets.extraction import plan_study
from ccassets.extraction.data_loss import require_no_loss
from ccassets.extraction.sources import (
    changed_splits,
    current_identity,
    recorded_card,
    recorded_identity,
    recorded_manifest,
    require_own_folder,
)
from ccassets.extraction.text_extraction import missing_templates
from ccassets.orchestration.missing_files import missing_database, missing_pages
from ccassets.orchestration.names import BUILD, STARTED_BY, asset_key, job_name
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import EncoderResource
from ccassets.orchestration.run_locks import hold_run_lock, watch_for_dead_runs
from ccassets.orchestration.status import StatusSnapshot
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass
class BuildResult:
    """The database's path, and what was materialized, in order, as `asset:split`; nothing if all was fresh.

    `notices` are sentences on what could not be read or made although the database is what it should be.
    """

    path: Path | None
    materialized: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


class Build:
    """One build: before every step Dagster's records say what is stale, and the library what is really there."""

    def __init__(
        self,
        study: Study,
        repository: dg.RepositoryDefinition,
        instance: dg.DagsterInstance,
        *,
        store: Store,
        encoder: EncoderResource,
        fresh: bool,
        allow_loss: bool = False,
        started_by: str = BUILD,
    ) -> None:
        self.study = study
        self.repository = repository
        self.instance = instance
        self.store = store
        self.encoder = encoder
        self.fresh = fresh
        self.allow_loss = allow_loss
        self.started_by = started_by
        self.materialized: list[str] = []
        self.notices: list[str] = []
        self._snapshot: StatusSnapshot | None = None

    def run(self, splits: Sequence[str] | None) -> BuildResult:
        """Build the study, or with `splits` no more than their features and all texts."""
        require_own_folder(self.study, self.store)
        chosen = tuple(splits or self.study.splits)
        with watch_for_dead_runs(self.instance, self.store.runs):
            self._sources(chosen)
            self._text()
            self._images(chosen, replaces_database=not splits)
            if splits:
                return BuildResult(None, self.materialized, self.notices)
            self._database()
            self._analyses()
            return BuildResult(self.store.database, self.materialized, self.notices)

    def _sources(self, splits: Sequence[str]) -> None:
        encoder = self.encoder
        identity = current_identity(self.study, self.store, device=encoder.device, hf_token=encoder.hf_token)
        if identity != recorded_identity(self.store) or self._is_stale("encoder"):
            self._run("read_encoder", ["encoder"])
        try:
            changed = changed_splits(self.study, self.store, splits)
        except AbsentDataError as error:
            key = asset_key(self.study, "images")
            if not all(self._status().is_fresh(key, split) for split in self._runs_of(splits)):
                raise
            # What was read of them is there: words, database and most analyses do without the images.
            self.notices.append(f"{error} What was read of its images before is used.")
            return
        for split in self._runs_of(splits):
            if split in changed or (split is None and changed) or self._is_stale("images", split=split):
                self._run("read_images", ["images"], split=split)

    def _text(self) -> None:
        missing = missing_templates(self.study, recorded_card(self.study, self.store), self.store)
        stale = [
            f"template_features/{template_id}"
            for template_id in self.study.vocabulary.templates()
            if self.fresh or template_id in missing or self._is_stale("template_features", template_id)
        ]
        if stale:
            self._run("extract_text", stale, {asset: {"fresh": self.fresh} for asset in stale})

    def _images(self, splits: Sequence[str], *, replaces_database: bool) -> None:
        plan = plan_study(self.study, splits, store=self.store, fresh=self.fresh)
        if plan.to_encode and replaces_database and not self.allow_loss:
            self._require_no_loss()
        to_encode = {part.split: part.to_encode for part in plan.images}
        for split in self._runs_of(splits):
            names = [split] if split else list(splits)
            if self._is_stale("image_features", split=split) or any(to_encode[name] for name in names):
                self._run("extract_images", ["image_features"], {"image_features": {"fresh": self.fresh}}, split)

    def _require_no_loss(self) -> None:
        """Refuse before anything is encoded what the database would refuse at the end."""
        identity = recorded_card(self.study, self.store).identity
        manifests = [recorded_manifest(self.study, split, self.store) for split in self.study.splits]
        require_no_loss(self.study, self.store, self.store.database, identity, manifests)

    def _database(self) -> None:
        if self.fresh or self._is_stale("feature_database") or missing_database(self.store):
            options = {"fresh": self.fresh, "allow_loss": self.allow_loss}
            self._run("build_database", ["feature_database", "validation_report"], {"feature_database": options})
        elif self._is_stale("validation_report") or "validation_report" in missing_pages(self.study, self.store):
            self._run("build_database", ["validation_report"])

    def _analyses(self) -> None:
        names, missing = available_analyses(self.study), missing_pages(self.study, self.store)
        stale = [name for name in names if self.fresh or self._is_stale(name) or name in missing]
        if not stale:
            return
        # The atlas, last of them, shows the results of the others.
        selected = list(dict.fromkeys([*stale, *names[-1:]]))
        try:
            self._run("analyse", selected)
        except InterruptedBuildError:
            raise
        except BuildError as error:
            unfinished = [name for name in selected if name not in self.materialized]
            self.notices.append(f"The database is finished, but not {', '.join(unfinished)}: {error}")

    def _runs_of(self, splits: Sequence[str]) -> Sequence[str | None]:
        """One run for every split, or one for all where the study has no partitions."""
        return list(splits) if is_partitioned(self.study) else [None]

    def _is_stale(self, *parts: str, split: str | None = None) -> bool:
        """Whether Dagster calls an asset (or a partition of it) stale or missing, as the UI shows it."""
        return self._status().state(asset_key(self.study, *parts), split) != "built"

    def _status(self) -> StatusSnapshot:
        self._snapshot = self._snapshot or StatusSnapshot(self.instance, self.repository)
        return self._snapshot

    def _run(
        self,
        job: str,
        assets: Sequence[str],
        options: Mapping[str, Mapping[str, bool]] | None = None,
        split: str | None = None,
    ) -> None:
        """Run assets of a job, with the options of those that have any."""
        keys = [asset_key(self.study, asset) for asset in assets]
        config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        if options:
            config["ops"] = {
                asset_key(self.study, asset).to_python_identifier(): {"config": dict(chosen)}
                for asset, chosen in options.items()
            }
        run_id = str(uuid.uuid4())
        self._snapshot = None  # It is out of date now.
        with hold_run_lock(self.store.runs, run_id):
            result = self.repository.get_job(job_name(self.study, job)).execute_in_process(
                instance=self.instance,
                asset_selection=keys,
                partition_key=split,
                run_config=config,
                run_id=run_id,
                raise_on_error=False,
                tags={STARTED_BY: self.started_by},
            )
        made = {event.asset_key for event in result.get_asset_materialization_events()}
        self.materialized += [
            f"{asset}:{split}" if split else asset for asset, key in zip(assets, keys, strict=True) if key in made
        ]
        if not result.success:
            raise _failure(result)


def _failure(result: dg.ExecuteInProcessResult) -> BuildError:
    """What ended a run, with the sentence of the step or the check that failed."""
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
