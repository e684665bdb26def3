"""Sparse classifiers: a path of elastic nets from no concept to many, and accuracy against the number in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ccassets.analysis.classifiers import (
    FloatArray,
    LinearClassifier,
    evaluate_on_holdout,
    limit_threads,
    mean_and_scale,
)
from ccassets.analysis.elastic_net import TOLERANCE, elastic_net_path
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervals import Estimate
from ccassets.analysis.metrics import accuracy
from ccassets.analysis.samples import Samples

NEC_LEVELS = (5, 10, 15, 20, 25, 30)
"""Numbers of effective concepts that ANEC-avg averages over (VLG-CBM, arXiv 2408.01432)."""

MIXING = 0.99
"""Share of the L1 norm in the penalty (VLG-CBM)."""

_PATH_RATIO = 2.0**-0.1
_PATH_STEPS = 150


def sparse_path(samples: Samples, *, train: str = "train", most: float = max(NEC_LEVELS)) -> list[LinearClassifier]:
    """Fit logistic regressions from no concept to `most` effective concepts for each class, by an elastic net of mixing
    0.99.

    The penalty falls by a tenth of an octave a step from where the first weight appears, as in VLG-CBM
    (arXiv 2408.01432). `chosen` of each point has its relative duality gap and says whether it is within tolerance.

    Args:
        samples: The rows.
        train: The split to fit on.
        most: Effective concepts of the last point, if the path reaches as many.

    Returns:
        The points of the path, the sparsest first.

    Raises:
        AnalysisError: The split has no rows, or a class has none in it.
    """
    samples.require_single("A sparse path")
    fitted = samples.of(train)
    most = min(most, len(fitted.columns))
    mean, scale = mean_and_scale(fitted)
    standardised = (np.asarray(fitted.features, np.float64) - mean) / scale
    path: list[LinearClassifier] = []
    with limit_threads(standardised.size):
        for fit in elastic_net_path(standardised, fitted.labels, _path_strengths(standardised, fitted), mixing=MIXING):
            chosen = {
                "C": fit.strength,
                "converged": fit.gap <= TOLERANCE,
                "duality_gap": fit.gap,
                "mixing": MIXING,
                "fitted_on": [train],
            }
            path.append(
                LinearClassifier(fitted.columns, fitted.classes, mean, scale, fit.weights, fit.intercept, chosen)
            )
            if path[-1].nec >= most:
                break
    return path


def _path_strengths(standardised: FloatArray, samples: Samples) -> list[float]:
    """C of every point; at the first, the penalty is as large as the steepest slope of the loss at zero weights."""
    indicators = np.eye(len(samples.classes))[samples.labels]
    slope = np.abs(standardised.T @ (indicators - indicators.mean(axis=0))).max()
    first = MIXING / slope
    return [float(first / _PATH_RATIO**step) for step in range(_PATH_STEPS)]


def truncate_to_nec(path: Sequence[LinearClassifier], nec: float) -> LinearClassifier:
    """Truncate the first point of a path with at least `nec` effective concepts to its `nec` × C largest weights.

    The last point where none has so many (VLG-CBM's rule).
    """
    point = next((classifier for classifier in path if classifier.nec >= nec), path[-1])
    sizes = np.abs(point.weights).ravel()
    kept = np.zeros(sizes.size, bool)
    kept[np.argsort(-sizes, kind="stable")[: round(nec * len(point.classes))]] = True
    weights = np.where(kept.reshape(point.weights.shape), point.weights, 0.0)
    return replace(point, weights=weights, chosen={**point.chosen, "nec": nec})


@dataclass(frozen=True)
class SparsePoint:
    """Accuracy at a number of effective concepts.

    Attributes:
        level: The allowed number of effective concepts for each class.
        nec: The number of effective concepts for each class.
        accuracy: Accuracy on the held-out split.
    """

    level: int
    nec: float
    accuracy: Estimate


@dataclass(frozen=True)
class SparseAccuracy:
    """Accuracy against the number of effective concepts (NEC).

    Attributes:
        points: One point for each level; levels above the number of concepts cannot be reached and are left out.
    """

    points: tuple[SparsePoint, ...]

    @property
    def anec_5(self) -> float | None:
        """Accuracy at NEC 5; None with fewer than five concepts."""
        return next((point.accuracy.value for point in self.points if point.level == 5), None)

    @property
    def anec_avg(self) -> float | None:
        """Mean accuracy over the levels; None with fewer than five concepts."""
        return float(np.mean([point.accuracy.value for point in self.points])) if self.points else None


def accuracy_against_nec(
    path: Sequence[LinearClassifier], samples: Samples, split: str, log: HoldoutLog
) -> SparseAccuracy:
    """Measure accuracy on a held-out split at 5, 10, …, 30 effective concepts for each class.

    Args:
        path: A sparse path (`sparse_path`).
        samples: The rows.
        split: The held-out split.
        log: Records an access for every level.

    Returns:
        The accuracies.

    Raises:
        AnalysisError: The split has no rows, or the columns are not those of the path.
    """
    held_out = samples.of(split)
    points = []
    for level in NEC_LEVELS:
        if level > len(path[0].columns):
            break
        classifier = truncate_to_nec(path, level)
        probabilities = evaluate_on_holdout(classifier, samples, split, log, f"accuracy at NEC {level}")
        points.append(SparsePoint(level, classifier.nec, accuracy(held_out.labels, probabilities, held_out.groups)))
    return SparseAccuracy(tuple(points))
