"""What `ccassets build` does: the runs of a study in the order of its graph, leaving out what is fresh."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.definitions import definitions_of
from ccassets.errors import AbsentDataError, BuildError, InterruptedBuildError
from ccassets.extraction import assemble_database, plan_study
from ccassets.extraction.sources import changed_splits, current_identity, recorded_card, recorded_identity
from ccassets.extraction.text_extraction import missing_templates
from ccassets.orchestration.assets.common import (
    BUILD,
    STARTED_BY,
    Listener,
    asset_key,
    is_partitioned,
    progress_listener,
)
from ccassets.orchestration.jobs import job_name
from ccassets.orchestration.missing_files import absent_database, absent_pages
from ccassets.orchestration.resources import EncoderResource
from ccassets.orchestration.run_locks import alive, settling
from ccassets.orchestration.status import Look, dagster_instance
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass
class BuildResult:
    """The database's path, and what was materialized, in order, as `asset:split`; nothing if all was fresh.

    `notices` are sentences on what could not be looked at or made although the database is what it should be.
    """

    path: Path | None
    materialized: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def build(
    study: Study | str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    fresh: bool = False,
    output: Path | None = None,
    listener: Listener | None = None,
) -> Path | None:
    """Materialize a study through Dagster and give the path of its database.

    Sources are read again where their files changed; then only what is stale or missing runs. With `splits` it
    stops after the features of those splits and gives None. Raises `BuildError` with the sentence of the step
    that failed; everything finished until then is kept. An analysis that cannot be made is warned of.
    """
    result = run_build(study, splits=splits, fresh=fresh, output=output, listener=listener)
    for notice in result.notices:
        warnings.warn(notice, stacklevel=2)
    return result.path


def run_build(
    study: Study | str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    fresh: bool = False,
    output: Path | None = None,
    listener: Listener | None = None,
) -> BuildResult:
    """`build`, telling also what was materialized."""
    study = study if isinstance(study, Study) else load_study(study)
    unknown = [split for split in splits or () if split not in study.splits]
    if unknown:
        raise BuildError(f"{study.name} has no split {unknown[0]!r}; it has {', '.join(study.splits)}.")
    token = progress_listener.set(listener)
    try:
        with dagster_instance() as instance:
            result = Build(study, instance, fresh=fresh).run(splits)
    finally:
        progress_listener.reset(token)
    if output is not None and result.path is not None:
        result.path = assemble_database(study, store=Store.of(study), output=output.absolute()).path
    return result


class Build:
    """One build: every step asks Dagster what is stale and the library what is really there."""

    def __init__(self, study: Study, instance: dg.DagsterInstance, *, fresh: bool, started_by: str = BUILD) -> None:
        self.study = study
        self.instance = instance
        self.fresh = fresh
        self.started_by = started_by
        self.store = Store.of(study)
        self.definitions = definitions_of(study)
        self.materialized: list[str] = []
        self.notices: list[str] = []
        self._looked: Look | None = None

    def run(self, splits: Sequence[str] | None) -> BuildResult:
        wanted = tuple(splits or self.study.splits)
        with settling(self.instance, self.store.runs):
            self._sources(wanted)
            self._text()
            self._images(wanted)
            if splits:
                return BuildResult(None, self.materialized, self.notices)
            self._database()
            self._analyses()
            return BuildResult(self.store.database, self.materialized, self.notices)

    def _sources(self, splits: Sequence[str]) -> None:
        resource = EncoderResource()
        identity = current_identity(self.study, self.store, device=resource.device, hf_token=resource.hf_token)
        if identity != recorded_identity(self.store) or self._is_stale("encoder"):
            self._run("read_encoder", ["encoder"])
        try:
            changed = changed_splits(self.study, self.store, splits)
        except AbsentDataError as error:
            key = asset_key(self.study, "images")
            if not all(self._look().is_fresh(key, split) for split in self._runs_of(splits)):
                raise
            # What was read of them is there: words, database and most analyses do without the images.
            self.notices.append(f"{error} What was read of its images before is used.")
            return
        for split in self._runs_of(splits):
            if split in changed or (split is None and changed) or self._is_stale("images", split=split):
                self._run("read_images", ["images"], split)

    def _text(self) -> None:
        missing = missing_templates(self.study, recorded_card(self.study, self.store), self.store)
        stale = [
            f"template_features/{template_id}"
            for template_id in self.study.vocabulary.templates()
            if self.fresh or template_id in missing or self._is_stale("template_features", template_id)
        ]
        if stale:
            self._run("extract_text", stale, fresh=self.fresh)

    def _images(self, splits: Sequence[str]) -> None:
        plan = plan_study(self.study, splits, store=self.store, fresh=self.fresh)
        to_encode = {part.split: part.to_encode for part in plan.images}
        for split in self._runs_of(splits):
            names = [split] if split else list(splits)
            if self._is_stale("image_features", split=split) or any(to_encode[name] for name in names):
                self._run("extract_images", ["image_features"], split, fresh=self.fresh)

    def _database(self) -> None:
        if self._is_stale("feature_database") or absent_database(self.store):
            self._run("build_database", ["feature_database", "validation_report"])
        elif self._is_stale("validation_report") or "validation_report" in absent_pages(self.study, self.store):
            self._run("build_database", ["validation_report"])

    def _analyses(self) -> None:
        wanted, absent = available_analyses(self.study), absent_pages(self.study, self.store)
        stale = [name for name in wanted if self._is_stale(name) or name in absent]
        if not stale:
            return
        # The atlas, last of them, shows what the others found.
        asked = list(dict.fromkeys([*stale, *wanted[-1:]]))
        try:
            self._run("analyse", asked)
        except InterruptedBuildError:
            raise
        except BuildError as error:
            lacking = [name for name in asked if name not in self.materialized]
            self.notices.append(f"The database is finished, but not {', '.join(lacking)}: {error}")

    def _runs_of(self, splits: Sequence[str]) -> Sequence[str | None]:
        """One run for every split, or one for all where the study has no partitions."""
        return list(splits) if is_partitioned(self.study) else [None]

    def _is_stale(self, *parts: str, split: str | None = None) -> bool:
        """Whether Dagster calls an asset (or a partition of it) stale or missing, as the UI shows it."""
        return self._look().state(asset_key(self.study, *parts), split) != "built"

    def _look(self) -> Look:
        self._looked = self._looked or Look(self.instance, self.definitions)
        return self._looked

    def _run(self, job: str, assets: Sequence[str], split: str | None = None, *, fresh: bool = False) -> None:
        keys = [asset_key(self.study, *asset.split("/")) for asset in assets]
        config: dict[str, Any] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        if fresh:
            config["ops"] = {key.to_python_identifier(): {"config": {"fresh": True}} for key in keys}
        run_id = str(uuid.uuid4())
        self._looked = None  # It is out of date now.
        with alive(self.store.runs, run_id):
            result = self.definitions.resolve_job_def(job_name(self.study, job)).execute_in_process(
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
