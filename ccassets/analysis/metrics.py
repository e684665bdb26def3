"""Metrics of scores against labels, every value with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.intervals import (
    Estimate,
    FloatArray,
    Groups,
    area,
    bootstrap,
    each_proportion,
    mean_proportion,
    precision_area,
    share,
    unmeasured,
)
from ccassets.errors import AnalysisError

Array = npt.NDArray[Any]

SPECIFICITY = 0.9
"""Where sensitivities are read from ROC curves."""

DECIDED = ("accuracy", "macro_f1", "mcc", "recall")
"""The metrics of a multi-label set that rest on its thresholds."""

NO_THRESHOLD = "No row of val has the label, or every row, or there is no val: no threshold could be chosen."


@dataclass(frozen=True)
class Evaluation:
    """The metrics of scores (n, C) on n rows.

    Attributes:
        rows: n.
        accuracy: Share of rows whose highest score is the label's; multi-label: mean over labels of the share of
            right answers at the label's threshold.
        auc: Mean over classes of the one-against-rest AUROC.
        auc_by_class: The same of every class; nan for one that no row or every row has.
        recall: By class; multi-label: of each label at its threshold.
        average_precision: Mean over classes of the one-against-rest average precision.
        sensitivity: Mean over classes of the sensitivity where `SPECIFICITY` of the rest are left out.
        balanced_accuracy: Mean of the classes' recall; None for multi-label.
        macro_f1: Mean of the classes' F1; multi-label: of the labels' at their thresholds.
        mcc: Matthews correlation; multi-label: the mean over labels at their thresholds.
        quadratic_kappa: Cohen's kappa with quadratic weights; None unless classes are ordinal.
        mean_absolute_error: Mean distance of the predicted class, in classes; None unless classes are ordinal.
        confusion: (C, C), labels in rows; None for multi-label.
        absent: The classes that no row has: they are not measured, and means over classes leave them out.
        always_no: Multi-label: the accuracy of saying no to every label that `accuracy` counts; None else.
    """

    rows: int
    accuracy: Estimate
    auc: Estimate
    auc_by_class: tuple[Estimate, ...]
    average_precision: Estimate
    sensitivity: Estimate
    recall: tuple[Estimate, ...]
    balanced_accuracy: Estimate | None
    macro_f1: Estimate
    mcc: Estimate
    quadratic_kappa: Estimate | None
    mean_absolute_error: Estimate | None
    confusion: npt.NDArray[np.int64] | None
    absent: tuple[int, ...]
    always_no: float | None


def evaluate(
    labels: Array,
    scores: Array,
    groups: Groups = None,
    thresholds: FloatArray | None = None,
    ordinal: bool = False,
) -> Evaluation:
    """Compute every metric of this module.

    Args:
        labels: (n,) class numbers, or (n, C) of 0 and 1 in a multi-label set.
        scores: (n, C) float: probabilities or their log-odds, which have no ties at 0 and 1.
        groups: (n,) the patient or slide of every row, "" for a row of its own; where they are known, intervals take
            the rows of a group as dependent.
        thresholds: (C,) of a multi-label set: a higher score says that the row has the label; nan where none is known.
            Without them there is no accuracy, F1, Matthews correlation or recall.
        ordinal: Whether the classes are grades, in their order.

    Returns:
        The metrics, each with its interval.

    Raises:
        AnalysisError: Rows have no label, or scores are not finite.
    """
    single = labels.ndim == 1
    ordinal = ordinal and single
    decided = labels[:, _decided(labels, thresholds)] if not single else None
    return Evaluation(
        rows=len(labels),
        accuracy=accuracy(labels, scores, groups, thresholds),
        auc=auc(labels, scores, groups),
        auc_by_class=tuple(auc_by_class(labels, scores, groups)),
        average_precision=average_precision(labels, scores, groups),
        sensitivity=sensitivity(labels, scores, groups),
        recall=tuple(recall(labels, scores, groups, thresholds)),
        balanced_accuracy=balanced_accuracy(labels, scores, groups) if single else None,
        macro_f1=macro_f1(labels, scores, groups, thresholds),
        mcc=matthews_correlation(labels, scores, groups, thresholds),
        quadratic_kappa=quadratic_kappa(labels, scores, groups) if ordinal else None,
        mean_absolute_error=mean_absolute_error(labels, scores, groups) if ordinal else None,
        confusion=confusion_matrix(labels, scores) if single else None,
        absent=tuple(np.flatnonzero(~_one_against_rest(labels, scores).any(axis=0)).tolist()),
        always_no=None if decided is None or not decided.size else float(1 - decided.mean()),
    )


def accuracy(labels: Array, scores: Array, groups: Groups = None, thresholds: FloatArray | None = None) -> Estimate:
    """Compute MedMNIST's ACC: how often the highest score is the label's.

    Multi-label: the mean over labels of the share of right predictions, at thresholds instead of MedMNIST's 0.5. A
    label without a threshold is left out.
    """
    require_labels(labels, scores)
    if labels.ndim == 1:
        return mean_proportion(share(scores.argmax(axis=1) == labels), groups)
    decided = _decided(labels, thresholds)
    if thresholds is None or not decided.any():
        return unmeasured(NO_THRESHOLD, groups)
    correct = (scores > thresholds)[:, decided] == (labels > 0)[:, decided]
    return mean_proportion(share(correct.mean(axis=1), answers=int(decided.sum())), groups)


def choose_thresholds(labels: Array, scores: Array) -> FloatArray:
    """For each label, choose the threshold with the highest Matthews correlation; use the rows of val.

    Args:
        labels: (n, C) of 0 and 1.
        scores: (n, C) float.

    Returns:
        (C,), half-way between two scores; nan for a label that no row or every row has, or whose scores are all equal.

    Raises:
        AnalysisError: Scores are not finite.
    """
    require_labels(labels, scores)
    return np.array([_best_threshold(own > 0, column) for own, column in zip(labels.T, scores.T, strict=True)])


def _best_threshold(positive: npt.NDArray[np.bool_], scores: Array) -> float:
    from sklearn.metrics import roc_curve

    rows, positives = len(positive), int(positive.sum())
    if positives in (0, rows):
        return np.nan
    false_rate, true_rate, cuts = roc_curve(positive, scores, drop_intermediate=False)
    predicted = true_rate * positives + false_rate * (rows - positives)
    if len(cuts) == 2:  # All scores are alike.
        return np.nan
    # The covariance of labels and answers over the deviation of the answers: that of the labels is the same for all.
    inside = slice(1, -1)
    correlation = (true_rate - false_rate)[inside] / np.sqrt((predicted * (rows - predicted))[inside])
    best = 1 + int(correlation.argmax())
    return float(cuts[best : best + 2].mean())


def auc(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute MedMNIST's AUC: the unweighted mean over classes of the area under the one-against-rest ROC curve.

    The authors' macro AUROC is the same number. A class that no row or every row has is left out of the mean.
    """
    require_labels(labels, scores)
    positive = _one_against_rest(labels, scores)
    compared = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    if not len(compared):
        return unmeasured("There are not two classes to compare.", groups)
    return mean_proportion(area(scores[:, compared], positive[:, compared]), groups)


