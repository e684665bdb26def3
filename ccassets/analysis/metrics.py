"""Metrics of scores against labels, every value with its 95 % interval."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.intervals import (
    Estimate,
    Groups,
    area,
    each_proportion,
    mean_proportion,
    share,
    unmeasured,
)
from ccassets.errors import AnalysisError

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of scores (n, C) on n rows.

    Attributes:
        rows: n.
        accuracy: Share of rows whose highest score is the label's; multi-label: mean over labels at 0.5.
        auc: Mean over classes of the one-against-rest AUROC.
        recall: By class; multi-label: of each label at 0.5.
        balanced_accuracy: Mean of the classes' recall; None for multi-label.
        macro_f1: Mean of the classes' F1; None for multi-label.
        confusion: (C, C), labels in rows; None for multi-label.
        absent: The classes that no row has: they are not measured, and means over classes leave them out.
    """

    rows: int
    accuracy: Estimate
    auc: Estimate
    recall: tuple[Estimate, ...]
    balanced_accuracy: Estimate | None
    macro_f1: Estimate | None
    confusion: npt.NDArray[np.int64] | None
    absent: tuple[int, ...]


def evaluate(labels: Array, scores: Array, groups: Groups = None) -> Evaluation:
    """Compute every metric of this module.

    Args:
        labels: (n,) class numbers, or (n, C) of 0 and 1 in a multi-label set.
        scores: (n, C) float.
        groups: (n,) the patient or slide of every row, "" for a row of its own; where they are known, intervals take
            the rows of a group as dependent.

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
        macro_f1=macro_f1(labels, scores, groups) if single else None,
        confusion=confusion_matrix(labels, scores) if single else None,
        absent=tuple(np.flatnonzero(~_one_against_rest(labels, scores).any(axis=0)).tolist()),
    )


def accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute MedMNIST's ACC: how often the highest score is the label's; multi-label: the mean over labels at 0.5."""
    require_labels(labels, scores)
    if labels.ndim == 1:
        return mean_proportion(share(scores.argmax(axis=1) == labels), groups)
    correct = (scores > 0.5) == (labels > 0)
    return mean_proportion(share(correct.mean(axis=1), answers=scores.shape[1]), groups)


def auc(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute MedMNIST's AUC: the unweighted mean over classes of the area under the one-against-rest ROC curve.

    The authors' macro AUROC is the same number. A class that no row has, or every row, is left out of the mean.
    """
    require_labels(labels, scores)
    positive = _one_against_rest(labels, scores)
    compared = np.flatnonzero(positive.any(axis=0) & ~positive.all(axis=0))
    if not len(compared):
        return unmeasured("There are no two classes to compare.", groups)
    return mean_proportion(area(scores[:, compared], positive[:, compared]), groups)


def balanced_accuracy(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the unweighted mean over classes of their recall; a class that no row has is left out."""
    require_labels(labels, scores)
    members = _one_against_rest(labels, scores)
    members = members[:, members.any(axis=0)]
    return mean_proportion(share(members & (scores.argmax(axis=1) == labels)[:, None], members), groups)


def macro_f1(labels: Array, scores: Array, groups: Groups = None) -> Estimate:
    """Compute the unweighted mean over classes of their F1; a class that no row has is left out.

    The F1 of a class is 2 J / (1 + J), where J is the share of right rows among those that have the class or are taken
    for it, so its limits are those of a share.
    """
    require_labels(labels, scores)
    members, predicted = _one_against_rest(labels, scores), _one_against_rest(scores.argmax(axis=1), scores)
    present = members.any(axis=0)
    members, predicted = members[:, present], predicted[:, present]
    jaccard = share(members & predicted, members | predicted)
    return mean_proportion(
        replace(jaccard, transform=lambda j: 2 * j / (1 + j), slope=lambda j: 2 / (1 + j) ** 2), groups
    )


def recall(labels: Array, scores: Array, groups: Groups = None) -> list[Estimate]:
    """Compute the recall of every class; nan for a class that no row has."""
    require_labels(labels, scores)
    members = _one_against_rest(labels, scores)
    predicted = scores > 0.5 if labels.ndim == 2 else _one_against_rest(scores.argmax(axis=1), scores)
    present: npt.NDArray[np.bool_] = np.asarray(members.any(axis=0))
    measured = iter(each_proportion(share((members & predicted)[:, present], members[:, present]), groups))
    return [next(measured) if here else unmeasured("No row has this class.", groups) for here in present]


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


def _one_against_rest(labels: Array, scores: Array) -> npt.NDArray[np.bool_]:
    """(n, C): whether a row belongs to a class."""
    return np.asarray(labels > 0 if labels.ndim == 2 else labels[:, None] == np.arange(scores.shape[1]))
