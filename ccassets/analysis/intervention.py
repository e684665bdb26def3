"""What a classifier says when concepts are changed: set by hand (what-if), or corrected to the truth (intervention).

Also how well a concept's score tells its truth. Without truth there is only the what-if.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import Classifier, FloatArray, classifier_digest, evaluate_on_holdout, fit_logistic
from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.metrics import Estimate, Statistic, auroc, bootstrap
from ccassets.analysis.samples import Samples
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept

PERCENTILES = (5.0, 95.0)
"""A concept that is not there is set to the first percentile of train's scores, one that is there to the second."""

Order = Literal["random", "uncertainty"]
ORDERS: tuple[Order, ...] = ("random", "uncertainty")


@dataclass(frozen=True, eq=False)
class Extremes:
    """What "not there" and "there" are as scores: `low` and `high` (K,), percentiles of train."""

    low: FloatArray
    high: FloatArray


def extremes(samples: Samples, train: str = "train") -> Extremes:
    """The 5th and 95th percentile of every column of train."""
    low, high = np.percentile(np.asarray(samples.of(train).features, np.float64), PERCENTILES, axis=0)
    return Extremes(low, high)


@dataclass(frozen=True)
class WhatIf:
    """The probabilities of the classes before and after, by class name."""

    before: dict[str, float]
    after: dict[str, float]

    @property
    def predicted(self) -> tuple[str, str]:
        """The class before and after."""
        return max(self.before, key=self.before.__getitem__), max(self.after, key=self.after.__getitem__)


def what_if(classifier: Classifier, scores: npt.NDArray[np.floating[Any]], changes: Mapping[str, float]) -> WhatIf:
    """How one image's probabilities change when the scores of some concepts are set to other values.

    `scores` (K,) are the image's own, in the order of the classifier's columns.
    """
    unknown = [name for name in changes if name not in classifier.columns]
    if unknown:
        raise AnalysisError(f"The classifier has no columns {unknown}; it has {list(classifier.columns)}.")
    rows = np.repeat(np.asarray(scores, np.float64)[None, :], 2, axis=0)
    for name, value in changes.items():
        rows[1, classifier.columns.index(name)] = value
    before, after = classifier.probabilities(rows)
    return WhatIf(
        dict(zip(classifier.classes, before.tolist(), strict=True)),
        dict(zip(classifier.classes, after.tolist(), strict=True)),
    )


# --- intervention ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class InterventionCurve:
    """Accuracy after 0, 1, … groups of concepts were corrected; in random order the mean over the repeats."""

    order: Order
    groups: tuple[str, ...]
    accuracy: tuple[float, ...]


def concept_groups(concepts: Sequence[Concept]) -> list[str]:
    """The group of every concept; one without a group is a group of its own."""
    return [concept.group or concept.word for concept in concepts]


def intervention_curve(
    classifier: Classifier,
    samples: Samples,
    truth: ConceptAnnotations,
    groups: Sequence[str],
    *,
    order: Order,
    split: str,
    log: HoldoutLog,
    train: str = "train",
    repeats: int = 5,
    seed: int = 0,
) -> InterventionCurve:
    """Accuracy on a split when the concepts are set to the truth, one group after another, image by image.

    `truth` (N, K) belongs to the rows and columns of `samples`; where it is nan the score stays. `groups` (K,) names
    the group of every concept (see `concept_groups`). A concept that is there is set to the 95th percentile of
    train's scores, one that is not to the 5th (Koh et al., 2020, arXiv 2007.04612). `uncertainty` corrects the group
    first whose scores lie closest to the middle between the two; `random` draws an order for every image, `repeats`
    times.
    """
    if truth.shape != samples.features.shape or len(groups) != len(samples.columns):
        raise AnalysisError(
            f"Annotations of shape {samples.features.shape} and {len(samples.columns)} groups were expected; found "
            f"{truth.shape} and {len(groups)}."
        )
    ends = extremes(samples, train)
    chosen = np.flatnonzero(samples.split == split)
    rows, known = samples.of(split), truth[chosen]
    log.record(f"intervention curve, {order}", model=classifier_digest(classifier), split=split, rows=len(rows))
    names = tuple(dict.fromkeys(groups))
    member = np.array([[group == name for group in groups] for name in names])
    scores = np.asarray(rows.features, np.float64)
    corrected = np.where(np.isnan(known), scores, np.where(known > 0.5, ends.high, ends.low))
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(repeats if order == "random" else 1):
        rank = _ranks(
            _uncertainty(scores, ends, member) if order == "uncertainty" else rng.random((len(rows), len(names)))
        )
        curves.append(_accuracies(classifier, scores, corrected, rank, member, rows.labels))
    return InterventionCurve(order, names, tuple(np.mean(curves, axis=0).tolist()))


def _uncertainty(scores: FloatArray, ends: Extremes, member: npt.NDArray[np.bool_]) -> FloatArray:
    """(n, groups): 1 where every score lies midway between "there" and "not there", 0 where none lies between."""
    position = (scores - ends.low) / np.maximum(ends.high - ends.low, np.finfo(float).tiny)
    doubt = 1 - np.abs(2 * np.clip(position, 0, 1) - 1)
    mean: FloatArray = doubt @ member.T / member.sum(axis=1)
    return mean


