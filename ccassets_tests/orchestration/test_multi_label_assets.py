"""Multi-label studies through the assets: ranks that do not saturate, thresholds from val, images without a label."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from ccassets.analysis import RowFilter, apply_model, label_errors, load_model, search
from ccassets.database.reader import open_database
from ccassets.orchestration.build import run_build
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.orchestration.made_findings import FINDINGS, Form, made_cosines, write_findings_study
from ccassets_tests.pages.page_terms import unexplained_terms, unlinked_headings, visible_text

pytestmark = pytest.mark.filterwarnings("ignore:Specifying a partitions_def:dagster.PreviewWarning")

ROWS = {"train": 100, "val": 500, "test": 900}


def built(folder: Path, form: Form, rows: dict[str, int], monkeypatch: pytest.MonkeyPatch, **attributes: Any) -> Study:
    monkeypatch.setenv("CCASSETS_HOME", str(folder / "home"))
    study = write_findings_study(folder / "studies" / "chest", form, rows, **attributes)
    run_build(study)
    return study


def result(study: Study, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Store.of(study).analysis / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("form", ["clip", "siglip", "conceptclip"])
@pytest.mark.slow
def test_zero_shot_ranks_are_those_of_the_cosines(form: Form, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = built(tmp_path, form, ROWS, monkeypatch)
    labels, cosines = made_cosines(sum(ROWS.values()), form)
    measured = result(study, "zero_shot")
    assert measured["rule"] == ("span" if form == "conceptclip" else None)
    assert measured["bias"] == (-12.9 if form == "siglip" else 0)
    for split, rows in (("val", slice(100, 600)), ("test", slice(600, None))):
        expected = roc_auc_score(labels[rows], cosines[rows], average="macro")
        values = measured["splits"][split]
        assert 0.8 < expected < 0.88
        assert values["auc"]["value"] == pytest.approx(expected, abs=0.01)
        assert values["auc"]["low"] < expected < values["auc"]["high"]
        # No threshold of 0.5 that most probabilities exceed: few are said to have a finding that few have.
        assert values["always_no"] == pytest.approx(1 - labels[rows].mean())
        assert values["accuracy"]["value"] > 0.75
    assert len(measured["thresholds"]) == len(FINDINGS)


def test_without_val_a_sentence_stands_in_the_place_of_an_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = built(tmp_path, "clip", {"test": 400}, monkeypatch)
    values = result(study, "zero_shot")["splits"]["test"]
    assert values["accuracy"]["value"] is None
    assert "there is no val" in values["accuracy"]["reason"]
    assert values["always_no"] is None
    assert values["auc"]["value"] > 0.8


CONCEPTS = {
    "labels": {"words": list(FINDINGS), "templates": ["an image of {}"]},
    "concepts": {"words": list(FINDINGS), "templates": ["signs of {}"]},
}


@pytest.mark.slow
def test_one_classifier_a_finding_is_measured_by_auc_beside_its_controls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"train": 600, "val": 400, "test": 400}
    study = built(tmp_path, "clip", rows, monkeypatch, vocabulary=CONCEPTS)
    labels, cosines = made_cosines(1400, "clip")
    expected = roc_auc_score(labels[1000:], cosines[1000:], average="macro")
    fitted = result(study, "concept_bottleneck")
    values = fitted["splits"]["test"]
    # The concepts are the findings. Findings come together, so a classifier on all may do better than each alone.
    assert expected - 0.01 < values["auc"]["value"] < expected + 0.06
    assert values["auc"]["per"] == "group"
    patients = fitted["groups"]["test"]
    assert patients["rows"] == 100
    assert patients["auc"]["value"] > 0.7
    assert values["calibration"]["ece"] < 0.05
    assert values["calibrated"]["ece"] < 0.05
    assert values["always_no"] == pytest.approx(1 - labels[1000:].mean())
    assert (fitted["tree"], fitted["sparse"], fitted["truth"]) == (None, {}, None)
    controls = fitted["controls"]
    assert controls["metric"] == "auc"
    by_name = {control["name"]: control for control in controls["controls"]}
    probe, concepts = by_name["linear probe"]["estimate"]["value"], values["auc"]["value"]
    assert probe == pytest.approx(concepts, abs=0.01)
    assert controls["price"]["estimate"]["value"] == pytest.approx(probe - concepts)
    assert controls["price"]["estimate"]["low"] < probe - concepts < controls["price"]["estimate"]["high"]
    # Sigmoids of cosines say "yes" to everything until they are calibrated on val.
    shot = result(study, "zero_shot")["splits"]["test"]
    assert shot["calibration"]["ece"] > 0.8
    assert shot["calibrated"]["ece"] < 0.05
    page = (Store.of(study).analysis / "concept_atlas.html").read_text(encoding="utf-8")
    assert "What an AUC is worth" in page
    assert "Concept classifier, test, by group (100)" in visible_text(page)
    assert "Single images" not in page
    assert "Not shown: sparse classifier, association of classes with concepts, decision tree" in page
    shown = page[: page.index('id="data"')]
    assert unexplained_terms(shown) == set()
    assert unlinked_headings(shown) == set()
    own = shot["auc_by_class"][0]["value"]
    assert own == pytest.approx(roc_auc_score(labels[1000:, 0], cosines[1000:, 0]), abs=1e-3)
    by_label = re.search(r'id="labels".*?<th scope="row">finding a</th>(.*?)</tr>', shown, re.S)
    assert by_label is not None
    assert f"{int(labels[1000:, 0].sum())}</td>" in by_label[1]
    assert f"{100 * own:.1f} %" in by_label[1]
    assert f"{fitted['thresholds'][0]:.2f}".replace("-", "−") in by_label[1]
    model = load_model(Store.of(study).analysis / "model.json")
    with open_database(Store.of(study).database) as database:
        predictions = apply_model(model, database, "test")
        errors = label_errors(database)
    said = np.array([[name in predicted.split("|") for name in FINDINGS] for predicted in predictions.predicted])
    assert (np.array(predictions.predicted) == "none").tolist() == (~said.any(axis=1)).tolist()
    assert (said == labels[1000:]).mean() == pytest.approx(values["accuracy"]["value"], abs=1e-9)
    assert np.allclose(predictions.by_group().probabilities[0], predictions.probabilities[:4].mean(axis=0))
    assert errors[0].predicted in {f"no {errors[0].label}", errors[0].label.removeprefix("no ")}


@pytest.mark.slow
def test_an_image_without_a_finding_is_none_in_every_view(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = built(tmp_path, "clip", {"train": 60, "val": 60, "test": 60}, monkeypatch, vocabulary=CONCEPTS)
    labels, _ = made_cosines(180, "clip")
    without = ~labels.any(axis=1)
    store = Store.of(study)
    with open_database(store.database) as database:
        assert database.labels[without].tolist() == [0] * int(without.sum())
        assert (database.to_pandas().label.to_numpy() == -1).tolist() == without.tolist()
        items = database.torch_dataset()
        np.testing.assert_array_equal([items[row][-1] for row in range(180)], labels)
        hits = search(database, concepts=[FINDINGS[0]], k=180, where=RowFilter(label="none"))
    assert {hit.row for hit in hits} == set(np.flatnonzero(without).tolist())
    assert {hit.label for hit in hits} == {-1}
    table = pd.read_parquet(store.analysis / "concept_scores.parquet")
    assert (table["class"] == "none").tolist() == without.tolist()
    assert (table["label"] == -1).tolist() == without.tolist()
    several = int(np.flatnonzero(labels.sum(axis=1) > 1)[0])
    assert table["class"][several] == "|".join(np.array(FINDINGS)[labels[several] > 0])
    page = (store.analysis / "concept_atlas.html").read_text(encoding="utf-8")
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    assert data["classes"] == [*FINDINGS, "none"]
    assert len(data["colours"]) == len(FINDINGS) + 1
    assert (np.array(data["points"]["label"]) == len(FINDINGS)).tolist() == without.tolist()
    assert "<br>none, " in page
    assert "always no: " in page
