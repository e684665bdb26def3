"""Calibration: whether probabilities mean what they say, and the temperature that mends them.

`labels` are (n,) class numbers, `probabilities` (n, C) with rows that sum to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.metrics import require_labels
from ccassets.errors import AnalysisError

Array = npt.NDArray[Any]

BINS = 15
TEMPERATURES = (0.01, 100.0)
"""Between these the temperature is looked for; one at an end says that no temperature helps."""


@dataclass(frozen=True)
class Calibration:
    """Log loss in nats, Brier score (0 to 2), and expected calibration error of the top label (0 to 1)."""

    log_loss: float
    brier: float
    ece: float


@dataclass(frozen=True)
class Reliability:
    """The reliability diagram's bins of top-label probability: (bins,) rows, mean probability, share that is right.

    Bin b holds probabilities above b / bins, up to (b + 1) / bins; an empty one has nan for both means.
    """

    count: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def ece(self) -> float:
        """The mean over rows of |confidence − accuracy| of their bins (Guo et al. 2017)."""
        filled = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def calibration(labels: Array, probabilities: Array) -> Calibration:
    """All three numbers. Raises `AnalysisError` for rows without a label or that do not sum to 1."""
    return Calibration(
        log_loss(labels, probabilities), brier(labels, probabilities), reliability(labels, probabilities).ece
    )


def log_loss(labels: Array, probabilities: Array) -> float:
    """The mean of −log of the label's probability, in nats; a probability of 0 counts as the smallest of float32."""
    _require(labels, probabilities)
    return -float(_logarithms(probabilities)[np.arange(len(labels)), labels].mean())


def brier(labels: Array, probabilities: Array) -> float:
    """The multiclass Brier score: the mean over rows of Σ over classes (probability − truth)², from 0 to 2."""
    _require(labels, probabilities)
    truth = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((probabilities.astype(np.float64) - truth) ** 2).sum(axis=1).mean())


def reliability(labels: Array, probabilities: Array, bins: int = BINS) -> Reliability:
    """Rows binned by the probability of their top label, in bins of equal width."""
    _require(labels, probabilities)
    top = probabilities.max(axis=1).astype(np.float64)
    place = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), top, side="left") - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    right = np.bincount(place, probabilities.argmax(axis=1) == labels, bins)
    with np.errstate(invalid="ignore"):
        return Reliability(count, np.bincount(place, top, bins) / count, right / count)


def fit_temperature(labels: Array, probabilities: Array) -> float:
    """The temperature T that makes `with_temperature(probabilities, T)` fit the labels best (log loss): fit it on val.

    Above 1 the probabilities were too sure of themselves. Source: Guo et al. 2017.
    """
    from scipy.optimize import minimize_scalar

    _require(labels, probabilities)
    bounds = tuple(np.log(TEMPERATURES).tolist())
    found = minimize_scalar(
        lambda log_t: log_loss(labels, with_temperature(probabilities, float(np.exp(log_t)))), bounds=bounds
    )
    return float(np.exp(found.x))


def with_temperature(probabilities: Array, temperature: float) -> npt.NDArray[np.float64]:
    """softmax(log(probabilities) / temperature); the order of classes in a row stays."""
    from scipy.special import softmax

    return np.asarray(softmax(_logarithms(probabilities) / temperature, axis=1))


def _logarithms(probabilities: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)))


def _require(labels: Array, probabilities: Array) -> None:
    require_labels(labels, probabilities)
    sums = probabilities.sum(axis=1)
    if labels.ndim != 1 or probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
        raise AnalysisError(
            "Probabilities of classes that exclude each other were expected, with rows that sum to 1; found rows that "
            f"sum to {sums.min():.4g} … {sums.max():.4g}. Cosines and multi-label scores have no calibration here."
        )