def _ranks(urgency: FloatArray) -> npt.NDArray[np.intp]:
    """(n, groups): when each group's turn comes; the largest first."""
    return np.argsort(np.argsort(-urgency, axis=1, kind="stable"), axis=1, kind="stable")


def _accuracies(
    classifier: Classifier,
    scores: FloatArray,
    corrected: FloatArray,
    rank: npt.NDArray[np.intp],
    member: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
) -> list[float]:
    found = []
    for count in range(len(member) + 1):
        done = (rank < count) @ member
        predicted = classifier.probabilities(np.where(done, corrected, scores)).argmax(axis=1)
        found.append(float(np.mean(predicted == labels)))
    return found


# --- do the scores mean their words? -----------------------------------------------------------------


@dataclass(frozen=True)
class ConceptAuroc:
    """How well one concept's score tells where it is there.

    `overall` compares any image that shows it with any that does not; `within` compares only images of the same
    class, so that knowing the class alone gives 0.5. `true` and `false` count the images, `pairs_within` the pairs of
    the second. nan where there is nothing to compare.
    """

    concept: str
    true: int
    false: int
    overall: Estimate
    within: Estimate
    pairs_within: int


def concept_auroc(samples: Samples, truth: ConceptAnnotations) -> list[ConceptAuroc]:
    """AUROC of every concept overall and within classes; rows whose truth is nan do not count for a concept.

    `truth` (N, K) belongs to the rows and columns of `samples`. Within classes it is the share of same-class pairs that
    are in order: the classes' AUROCs, weighted by their numbers of pairs.
    """
    found = []
    for column, concept in enumerate(samples.columns):
        known = np.flatnonzero(~np.isnan(truth[:, column]))
        scores, there = samples.features[known, column], truth[known, column] > 0.5
        labels, groups = samples.labels[known], None if samples.groups is None else samples.groups[known]
        members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        pairs = [int(there[member].sum() * (~there[member]).sum()) for member in members]
        found.append(
            ConceptAuroc(
                concept=concept,
                true=int(there.sum()),
                false=int((~there).sum()),
                overall=_estimate(auroc(scores, there), there, groups),
                within=_estimate(
                    _within(scores, there, [m for m, n in zip(members, pairs, strict=True) if n]), there, groups
                ),
                pairs_within=sum(pairs),
            )
        )
    return found


def _estimate(statistic: Statistic, rows: npt.NDArray[Any], groups: npt.NDArray[np.object_] | None) -> Estimate:
    if not len(rows):
        return Estimate(np.nan, np.nan, np.nan, "bootstrap", "image" if groups is None else "group")
    return bootstrap(statistic, len(rows), groups)


def _within(
    scores: npt.NDArray[Any], there: npt.NDArray[np.bool_], members: Sequence[npt.NDArray[np.intp]]
) -> Statistic:
    """The AUROC of pairs of one class: the mean over classes, each with the number of its pairs."""
    parts = [(member, auroc(scores[member], there[member])) for member in members]

    def statistic(weights: FloatArray) -> FloatArray:
        right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for member, part in parts:
            own = weights[:, member]
            count = (own @ there[member]) * (own @ ~there[member])
            right += np.where(count > 0, count * part(own), 0)
            pairs += count
        return np.asarray(np.divide(right, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0))

    return statistic


@dataclass(frozen=True)
class Leakage:
    """Log losses, in bits, of two classifiers on a held-out split: given the true concepts, and given the scores too.

    `information` is their difference, I(y; scores | concepts): what the scores tell about the class beyond the
    concepts that they are named after. Near 0 there is none; a negative value is noise of the estimate.
    """

    given_truth: float
    given_both: float
    concepts: int
    rows: int

    @property
    def information(self) -> float:
        return self.given_truth - self.given_both


def leakage(
    samples: Samples,
    truth: ConceptAnnotations,
    *,
    split: str,
    log: HoldoutLog,
    train: str = "train",
    val: str | None = "val",
) -> Leakage:
    """How much the scores leak about the class beyond the truth of their concepts (arXiv 2504.09459).

    I(y; scores | concepts) = H(y | concepts) - H(y | scores, concepts), each by the log loss of a logistic regression
    that is fitted on `train` and chosen on `val`. Only concepts and rows whose truth is known count. Raises
    `AnalysisError` where there are none.
    """
    known = np.flatnonzero(~np.isnan(truth).all(axis=0))
    rows = np.flatnonzero(~np.isnan(truth[:, known]).any(axis=1))
    if not len(known) or not len(rows):
        raise AnalysisError("The truth of no concept is known for any row, so leakage cannot be measured.")
    columns = [samples.columns[place] for place in known]
    chosen = samples.select(columns).take(rows)
    shown = truth[rows][:, known]
    named = [f"{name} (truth)" for name in columns]
    losses = []
    for described, what in (
        (chosen.with_features(shown, named), "log loss given the true concepts"),
        (
            chosen.with_features(np.concatenate([chosen.features, shown], axis=1), columns + named),
            "log loss given scores and true concepts",
        ),
    ):
        probabilities = evaluate_on_holdout(fit_logistic(described, train=train, val=val), described, split, log, what)
        labels = described.of(split).labels
        losses.append(float(-np.mean(np.log2(probabilities[np.arange(len(labels)), labels]))))
    return Leakage(losses[0], losses[1], len(columns), int(np.sum(chosen.split == split)))
