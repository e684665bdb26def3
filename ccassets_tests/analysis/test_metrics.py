"""Metrics against MedMNIST's and scikit-learn's own, and intervals against what they promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccassets.analysis import metrics
from ccassets.analysis.intervals import FEWEST_GROUPS, precision_area
from ccassets.errors import AnalysisError

GOLDEN = np.load(Path(__file__).parents[1] / "data" / "conceptclip" / "tiny_a_scores.npz")


def sample(rows: int = 400, classes: int = 5, *, seed: int = 0, skill: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities that know something of them, rounded so that there are ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    logits = rng.standard_normal((rows, classes)) + skill * np.eye(classes)[labels]
    exponentials = np.exp(logits)
    return labels, np.round(exponentials / exponentials.sum(axis=1, keepdims=True), 2)


# --- values ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 8])
def test_accuracy_and_auc_are_medmnists(classes: int) -> None:
    from medmnist.evaluator import getACC, getAUC

    labels, scores = sample(classes=classes)
    assert metrics.accuracy(labels, scores).value == pytest.approx(getACC(labels, scores, "multi-class"), abs=1e-12)
    assert metrics.auc(labels, scores).value == pytest.approx(getAUC(labels, scores, "multi-class"), abs=1e-12)


def test_accuracy_and_auc_of_several_labels_are_medmnists() -> None:
    from medmnist.evaluator import getACC, getAUC

    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, (300, 4))
    scores = np.round(np.clip(0.4 * labels + 0.6 * rng.random((300, 4)), 0, 1), 2)
    task = "multi-label, binary-class"
    result = metrics.evaluate(labels, scores, thresholds=np.full(4, 0.5))
    assert result.accuracy.value == pytest.approx(getACC(labels, scores, task), abs=1e-12)
    assert result.always_no == pytest.approx(1 - labels.mean())
    assert result.auc.value == pytest.approx(getAUC(labels, scores, task), abs=1e-12)
    assert result.recall[2].value == pytest.approx((scores[labels[:, 2] == 1, 2] > 0.5).mean())
    assert result.balanced_accuracy is None
    assert result.confusion is None


def test_macro_auroc_and_its_interval_are_the_authors() -> None:
    result = metrics.auc(GOLDEN["auroc_y_true"], GOLDEN["auroc_y_score"])
    assert result.value == pytest.approx(float(GOLDEN["auroc_macro"]), abs=1e-6)
    np.testing.assert_allclose((result.low, result.high), GOLDEN["auroc_ci95"], rtol=0, atol=0.02)


def test_recall_balanced_accuracy_and_confusion_are_scikit_learns() -> None:
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, recall_score

    labels, scores = sample()
    predicted = scores.argmax(axis=1)
    result = metrics.evaluate(labels, scores)
    recalls = [estimate.value for estimate in result.recall]
    assert recalls == pytest.approx(recall_score(labels, predicted, average=None))
    assert result.balanced_accuracy is not None
    assert result.balanced_accuracy.value == pytest.approx(balanced_accuracy_score(labels, predicted))
    np.testing.assert_array_equal(result.confusion, confusion_matrix(labels, predicted))


def test_macro_f1_is_scikit_learns() -> None:
    from sklearn.metrics import f1_score

    for classes in (2, 5):
        labels, scores = sample(classes=classes)
        expected = f1_score(labels, scores.argmax(axis=1), average="macro")
        assert metrics.macro_f1(labels, scores).value == pytest.approx(expected, abs=1e-12)


@pytest.mark.filterwarnings("error")
def test_average_precision_and_sensitivity_are_scikit_learns() -> None:
    from sklearn.metrics import average_precision_score, roc_curve

    labels, scores = sample()  # with ties
    expected = average_precision_score(np.eye(5)[labels], scores, average="macro")
    assert metrics.average_precision(labels, scores).value == pytest.approx(expected, abs=1e-12)
    sensitivities = []
    for label in range(5):
        false, true, _ = roc_curve(labels == label, scores[:, label])
        sensitivities.append(true[false <= 0.1].max())
    assert metrics.sensitivity(labels, scores).value == pytest.approx(np.mean(sensitivities), abs=1e-12)


def test_influence_on_average_precision_is_the_derivative_by_a_rows_weight() -> None:
    from sklearn.metrics import average_precision_score

    labels, scores = sample(60)
    positive = labels[:, None] == np.arange(5)
    parts = precision_area(scores, positive)
    assert np.abs(parts.influence.sum(axis=0)).max() < 1e-12
    for row in range(0, 60, 7):
        weights = np.ones(60)
        weights[row] += 1e-6
        moved = [average_precision_score(positive[:, c], scores[:, c], sample_weight=weights) for c in range(5)]
        np.testing.assert_allclose((np.array(moved) - parts.values) / 1e-6, parts.influence[row], rtol=1e-3, atol=1e-5)


def test_matthews_correlation_and_measures_of_grades_are_scikit_learns() -> None:
    from sklearn.metrics import cohen_kappa_score, f1_score, matthews_corrcoef, mean_absolute_error

    labels, scores = sample(skill=2)
    predicted = scores.argmax(axis=1)
    result = metrics.evaluate(labels, scores, ordinal=True)
    assert result.mcc.value == pytest.approx(matthews_corrcoef(labels, predicted))
    assert result.quadratic_kappa is not None
    assert result.quadratic_kappa.value == pytest.approx(cohen_kappa_score(labels, predicted, weights="quadratic"))
    assert result.quadratic_kappa.low < result.quadratic_kappa.value < result.quadratic_kappa.high
    assert result.mean_absolute_error is not None
    assert result.mean_absolute_error.value == pytest.approx(mean_absolute_error(labels, predicted))
    assert result.mean_absolute_error.low < result.mean_absolute_error.value < result.mean_absolute_error.high
    assert metrics.evaluate(labels, scores).quadratic_kappa is None
    several = np.eye(5, dtype=np.uint8)[labels]
    measured = metrics.evaluate(several, scores, thresholds=np.full(5, 0.4))
    assert measured.macro_f1.value == pytest.approx(f1_score(several, scores > 0.4, average="macro"))
    expected = np.mean([matthews_corrcoef(several[:, c], scores[:, c] > 0.4) for c in range(5)])
    assert measured.mcc.value == pytest.approx(expected)


@pytest.mark.parametrize("name", ["average_precision", "sensitivity", "matthews_correlation", "quadratic_kappa"])
@pytest.mark.slow
def test_intervals_of_metrics_hold_the_truth_about_as_often_as_they_say(name: str) -> None:
    metric = getattr(metrics, name)
    truth = metric(*sample(40_000, 3, seed=99)).value
    estimates = [metric(*sample(150, 3, seed=seed)) for seed in range(80)]
    held = np.mean([estimate.low <= truth <= estimate.high for estimate in estimates])
    assert held >= 0.9


def test_thresholds_have_the_highest_matthews_correlation() -> None:
    from sklearn.metrics import matthews_corrcoef

    rng = np.random.default_rng(6)
    labels = (rng.random((200, 5)) < 0.15).astype(np.uint8)
    scores = np.round(rng.standard_normal(labels.shape) + 1.2 * labels, 1)
    labels[:, 3], scores[:, 4] = 0, 7
    thresholds = metrics.choose_thresholds(labels, scores)
    assert np.isnan(thresholds).tolist() == [False, False, False, True, True]
    for own, values, threshold in zip(labels.T[:3], scores.T, thresholds, strict=False):
        best = max(matthews_corrcoef(own, values > cut) for cut in np.unique(values))
        assert matthews_corrcoef(own, values > threshold) == pytest.approx(best)
    result = metrics.evaluate(labels, scores, thresholds=thresholds)
    right = (scores[:, :3] > thresholds[:3]) == (labels[:, :3] > 0)
    assert result.accuracy.value == pytest.approx(right.mean())
    assert result.always_no == pytest.approx(1 - labels[:, :3].mean())
    assert result.recall[4].reason == metrics.NO_THRESHOLD
    assert result.recall[3].reason == "No row has this class."


def test_several_labels_without_thresholds_have_ranks_and_no_accuracy() -> None:
    labels = np.array([[1, 0], [0, 1], [0, 0]])
    result = metrics.evaluate(labels, np.array([[0.9, 0.1], [0.2, 0.8], [0.1, 0.1]]))
    assert (result.accuracy.reason, result.always_no) == (metrics.NO_THRESHOLD, None)
    assert result.auc.value == 1


def test_a_class_that_no_row_has_is_left_out_of_means_and_has_no_recall() -> None:
    labels, scores = sample(classes=4)
    wider = np.concatenate([scores, np.zeros((len(scores), 1))], axis=1)
    assert metrics.auc(labels, wider).value == pytest.approx(metrics.auc(labels, scores).value)
    assert metrics.balanced_accuracy(labels, wider).value == metrics.balanced_accuracy(labels, scores).value
    assert metrics.macro_f1(labels, wider).value == metrics.macro_f1(labels, scores).value
    absent = metrics.recall(labels, wider)[4]
    assert np.isnan(absent.value)
    assert absent.reason == "No row has this class."
    assert metrics.evaluate(labels, wider).absent == (4,)
    assert metrics.evaluate(labels, scores).absent == ()
    assert metrics.confusion_matrix(labels, wider).shape == (5, 5)


# --- intervals ---------------------------------------------------------------------------------------


def test_an_accuracy_per_image_has_the_exact_interval() -> None:
    labels = np.zeros(3421, np.int64)
    scores = np.tile([0.9, 0.1], (3421, 1))
    scores[:133] = [0.1, 0.9]
    result = metrics.accuracy(labels, scores)
    # 3288 of 3421, as in the table of published results: 96.11 % with 95.4 to 96.7.
    assert (result.method, result.per, result.units) == ("exact", "image", 3421)
    assert (round(result.low, 3), round(result.value, 4), round(result.high, 3)) == (0.954, 0.9611, 0.967)


def test_rows_of_a_group_are_resampled_together() -> None:
    labels, scores = sample(rows=200)
    copies = 10
    groups = np.repeat(np.arange(200), copies).astype(str).astype(object)
    many_labels, many_scores = labels.repeat(copies), scores.repeat(copies, axis=0)
    for metric in (metrics.accuracy, metrics.auc, metrics.balanced_accuracy):
        once = metric(labels, scores)
        naive, honest = metric(many_labels, many_scores), metric(many_labels, many_scores, groups)
        assert honest.value == pytest.approx(once.value)
        assert honest.per == "group"
        # Copies bring no knowledge: by group the interval is as wide as before, by image it claims to be narrower.
        assert honest.high - honest.low == pytest.approx(once.high - once.low, rel=0.15)
        assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    from sklearn.metrics import roc_auc_score

    labels, scores = sample(rows=100_000, classes=3)
    exact = np.mean([roc_auc_score(labels == label, scores[:, label]) for label in range(3)])
    estimates = [metrics.auc(*sample(rows=150, classes=3, seed=seed)) for seed in range(1, 101)]
    held = sum(estimate.low <= exact <= estimate.high for estimate in estimates)
    assert 88 <= held <= 100


def test_equal_input_has_equal_intervals() -> None:
    assert metrics.auc(*sample()) == metrics.auc(*sample())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 3, FEWEST_GROUPS - 1])
def test_few_groups_give_a_value_and_a_sentence_in_the_place_of_the_interval(count: int) -> None:
    labels, scores = sample()
    groups = np.array([f"patient {row % count}" for row in range(len(labels))], object)
    evaluation = metrics.evaluate(labels, scores, groups)
    for estimate in (evaluation.accuracy, evaluation.auc, evaluation.balanced_accuracy, evaluation.macro_f1):
        assert estimate is not None
        assert 0.2 < estimate.value < 1
        assert np.isnan([estimate.low, estimate.high]).all()
        assert (estimate.per, estimate.units) == ("group", count)
        assert estimate.reason == f"{count} groups are too few for an interval: it needs at least {FEWEST_GROUPS}."


@pytest.mark.filterwarnings("error")
def test_one_class_alone_has_no_auc() -> None:
    result = metrics.auc(np.zeros(20, np.int64), np.tile([0.9, 0.1], (20, 1)))
    assert np.isnan([result.value, result.low, result.high]).all()
    assert result.reason == "There are not two classes to compare."


# --- refusals ----------------------------------------------------------------------------------------


def test_rows_without_a_label_are_refused() -> None:
    labels, scores = sample()
    labels[:3] = -1
    with pytest.raises(AnalysisError, match="3 rows have others"):
        metrics.accuracy(labels, scores)


def test_scores_that_are_not_finite_are_refused() -> None:
    labels, scores = sample()
    scores[7, 2] = np.nan
    with pytest.raises(AnalysisError, match="the first is row 7"):
        metrics.auc(labels, scores)


def test_no_rows_and_foreign_shapes_are_refused() -> None:
    labels, scores = sample()
    with pytest.raises(AnalysisError, match="no rows"):
        metrics.accuracy(labels[:0], scores[:0])
    with pytest.raises(AnalysisError, match="not of the same rows"):
        metrics.accuracy(labels[:9], scores)
