"""The analyses as a person sees them in Dagster: what is there, what is plotted, what is warned of, what is stale."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest

from ccassets.orchestration.build import run_build
from ccassets.orchestration.checks import MOST_LOST, study_checks
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key, job_name
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study, save_golden_weights, save_images, write_study
from ccassets_tests.orchestration.study_runs import run_job, state_of

pytestmark = pytest.mark.filterwarnings("ignore:Specifying a partitions_def:dagster.PreviewWarning")

ANALYSES = ["concept_scores", "zero_shot", "concept_bottleneck", "label_errors", "projection", "concept_atlas"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, weights, a study and its home, used by many tests one after another."""
    folder = tmp_path_factory.mktemp("analyses")
    save_images(folder / "pictures", {"train": 12, "val": 9, "test": 9})
    save_golden_weights(folder / "weights")
    return folder


@pytest.fixture
def built(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The shared study, built and fresh."""
    monkeypatch.setenv("CCASSETS_HOME", str(shared / "home"))
    study = write_study(shared / "studies" / "cells", images=shared / "pictures", encoder=shared / "weights")
    run_build(study)
    return study


def materialization(study: Study, asset: str) -> dg.AssetMaterialization:
    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(asset_key(study, asset))
    assert event is not None
    assert event.asset_materialization is not None
    return event.asset_materialization


def metadata(study: Study, asset: str) -> dict[str, Any]:
    return {name: value.value for name, value in materialization(study, asset).metadata.items()}


def data_versions(study: Study) -> dict[str, str]:
    return {name: (materialization(study, name).tags or {})["dagster/data_version"] for name in ANALYSES}


def materialize(study: Study, *assets: str) -> dg.ExecuteInProcessResult:
    """What the UI does when somebody selects assets of the job `analyse` and presses Materialize."""
    return run_job(study, "analyse", None, *assets)


def test_a_build_ends_with_all_analyses_and_their_files(built: Study) -> None:
    assert {state_of(built, name) for name in ANALYSES} == {"built"}
    folder = Store.of(built).analysis
    assert {path.name for path in folder.iterdir()} == {
        *("concept_scores.parquet", "zero_shot.json", "concept_bottleneck.json", "concept_atlas.html"),
        *("model.json", "looks.jsonl", "label_errors.json", "label_errors.csv", "label_errors.html"),
        "projection.parquet",
    }


def test_metrics_are_numbers_that_the_ui_plots(built: Study) -> None:
    for asset in ("zero_shot", "concept_bottleneck"):
        values = materialization(built, asset).metadata
        for split in ("val", "test"):
            for name in ("accuracy", "auc", "balanced_accuracy"):
                for part in ("", "_low", "_high"):
                    assert isinstance(values[f"{split}_{name}{part}"], dg.FloatMetadataValue)
    assert metadata(built, "zero_shot")["rule"] == "span"
    fitted = metadata(built, "concept_bottleneck")
    assert isinstance(fitted["control_random_directions"], float)
    assert isinstance(fitted["price_of_interpretability"], float)
    assert fitted["looks_at_test"] > 0


def test_the_table_has_a_row_an_image_and_a_column_a_concept(built: Study) -> None:
    table = pq.read_table(Store.of(built).root / metadata(built, "concept_scores")["file"])
    concepts = [concept.word for concept in built.vocabulary.concepts.words]
    assert table.column_names == ["id", "key", "split", "label", "class", *concepts]
    assert table.num_rows == metadata(built, "concept_scores")["dagster/row_count"] == 30


def test_the_address_of_the_atlas_can_be_copied_and_its_page_shows_key_pictures(built: Study) -> None:
    values = metadata(built, "concept_atlas")
    assert isinstance(materialization(built, "concept_atlas").metadata["page"], dg.PathMetadataValue)
    atlas = Store.of(built).root / "cells/analysis/concept_atlas.html"
    assert values["page"] == atlas.as_uri()
    assert atlas.stat().st_size == values["bytes"]
    assert values["concepts"].count("![](data:image/webp;base64,") == 3
    assert len(values["concepts"]) < 200_000


def test_an_equal_rebuild_changes_no_data_version(built: Study) -> None:
    before = data_versions(built)
    assert materialize(built).success
    assert data_versions(built) == before
    assert run_build(built).materialized == []


def test_an_analysis_that_was_deleted_is_made_again(built: Study) -> None:
    (Store.of(built).analysis / "zero_shot.json").unlink()
    assert run_build(built).materialized == ["zero_shot", "concept_atlas"]
    shutil.rmtree(Store.of(built).analysis)
    assert run_build(built).materialized == ANALYSES


def test_an_atlas_of_yesterdays_results_is_refused_with_a_sentence(built: Study) -> None:
    changed = edit_study(built, lambda a: a["vocabulary"]["concepts"]["words"].append("blue"))
    for job in ("extract_text", "build_database"):
        assert run_job(changed, job).success
    failed = materialize(changed, "concept_atlas")
    assert not failed.success
    failure = next(event.step_failure_data for event in failed.all_events if event.is_step_failure)
    assert failure.user_failure_data is not None
    assert "materialize zero_shot again" in (failure.user_failure_data.description or "")
    assert materialize(changed).success


# --- what a study cannot have ------------------------------------------------------------------------


def assets_of(study: Study) -> set[str]:
    return {key.path[-1] for key in definitions_of(study).resolve_asset_graph().materializable_asset_keys}


def test_what_a_study_has_no_words_or_splits_for_is_left_out_and_named(study: Study) -> None:
    without_labels = edit_study(study, lambda a: a["vocabulary"]["labels"].update(templates=[]))
    assert set(ANALYSES) - assets_of(without_labels) == {"zero_shot"}
    job = definitions_of(without_labels).resolve_job_def(job_name(study, "analyse"))
    assert "No zero_shot: The study has no label words" in (job.description or "")
    without_any = edit_study(study, lambda a: a.update(vocabulary={}))
    assert set(ANALYSES) & assets_of(without_any) == {"projection"}
    assert run_build(without_any).materialized[-2:] == ["validation_report", "projection"]


def test_splits_of_other_names_leave_out_the_classifier_alone(study: Study, image_folder: Path) -> None:
    (image_folder / "val").rename(image_folder / "fold 2")
    folds = edit_study(study, lambda a: a["dataset"].update(splits=["train", "fold 2", "test"]))
    assert set(ANALYSES) - assets_of(folds) == {"concept_bottleneck"}
    left = [name for name in ANALYSES if name != "concept_bottleneck"]
    assert run_build(folds).materialized[-5:] == left
    assert metadata(folds, "zero_shot")["test_accuracy"] >= 0
    page = (Store.of(folds).analysis / "concept_atlas.html").read_text(encoding="utf-8")
    assert "the study has no val" in page


def test_images_without_labels_are_no_failure_but_a_sentence(study: Study, image_folder: Path) -> None:
    for split in study.splits:
        for number, path in enumerate(sorted((image_folder / split).glob("*/*.png"))):
            path.rename(image_folder / split / f"{number:03d}.png")
        for folder in (image_folder / split).iterdir():
            if folder.is_dir():
                folder.rmdir()
    assert run_build(study).materialized[-6:] == ANALYSES
    for asset in ("zero_shot", "concept_bottleneck", "label_errors"):
        assert "has no labels" in metadata(study, asset)["obstacle"]
        assert "val_accuracy" not in metadata(study, asset)
    page = (Store.of(study).analysis / "concept_atlas.html").read_text(encoding="utf-8")
    assert "The data set has no labels" in page
    assert run_build(study).materialized == []


def test_grades_are_measured_as_grades_once_the_study_says_so(study: Study) -> None:
    assert run_build(study).materialized[-6:] == ANALYSES
    assert "test_quadratic_kappa" not in metadata(study, "zero_shot")
    graded = edit_study(study, lambda a: a["vocabulary"]["labels"].update(ordinal=True))
    assert run_build(graded).materialized == [
        *("feature_database", "validation_report", "zero_shot", "concept_bottleneck", "concept_atlas")
    ]
    assert isinstance(metadata(graded, "zero_shot")["test_quadratic_kappa"], float)
    assert "grades off" in (Store.of(graded).analysis / "concept_atlas.html").read_text(encoding="utf-8")


# --- the check ---------------------------------------------------------------------------------------


def report(study: Study, asset: str, accuracy: float) -> None:
    with dagster_instance() as instance:
        event = dg.AssetMaterialization(asset_key(study, asset), metadata={"val_accuracy": accuracy})
        instance.report_runless_asset_event(event)


def check(study: Study, asset: str) -> dg.AssetCheckEvaluation:
    """The check run by itself, as the UI offers it."""
    key = dg.AssetCheckKey(asset_key(study, asset), "val_accuracy")
    checks = [definition for definition in study_checks(study) if key in definition.check_keys]
    with dagster_instance() as instance:
        run = dg.materialize(checks, selection=dg.AssetSelection.checks(key), instance=instance)  # type: ignore[arg-type]
    (evaluation,) = run.get_asset_check_evaluations()
    return evaluation


@pytest.mark.parametrize("asset", ["zero_shot", "concept_bottleneck"])
def test_a_fall_of_accuracy_on_val_is_warned_of_and_stops_nothing(built: Study, asset: str) -> None:
    report(built, asset, 0.9)
    report(built, asset, 0.9 - MOST_LOST + 0.001)
    assert check(built, asset).passed
    report(built, asset, 0.85)
    evaluation = check(built, asset)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN
    assert not evaluation.blocking
    assert evaluation.description == "Accuracy on val was 0.881 and is 0.850."


def test_the_check_runs_with_the_asset_against_the_materialization_before(built: Study) -> None:
    result = json.loads((Store.of(built).analysis / "zero_shot.json").read_text(encoding="utf-8"))
    accuracy = result["splits"]["val"]["accuracy"]["value"]
    report(built, "zero_shot", accuracy + 0.5)
    run = materialize(built, "zero_shot")
    assert run.success
    (evaluation,) = run.get_asset_check_evaluations()
    assert not evaluation.passed
    assert evaluation.metadata["now"].value == accuracy


def test_the_first_accuracy_has_nothing_to_fall_from(study: Study) -> None:
    assert check(study, "zero_shot").passed
    report(study, "zero_shot", 0.5)
    assert check(study, "zero_shot").passed
