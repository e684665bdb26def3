"""Leakage: nothing where scores follow from the concepts, however they do, and what was put in where they do not."""

from dataclasses import replace

import numpy as np
import pytest

from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.leakage import Leakage, measure_leakage
from ccassets.analysis.samples import Samples
from ccassets.errors import AnalysisError
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, cells

NOISY = cells(720, noise=0.6)


def leakage(samples: Samples, annotations: ConceptAnnotations, **options: int) -> Leakage:
    return measure_leakage(samples, annotations, split="test", log=HoldoutLog(), **options)


def exclusive_or(rows: int, concepts: int, seed: int) -> tuple[Samples, ConceptAnnotations]:
    """The class is whether one of two concepts is there without the other; scores follow from the concepts alone.

    The first score is the very class, up to noise: a linear classifier on the concepts knows nothing of it.
    """
    rng = np.random.default_rng(seed)
    annotations = rng.integers(0, 2, (rows, concepts)).astype(np.float32)
    labels = (annotations[:, 0] != annotations[:, 1]).astype(np.int64)
    scores = annotations.copy()
    scores[:, 0] = labels
    scores += 0.3 * rng.standard_normal(scores.shape).astype(np.float32)
    splits = np.array(["train"] * (rows * 3 // 5) + ["val"] * (rows // 5), object)
    splits = np.append(splits, ["test"] * (rows - len(splits))).astype(object)
    names = tuple(f"concept {number}" for number in range(concepts))
    return Samples(scores, names, labels, splits, ("no", "yes"), np.arange(rows)), annotations


@pytest.mark.parametrize(("rows", "concepts"), [(320, 2), (320, 4), (1000, 4), (320, 10)])
def test_scores_that_follow_from_concepts_by_an_exclusive_or_leak_nothing(rows: int, concepts: int) -> None:
    for seed in range(2):
        samples, annotations = exclusive_or(rows, concepts, seed)
        # The difference from a linear classifier on the concepts is most of a bit.
        linear = fit_logistic(samples.with_features(annotations, samples.columns)).probabilities(annotations)
        assert -np.log2(linear[np.arange(rows), samples.labels]).mean() > 0.9
        result = leakage(samples, annotations, exchanges=5, seed=seed)
        assert result.information.low < 0 < result.information.high
        assert abs(result.information.value) < 0.2


def test_honest_scores_leak_nothing_on_64_images() -> None:
    for seed in range(3):
        made = cells(384, noise=0.6, seed=seed)
        few = made.samples.take(np.arange(320))
        result = leakage(few, made.annotations[:320], exchanges=5)
        assert (result.rows, result.information.units) == (64, 64)
        assert result.information.low < 0 < result.information.high


def test_scores_that_know_the_class_beyond_their_concepts_leak() -> None:
    samples, annotations = NOISY.samples, NOISY.annotations
    honest = leakage(samples, annotations)
    hints = samples.features + 0.5 * np.eye(len(CLASSES), len(CONCEPTS))[samples.labels]
    leaking = leakage(samples.with_features(hints, CONCEPTS), annotations)
    assert abs(honest.information.value) < 0.1
    assert leaking.information.value > 0.2
    assert leaking.information.low > 0
    for result in (honest, leaking):
        difference = result.given_annotations - result.given_both
        assert result.information.value == pytest.approx(difference)
        assert result.matched > 0.9 * result.rows


def test_whole_groups_count_and_few_of_them_give_a_sentence() -> None:
    made = cells(720, noise=0.6, grouped=True)
    result = leakage(made.samples, made.annotations, exchanges=3)
    assert (result.information.per, result.information.units) == ("group", 30)
    few = replace(made.samples, groups=np.array(["a", "b", "c"] * 240, object))
    result = leakage(few, made.annotations, exchanges=3)
    assert np.isnan(result.information.low)
    assert result.information.reason == "3 groups are too few for an interval: it needs at least 6."


def test_every_fit_is_an_access_to_the_split() -> None:
    log = HoldoutLog()
    measure_leakage(NOISY.samples, NOISY.annotations, split="test", log=log, exchanges=2)
    assert [access.what for access in log.accesses()] == [
        "log loss given scores and true concepts",
        *["log loss given exchanged scores and true concepts"] * 2,
    ]


def test_without_annotations_there_is_nothing_to_measure() -> None:
    with pytest.raises(AnalysisError, match="No concept is annotated"):
        leakage(NOISY.samples, np.full_like(NOISY.annotations, np.nan))
