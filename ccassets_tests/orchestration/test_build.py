"""What a person sees who builds a study through Dagster, changes something, and builds again."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import h5py
import numpy as np
import pytest

import ccassets
from ccassets.database.feature_digests import feature_digests
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.errors import BuildError, DatasetError, InterruptedBuildError, StorageError, StudyError
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.status import State, status_of_studies
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import CLASSES, edit_study, save_golden_weights, save_images, write_study
from ccassets_tests.orchestration.graphql import executable_checks
from ccassets_tests.orchestration.study_runs import run_job, state_of


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pictures, weights, a study and the home it is built in, used by many tests one after another."""
    folder = tmp_path_factory.mktemp("shared")
    save_images(folder / "pictures")
    save_golden_weights(folder / "weights")
    return folder


@pytest.fixture
def built(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The shared study, built, with the words that the last test gave it; what is missing or stale is made good."""
    monkeypatch.setenv("CCASSETS_HOME", str(shared / "home"))
    folder = shared / "studies" / "cells"
    if folder.exists():
        study = load_study(folder)
    else:
        study = write_study(folder, images=shared / "pictures", encoder=shared / "weights")
    run_build(study)
    return study


TEMPLATES = ["concept_prompts_t01", "concept_prompts_t02", "label_prompts_t01", "label_prompts_t02"]
DATABASE = ["feature_database", "validation_report"]
ANALYSES = ["concept_scores", "zero_shot", "concept_bottleneck", "label_errors", "projection", "concept_atlas"]


def metadata(study: Study, *parts: str) -> dict[str, Any]:
    """Numbers and texts of the last materialization."""
    with dagster_instance() as instance:
        event = instance.get_latest_materialization_event(asset_key(study, *parts))
        assert event is not None
        assert event.asset_materialization is not None
        return {name: value.value for name, value in event.asset_materialization.metadata.items()}


def run_checks(study: Study, asset: str, *names: str, split: str | None = None) -> dg.ExecuteInProcessResult:
    """Run checks without their asset, as their Execute buttons do."""
    checks = [dg.AssetCheckKey(asset_key(study, asset), name) for name in names]
    job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks(*checks))
    definitions = dg.Definitions.merge(definitions_of(study), dg.Definitions(jobs=[job]))
    with dagster_instance() as instance:
        result = definitions.resolve_job_def("checks").execute_in_process(
            instance=instance, tags={"dagster/partition": split} if split else None, raise_on_error=False
        )
    assert not result.get_asset_materialization_events()
    return result


def run_check(study: Study, asset: str, name: str, split: str | None = None) -> str:
    """What a check says that is run alone."""
    [evaluation] = run_checks(study, asset, name, split=split).get_asset_check_evaluations()
    return f"{'passed' if evaluation.passed else 'failed'}: {evaluation.description}"


def failure(result: dg.ExecuteInProcessResult) -> str:
    data = next(event.step_failure_data for event in result.all_events if event.is_step_failure)
    assert data.user_failure_data is not None
    return data.user_failure_data.description or ""


def test_a_build_materializes_everything_once(study: Study) -> None:
    first = run_build(study)
    assert first.path == Store.of(study).database
    assert first.materialized == [
        "encoder",
        *(f"images:{split}" for split in study.splits),
        *(f"template_features/{name}" for name in TEMPLATES),
        *(f"image_features:{split}" for split in study.splits),
        *DATABASE,
        *ANALYSES,
    ]
    assert ccassets.validate_database(first.path, study=study, deep=True) == []
    assert run_build(study).materialized == []


def test_a_notebook_builds_though_it_runs_an_event_loop(built: Study) -> None:
    async def cell() -> list[str]:
        return run_build(built).materialized

    assert asyncio.run(cell()) == []


def test_one_edited_word_makes_exactly_its_template_stale_and_says_how_far_it_moved(built: Study) -> None:
    path = ccassets.build(built)
    assert path is not None
    with ccassets.open_database(path) as database:
        before = np.array(database.image_features), np.array(database.image_token_features)
        former_wording = np.array(database.templates["label_prompts_t02"].text_features)

    edited = edit_study(built, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "an image of {}"))
    states = {name: state_of(edited, "template_features", name) for name in TEMPLATES}
    assert [name for name, state in states.items() if state == "stale"] == ["label_prompts_t02"]
    assert all(state_of(edited, "image_features", split=split) == "built" for split in built.splits)

    result = run_build(edited)
    assert result.materialized == ["template_features/label_prompts_t02", *DATABASE, *ANALYSES]
    assert metadata(edited, "template_features", "label_prompts_t02")["encoded"] == 3
    with ccassets.open_database(path) as database:
        assert database.templates["label_prompts_t02"].texts[0] == "an image of blood"
        assert np.array_equal(database.image_features, before[0])
        assert np.array_equal(database.image_token_features, before[1])
        wording = np.array(database.templates["label_prompts_t02"].text_features)
    moved = metadata(edited, "template_features", "label_prompts_t02")["cosine_to_database"]
    assert moved == pytest.approx((former_wording * wording).sum(axis=1).mean())
    assert moved < 0.999
    assert run_job(edited, "extract_text", None, "template_features/label_prompts_t02").success
    assert metadata(edited, "template_features", "label_prompts_t02")["cosine_to_database"] == pytest.approx(1)


def test_a_corrected_label_encodes_nothing(built: Study, shared: Path) -> None:
    path = ccassets.build(built)
    assert path is not None
    first = shared / "pictures" / "val" / "blood" / "000.png"
    shutil.move(first, shared / "pictures" / "val" / "white" / "900.png")
    result = run_build(built)
    assert result.materialized == ["images:val", "image_features:val", *DATABASE, *ANALYSES]
    assert metadata(built, "image_features")["encoded"] == 0
    with ccassets.open_database(path) as database:
        assert database.keys is not None
        assert database.labels[database.keys.tolist().index("val/white/900.png")] == 2


def test_a_database_that_was_deleted_is_built_again(built: Study) -> None:
    path = ccassets.build(built)
    assert path is not None
    path.unlink()
    assert run_build(built).materialized == DATABASE
    assert path.is_file()


def test_parts_that_were_deleted_are_encoded_again(built: Study) -> None:
    path = ccassets.build(built)
    assert path is not None
    path.unlink()
    shutil.rmtree(Store.of(built).root / "features")
    assert "9 of 9 images of split 'train' are not encoded yet" in run_check(built, "image_features", "values", "train")
    assert "is not a file" in run_check(built, "feature_database", "structure")
    result = run_build(built)
    assert [name for name in result.materialized if name.startswith("image_features")] == [
        f"image_features:{split}" for split in built.splits
    ]
    assert ccassets.validate_database(path, study=built, deep=True) == []
    assert run_check(built, "image_features", "values", "train") == "passed: Nothing to report in 3 files."
    assert run_check(built, "template_features/label_prompts_t01", "texts") == "passed: Nothing to report in 1 file."


def test_a_build_of_one_split_stops_after_its_features(study: Study) -> None:
    result = run_build(study, splits=["val"])
    assert result.path is None
    assert "image_features:val" in result.materialized
    assert not any("train" in name or "database" in name for name in result.materialized)


def test_an_unknown_split_is_named_with_those_there_are(study: Study) -> None:
    for splits in (["dev"], "dev"):
        with pytest.raises(StudyError, match=r"no split 'dev'; it has train, val, test"):
            run_build(study, splits=splits)


def test_features_without_their_sources_are_refused_with_a_sentence(study: Study) -> None:
    assert "encoder" in failure(run_job(study, "extract_text"))
    assert run_job(study, "read_encoder").success
    refused = run_job(study, "extract_images", "val")
    assert "The images of split 'val' of cells have not been read yet" in failure(refused)


def test_a_database_with_a_missing_split_is_refused_and_names_it(study: Study) -> None:
    assert run_job(study, "read_encoder").success
    for split in study.splits:
        assert run_job(study, "read_images", split).success
    assert run_job(study, "extract_text").success
    for split in ("train", "test"):
        assert run_job(study, "extract_images", split).success
    assert "5 of 5 images of split 'val' are not encoded yet" in failure(run_job(study, "build_database"))
    assert run_job(study, "extract_images", "val").success
    assert run_job(study, "build_database").success


def test_every_check_runs_and_passes(built: Study) -> None:
    run_build(built)
    graph = definitions_of(built).resolve_asset_graph()
    with dagster_instance() as instance:
        records = instance.event_log_storage.get_latest_asset_check_execution_by_key(list(graph.asset_check_keys))
        assert set(records) == set(graph.asset_check_keys)
        for key, record in records.items():
            evaluation = record.evaluation
            assert evaluation is not None, key
            # Accuracy on five images of noise rises and falls as it likes.
            assert evaluation.passed or key.name == "val_accuracy", (key, evaluation.description)


def test_every_check_has_a_button_of_its_own_and_the_right_ones_block(
    built: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(built.folder.parent))
    assert executable_checks("cells") == {
        "images": {"sources"},
        "encoder": set(),
        **{f"template_features/{name}": {"texts!", "values!"} for name in TEMPLATES},
        "image_features": {"structure!", "values!"},
        "feature_database": {"structure!", "counts!", "values!", "texts!", "provenance", "study"},
        "validation_report": set(),
        "concept_scores": set(),
        "zero_shot": {"val_accuracy"},
        "concept_bottleneck": {"val_accuracy"},
        "label_errors": set(),
        "projection": set(),
        "concept_atlas": set(),
    }


def test_checks_of_a_database_read_it_once_and_a_failing_one_hides_no_other(built: Study) -> None:
    path = Store.of(built).database
    names = ("structure", "counts", "values", "texts", "provenance", "study")
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["image_features"][3] = 0
    result = run_checks(built, "feature_database", *names)
    evaluations = result.get_asset_check_evaluations()
    assert {evaluation.check_name: evaluation.passed for evaluation in evaluations} == {
        **dict.fromkeys(names, True),
        "values": False,
    }
    assert len({event.step_key for event in result.all_events if event.step_key}) == 1
    assert not result.success, "`values` is blocking"
    path.write_bytes(before)
    assert run_checks(built, "feature_database", "counts", "study").success


def test_the_columns_in_the_ui_are_the_data_sets_of_the_file(built: Study) -> None:
    schema = metadata(built, "feature_database")["dagster/column_schema"].columns
    columns = {column.name: column.type for column in schema}
    assert all(column.description for column in schema)
    assert columns["/image_features"].startswith("float16 (18, ")
    assert columns["/labels"] == "int64 (18,)"
    assert columns["/keys"] == "string (18,)"


def test_checks_and_assets_carry_numbers_that_the_ui_plots(built: Study) -> None:
    values = metadata(built, "feature_database")
    assert {name: values[f"rows_{name}"] for name in built.splits} == {"train": 9, "val": 5, "test": 4}
    assert (values["templates"], values["prompts"]) == (4, 12)

    [passed] = run_checks(built, "feature_database", "values").get_asset_check_evaluations()
    numbers = {name: value.value for name, value in passed.metadata.items() if name != "findings"}
    assert 0 < numbers.pop("norm_deviation") < 2e-3  # type: ignore[operator]
    assert numbers == {"errors": 0, "warnings": 0, "rows": 18, "prompts": 12, "not_finite": 0}
    assert passed.severity == dg.AssetCheckSeverity.ERROR

    path = Store.of(built).database
    before = path.read_bytes()
    with h5py.File(path, "r+") as file:
        file["image_features"][3] = np.nan
        file["image_features"][4] *= 2
    [failed] = run_checks(built, "feature_database", "values").get_asset_check_evaluations()
    path.write_bytes(before)
    assert failed.metadata["errors"].value == 2
    assert failed.metadata["not_finite"].value == 1
    assert failed.metadata["norm_deviation"].value == pytest.approx(1, abs=0.01)
    [structure] = run_checks(built, "image_features", "structure", split="val").get_asset_check_evaluations()
    assert structure.metadata["rows"].value == 5


def test_a_reading_counts_the_images_that_changed(study: Study, image_folder: Path) -> None:
    def changes() -> dict[str, int]:
        assert run_job(study, "read_images", "val").success
        return {name: metadata(study, "images")[name] for name in ("added", "removed", "changed", "relabelled")}

    assert changes() == {"added": 5, "removed": 0, "changed": 0, "relabelled": 0}
    assert changes() == dict.fromkeys(("added", "removed", "changed", "relabelled"), 0)
    shutil.move(image_folder / "val/blood/000.png", image_folder / "val/white/900.png")
    shutil.copy(image_folder / "train/blood/000.png", image_folder / "val/blood/901.png")
    assert changes() == {"added": 1, "removed": 0, "changed": 0, "relabelled": 1}


def test_progress_is_in_the_log_at_a_humane_rate(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> list[str]:
        result = run_job(study, "read_images", "val")
        with dagster_instance() as instance:
            return [e.user_message for e in instance.all_logs(result.run_id) if "per second" in e.user_message]

    assert said() == []
    monkeypatch.setattr("ccassets.orchestration.steps._LOG_SECONDS", 0.0)
    shutil.rmtree(Store.of(study).folder)
    lines = [line for line in said() if line.startswith("read images")]
    assert len(lines) == 5
    assert re.fullmatch(r"read images of val: 2 of 5, [\d.]+ per second, \d\d:\d\d:\d\d left", lines[1])


def test_a_failing_check_keeps_the_old_database(built: Study, shared: Path) -> None:
    path = Store.of(built).database
    before = path.read_bytes()
    parts = sorted((Store.of(built).root / "features").glob("*/rows/*.h5"))
    for part in parts:
        rewrite_with_long_vectors(part)
    shutil.move(shared / "pictures" / "val" / "white" / "002.png", shared / "pictures" / "val" / "blood" / "902.png")
    with pytest.raises(BuildError, match="norms"):
        run_build(built)
    assert path.read_bytes() == before
    for part in parts:
        part.unlink()


def rewrite_with_long_vectors(part: Path) -> None:
    """The part as an encoder would have left it whose vectors are twice too long: digests and all."""
    with ccassets.open_database(part) as old:
        features, tokens = old.image_features * np.float16(2), np.array(old.image_token_features)
        assert old.image_digest is not None
        assert old.keys is not None
        content = FileContent(
            "image-part",
            old.dim,
            old.token_count,
            RowContent(
                list(old.split), old.labels, list(old.keys), old.image_digest, feature_digests(features, tokens)
            ),
            attributes={name: old.attributes[name] for name in ("split_counts", "provenance")},
        )
    with new_file(part, content) as rows:
        rows.write("image_features", 0, features)
        rows.write("image_token_features", 0, tokens)


@pytest.mark.slow
def test_rows_that_only_the_database_holds_are_not_dropped_by_a_build_nor_in_the_ui(
    study: Study, image_folder: Path, weights: Path
) -> None:
    lean = write_study(study.folder, images=image_folder, encoder=weights, storage={"keep_parts": False})
    run_build(lean)
    before = Store.of(lean).database.read_bytes()
    edited = edit_study(lean, lambda a: a["encoder"].update(dtype="bfloat16"))

    with pytest.raises(StorageError, match=r"18 of 18 rows nowhere else .*--allow-loss"):
        run_build(edited)

    store = Store.of(edited)
    assert not list(store.image_parts(ccassets.identify_encoder(edited).identity).glob("*.h5"))  # Nothing was encoded.
    run_job(edited, "extract_text")
    for split in edited.splits:
        run_job(edited, "extract_images", split)
    assert "18 of 18 rows nowhere else" in failure(run_job(edited, "build_database"))
    assert store.database.read_bytes() == before
    ops = {"cells__feature_database": {"config": {"allow_loss": True}}}
    assert run_job(edited, "build_database", None, "feature_database", ops=ops).success
    assert store.database.read_bytes() != before


@pytest.mark.slow
def test_a_killed_build_gives_its_place_back_and_is_built_on(study: Study, weights: Path, tmp_path: Path) -> None:
    inner = write_study(tmp_path / "inner", images=tmp_path / "pictures", encoder=weights)
    (study.folder / "mortal.py").write_text(
        "import os, signal\n"
        "from dataclasses import replace\n"
        "from pathlib import Path\n"
        "from ccassets.encoders import load_encoder\n"
        "from ccassets.study.loading import load_study\n"
        "class Mortal:\n"
        "    def __init__(self, study, dies):\n"
        "        self.inner, self.dies, self.batches = load_encoder(load_study(study)), Path(dies), 0\n"
        "        self.card = replace(self.inner.card, kind='python', weights_digest='mortal')\n"
        "    def __getattr__(self, name):\n"
        "        return getattr(self.inner, name)\n"
        "    def encode_pixels(self, pixels):\n"
        "        self.batches += 1\n"
        "        if self.batches == 4 and self.dies.exists():\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return self.inner.encode_pixels(pixels)\n"
    )
    dies = tmp_path / "dies"
    dies.touch()
    options = {"study": str(inner.folder / "defs.yaml"), "dies": str(dies)}
    mortal = edit_study(
        study, lambda a: a.update(encoder={"kind": "python", "target": "mortal:Mortal", "options": options})
    )
    command = [sys.executable, "-m", "ccassets.cli", "build", str(mortal.folder)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == -signal.SIGKILL

    dies.unlink()
    result = run_build(mortal)
    assert result.path is not None
    assert "image_features:train" in result.materialized
    assert ccassets.validate_database(result.path, study=mortal, deep=True) == []
    with dagster_instance() as instance:
        failed = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
        assert [run.job_name for run in failed] == ["cells__extract_images"]
    parts = list((Store.of(mortal).root / "features").glob("*/rows/*.h5"))
    assert len(parts) == 3 + 2 + 1, "the finished shard was not encoded again"
    assert not list(Store.of(mortal).root.rglob("*.partial"))


def test_words_follow_and_a_missing_analysis_is_named_while_the_images_are_away(built: Study, shared: Path) -> None:
    (shared / "pictures").rename(shared / "away")
    try:
        edited = edit_study(built, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "a picture of {}"))
        result = run_build(edited)
        assert result.materialized == ["template_features/label_prompts_t02", *DATABASE, *ANALYSES[:-1]]
        assert result.path == Store.of(edited).database
        assert ccassets.validate_database(result.path, study=edited, deep=True) == []
        away, unfinished = result.notices
        assert "pictures does not exist; dataset.root names it. The last reading of its images is used." in away
        # It shows pictures.
        assert unfinished.startswith("The database is finished, but not concept_atlas: ")
        assert "pictures" in unfinished
        with pytest.warns(UserWarning, match="not concept_atlas"):
            assert ccassets.build(edited) == result.path

        unreadable = edit_study(built, lambda a: a["dataset"].update(root=str(shared / "nowhere")))
        with pytest.raises(DatasetError, match="nowhere does not exist"):
            run_build(unreadable)
    finally:
        (shared / "away").rename(shared / "pictures")
        edit_study(built, lambda a: a["dataset"].update(root=str(shared / "pictures")))


@pytest.fixture
def signals() -> Iterator[None]:
    """Dagster lets SIGTERM be what SIGINT is, and leaves it so."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("signals")
def test_an_interrupted_build_says_so_and_is_built_on(study: Study) -> None:
    def interrupt(what: str, done: int, total: int, note: str) -> None:
        if what == "draw concepts":
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(InterruptedBuildError, match=r"was interrupted\. What was finished until then is kept"):
        run_build(study, listener=interrupt)

    assert run_build(study).materialized == ["concept_atlas"]


def test_many_splits_are_one_asset_without_partitions(study: Study, image_folder: Path) -> None:
    for number in range(60):
        folder = image_folder / f"s {number}é" / CLASSES[number % 2]
        folder.mkdir(parents=True)
        shutil.copy(image_folder / "train" / "blood" / "000.png", folder / "a.png")
    many = edit_study(study, lambda a: a["dataset"].update(splits=[f"s {number}é" for number in range(60)]))
    assert definitions_of(many).resolve_asset_graph().get(asset_key(many, "image_features")).partitions_def is None
    path = ccassets.build(many)
    assert path is not None
    assert [f.check for f in ccassets.validate_database(path, study=many, deep=True)] == ["image_in_two_splits"]
    assert metadata(many, "image_features")["encoded"] == 1


def test_studies_tell_what_is_built_stale_and_missing(built: Study) -> None:
    demo = load_study("demo")

    def status(study: Study) -> dict[State, list[str]]:
        statuses = status_of_studies([demo, study], definitions_of(demo, study))
        assert {state for state, names in statuses["demo"].items() if names} == {"missing"}
        return statuses["cells"]

    assert len(status(built)["built"]) == 19
    edited = edit_study(built, lambda a: a["vocabulary"]["concepts"]["templates"].append("sign of {}"))
    assert status(edited)["missing"] == ["template_features/concept_prompts_t03"]
    assert status(edited)["stale"] == ["feature_database"]
    edit_study(edited, lambda a: a["vocabulary"]["concepts"]["templates"].pop())


def test_a_first_try_with_a_limit_is_a_file_of_its_own(built: Study) -> None:
    whole = ccassets.build(built)
    limited = edit_study(built, lambda a: a["extraction"].update(limit=2))
    path = ccassets.build(limited)
    assert path != whole
    assert path is not None
    with ccassets.open_database(path) as database:
        assert database.attributes["limit"] == 2
        assert {name: rows.stop - rows.start for name, rows in database.splits.items()} == {
            "train": 2,
            "val": 2,
            "test": 2,
        }
