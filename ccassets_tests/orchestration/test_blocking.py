"""A failed blocking check stops what is downstream in every run, not only in its own; ours and those of a project."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from ccassets.errors import BuildError
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study

TEMPLATE = "template_features/label_prompts_t02"
LAUNCH_SETTINGS = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class Project:
    """A project with a study and a blocking check of its own on an asset; the check fails where its verdict says so."""

    def __init__(self, study: Study, asset: str, verdict: Path, instance: dg.DagsterInstance) -> None:
        self.study = study
        self.instance = instance
        self.check = dg.AssetCheckKey(asset_key(study, asset), "quality")
        self.verdict = verdict

        @dg.asset_check(asset=self.check.asset_key, name=self.check.name, blocking=True)
        def _quality() -> dg.AssetCheckResult:
            return dg.AssetCheckResult(passed=not verdict.exists(), description="Half of the slides are blurred.")

        self.own_check = _quality

    @property
    def definitions(self) -> dg.Definitions:
        return dg.Definitions.merge(definitions_of(self.study), dg.Definitions(asset_checks=[self.own_check]))

    def requested(self) -> set[str]:
        """What the automation asks for, without partitions."""
        result = dg.evaluate_automation_conditions(self.definitions, self.instance)
        keys = self.definitions.resolve_asset_graph().materializable_asset_keys
        return {"/".join(key.path[1:]) for key in keys if result.get_requested_partitions(key)}

    def launch(self, *assets: str, split: str | None = None) -> dg.ExecuteInProcessResult:
        """Materialize assets with all their checks."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=[asset_key(self.study, asset) for asset in assets],
            partition_key=split,
            run_config=LAUNCH_SETTINGS,
            raise_on_error=False,
        )

    def run_check(self, split: str | None = None) -> bool:
        """Execute the check alone; whether it passed."""
        job = dg.define_asset_job("alone", selection=dg.AssetSelection.checks(self.check))
        definitions = dg.Definitions.merge(self.definitions, dg.Definitions(jobs=[job]))
        result = definitions.resolve_job_def("alone").execute_in_process(
            instance=self.instance, tags={"dagster/partition": split} if split else None, raise_on_error=False
        )
        [evaluation] = result.get_asset_check_evaluations()
        return evaluation.passed


def refusal(result: dg.ExecuteInProcessResult) -> str:
    """The sentence of the step that failed."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    sentences = [data.user_failure_data.description or "" for data in failures if data.user_failure_data]
    return "\n".join(sentences)


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dagster_instance() as instance:
        yield instance


@pytest.mark.parametrize(("asset", "split"), [("image_features", "val"), (TEMPLATE, None)])
@pytest.mark.slow
def test_a_failed_check_of_a_project_keeps_the_database_from_being_requested_and_from_being_built(
    study: Study, tmp_path: Path, instance: dg.DagsterInstance, asset: str, split: str | None
) -> None:
    run_build(study)
    word = {"word": "red cell", "group": "cells"}
    edited = edit_study(study, lambda a: a["vocabulary"]["concepts"]["words"].__setitem__(1, word))
    project = Project(edited, asset, tmp_path / "blurred", instance)
    assert "feature_database" in project.requested()

    project.verdict.touch()
    assert not project.launch(asset, split=split).success
    assert "feature_database" not in project.requested()
    project.verdict.unlink()
    if split:  # Of one split is no word of another.
        assert project.run_check("train")
        assert "feature_database" not in project.requested()
    assert project.run_check(split)
    assert "feature_database" in project.requested()

    project.verdict.touch()
    assert not project.run_check(split)
    before = Store.of(edited).database.read_bytes()
    refused = project.launch("feature_database", "validation_report")
    assert not refused.success
    name = f"cells/{asset}{f' ({split})' if split else ''}"
    assert f"The check quality of {name} failed: Half of the slides are blurred." in refusal(refused)
    with pytest.raises(BuildError, match="The check quality of "):
        run_build(edited)
    assert Store.of(edited).database.read_bytes() == before
    project.verdict.unlink()
    assert project.run_check(split)
    assert project.launch("feature_database", "validation_report").success


@pytest.mark.slow
def test_a_failed_check_of_an_older_materialization_does_not_count(
    study: Study, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run_build(study, splits=["train", "val", "test"])
    project = Project(study, "image_features", tmp_path / "blurred", instance)
    project.verdict.touch()
    assert not project.launch("image_features", split="val").success
    assert "feature_database" not in project.requested()
    assert run_without_checks(project, "image_features", "val")
    assert "feature_database" in project.requested()
    assert project.launch("feature_database").success


def run_without_checks(project: Project, asset: str, split: str) -> bool:
    selection = dg.AssetSelection.assets(asset_key(project.study, asset)).without_checks()
    job = dg.define_asset_job("unchecked", selection=selection)
    definitions = dg.Definitions.merge(project.definitions, dg.Definitions(jobs=[job]))
    resolved = definitions.resolve_job_def("unchecked")
    return resolved.execute_in_process(instance=project.instance, partition_key=split).success


def test_the_report_is_made_because_the_database_failed_and_analyses_are_blocked(
    study: Study, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run_build(study)
    store = Store.of(study)
    report = store.reports / "validation.html"
    project = Project(study, "feature_database", tmp_path / "blurred", instance)
    project.verdict.touch()
    report.unlink()
    result = project.launch("feature_database", "validation_report", "zero_shot")
    assert not result.success
    made = {event.asset_key.path[-1] for event in result.get_asset_materialization_events() if event.asset_key}
    assert made == {"feature_database", "validation_report"}
    assert report.is_file()

    refused = project.launch("zero_shot")
    assert "The check quality of cells/feature_database failed: Half of the slides are blurred." in refusal(refused)
    assert project.launch("validation_report").success, "the report says what is wrong with the file"
    report.unlink()
    build = run_build(study)
    assert build.materialized == ["validation_report"]


@pytest.mark.slow
def test_a_database_that_failed_its_own_check_blocks_the_analyses_of_the_next_build(
    study: Study, tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    run_build(study)
    project = Project(study, "feature_database", tmp_path / "blurred", instance)
    project.verdict.touch()
    assert not project.launch("feature_database").success
    (Store.of(study).analysis / "zero_shot.json").unlink()
    [notice] = run_build(study).notices
    assert notice.startswith("The database is finished, but not zero_shot, concept_atlas: The check quality of ")