def auc_by_class(labels: Array, scores: Array, groups: Groups = None) -> list[Estimate]:
    """Compute the one-against-rest AUROC of every class; nan for a class that no row or every row has."""
    require_labels(labels, scores)
    positive = _one_against_rest(labels, scores)
    compared = np.asarray(positive.any(axis=0) & ~positive.all(axis=0))
    estimates = iter(each_proportion(area(scores[:, compared], positive[:, compared]), groups))
    reason = "No row has this class, or every row."
    return [next(estimates) if is_compared else unmeasured(reason, groups) for is_compared in compared]


def average_precision(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the unweighted mean over classes of their one-against-rest average precision.

    A class that no row has is left out of the mean.
    """
    require_labels(labels, scores)
    positive = _one_against_rest(labels, scores)
    present = positive.any(axis=0)
    if not present.any():
        return unmeasured("No row has any label.", groups)
    return mean_proportion(precision_area(scores[:, present], positive[:, present]), groups)


def sensitivity(labels: Array, scores: Array, groups: Groups = None, specificity: float = SPECIFICITY) -> Estimate:
    """Compute the mean over classes of their sensitivity at a specificity, read from the one-against-rest ROC curve.

    A class that no row or every row has is left out of the mean.
    """
    require_labels(labels, scores)
    positive = _one_against_rest(labels, scores)
    compared = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    if not len(compared):
        return unmeasured("There are not two classes to compare.", groups)

    def statistic(weights: FloatArray) -> FloatArray:
        with np.errstate(invalid="ignore"):
            each = [_sensitivities(scores[:, c], positive[:, c], weights, specificity) for c in compared]
        return np.asarray(np.mean(each, axis=0))

    size = len(compared) ** 2 / (1 / positive[:, compared].sum(axis=0)).sum()
    return bootstrap(statistic, len(labels), groups, size=float(size))


def _sensitivities(
    scores: Array, positive: npt.NDArray[np.bool_], weights: FloatArray, specificity: float
) -> FloatArray:
    """(B,): the highest sensitivity that keeps to the specificity, for each weighting of the rows (B, n)."""
    order = np.argsort(-scores, kind="stable")
    cuts = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, errors = ((weights * part)[:, order].cumsum(axis=1) for part in (positive, ~positive))
    allowed = errors[:, cuts] <= (1 - specificity) * errors[:, -1:] + 1e-9
    return np.asarray(np.where(allowed, hits[:, cuts], 0).max(axis=1) / hits[:, -1])


def balanced_accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the unweighted mean over classes of their recall; a class that no row has is left out."""
    require_labels(labels, scores)
    members = _one_against_rest(labels, scores)
    members = members[:, members.any(axis=0)]
    return mean_proportion(share(members & (scores.argmax(axis=1) == labels)[:, None], members), groups)


def macro_f1(labels: Array, scores: Array, groups: Groups = None, thresholds: FloatArray | None = None) -> Estimate:
    """Compute the unweighted mean over classes of their F1; a class that no row has is left out.

    The F1 of a class is 2 J / (1 + J), where J is the share of right rows among those that have the class or are
    predicted as it, so its limits are those of a share.
    """
    require_labels(labels, scores)
    members, predicted = _one_against_rest(labels, scores), _predicted(labels, scores, thresholds)
    measured = members.any(axis=0) & _decided(labels, thresholds)
    if not measured.any():
        return unmeasured(NO_THRESHOLD, groups)
    members, predicted = members[:, measured], predicted[:, measured]
    jaccard = share(members & predicted, members | predicted)
    return mean_proportion(
        replace(jaccard, transform=lambda j: 2 * j / (1 + j), slope=lambda j: 2 / (1 + j) ** 2), groups
    )


def recall(labels: Array, scores: Array, groups: Groups = None, thresholds: FloatArray | None = None) -> list[Estimate]:
    """Compute the recall of every class; nan for a class that no row has, and for a label without a threshold."""
    require_labels(labels, scores)
    members = _one_against_rest(labels, scores)
    predicted = _predicted(labels, scores, thresholds)
    present = np.asarray(members.any(axis=0))
    measured = present & _decided(labels, thresholds)
    estimates = iter(each_proportion(share((members & predicted)[:, measured], members[:, measured]), groups))
    return [
        next(estimates) if is_measured else unmeasured(NO_THRESHOLD if is_present else "No row has this class.", groups)
        for is_measured, is_present in zip(measured, present, strict=True)
    ]


def matthews_correlation(
    labels: Array, scores: Array, groups: Groups = None, thresholds: FloatArray | None = None
) -> Estimate:
    """Compute the Matthews correlation of labels and predictions; multi-label: the mean over the labels that occur."""
    require_labels(labels, scores)
    if labels.ndim == 1:
        return _confusion_metric(labels[:, None], scores.argmax(axis=1)[:, None], scores.shape[1], _matthews, groups)
    measured = labels.any(axis=0) & _decided(labels, thresholds)
    if not measured.any():
        return unmeasured(NO_THRESHOLD, groups)
    predicted = _predicted(labels, scores, thresholds)[:, measured]
    return _confusion_metric(labels[:, measured], predicted, 2, _matthews, groups)


def quadratic_kappa(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute Cohen's kappa of grades with quadratic weights."""
    require_labels(labels, scores)
    return _confusion_metric(labels[:, None], scores.argmax(axis=1)[:, None], scores.shape[1], _kappa, groups)


def mean_absolute_error(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the mean distance between a row's grade and the predicted one, in grades."""
    require_labels(labels, scores)
    grades = scores.shape[1]
    bounds = (0.0, float(max(grades - 1, 1)))
    return _confusion_metric(labels[:, None], scores.argmax(axis=1)[:, None], grades, _distance, groups, bounds)


def _confusion_metric(
    labels: Array,
    predicted: Array,
    classes: int,
    formula: Callable[[FloatArray], FloatArray],
    groups: Groups,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Estimate:
    """The mean of a formula of confusion matrices (…, C, C), one for each column of `labels` and `predicted` (n, K)."""
    from scipy.sparse import csr_array

    rows, columns = labels.shape
    cells = labels.astype(np.int64) * classes + predicted + classes**2 * np.arange(columns)
    ends = np.arange(0, cells.size + 1, columns)
    counts = csr_array((np.ones(cells.size), cells.ravel(), ends), shape=(rows, columns * classes**2))

    def statistic(weights: FloatArray) -> FloatArray:
        return np.asarray(formula((weights @ counts).reshape(-1, columns, classes, classes)).mean(axis=1))

    return bootstrap(statistic, rows, groups, bounds=bounds)


def _matthews(confusion: FloatArray) -> FloatArray:
    """Matthews correlations of any number of classes; 0 where all labels or all answers are alike."""
    total, right = confusion.sum(axis=(-2, -1)), np.trace(confusion, axis1=-2, axis2=-1)
    truth, said = confusion.sum(axis=-1), confusion.sum(axis=-2)
    spread = np.sqrt((total**2 - (truth**2).sum(axis=-1)) * (total**2 - (said**2).sum(axis=-1)))
    return np.asarray((right * total - (truth * said).sum(axis=-1)) / np.where(spread > 0, spread, np.inf))


def _kappa(confusion: FloatArray) -> FloatArray:
    """Cohen's kappas with quadratic weights; nan where all labels and answers are one class, or there are none."""
    grades = np.arange(confusion.shape[-1])
    weights = (grades[:, None] - grades) ** 2
    chance = np.einsum("...i,...j->...ij", confusion.sum(axis=-1), confusion.sum(axis=-2))
    with np.errstate(invalid="ignore"):
        expected = (weights * chance).sum(axis=(-2, -1)) / confusion.sum(axis=(-2, -1))
        return np.asarray(1 - (weights * confusion).sum(axis=(-2, -1)) / expected)


def _distance(confusion: FloatArray) -> FloatArray:
    """Mean absolute differences of grades."""
    grades = np.arange(confusion.shape[-1])
    apart = abs(grades[:, None] - grades)
    with np.errstate(invalid="ignore"):
        return np.asarray((apart * confusion).sum(axis=(-2, -1)) / confusion.sum(axis=(-2, -1)))


def confusion_matrix(labels: Array, scores: Array) -> npt.NDArray[np.int64]:
    """Count how often each label (row) was predicted as each class (column): (C, C)."""
    require_labels(labels, scores)
    classes = scores.shape[1]
    pairs = labels * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def require_labels(labels: Array, scores: Array) -> None:
    """Raise `AnalysisError` unless there is a row, every row has a label among the columns, and scores are finite."""
    classes = scores.shape[1]
    if not len(labels):
        raise AnalysisError("There are no rows to evaluate.")
    if len(labels) != len(scores) or (labels.ndim == 2 and labels.shape != scores.shape):
        raise AnalysisError(f"Labels {labels.shape} and scores {scores.shape} are not of the same rows and classes.")
    if labels.ndim == 1 and (labels.min() < 0 or labels.max() >= classes):
        wrong = int(((labels < 0) | (labels >= classes)).sum())
        raise AnalysisError(
            f"Expected labels from 0 to {classes - 1}, as there are {classes} columns of scores; {wrong} rows have "
            f"others (from {labels.min()} to {labels.max()}). Leave out rows without a label."
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        raise AnalysisError(f"{len(bad)} rows have scores that are not finite, the first is row {bad[0]}.")


# --- shared by metrics ------------------------------------------------------------------------------------------


def _decided(labels: Array, thresholds: FloatArray | None) -> Any:
    """(C,): which labels of a multi-label set have a threshold; True where a row has one label."""
    if labels.ndim == 1:
        return True
    return np.zeros(labels.shape[1], bool) if thresholds is None else np.isfinite(thresholds)


def _predicted(labels: Array, scores: Array, thresholds: FloatArray | None) -> npt.NDArray[np.bool_]:
    """(n, C): whether a row is said to belong to a class; no row to a label without a threshold."""
    if labels.ndim == 1:
        return _one_against_rest(scores.argmax(axis=1), scores)
    return np.asarray(scores > (np.inf if thresholds is None else thresholds))


def _one_against_rest(labels: Array, scores: Array) -> npt.NDArray[np.bool_]:
    """(n, C): whether a row belongs to a class."""
    return np.asarray(labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1]))
