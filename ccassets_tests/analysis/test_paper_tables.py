"""The tables of a paper: every method with what its number rests on, in CSV and in LaTeX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from ccassets.analysis.bottleneck import HOLDOUT_LOG, write_bottleneck
from ccassets.analysis.concept_annotations import read_concept_annotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.paper_tables import write_paper_tables
from ccassets.analysis.scores import concept_scores
from ccassets.analysis.zero_shot_scores import write_zero_shot
from ccassets.database.reader import open_database
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study

pytestmark = pytest.mark.slow

METHODS = {
    "Concept classifier",
    "Sparse, 5 a class",
    "Association of classes with concepts",
    "Decision tree",
    "Zero-shot",
    "Linear probe",
    "Random directions",
    "Off-domain phrases",
    "Without class names",
}


@dataclass(frozen=True)
class Tables:
    study: Study
    store: Store
    folder: Path
    names: list[str]

    def read(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv")


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Tables:
    folder = tmp_path_factory.mktemp("tables")
    study = phantom_study(folder / "cells", lambda attributes: None)
    store = extracted(study, folder / "storage")
    zero_shot, bottleneck = write_zero_shot(store), write_bottleneck(study, store)
    assert zero_shot.unavailable_reason is bottleneck.unavailable_reason is None
    files = write_paper_tables(study, store, folder / "tables")
    return Tables(study, store, folder / "tables", [path.name for path in files])


def test_each_table_is_a_csv_and_latex(tables: Tables) -> None:
    assert tables.names == [f"{name}.{kind}" for name in ("results", "few_shot", "concepts") for kind in ("csv", "tex")]
    for name in tables.names[1::2]:
        text = (tables.folder / name).read_text(encoding="utf-8")
        assert text.startswith("\\begin{tabular}")
        assert "\\toprule" in text
        assert re.search(r"(?<!\\)[%_#]", text) is None


def test_every_method_stands_on_the_same_images(tables: Tables) -> None:
    results = tables.read("results")
    test = results[results.split == "test"].set_index("method")
    assert set(test.index) == METHODS
    assert set(test.images) == {int(test.images.iloc[0])}
    assert test["source"].notna().all()
    assert (results[results.split == "val"].set_index("method").loc["Concept classifier", "chosen on"]) == "val"
    assert test.loc["Random directions", "seeds"] > 1
    for estimate in test["accuracy"]:
        assert re.fullmatch(r"[01]\.\d{3} \([01]\.\d{3}–[01]\.\d{3}\)", estimate)


def test_few_shot_curves_have_five_seeds_and_are_accesses(tables: Tables) -> None:
    curve = tables.read("few_shot")
    assert set(curve["images a class"]) == {1, 2, 4, 8, 16}
    assert set(curve.seeds) == {5}
    assert len(curve.method.unique()) == 3
    accesses = [access.what for access in HoldoutLog(tables.store.analysis / HOLDOUT_LOG).accesses()]
    assert sum(what.startswith("few-shot curve") for what in accesses) == 3


def test_concepts_whose_truth_is_known_are_measured_on_test(tables: Tables) -> None:
    concepts = tables.read("concepts").set_index("concept")
    with open_database(tables.store.database) as database:
        rows = np.flatnonzero(database.split == "test")
        annotations = read_concept_annotations(tables.study, database)
        assert annotations is not None
        scores = concept_scores(database)
    truth = annotations[rows, 0] > 0.5
    word = concepts.index[0]
    assert concepts.loc[word, "shown by"] == truth.sum()
    expected = average_precision_score(truth, scores[rows, 0])
    assert concepts.loc[word, "average precision"] == pytest.approx(expected, abs=1e-6)
    assert concepts["F1"].dropna().between(0, 1).all()
