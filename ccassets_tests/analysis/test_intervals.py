"""Intervals against scipy's, against what they promise, and where scores are perfect or groups are few."""

import numpy as np
import pytest

from ccassets.analysis import metrics
from ccassets.analysis.intervals import (
    FEWEST_GROUPS,
    Estimate,
    area,
    bootstrap,
    each_proportion,
    mean_difference,
    mean_proportion,
    mean_value,
    share,
)

pytestmark = pytest.mark.filterwarnings("error")


def limits(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


# --- shares ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("right", "rows"), [(0, 7), (3, 7), (63, 64), (64, 64), (3288, 3421)])
def test_the_limits_of_a_share_are_scipys_exact_ones(right: int, rows: int) -> None:
    from scipy.stats import binomtest

    estimate = mean_proportion(share(np.arange(rows) < right))
    expected = binomtest(right, rows).proportion_ci(0.95, method="exact")
    assert limits(estimate) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert (estimate.value, estimate.method, estimate.units) == (right / rows, "exact", rows)


def test_a_share_holds_its_truth_as_often_as_it_says_at_every_height() -> None:
    from scipy.stats import binom

    for rows in (64, 77, 200):
        intervals_of_counts = [limits(mean_proportion(share(np.arange(rows) < right))) for right in range(rows + 1)]
        for truth in (0.5, 0.8, 0.95, 0.9975, 0.9999):
            held = [low <= truth <= high for low, high in intervals_of_counts]
            assert binom.pmf(np.flatnonzero(held), rows, truth).sum() >= 0.95


def test_shares_by_class_have_their_own_limits() -> None:
    counted = np.repeat(np.eye(3, dtype=bool), [40, 9, 2], axis=0)
    right = np.arange(51) % 10 != 0
    for column, estimate in enumerate(each_proportion(share(right[:, None] & counted, counted))):
        alone = mean_proportion(share(right[counted[:, column]]))
        assert (estimate.value, *limits(estimate)) == pytest.approx((alone.value, *limits(alone)))


# --- perfect scores ----------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(8,) * 8, (6, 18, 12, 41), (112, 57, 23, 6, 2), (50, 14)])
def test_perfect_scores_are_not_certain(counts: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    scores = np.eye(len(counts))[labels]
    evaluation = metrics.evaluate(labels, scores)
    means = (evaluation.accuracy, evaluation.auc, evaluation.balanced_accuracy, evaluation.macro_f1)
    for estimate in (*means, *evaluation.recall):
        assert estimate is not None
        assert (estimate.value, estimate.high) == (1, 1)
        assert 0 < estimate.low < 0.99


def test_a_rare_class_makes_a_mean_over_classes_less_certain() -> None:
    def width(counts: tuple[int, ...]) -> float:
        labels = np.repeat(np.arange(3), counts)
        estimate = metrics.balanced_accuracy(labels, np.eye(3)[labels])
        return estimate.high - estimate.low

    assert width((60, 60, 60)) < 0.08
    assert width((89, 89, 2)) > 0.25


def test_scores_that_are_all_alike_have_the_area_of_a_coin_for_certain() -> None:
    labels = np.arange(30) % 2
    assert limits(metrics.auc(labels, np.full((30, 2), 0.5))) == (0.5, 0.5)


# --- areas -------------------------------------------------------------------------------------------


def test_the_variance_of_an_area_is_that_of_its_bootstrap() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(300) < 90
    scores = np.round(rng.standard_normal(300) + positive, 1)
    parts = area(scores[:, None], positive[:, None])
    values = []
    for _ in range(2000):
        rows = np.append(rng.integers(0, 90, 90), rng.integers(90, 300, 210))
        values.append(area(scores[rows, None], positive[rows, None]).values[0])
    assert np.sqrt((parts.influence**2).sum()) == pytest.approx(np.std(values), rel=0.06)


# --- groups ------------------------------------------------------------------------------------------


def test_a_row_without_a_group_stands_for_itself() -> None:
    right = np.arange(40) % 3 > 0
    alone = mean_proportion(share(right))
    assert mean_proportion(share(right), np.full(40, "", object)) == alone
    mixed = np.array(["patient"] * 10 + [""] * 30, object)
    estimate = mean_proportion(share(right), mixed)
    assert (estimate.per, estimate.units) == ("group", 31)
    named = np.array(["patient"] * 10 + [f"other {row}" for row in range(30)], object)
    assert estimate == mean_proportion(share(right), named)


def test_groups_that_are_right_as_a_whole_count_as_one_row_each() -> None:
    groups = np.repeat([f"patient {number}" for number in range(12)], 20).astype(object)
    right = np.repeat(np.arange(12) > 2, 20)
    together = mean_proportion(share(right), groups)
    alone, once = mean_proportion(share(right)), mean_proportion(share(np.arange(12) > 2))
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert together.high - together.low >= once.high - once.low


def test_a_class_in_one_group_alone_may_have_any_recall() -> None:
    labels = np.repeat([0, 0, 0, 0, 0, 0, 0, 1], 10)
    groups = np.repeat([f"patient {number}" for number in range(8)], 10).astype(object)
    estimate = metrics.balanced_accuracy(labels, np.eye(2)[labels], groups)
    assert estimate.value == 1
    assert estimate.low < 0.5


# --- differences and other means ---------------------------------------------------------------------


def test_the_interval_of_a_difference_holds_the_truth_about_as_often_as_it_says() -> None:
    for rows, (better, worse) in ((64, (0.02, 0.01)), (64, (0.2, 0.1)), (200, (0.05, 0.05))):
        rng = np.random.default_rng(rows)
        drawn = rng.choice([1.0, -1.0, 0.0], (600, rows), p=[better, worse, 1 - better - worse])
        held = [low <= better - worse <= high for low, high in (limits(mean_difference(row)) for row in drawn)]
        assert np.mean(held) >= 0.93


def test_a_difference_by_group_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    held = []
    for _ in range(400):
        own = np.clip(0.1 + 0.25 * rng.standard_normal(10), -1, 1)
        values = np.where(rng.random((10, 8)) < np.abs(own)[:, None], np.sign(own)[:, None], 0.0).ravel()
        groups = np.repeat(np.arange(10).astype(str), 8).astype(object)
        low, high = limits(mean_difference(values, groups))
        held.append(low <= 0.1 <= high)
    assert np.mean(held) >= 0.93


def test_the_mean_of_numbers_has_the_t_interval() -> None:
    from scipy.stats import ttest_1samp

    values = np.random.default_rng(0).standard_normal(30)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert limits(mean_value(values)) == pytest.approx((expected.low, expected.high))
    assert mean_value(values, variance=0.1).low < expected.low
    assert mean_value(values[:1]).reason == "There is one row."


def test_a_metric_without_a_form_of_its_own_has_the_limits_of_a_share() -> None:
    right = np.arange(200) % 10 > 0

    def accuracy(weights: np.ndarray) -> np.ndarray:
        return weights @ right / weights.sum(axis=1)

    exact, estimate = mean_proportion(share(right)), bootstrap(accuracy, 200)
    assert limits(estimate) == pytest.approx(limits(exact), abs=0.01)
    perfect = bootstrap(lambda weights: np.ones(len(weights)), 200, size=6)
    assert (perfect.high, perfect.low < 0.6) == (1, True)
    chance = bootstrap(lambda weights: 2 * accuracy(weights) - 1, 200, bounds=(-1, 1))
    assert limits(chance) == pytest.approx((2 * exact.low - 1, 2 * exact.high - 1), abs=0.02)
    few = np.array(["a", "b", "c"] * 66 + ["a", "b"], object)
    assert bootstrap(accuracy, 200, few).reason == (
        f"3 groups are too few for an interval: it needs at least {FEWEST_GROUPS}."
    )
