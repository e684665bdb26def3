"""Results of analyses: their files, why one is unavailable, and the measures of retrieval and localisation."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccassets.analysis.bottleneck import bottleneck_metrics, write_bottleneck
from ccassets.analysis.localisation import exchange_maps, measure_localisation, patch_mask
from ccassets.analysis.results import (
    available_analyses,
    measure_groups,
    read_result,
    unavailable_analyses,
    unmeasured_classes,
    write_result,
)
from ccassets.analysis.retrieval import measure_retrieval
from ccassets.analysis.samples import Samples
from ccassets.analysis.zero_shot_scores import measure_zero_shot, write_zero_shot
from ccassets.database.reader import open_database
from ccassets.errors import AnalysisError
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.analysis.made_cells import cells, write_cells
from ccassets_tests.analysis.made_phantoms import phantom_study
from ccassets_tests.database.made_files import write_database


def test_a_study_has_the_analyses_that_it_has_words_and_splits_for(tmp_path: Path) -> None:
    def changed(name: str, change: Any) -> Study:
        return phantom_study(tmp_path / name, change)

    assert unavailable_analyses(load_study("demo")) == {}
    assert available_analyses(load_study("demo")) == [
        "concept_scores",
        "zero_shot",
        "concept_bottleneck",
        "label_errors",
        "projection",
        "concept_atlas",
    ]
    without_labels = changed("labels", lambda a: a["vocabulary"]["labels"].update(templates=[]))
    assert available_analyses(without_labels) == [
        "concept_scores",
        "concept_bottleneck",
        "label_errors",
        "projection",
        "concept_atlas",
    ]
    assert "no label words" in unavailable_analyses(without_labels)["zero_shot"]
    without_concepts = changed("concepts", lambda a: a["vocabulary"].pop("concepts"))
    assert available_analyses(without_concepts) == ["zero_shot", "projection"]
    folds = changed("folds", lambda a: a["dataset"].update(rows={"train": 8, "fold 2": 8}))
    assert available_analyses(folds) == ["concept_scores", "zero_shot", "label_errors", "projection", "concept_atlas"]
    assert "the study has no val" in unavailable_analyses(folds)["concept_bottleneck"]


@dataclass(frozen=True)
class Part:
    share: float


def test_a_result_is_plain_json_whose_digest_is_that_of_what_was_found(tmp_path: Path) -> None:
    samples = cells(48).samples
    with (
        open_database(write_cells(tmp_path / "a.h5", samples)) as first,
        open_database(write_cells(tmp_path / "b.h5", samples, identity="f" * 32)) as second,
    ):
        measures = {"parts": (Part(0.5), Part(float("nan"))), "counts": np.arange(2), "rule": None}
        one = write_result(tmp_path / "x.json", first, lambda: measures)
        assert json.loads(one.path.read_text()) == {
            "database": None,
            "parts": [{"share": 0.5}, {"share": None}],
            "counts": [0, 1],
            "rule": None,
        }
        assert write_result(tmp_path / "y.json", second, lambda: measures).digest == one.digest
        assert write_result(tmp_path / "z.json", second, lambda: {"rule": "span"}).digest != one.digest
        assert read_result(one.path, first) == one.content


def test_what_does_not_apply_is_a_sentence_in_the_result(tmp_path: Path) -> None:
    def refuse() -> dict[str, Any]:
        raise AnalysisError("There are no labels.")

    with open_database(write_cells(tmp_path / "a.h5", cells(48).samples)) as database:
        assert write_result(tmp_path / "x.json", database, refuse).unavailable_reason == "There are no labels."


def test_a_result_of_another_database_or_none_is_refused(tmp_path: Path) -> None:
    with open_database(write_cells(tmp_path / "a.h5", cells(48).samples)) as database:
        with pytest.raises(AnalysisError, match="materialize zero_shot first"):
            read_result(tmp_path / "zero_shot.json", database)
        (tmp_path / "zero_shot.json").write_text(json.dumps({"database": "of yesterday"}))
        with pytest.raises(AnalysisError, match="another state of the database: materialize zero_shot again"):
            read_result(tmp_path / "zero_shot.json", database)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null"])
def test_a_damaged_result_is_refused(tmp_path: Path, text: str) -> None:
    with open_database(write_cells(tmp_path / "a.h5", cells(48).samples)) as database:
        (tmp_path / "zero_shot.json").write_text(text)
        with pytest.raises(AnalysisError, match="or is damaged: materialize zero_shot"):
            read_result(tmp_path / "zero_shot.json", database)


# --- zero-shot and bottleneck ------------------------------------------------------------------------


def stored(root: Path, samples: Samples | None = None, **options: Any) -> Store:
    """A storage root whose study "cells" has the made-up cells as its database, by default those of many patients."""
    store = Store(root, "cells", "conceptclip_features.h5")
    store.folder.mkdir(parents=True)
    write_cells(store.database, samples or cells(480, grouped=True).samples, **options)
    return store


def test_the_zero_shot_asset_writes_what_is_measured(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "features.h5", {"val": 9, "test": 11})) as database:
        measured = measure_zero_shot(database)
        written = write_result(tmp_path / "zero_shot.json", database, lambda: measure_zero_shot(database))
    assert measured["splits"].keys() == {"val", "test"}
    assert json.loads(written.path.read_text()) == written.content == measured


def test_an_encoder_without_a_scale_has_no_zero_shot_probabilities(tmp_path: Path) -> None:
    assert "no logit_scale" in (write_zero_shot(stored(tmp_path)).unavailable_reason or "")


def test_where_patients_are_known_intervals_are_per_patient(tmp_path: Path) -> None:
    result = write_bottleneck(load_study("bloodmnist"), stored(tmp_path, off_domain=9))
    for split in ("val", "test"):
        assert result.content["splits"][split]["accuracy"]["per"] == "group"
    controls = result.content["controls"]
    assert controls["missing"] == {}
    assert {control["estimate"]["per"] for control in controls["controls"]} == {"group"}
    assert controls["price"]["estimate"]["per"] == "group"
    assert [level["concepts"] for level in result.content["levels"]] == [2, 4, 6]
    assert (
        bottleneck_metrics(result.content)["control_off_domain_phrases"]
        < result.content["splits"]["test"]["accuracy"]["value"]
    )


@pytest.mark.filterwarnings("error")
def test_a_class_without_held_out_rows_and_few_patients_are_said_in_the_result(tmp_path: Path) -> None:
    samples = cells(480).samples
    rare = samples.take((samples.split == "train") | (samples.labels != 3))
    patients = np.array([f"patient {row % 3}" for row in range(len(rare))], object)
    result = write_bottleneck(load_study("bloodmnist"), stored(tmp_path, replace(rare, groups=patients)))
    for split in ("val", "test"):
        measures = result.content["splits"][split]
        assert measures["absent"] == [3]
        assert measures["recall"][3]["reason"] == "No row has this class."
        assert measures["accuracy"]["low"] is None
        assert measures["accuracy"]["reason"] == "3 groups are too few for an interval: it needs at least 6."
    assert "(no interval)" in result.content["controls"]["controls"][0]["verdict"]


def test_classes_that_cannot_be_measured_are_said_with_where_their_images_are() -> None:
    counts = {"train": [4, 3, 5, 1], "val": [0, 2, 5, 0], "test": [0, 0, 5, 1]}
    named = ("basophil", "monocyte", "platelet", "lymphocyte")
    sentences = unmeasured_classes(named, {split: np.array(own) for split, own in counts.items()})
    assert sentences == [
        "basophil: 4 images in train, none in val or test: not measured",
        "monocyte: 3 images in train, 2 images in val, none in test: not measured on test",
        "lymphocyte: 1 image in train, 1 image in test, none in val: not measured on val",
    ]
    assert unmeasured_classes(named, {"train": np.array([4, 0, 0, 0])}) == []


def test_patients_are_measured_in_the_place_of_their_images() -> None:
    labels = np.array([0, 0, 1, 1, 1, 0])
    ranks = np.array([[3, -1], [-1, 1], [2, -2], [-4, 4], [-1, 1], [2, -2]], float)
    groups = np.array(["a", "a", "b", "b", "", "c"], object)
    measured = measure_groups({"test": labels}, {"test": ranks}, {"test": groups}, ordinal=True)
    assert measured is not None
    assert measured["test"]["rows"] == 4
    assert measured["test"]["accuracy"]["value"] == measured["test"]["auc"]["value"] == 1
    assert measured["test"]["accuracy"]["per"] == "image"
    assert measured["test"]["mean_absolute_error"]["value"] == 0
    mixed = measure_groups({"test": labels[::-1]}, {"test": ranks}, {"test": groups})
    assert mixed == {
        "test": {"obstacle": "1 of 4 groups have images of several classes: a group has no class of its own."}
    }
    assert measure_groups({"test": labels}, {"test": ranks}, {"test": None}) is None


def test_a_patient_has_the_findings_of_its_images() -> None:
    labels = np.array([[1, 0], [0, 0], [0, 1], [0, 0], [0, 0], [0, 0]], np.uint8)
    ranks = np.array([[2, 0], [0, 0], [0, 3], [0, 1], [-1, 0], [-1, 0]], float)
    groups = np.array(["a", "a", "b", "b", "c", "c"], object)
    measured = measure_groups({"val": labels}, {"val": ranks}, {"val": groups})
    assert measured is not None
    assert measured["val"]["rows"] == 3
    assert measured["val"]["accuracy"]["value"] == measured["val"]["auc"]["value"] == 1
    assert measured["val"]["always_no"] == pytest.approx(4 / 6)


def test_grades_have_measures_of_their_own(tmp_path: Path) -> None:
    graded = stored(tmp_path / "graded", attributes={"label_ordinal": True})
    for name, store in (("graded", graded), ("named", stored(tmp_path / "named"))):
        values = write_bottleneck(load_study("bloodmnist"), store).content["splits"]["test"]
        for measure in ("quadratic_kappa", "mean_absolute_error"):
            assert (values[measure] is not None) == (name == "graded")
        assert 0 < values["mcc"]["value"] < 1
        assert values["average_precision"]["per"] == values["mcc"]["per"] == "group"


def test_a_bottleneck_needs_labels(tmp_path: Path) -> None:
    result = write_bottleneck(load_study("bloodmnist"), stored(tmp_path, labels="none"))
    assert "has no labels" in (result.unavailable_reason or "")
    assert bottleneck_metrics(result.content) == {}


# --- retrieval ---------------------------------------------------------------------------------------


def test_retrieval_counts_what_stands_first() -> None:
    annotations = np.array([[1, 1], [0, np.nan], [1, 0], [0, 0]], np.float32)
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.2], [0.1, 0.3]], np.float32)
    first, second = measure_retrieval(scores, annotations, ["a", "b"])
    assert (first.base_rate, first.precision) == (0.5, 0.5)
    assert first.average_precision == pytest.approx((1 + 2 / 3) / 2)
    assert (second.images, second.average_precision) == (3, pytest.approx(1 / 3))


def test_precision_looks_at_twenty() -> None:
    scores = np.arange(40, dtype=np.float32)[::-1, None]
    annotations = (np.arange(40) % 2 == 0).astype(np.float32)[:, None]
    assert measure_retrieval(scores, annotations, ["a"])[0].precision == 0.5
    annotations[:20] = 1
    assert measure_retrieval(scores, annotations, ["a"])[0].precision == 1.0


# --- localisation ------------------------------------------------------------------------------------

PARTS = ["nucleus", "cytoplasm", "surroundings"]


def made_up_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps that are high exactly in their part, on a grid of four patches: one nucleus, two cytoplasm, one outside."""
    maps = np.tile(np.array([[4, 0, 0, 0], [0, 2, 2, 0], [0, 0, 0, 3]], np.float32), (5, 1, 1))
    present = np.ones((5, 3), bool)
    mask = np.tile(np.array([True, False, False, False]), (5, 1))
    return maps, present, mask


