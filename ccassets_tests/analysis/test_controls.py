"""Controls: concepts that matter beat chance directions, and what cannot be told apart is not told apart."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from ccassets import load_study, open_database
from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.controls import (
    Controls,
    accuracy_by_level,
    class_name_concepts,
    paired_difference,
    run_controls,
)
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import concept_samples, database_concepts
from ccassets.errors import AnalysisError
from ccassets_tests.analysis.made_cells import CONCEPTS, DIM, cells, write_cells

# --- differences -------------------------------------------------------------------------------------


def test_the_interval_of_a_difference_covers_it_as_often_as_it_says():
    covered = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        first, second = rng.random(300) < 0.8, rng.random(300) < 0.7
        difference = paired_difference(first, second).estimate
        covered.append(difference.low <= 0.1 <= difference.high)
    assert 0.88 <= np.mean(covered) <= 1.0


def test_whole_groups_make_the_interval_wider():
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(30), 20)
    first = np.repeat(rng.random(30) < 0.8, 20)
    second = np.repeat(rng.random(30) < 0.6, 20)
    alone, together = paired_difference(first, second), paired_difference(first, second, patients.astype(object))
    assert together.estimate.value == alone.estimate.value == pytest.approx(first.mean() - second.mean())
    assert together.estimate.high - together.estimate.low > 2 * (alone.estimate.high - alone.estimate.low)
    assert (together.estimate.per, alone.estimate.per) == ("group", "image")
    assert together.mcnemar is None


def test_mcnemar_is_the_exact_one():
    # 9 images that only the first got right, 2 that only the second did: P(at most 2 of 11) on both sides.
    first = np.array([True] * 9 + [False] * 2 + [True] * 30)
    second = np.array([False] * 9 + [True] * 2 + [True] * 30)
    assert paired_difference(first, second).mcnemar == pytest.approx(2 * (1 + 11 + 55) / 2**11)


def test_equal_classifiers_differ_by_nothing():
    right = np.array([True, False, True])
    same = paired_difference(right, right)
    assert same.estimate.value == 0
    # Three images show no difference, and rule hardly any out.
    assert same.estimate.low == -same.estimate.high < -0.5
    assert (same.mcnemar, same.sign) == (1, 0)


# --- class names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words", "stems"), [("bloodmnist", 2, 3), ("bloodmnist_90", 8, 6)])
def test_class_names_inside_the_concepts_that_ship_are_counted(name: str, words: int, stems: int):
    vocabulary = load_study(name).vocabulary
    occurrences = class_name_concepts([concept.word for concept in vocabulary.concepts.words], vocabulary.labels.words)
    assert list(occurrences.values()).count("word") == words
    assert list(occurrences.values()).count("stem") == stems


def test_a_name_of_several_words_counts_as_a_whole_and_by_its_own_words():
    classes = ["red blood cell", "white blood cell", "immature granulocytes"]
    concepts = ["Red blood cells in rouleaux", "Overlapping cell clumps", "Immature chromatin", "Fine granules", "Red"]
    assert class_name_concepts(concepts, classes) == {
        "Red blood cells in rouleaux": "word",
        "Immature chromatin": "word",
    }


# --- controls ----------------------------------------------------------------------------------------


def controls_of(path: Path, log: HoldoutLog | None = None) -> Controls:
    with open_database(path) as database:
        samples = concept_samples(database)
        return run_controls(database, samples, fit_logistic(samples), split="test", log=log or HoldoutLog())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Controls, HoldoutLog]:
    """The controls of cells whose classes lie in the concepts alone."""
    log = HoldoutLog()
    path = write_cells(tmp_path_factory.mktemp("made") / "cells.h5", cells(1200).samples, off_domain=8)
    return controls_of(path, log), log


def test_random_directions_and_off_domain_phrases_are_worse_than_concepts(made):
    controls, _ = made
    for name in ("random directions", "off-domain phrases"):
        assert controls[name].columns == len(CONCEPTS)
        first, second, third = controls[name].probabilities
        assert not np.array_equal(first, second)
        assert not np.array_equal(second, third)
        assert controls[name].difference.sign == 1
        assert controls[name].verdict.startswith("The concepts are better than this control: +")


def test_the_raw_features_know_what_the_concepts_know(made):
    controls, _ = made
    assert controls["linear probe"].columns == DIM
    price = controls.price.estimate
    assert abs(price.value) < 0.04
    assert price.value == pytest.approx(controls["linear probe"].estimate.value - controls.estimate.value)
    assert price.low <= price.value <= price.high
    assert controls.price.mcnemar == controls["linear probe"].difference.mcnemar
    assert (controls.estimate.method, controls.estimate.per) == ("exact", "image")


def test_concepts_with_a_class_name_are_named_and_left_out(made):
    controls, _ = made
    assert controls.class_names == {"Basophilic granules": "stem", "Giant platelets": "word"}
    assert controls["without class names"].columns == len(CONCEPTS) - 2
    assert controls["without class names"].difference.sign == 1
    assert not controls.missing


def test_every_control_is_an_access(made):
    _, log = made
    purposes = [access.what for access in log.accesses()]
    assert purposes[0] == "accuracy"
    assert purposes.count("control: random directions") == 3
    assert len(purposes) == 1 + 1 + 3 + 3 + 1


def test_controls_that_are_not_available_are_explained(tmp_path: Path):
    samples = cells(240).samples
    plain = controls_of(write_cells(tmp_path / "plain.h5", samples))
    assert "has no template 'off_domain'" in plain.missing["off-domain phrases"]
    few = controls_of(write_cells(tmp_path / "few.h5", samples, off_domain=2))
    assert "holds 2 prompts" in few.missing["off-domain phrases"]


def test_on_concepts_that_mean_nothing_random_directions_are_no_worse(tmp_path: Path):
    samples = cells(600).samples
    shuffled = replace(samples, labels=np.random.default_rng(0).permutation(samples.labels))
    controls = controls_of(write_cells(tmp_path / "cells.h5", shuffled))
    assert controls["random directions"].difference.sign == 0


def test_samples_of_other_rows_are_refused(tmp_path: Path):
    samples = cells(240).samples
    classifier = fit_logistic(samples)
    with open_database(write_cells(tmp_path / "cells.h5", samples)) as database:
        test = concept_samples(database).of("test")
        with pytest.raises(AnalysisError, match="240 rows"):
            run_controls(database, test, classifier, split="test", log=HoldoutLog())


# --- levels ------------------------------------------------------------------------------------------


def test_accuracy_grows_with_the_levels(tmp_path: Path):
    log = HoldoutLog()
    with open_database(write_cells(tmp_path / "cells.h5", cells(900).samples)) as database:
        levels = accuracy_by_level(
            concept_samples(database),
            database_concepts(database),
            split="test",
            log=log,
            fit=partial(fit_logistic, refit=True),
        )
    assert [(level.level, level.concepts) for level in levels] == [(1, 2), (2, 4), (3, 6)]
    assert levels[0].accuracy.value < levels[1].accuracy.value < levels[2].accuracy.value
    assert levels[2].classifier.chosen["fitted_on"] == ["train", "val"]
    assert len(log.accesses()) == 3
