"""Interventions on concepts: what a classifier predicts when scores are set by hand or corrected to annotations.

Also how well scores separate images that show a concept from images that do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import Classifier, FloatArray, classifier_digest
from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervals import Estimate, Groups, area, mean_proportion, unmeasured
from ccassets.analysis.samples import Samples
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept

PERCENTILES = (5.0, 95.0)
"""Of a concept whose truth train does not show, the percentiles of train's scores that stand for absent and present."""

Order = Literal["random", "uncertainty"]
ORDERS: tuple[Order, ...] = ("random", "uncertainty")


@dataclass(frozen=True, eq=False)
class ConceptLevels:
    """The scores that absent and present concepts are set to, (K,) each.

    Attributes:
        absent: The mean of train's scores of images that do not show the concept, or the 5th percentile of all.
        present: The mean of those that show it, or the 95th percentile.
        guessed: (K,), where the percentiles stand, because train does not show the truth of both.
    """

    absent: FloatArray
    present: FloatArray
    guessed: npt.NDArray[np.bool_]


def concept_levels(samples: Samples, annotations: ConceptAnnotations, train: str = "train") -> ConceptLevels:
    """Find what scores absent and present concepts have in train.

    A percentile says little of a rare concept: with a prevalence of 2 %, the 95th is a score of images without it.
    """
    scores, known = np.asarray(samples.of(train).features, np.float64), annotations[samples.split == train]
    levels = np.percentile(scores, PERCENTILES, axis=0)
    shows = np.stack([known <= 0.5, known > 0.5])  # Both are false where it is nan.
    guessed: npt.NDArray[np.bool_] = ~shows.any(axis=1).min(axis=0)
    means = [np.mean(scores, axis=0, where=mask | guessed) for mask in shows]
    absent, present = np.where(guessed, levels, means)
    return ConceptLevels(absent, present, guessed)


@dataclass(frozen=True)
class WhatIf:
    """What a change of scores does to the probabilities of the classes.

    Attributes:
        before: Probabilities before the change, by class name.
        after: Probabilities after it.
    """

    before: dict[str, float]
    after: dict[str, float]

    @property
    def predicted(self) -> tuple[str, str]:
        """The most probable class before and after."""
        return max(self.before, key=self.before.__getitem__), max(self.after, key=self.after.__getitem__)


def what_if(classifier: Classifier, scores: npt.NDArray[np.floating[Any]], changes: Mapping[str, float]) -> WhatIf:
    """Predict one image again with the scores of some concepts set to other values.

    Args:
        classifier: The classifier.
        scores: (K,), the image's own scores in the order of the classifier's columns.
        changes: New scores, by column name.

    Returns:
        The probabilities before and after.

    Raises:
        AnalysisError: The classifier has no such column.
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
    """Accuracy after 0, 1, … groups of concepts are corrected; in random order the mean over the repeats.

    Attributes:
        order: The order of correction.
        groups: The groups of concepts.
        accuracy: One value more than there are groups, the first without any correction.
        guessed: Concepts that were set to percentiles, since train does not show their truth.
    """

    order: Order
    groups: tuple[str, ...]
    accuracy: tuple[float, ...]
    guessed: tuple[str, ...]


def concept_groups(concepts: Sequence[Concept]) -> list[str]:
    """Name the group of every concept.

    Args:
        concepts: The concepts.

    Returns:
        One name for each concept; a concept without a group is a group of its own.
    """
    return [concept.group or concept.word for concept in concepts]


def intervention_curve(
    classifier: Classifier,
    samples: Samples,
    annotations: ConceptAnnotations,
    groups: Sequence[str],
    *,
    order: Order,
    split: str,
    log: HoldoutLog,
    train: str = "train",
    repeats: int = 5,
    seed: int = 0,
) -> InterventionCurve:
    """Measure accuracy on a split while concepts are corrected to their annotations, one group after another.

    A concept is set to the mean score of train's images that show it, or that do not (conditional means). If train has
    no annotations of a concept, it is set to the 95th or 5th percentile of its scores (Koh et al. 2020, arXiv
    2007.04612).

    Args:
        classifier: The classifier.
        samples: The rows, described by concept scores.
        annotations: (N, K) for the rows and columns of `samples`; where it is nan the score stays.
        groups: (K,), the group of every concept (`concept_groups`).
        order: "uncertainty" corrects the group first whose scores are closest to the middle of the two levels;
            "random" draws an order for every image.
        split: The held-out split.
        log: Records the access.
        train: The split whose scores give the levels.
        repeats: Number of random orders.
        seed: Seed of the random orders.

    Returns:
        The curve.

    Raises:
        AnalysisError: `annotations` or `groups` do not fit the samples.
    """
    if annotations.shape != samples.features.shape or len(groups) != len(samples.columns):
        raise AnalysisError(
            f"Expected annotations of shape {samples.features.shape} and {len(samples.columns)} groups, found "
            f"{annotations.shape} and {len(groups)}."
        )
    levels = concept_levels(samples, annotations, train)
    chosen = np.flatnonzero(samples.split == split)
    rows, known = samples.of(split), annotations[chosen]
    log.record(f"intervention curve, {order}", model=classifier_digest(classifier), split=split, rows=len(rows))
    names = tuple(dict.fromkeys(groups))
    member = np.array([[group == name for group in groups] for name in names])
    scores = np.asarray(rows.features, np.float64)
    corrected = np.where(np.isnan(known), scores, np.where(known > 0.5, levels.present, levels.absent))
    rng = np.random.default_rng(seed)
    curves = []
    for _ in range(repeats if order == "random" else 1):
        rank = _ranks(
            _uncertainty(scores, levels, member) if order == "uncertainty" else rng.random((len(rows), len(names)))
        )
        curves.append(_accuracies(classifier, scores, corrected, rank, member, rows.labels))
    guessed = tuple(name for name, is_guess in zip(samples.columns, levels.guessed, strict=True) if is_guess)
    return InterventionCurve(order, names, tuple(np.mean(curves, axis=0).tolist()), guessed)


def _uncertainty(scores: FloatArray, levels: ConceptLevels, member: npt.NDArray[np.bool_]) -> FloatArray:
    """(n, groups): 1 where every score is midway between the two levels, 0 where none is between them."""
    distance = levels.present - levels.absent
    position = (scores - levels.absent) / np.where(distance == 0, np.finfo(float).tiny, distance)
    uncertainty = 1 - np.abs(2 * np.clip(position, 0, 1) - 1)
    mean: FloatArray = uncertainty @ member.T / member.sum(axis=1)
    return mean


def _ranks(urgency: FloatArray) -> npt.NDArray[np.intp]:
    """(n, groups): the position of each group in its row's order, the most urgent first."""
    return np.argsort(np.argsort(-urgency, axis=1, kind="stable"), axis=1, kind="stable")


