"""The sparse path: converged points, truncated to a number of effective concepts, and what they are measured on."""

import warnings

import numpy as np
import pytest

from ccassets.analysis.elastic_net import TOLERANCE
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.sparse_classifiers import (
    MIXING,
    NEC_LEVELS,
    accuracy_against_nec,
    sparse_path,
    truncate_to_nec,
)
from ccassets_tests.analysis.made_cells import cells, wide

SAMPLES = cells().samples


def test_the_path_grows_from_no_concept_and_finds_the_telling_ones():
    samples = wide()
    path = sparse_path(samples)
    assert path[0].nec == 0
    assert path[-1].nec >= 30 or len(path) == 150
    few = truncate_to_nec(path, 3)
    assert few.nec == 3
    for label, weights in enumerate(few.weights):
        positive = np.flatnonzero(weights > 0)
        assert set(positive) <= set(range(3 * label, 3 * label + 3))


def test_accuracy_against_nec_records_every_level():
    samples, log = wide(), HoldoutLog()
    result = accuracy_against_nec(sparse_path(samples), samples, "test", log)
    assert [point.level for point in result.points] == list(NEC_LEVELS)
    assert all(point.nec <= point.level for point in result.points)
    assert result.anec_5 == result.points[0].accuracy.value > 0.6
    assert result.anec_avg == pytest.approx(np.mean([point.accuracy.value for point in result.points]))
    assert len(log.accesses()) == len(NEC_LEVELS)


def test_levels_above_the_number_of_concepts_are_left_out():
    result = accuracy_against_nec(sparse_path(SAMPLES), SAMPLES, "test", HoldoutLog())
    assert [point.level for point in result.points] == [5]


def test_every_point_of_the_path_is_at_its_minimum_and_says_how_near():
    path = sparse_path(wide(), most=10)
    assert len(path) > 10
    for point in path:
        assert point.chosen["converged"]
        assert abs(point.chosen["duality_gap"]) <= TOLERANCE


def test_accuracy_against_nec_is_that_of_saga_run_to_the_end():
    from sklearn.linear_model import LogisticRegression

    samples = wide()
    train, test = samples.of("train"), samples.of("test")
    for level in (5, 10):
        path = sparse_path(samples, most=level)
        ours = truncate_to_nec(path, level)
        standardised = ours.standardise(train.features)
        with warnings.catch_warnings():
            # Releases differ in how they want to be told the penalty.
            warnings.simplefilter("ignore")
            model = LogisticRegression(
                penalty="elasticnet", l1_ratio=MIXING, C=ours.chosen["C"], solver="saga", tol=1e-8, max_iter=100_000
            ).fit(standardised, train.labels)
        kept = np.sort(np.abs(model.coef_).ravel())[-level * 8]
        weights = np.where(np.abs(model.coef_) >= kept, model.coef_, 0)
        predicted = (ours.standardise(test.features) @ weights.T + model.intercept_).argmax(axis=1)
        accuracy = np.mean(ours.probabilities(test.features).argmax(axis=1) == test.labels)
        assert accuracy == pytest.approx(np.mean(predicted == test.labels), abs=0.01)
        assert path[-1].nec == pytest.approx((np.abs(model.coef_) > 1e-5).sum(axis=1).mean(), rel=0.01)
