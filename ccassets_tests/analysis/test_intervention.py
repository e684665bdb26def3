"""What-if, intervention and concept AUROC against annotated cells, and where annotations are read from."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccassets import load_study, open_database
from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.concept_annotations import read_concept_annotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervention import (
    concept_auroc,
    concept_groups,
    concept_levels,
    intervention_curve,
    what_if,
)
from ccassets.analysis.samples import Samples
from ccassets.datasets.phantom import PhantomDataset
from ccassets.errors import AnalysisError
from ccassets.study.schema import PhantomDatasetConfig, Study
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, GROUPS, cells, write_cells

NOISY = cells(720, noise=0.6)
CLASSIFIER = fit_logistic(NOISY.samples)


def curve(annotations=NOISY.annotations, order="uncertainty", log=None):
    return intervention_curve(
        CLASSIFIER, NOISY.samples, annotations, GROUPS, order=order, split="test", log=log or HoldoutLog()
    )


def test_setting_a_telling_concept_changes_the_class():
    levels = concept_levels(NOISY.samples, NOISY.annotations)
    row = NOISY.samples.features[np.flatnonzero(NOISY.samples.labels == CLASSES.index("lymphocyte"))[0]]
    low, high = levels.absent[CONCEPTS.index("Round nucleus")], levels.present[CONCEPTS.index("Giant platelets")]
    result = what_if(CLASSIFIER, row, {"Round nucleus": low, "Giant platelets": high})
    assert result.predicted == ("lymphocyte", "platelet")
    assert sum(result.after.values()) == pytest.approx(1)
    assert what_if(CLASSIFIER, row, {}).after == what_if(CLASSIFIER, row, {}).before


def test_an_unknown_concept_cannot_be_set():
    with pytest.raises(AnalysisError, match=r"no columns \['Auer rods'\]"):
        what_if(CLASSIFIER, NOISY.samples.features[0], {"Auer rods": 1.0})


def test_correcting_concepts_raises_accuracy_and_doubt_is_the_better_order():
    random, doubtful = curve(order="random"), curve(order="uncertainty")
    assert random.groups == ("nucleus", "granules", "cytoplasm", "cell")
    assert len(random.accuracy) == 5
    assert random.accuracy[0] == doubtful.accuracy[0] == pytest.approx(doubtful.accuracy[0])
    assert random.accuracy[-1] == pytest.approx(doubtful.accuracy[-1])
    assert random.accuracy[-1] > random.accuracy[0] + 0.05
    assert sum(doubtful.accuracy[1:-1]) > sum(random.accuracy[1:-1])


def test_all_concepts_corrected_are_the_truth_at_the_means_of_train():
    train, test = NOISY.samples.of("train"), NOISY.samples.of("test")
    shown = NOISY.annotations[NOISY.samples.split == "train"] == 1
    low, high = (np.mean(train.features, axis=0, where=where, dtype=np.float64) for where in (~shown, shown))
    annotations = NOISY.annotations[NOISY.samples.split == "test"]
    predicted = CLASSIFIER.probabilities(np.where(annotations == 1, high, low)).argmax(axis=1)
    assert curve().accuracy[-1] == np.mean(predicted == test.labels)
    # Scores of test that are all off do not matter any more.
    off = np.where((NOISY.samples.split == "test")[:, None], NOISY.samples.features + 1, NOISY.samples.features)
    moved = intervention_curve(
        CLASSIFIER,
        NOISY.samples.with_features(off, CONCEPTS),
        NOISY.annotations,
        GROUPS,
        order="random",
        split="test",
        log=HoldoutLog(),
    )
    assert moved.accuracy[0] < 0.6
    assert moved.accuracy[-1] == pytest.approx(curve().accuracy[-1])


@pytest.mark.parametrize("prevalence", [0.02, 0.04, 0.1])
def test_the_truth_of_a_rare_concept_finds_its_class(prevalence):
    rng = np.random.default_rng(0)
    shown = np.zeros((2000, 2))
    for split in (slice(0, 1000), slice(1000, 2000)):
        shown[split][: round(1000 * prevalence), 0] = 1
    shown[:, 1] = rng.random(2000) < 0.5
    samples = Samples(
        features=shown + rng.normal(0, 0.25, shown.shape),
        columns=("rare finding", "frequent finding"),
        labels=shown[:, 0].astype(np.int64),
        split=np.repeat(["train", "test"], 1000),
        classes=("healthy", "ill"),
        ids=np.arange(2000),
    )
    classifier = fit_logistic(samples, val=None)
    both = intervention_curve(
        classifier, samples, shown, ["a", "b"], order="random", split="test", log=HoldoutLog(), repeats=1
    )
    # The class is the concept, so the truth of the concept is the truth of the class.
    assert both.accuracy[-1] == 1.0
    assert both.accuracy[0] < 1.0
    assert both.guessed == ()


def test_a_concept_that_train_does_not_know_is_set_to_percentiles_and_named():
    annotations = NOISY.annotations.copy()
    annotations[NOISY.samples.split == "train", 0] = np.nan
    annotations[NOISY.samples.split == "train", 1] = 1
    levels = concept_levels(NOISY.samples, annotations)
    low, high = np.percentile(NOISY.samples.of("train").features, [5, 95], axis=0)
    assert curve(annotations=annotations).guessed == CONCEPTS[:2]
    assert (levels.absent[:2] == low[:2]).all()
    assert (levels.present[:2] == high[:2]).all()
    assert levels.guessed.tolist() == [True, True] + [False] * (len(CONCEPTS) - 2)


def test_without_known_truth_nothing_moves():
    unknown = np.full_like(NOISY.annotations, np.nan)
    accuracy = curve(annotations=unknown).accuracy
    assert len(set(accuracy)) == 1


def test_an_intervention_on_test_is_an_access():
    log = HoldoutLog()
    curve(log=log)
    assert [(access.what, access.split) for access in log.accesses()] == [("intervention curve, uncertainty", "test")]


def test_auroc_within_classes_is_half_for_a_score_that_only_knows_the_class():
    annotations, labels = NOISY.annotations, NOISY.samples.labels
    # The share of the class that shows a concept: all that a class label alone can say.
    rates = np.array([annotations[labels == label].mean(axis=0) for label in range(len(CLASSES))])
    for measure in concept_auroc(NOISY.samples.with_features(rates[labels], CONCEPTS), annotations):
        assert measure.overall.low > 0.55
        assert (measure.within.value, measure.within.low, measure.within.high) == (0.5, 0.5, 0.5)
    for measure in concept_auroc(NOISY.samples, annotations):
        assert measure.overall.low < measure.overall.value < measure.overall.high
        assert measure.within.low > 0.7


def test_auroc_is_that_of_scikit_learn():
    from sklearn.metrics import roc_auc_score

    samples, annotations = NOISY.samples, NOISY.annotations
    measure = concept_auroc(samples, annotations)[0]
    assert measure.overall.value == pytest.approx(roc_auc_score(annotations[:, 0], samples.features[:, 0]))
    # Basophils and monocytes alone show segmented nuclei, not all of them.
    parts, pairs = [], []
    for label in (CLASSES.index("basophil"), CLASSES.index("monocyte")):
        present, scores = annotations[samples.labels == label, 0], samples.features[samples.labels == label, 0]
        parts.append(roc_auc_score(present, scores))
        pairs.append(present.sum() * (1 - present).sum())
    assert measure.within.value == pytest.approx(np.average(parts, weights=pairs))
    assert measure.pairs_within == sum(pairs)


def test_auroc_leaves_out_unknown_rows_and_concepts_that_are_always_there():
    annotations = NOISY.annotations.copy()
    annotations[:700, 0] = np.nan
    annotations[:, 1] = 1
    annotations[:, 2] = np.nan
    first, second, third, *_ = concept_auroc(NOISY.samples, annotations)
    assert first.true + first.false == 20
    assert second.false == third.true == third.false == 0
    for nothing in (second.overall, second.within, third.overall, third.within):
        assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


# --- where truth comes from --------------------------------------------------------------------------


def study(tmp_path: Path, **dataset: object) -> Study:
    return Study(
        name="cells",
        folder=tmp_path,
        dataset=dataset,
        encoder={"kind": "phantom"},
        vocabulary={"concepts": {"words": list(CONCEPTS)}},
    )


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def database(tmp_path: Path):
    with open_database(write_cells(tmp_path / "cells.h5", cells(24).samples)) as opened:
        yield opened


TABLE = {
    "kind": "table",
    "file": "cells.csv",
    "columns": {
        "concepts": {
            "Segmented nucleus": {"nucleus": ["bilobed", "multilobed"]},
            "Cytoplasmic vacuoles": {"vacuole": "yes"},
        }
    },
}


def test_truth_of_a_table_is_read_by_split_and_key(database, tmp_path: Path):
    shapes, vacuoles = ["round", "bilobed", "multilobed", ""], ["yes", "no"]
    rows = [
        {
            "path": f"./{key}" if row == 0 else key,
            "split": split,
            "label": "1",
            "nucleus": shapes[row % 4],
            "vacuole": vacuoles[row % 2],
        }
        for row, (split, key) in enumerate(zip(database.split, database.keys, strict=True))
    ]
    write_table(tmp_path / "cells.csv", rows[::-1])
    annotations = read_concept_annotations(study(tmp_path, **TABLE), database)
    assert annotations.shape == (24, len(CONCEPTS))
    assert np.array_equal(annotations[:4, 0], [0, 1, 1, np.nan], equal_nan=True)
    assert annotations[:4, CONCEPTS.index("Cytoplasmic vacuoles")].tolist() == [1, 0, 1, 0]
    assert np.isnan(annotations[:, 1]).all()


def test_blanks_around_the_cells_of_a_table_hide_no_annotation(database, tmp_path: Path):
    rows = [
        {"path": f"{key} ", "split": f" {split}", "label": "1", "nucleus": "bilobed", "vacuole": "yes\t"}
        for split, key in zip(database.split, database.keys, strict=True)
    ]
    rows[0]["nucleus"] = "multilobed "
    write_table(tmp_path / "cells.csv", rows)
    annotations = read_concept_annotations(study(tmp_path, **TABLE), database)
    assert (annotations[:, [0, CONCEPTS.index("Cytoplasmic vacuoles")]] == 1).all()


def test_a_value_or_a_word_that_does_not_exist_is_named(database, tmp_path: Path):
    write_table(
        tmp_path / "cells.csv", [{"path": "a", "split": "train", "label": "1", "nucleus": "x", "vacuole": "no"}]
    )
    with pytest.raises(AnalysisError, match="'bilobed', 'multilobed'"):
        read_concept_annotations(study(tmp_path, **TABLE), database)
    wrong = {**TABLE, "columns": {"concepts": {"Segmented nuclei": {"nucleus": "x"}}}}
    with pytest.raises(AnalysisError, match="Segmented nuclei"):
        read_concept_annotations(study(tmp_path, **wrong), database)


def test_truth_of_phantoms_is_what_they_are_drawn_by(tmp_path: Path):
    rows = {"train": 12, "val": 4, "test": 8}
    samples = cells(24).samples
    keys = np.array([f"{split}/{row:05d}" for split, count in rows.items() for row in range(count)], object)
    path = write_cells(tmp_path / "phantoms.h5", replace(samples, keys=keys))
    with open_database(path) as opened:
        annotations = read_concept_annotations(study(tmp_path, kind="phantom", rows=rows, size=32), opened)
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows=rows, size=32))
    drawn = dataset.annotations("val", 2).concepts
    assert annotations[14, 0] == drawn["Segmented nucleus"]
    assert annotations[14, CONCEPTS.index("Pale cytoplasm")] == drawn["Pale cytoplasm"]
    # A word that no phantom is drawn by has no annotations.
    assert np.isnan(annotations[:, CONCEPTS.index("Giant platelets")]).all()


def test_a_folder_knows_no_concept(database, tmp_path: Path):
    assert read_concept_annotations(study(tmp_path, kind="folder", root="."), database) is None


def test_the_wbcatt_study_reads_the_authors_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    values = {
        "cell_size": ["big", "small"],
        "cell_shape": ["round", "irregular"],
        "nucleus_shape": [
            "unsegmented-band",
            "unsegmented-indented",
            "unsegmented-round",
            "irregular",
            "segmented-bilobed",
            "segmented-multilobed",
        ],
        "nuclear_cytoplasmic_ratio": ["low", "high"],
        "chromatin_density": ["densely", "loosely"],
        "cytoplasm_vacuole": ["no", "yes"],
        "cytoplasm_texture": ["clear", "frosted"],
        "cytoplasm_colour": ["light blue", "blue", "purple blue"],
        "granule_type": ["small", "round", "coarse", "nil"],
        "granule_colour": ["pink", "red", "purple", "nil"],
        "granularity": ["yes", "no"],
    }
    wbcatt = load_study("wbcatt")
    samples = cells(24).samples
    keys = [f"PBC_dataset_normal_DIB/monocyte/MO_{row}.jpg" for row in range(24)]
    rows = [
        {"label": "Monocyte", **{name: options[row % len(options)] for name, options in values.items()}}
        | {"path": key, "split": split}
        for row, (key, split) in enumerate(zip(keys, samples.split, strict=True))
    ]
    (tmp_path / "wbcatt").mkdir()
    write_table(tmp_path / "wbcatt" / "wbcatt.csv", rows)
    path = write_cells(tmp_path / "cells.h5", replace(samples, keys=np.array(keys, object)))
    with open_database(path) as opened:
        annotations = read_concept_annotations(wbcatt, opened)
    assert annotations.shape == (24, 29)
    groups = concept_groups(wbcatt.vocabulary.concepts.words)
    for group in dict.fromkeys(groups):
        shown = annotations[:, [column for column, name in enumerate(groups) if name == group]].sum(axis=1)
        # Each attribute has one value, and one concept for it; granules that are not there have none.
        assert set(shown.tolist()) == ({0, 1} if group in {"granule type", "granule colour"} else {1})
    words = [concept.word for concept in wbcatt.vocabulary.concepts.words]
    assert annotations[1, words.index("Round granules")] == 1