def _accuracies(
    classifier: Classifier,
    scores: FloatArray,
    corrected: FloatArray,
    rank: npt.NDArray[np.intp],
    member: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
) -> list[float]:
    accuracies = []
    for count in range(len(member) + 1):
        done = (rank < count) @ member
        predicted = classifier.probabilities(np.where(done, corrected, scores)).argmax(axis=1)
        accuracies.append(float(np.mean(predicted == labels)))
    return accuracies


# --- scores against annotations -----------------------------------------------------------------


@dataclass(frozen=True)
class ConceptAuroc:
    """How well the score of one concept tells images that show it from images that do not.

    Attributes:
        concept: The concept.
        true: Images that show it.
        false: Images that do not.
        overall: AUROC over all pairs of images; nan where there are none.
        within: AUROC over pairs of the same class, so that a score which knows the class alone has 0.5.
        pairs_within: Number of these pairs.
    """

    concept: str
    true: int
    false: int
    overall: Estimate
    within: Estimate
    pairs_within: int


def concept_auroc(samples: Samples, annotations: ConceptAnnotations) -> list[ConceptAuroc]:
    """Measure the AUROC of every concept, overall and within classes.

    Within classes it is the share of same-class pairs that are in order: the classes' AUROCs, weighted by their
    numbers of pairs.

    Args:
        samples: The rows, described by concept scores.
        annotations: (N, K) for the rows and columns of `samples`; rows with nan do not count for a concept.

    Returns:
        One measure for each concept.
    """
    measures = []
    for column, concept in enumerate(samples.columns):
        known = np.flatnonzero(~np.isnan(annotations[:, column]))
        scores, present = samples.features[known, column], annotations[known, column] > 0.5
        groups = None if samples.groups is None else samples.groups[known]
        members = samples.labels[known][:, None] == np.arange(len(samples.classes))
        pairs = (members & present[:, None]).sum(axis=0) * (members & ~present[:, None]).sum(axis=0)
        measures.append(
            ConceptAuroc(
                concept=concept,
                true=int(present.sum()),
                false=int((~present).sum()),
                overall=_auroc(scores, present, np.ones((len(known), 1), bool), np.ones(1), groups),
                within=_auroc(scores, present, members[:, pairs > 0], pairs[pairs > 0], groups),
                pairs_within=int(pairs.sum()),
            )
        )
    return measures


def _auroc(
    scores: npt.NDArray[Any],
    present: npt.NDArray[np.bool_],
    members: npt.NDArray[np.bool_],
    pairs: npt.NDArray[Any],
    groups: Groups,
) -> Estimate:
    """The AUROC of pairs within the columns of `members` (n, C), weighted by their numbers of pairs."""
    if not len(pairs) or not present.any() or present.all():
        return unmeasured("There are not two images to compare.", groups)
    columns = np.broadcast_to(scores[:, None], members.shape)
    parts = area(columns, members & present[:, None], members & ~present[:, None])
    return mean_proportion(parts, groups, pairs / pairs.sum())
