"""Metrics: how well scores find the labels, every value with its 95 % interval."""

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
"""From the weights that resamples give to the rows, (B, n), to the values of a metric, (B,); nan where it has none."""

LEVEL = 0.95
RESAMPLES = 1000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """A value with its 95 % interval; all three are nan where nothing can be said.

    `method` is how the interval was found, `per` what it treats as independent. Where patients or slides are not
    known, images of one patient count as independent, and an interval per image is too narrow.
    """

    value: float
    low: float
    high: float
    method: Literal["wilson", "bootstrap"]
    per: Literal["image", "group"]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of scores (n, C) on n rows. `recall` has one entry a class, `confusion` (C, C) has labels as rows.

    For a multi-label set recall is that of each label at 0.5, and the last two are None.
    """

    rows: int
    accuracy: Estimate
    auc: Estimate
    recall: tuple[Estimate, ...]
    balanced_accuracy: Estimate | None
    confusion: npt.NDArray[np.int64] | None


def evaluate(labels: Array, scores: Array, groups: Groups = None) -> Evaluation:
    """Every metric of this module.

    Here and below `labels` are (n,) class numbers, or (n, C) of 0 and 1 in a multi-label set, `scores` (n, C) float,
    and `groups` (n,) the patient or slide of every row: where they are known, whole groups are resampled. Raises
    `AnalysisError` for rows without a label, and for scores that are not finite.
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
    """MedMNIST's ACC: how often the highest score is the label's; in a multi-label set, the mean over labels at 0.5."""
    require_labels(labels, scores)
    if labels.ndim == 1:
        return _proportion(scores.argmax(axis=1) == labels, groups)
    return bootstrap(_weighted_mean(((scores > 0.5) == (labels > 0)).mean(axis=1)), len(labels), groups)


def auc(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """MedMNIST's AUC: the unweighted mean over classes of the area under the one-against-rest ROC curve.

    The authors' macro AUROC is the same number. A class that no row has, or every row, is left out of the mean.
    """
    require_labels(labels, scores)
    curves = [auroc(column, truth) for column, truth in zip(scores.T, _one_against_rest(labels, scores).T, strict=True)]
    return bootstrap(lambda weights: _mean_of_known([curve(weights) for curve in curves]), len(labels), groups)


def balanced_accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """The unweighted mean over classes of their recall; a class that no row has is left out."""
    require_labels(labels, scores)
    right = scores.argmax(axis=1) == labels
    members = [labels == label for label in range(scores.shape[1])]

    def statistic(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return _mean_of_known([_weighted_mean(right[member])(weights[:, member]) for member in members])

    return bootstrap(statistic, len(labels), groups)


def recall(labels: Array, scores: Array, groups: Groups = None) -> list[Estimate]:
    """How many rows of each class are found, by class; nan for a class that no row has."""
    require_labels(labels, scores)
    truth = _one_against_rest(labels, scores)
    found = scores > 0.5 if labels.ndim == 2 else _one_against_rest(scores.argmax(axis=1), scores)
    return [
        _proportion(found[member, column], None if groups is None else groups[member])
        for column, member in enumerate(truth.T)
    ]


def confusion_matrix(labels: Array, scores: Array) -> npt.NDArray[np.int64]:
    """(C, C): how often each label (row) was taken for each class (column)."""
    require_labels(labels, scores)
    classes = scores.shape[1]
    pairs = labels * classes + scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def bootstrap(
    statistic: Statistic, rows: int, groups: Groups = None, *, resamples: int = RESAMPLES, seed: int = 0
) -> Estimate:
    """A metric with the percentile interval of a Poisson bootstrap of its rows, or of their groups.

    Each resample weighs every row, or all rows of a group alike, with a number drawn from a Poisson distribution of
    mean 1: the bootstrap that the authors use, without copying rows. Fewer than two groups give no interval.
    """
    rng = np.random.default_rng(seed)
    member = np.arange(rows) if groups is None else np.unique(groups.astype(str), return_inverse=True)[1]
    units = int(member.max()) + 1
    value = float(statistic(np.ones((1, rows)))[0])
    step = max(1, _BLOCK // rows)
    drawn = [
        statistic(rng.poisson(1, (min(step, resamples - first), units))[:, member].astype(np.float64))
        for first in range(0, resamples, step)
    ]
    values = np.concatenate(drawn)
    known = values[np.isfinite(values)]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if units > 1 and len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high), "bootstrap", "image" if groups is None else "group")


def auroc(scores: Array, truth: npt.NDArray[np.bool_]) -> Statistic:
    """For `bootstrap`: the probability that a positive row scores above a negative one, a tie counting half.

    `scores` (n,) are any numbers, `truth` (n,) says which rows are positive.
    """
    order = np.argsort(scores, kind="stable")
    ties = np.flatnonzero(np.append(True, np.diff(scores[order]) != 0))
    positive = truth[order]

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
            f"Labels from 0 to {classes - 1} were expected, as there are {classes} columns of scores; {wrong} rows "
            f"have others (from {labels.min()} to {labels.max()}). Leave out rows without a label."
        )
    if not np.isfinite(scores).all():
        bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
        raise AnalysisError(f"{len(bad)} rows have scores that are not finite, the first is row {bad[0]}.")


# --- inside ------------------------------------------------------------------------------------------


def _proportion(right: Array, groups: Groups) -> Estimate:
    """The share of rows that are right: Wilson's interval, or where groups are known theirs from a bootstrap."""
    if not len(right):
        return Estimate(np.nan, np.nan, np.nan, "wilson", "image" if groups is None else "group")
    if groups is not None:
        return bootstrap(_weighted_mean(right), len(right), groups)
    from scipy.stats import binomtest

    interval = binomtest(int(right.sum()), len(right)).proportion_ci(LEVEL, method="wilson")
    return Estimate(float(right.mean()), float(interval.low), float(interval.high), "wilson", "image")


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
