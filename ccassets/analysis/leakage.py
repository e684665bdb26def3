"""Leakage: what concept scores tell about the class beyond the concepts that they are named after."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import FloatArray, evaluate_on_holdout, fit_logistic
from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervals import Estimate, mean_value
from ccassets.analysis.samples import Samples
from ccassets.errors import AnalysisError

EXCHANGES = 10
"""How often scores are exchanged; the mean over these has a tenth of one's variance."""

_STRENGTHS = (0.01, 0.1, 1.0, 10.0)
_MOST_PAIRED = 40
"""Up to this many concepts, the expected score also uses pairs of them."""


@dataclass(frozen=True)
class Leakage:
    """What scores tell about the class beyond the concepts that they are named after.

    Attributes:
        information: I(class; scores | concepts) in bits, as far as a linear classifier can use it, with its interval.
            A value near 0 means no leak; a negative value is noise of the estimate.
        given_annotations: Log loss in bits given the annotations and scores that know no more than these.
        given_both: Log loss in bits given the annotations and the scores.
        concepts: Number of annotated concepts.
        rows: Rows of the split.
        matched: How many of these have an image with the very same annotations.
    """

    information: Estimate
    given_annotations: float
    given_both: float
    concepts: int
    rows: int
    matched: int


def measure_leakage(
    samples: Samples,
    annotations: ConceptAnnotations,
    *,
    split: str,
    log: HoldoutLog,
    train: str = "train",
    val: str | None = "val",
    exchanges: int = EXCHANGES,
    seed: int = 0,
) -> Leakage:
    """Measure how much scores leak about the class beyond their concepts.

    The leak is H(class | concepts) - H(class | scores, concepts) (arXiv 2504.09459). Both terms are the log loss of the
    same classifier on the same columns; for the first, images of equal annotations exchange their scores (conditional
    permutation, Candes et al. 2018, arXiv 1610.02351). Exchanged scores keep everything that follows from the concepts,
    and nothing else, so the difference is 0 on average if nothing leaks. If no other image has the same annotations,
    only the difference from the expected score is exchanged, where the expectation uses annotations and their pairs.

    Args:
        samples: The rows, described by concept scores.
        annotations: (N, K) for the rows and columns of `samples`; only annotated concepts and rows count.
        split: The held-out split.
        log: Records the accesses.
        train: The split to fit on.
        val: The split to choose on; None chooses by folds of `train`.
        exchanges: How often scores are exchanged.
        seed: Seed of the exchanges.

    Returns:
        The information that leaks.

    Raises:
        AnalysisError: No concept is annotated for any row.
    """
    known = np.flatnonzero(~np.isnan(annotations).all(axis=0))
    rows = np.flatnonzero(~np.isnan(annotations[:, known]).any(axis=1))
    if not len(known) or not len(rows):
        raise AnalysisError("No concept is annotated for any row, so leakage cannot be measured.")
    columns = [samples.columns[column] for column in known]
    chosen = samples.select(columns).take(rows)
    annotated = np.asarray(annotations[rows][:, known], np.float64)
    scores = np.asarray(chosen.features, np.float64)

    def log_losses(given: FloatArray, what: str) -> FloatArray:
        described = chosen.with_features(
            np.concatenate([given, annotated], axis=1), columns + [f"{name} (truth)" for name in columns]
        )
        classifier = fit_logistic(described, train=train, val=val, strengths=_STRENGTHS)
        probabilities = evaluate_on_holdout(classifier, described, split, log, what)
        labels = described.of(split).labels
        own = probabilities[np.arange(len(labels)), labels]
        return np.asarray(-np.log2(np.maximum(own, np.finfo(float).tiny)))

    kinds = _equal_annotations(annotated)
    expected = _expected_scores(scores, annotated, kinds)
    rng = np.random.default_rng(seed)
    given_both = log_losses(scores, "log loss given scores and true concepts")
    exchanged = np.array(
        [
            log_losses(
                expected + (scores - expected)[_permuted_within(kinds, rng)],
                "log loss given exchanged scores and true concepts",
            )
            for _ in range(exchanges)
        ]
    )
    # The differences between fits are not a property of the images; the exchanged scores show how large they are.
    spread = float(exchanged.mean(axis=1).var(ddof=1)) * (1 + 1 / exchanges) if exchanges > 1 else 0.0
    held_out = chosen.split == split
    return Leakage(
        information=mean_value(exchanged.mean(axis=0) - given_both, chosen.of(split).groups, spread),
        given_annotations=float(exchanged.mean()),
        given_both=float(given_both.mean()),
        concepts=len(columns),
        rows=int(held_out.sum()),
        matched=int((kinds[held_out] >= 0).sum()),
    )


def _equal_annotations(annotated: FloatArray) -> npt.NDArray[np.intp]:
    """(n,): a number for each set of rows with equal annotations, -1 for rows that have no equal."""
    _, kinds, counts = np.unique(annotated, axis=0, return_inverse=True, return_counts=True)
    kinds = kinds.ravel()
    return np.where(counts[kinds] > 1, kinds, -1)


def _expected_scores(scores: FloatArray, annotated: FloatArray, kinds: npt.NDArray[np.intp]) -> FloatArray:
    """(n, K): the mean score of rows with equal annotations; without any, what annotations and their pairs predict."""
    from sklearn.linear_model import RidgeCV

    expected = np.empty_like(scores)
    alone = kinds < 0
    if alone.any():
        centred = annotated - annotated.mean(axis=0)
        first, second = np.triu_indices(annotated.shape[1] if annotated.shape[1] <= _MOST_PAIRED else 0, 1)
        described = np.concatenate([centred, centred[:, first] * centred[:, second]], axis=1)
        ridge = RidgeCV(10.0 ** np.arange(-1, 4), alpha_per_target=True).fit(described, scores)
        expected[alone] = ridge.predict(described[alone]).reshape(-1, scores.shape[1])
    matched = np.flatnonzero(~alone)
    _, numbers, counts = np.unique(kinds[matched], return_inverse=True, return_counts=True)
    sums = np.zeros((len(counts), scores.shape[1]))
    np.add.at(sums, numbers, scores[matched])
    expected[matched] = (sums / counts[:, None])[numbers]
    return expected


def _permuted_within(kinds: npt.NDArray[np.intp], rng: np.random.Generator) -> npt.NDArray[np.intp]:
    """(n,): a permutation of the rows that keeps every row within its kind."""
    order = np.empty(len(kinds), np.intp)
    order[np.argsort(kinds, kind="stable")] = np.lexsort((rng.random(len(kinds)), kinds))
    return order
