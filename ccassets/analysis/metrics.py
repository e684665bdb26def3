"""Metrics of scores against labels, every value with its 95 % interval."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.errors import AnalysisError

Array = npt.NDArray[Any]
Groups = npt.NDArray[np.object_] | None
Statistic = Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]]
"""From the weights of the rows in B resamples, (B, n), to the values of a metric, (B,); nan where it has none."""

LEVEL = 0.95
RESAMPLES = 1000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; all three are nan where there is nothing to measure.

    Where patients or slides are not known, images of one patient count as independent, and an interval per image is
    too narrow.

    Attributes:
        value: The value.
        low: Lower end of the interval.
        high: Upper end of the interval.
        method: How the interval was computed.
        per: What the interval treats as independent.
    """

    value: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]
    per: Literal["image", "group"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of scores (n, C) on n rows.

    Attributes:
        rows: n.
        accuracy: Share of rows whose highest score is the label's; multi-label: mean over labels at 0.5.
        auc: Mean over classes of the one-against-rest AUROC.
        recall: By class; multi-label: of each label at 0.5.
        balanced_accuracy: Mean of the classes' recall; None for multi-label.
        confusion: (C, C), labels in rows; None for multi-label.
    """

    rows: int
    accuracy: Estimate
    auc: Estimate
    recall: tuple[Estimate, ...]
    balanced_accuracy: Estimate | None
    confusion: npt.NDArray[np.int64] | None


def evaluate(labels: Array, scores: Array, groups: Groups = None) -> Evaluation:
    """Compute every metric of this module.

    Args:
        labels: (n,) class numbers, or (n, C) of 0 and 1 in a multi-label set.
        scores: (n, C) float.
        groups: (n,) the patient or slide of every row; where they are known, whole groups are resampled.

    Returns:
        The metrics, each with its interval.

    Raises:
        AnalysisError: Rows have no label, or scores are not finite.
    """
    single = labels.ndim == 1
    return Evaluation(
        rows=len(labels),
        accuracy=accuracy(labels, scores, groups),
        auc=auc(labels, scores, groups),
        recall=tuple(recall(labels, scores, groups)),
        balanced_accuracy=balanced_accuracy(labels, scores, groups) if single else None,
        confusion=confusion_matrix(labels, scores) if single else None,
    )


def accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute MedMNIST's ACC: how often the highest score is the label's; multi-label: the mean over labels at 0.5."""
    require_labels(labels, scores)
    if labels.ndim == 1:
        return _proportion(scores.argmax(axis=1) == labels, groups)
    return bootstrap(_weighted_mean(((scores > 0.5) == (labels > 0)).mean(axis=1)), len(labels), groups)


def auc(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute MedMNIST's AUC: the unweighted mean over classes of the area under the one-against-rest ROC curve.

    The authors' macro AUROC is the same number. A class that no row has, or every row, is left out of the mean.
    """
    require_labels(labels, scores)
    positives = _one_against_rest(labels, scores)
    curves = [auroc(column, positive) for column, positive in zip(scores.T, positives.T, strict=True)]
    return bootstrap(lambda weights: _mean_of_known([curve(weights) for curve in curves]), len(labels), groups)


def balanced_accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the unweighted mean over classes of their recall; a class that no row has is left out."""
    require_labels(labels, scores)
    correct = scores.argmax(axis=1) == labels
    members = [labels == label for label in range(scores.shape[1])]

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return _mean_of_known([_weighted_mean(correct[member])(weights[:, member]) for member in members])

    return bootstrap(statistic, len(labels), groups)


def recall(labels: Array, scores: Array, groups: Groups = None) -> list[Estimate]:
    """Compute the recall of every class; nan for a class that no row has."""
    require_labels(labels, scores)
    members = _one_against_rest(labels, scores)
    predicted = scores > 0.5 if labels.ndim == 2 else _one_against_rest(scores.argmax(axis=1), scores)
    return [
        _proportion(predicted[member, column], None if groups is None else groups[member])
        for column, member in enumerate(members.T)
    ]


def confusion_matrix(labels: Array, scores: Array) -> npt.NDArray[np.int64]:
    """Count how often each label (row) was predicted as each class (column): (C, C)."""
    require_labels(labels, scores)
    classes = scores.shape[1]
    pairs = labels * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def bootstrap(
    statistic: Statistic, rows: int, groups: Groups = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """Compute a metric with the percentile interval of a Poisson bootstrap of its rows, or of their groups.

    Each resample weighs every row, or all rows of a group alike, with a number drawn from a Poisson distribution of
    mean 1: the bootstrap that the authors use, without copying rows. Fewer than two groups give no interval.

    Args:
        statistic: The metric, as a function of weights.
        rows: Number of rows.
        groups: (rows,) the group of every row.
        resamples: Number of resamples.
        seed: Seed of the weights.

    Returns:
        The value with its interval.
    """
    rng = np.random.default_rng(seed)
    member = np.arange(rows) if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    units = int(member.max()) + 1
    value = float(statistic(np.ones((1, rows)))[0])
    step = max(1, _BLOCK // rows)
    blocks = [
        statistic(rng.poisson(1, (min(step, resamples - first), units))[:, member].astype(np.float64))
        for first in range(0, resamples, step)
    ]
    values = np.concatenate(blocks)
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if units > 1 and len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), "bootstrap", "image" if groups is None else "group")


def auroc(scores: Array, is_positive: npt.NDArray[np.bool_]) -> Statistic:
    """Make the AUROC of scores (n,) for `bootstrap`: how often a positive row scores above a negative one.

    A tie counts half.
    """
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    positive = is_positive[order]

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        ordered = weights[:, order]
        above = np.add.reduceat(ordered * positive, ties, axis=1)
        equal = np.add.reduceat(ordered * ~positive, ties, axis=1)
        below = np.cumsum(equal, axis=1) - equal
        return _ratio((above * (below + equal / 2)).sum(axis=1), above.sum(axis=1) * equal.sum(axis=1))

    return statistic


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


def _proportion(correct: Array, groups: Groups) -> Estimate:
    """The share of correct rows with Wilson's interval, or where groups are known one from a bootstrap of them."""
    if not len(correct):
        return Estimate(np.nan, np.nan, np.nan, "wilson", "image" if groups is None else "group")
    if groups is not None:
        return bootstrap(_weighted_mean(correct), len(correct), groups)
    from scipy.stats import binomtest

    interval = binomtest(int(correct.sum()), len(correct)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(correct.mean()), float(interval.low), float(interval.high), "wilson", "image")


def _one_against_rest(labels: Array, scores: Array) -> npt.NDArray[np.bool_]:
    """(n, C): whether a row belongs to a class."""
    return np.asarray(labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1]))


def _weighted_mean(values: Array) -> Statistic:
    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return _ratio(weights @ values.astype(np.float64), weights.sum(axis=1))

    return statistic


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0))


def _mean_of_known(values: list[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """The mean over classes (the list) of what is not nan."""
    table = np.array(values)
    known = np.isfinite(table)
    return _ratio(np.where(known, table, 0).sum(axis=0), known.sum(axis=0).astype(np.float64))