def test_maps_that_keep_to_their_part_pass_and_fail_when_permuted() -> None:
    maps, present, mask = made_up_maps()
    own = measure_localisation(maps, present, PARTS, "nucleus", mask)
    assert (own.inside, own.outside, own.both, own.pointing, own.mass, own.area) == (1, 1, 1, 1, 1, 0.25)
    exchanged = measure_localisation(exchange_maps(maps, PARTS), present, PARTS, "nucleus", mask)
    assert (exchanged.inside, exchanged.outside, exchanged.both, exchanged.pointing, exchanged.mass) == (0, 0, 0, 0, 0)


def test_a_map_of_the_whole_foreground_does_not_pass() -> None:
    maps, present, mask = made_up_maps()
    maps[:] = [[2, 2, 2, 0]] * 3
    own = measure_localisation(maps, present, PARTS, "nucleus", mask)
    assert (own.inside, own.outside) == (0, 0)


def test_concepts_of_no_part_are_not_exchanged() -> None:
    maps = np.arange(5, dtype=np.float32).reshape(1, 5, 1)
    columns = exchange_maps(maps, ["", "nucleus", "cytoplasm", "cytoplasm", ""])[0, :, 0].tolist()
    assert [columns[0], columns[4]] == [0, 4]
    assert columns[1] in {2, 3}
    assert sorted(columns) == [0, 1, 2, 3, 4]


def test_only_concepts_that_are_there_count() -> None:
    maps, present, mask = made_up_maps()
    present[1:, 0] = False
    assert measure_localisation(maps, present, PARTS, "nucleus", mask).images == 1
    with pytest.raises(AnalysisError, match="'nucleus'"):
        measure_localisation(maps, np.zeros_like(present), PARTS, "nucleus", mask)


def test_a_patch_belongs_to_a_part_that_covers_most_of_it() -> None:
    mask = np.zeros((6, 6), bool)
    mask[:3, :2] = True
    mask[3:, 3:5] = True
    assert patch_mask(mask, 2).tolist() == [True, False, False, True]
