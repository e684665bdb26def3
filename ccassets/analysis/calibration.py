"""Calibration of probabilities: log loss, Brier score, calibration error, and the temperature that corrects them."""

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
"""Range of the fitted temperature; one at an end says that no temperature helps."""


@dataclass(frozen=True)
class Calibration:
    """How well probabilities are calibrated.

    Attributes:
        log_loss: Mean of −ln of the label's probability, in nats.
        brier: Multiclass Brier score, 0 to 2.
        ece: Expected calibration error of the top label, 0 to 1.
    """

    log_loss: float
    brier: float
    ece: float


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: bins of top-label probability, each array (bins,).

    Bin b holds probabilities above b / bins, up to (b + 1) / bins.

    Attributes:
        count: Rows of the bin.
        confidence: Mean probability; nan in an empty bin.
        accuracy: Share of correct rows; nan in an empty bin.
    """

    count: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Mean over rows of |confidence − accuracy| of their bin (Guo et al. 2017, arXiv 1706.04599)."""
        filled = self.count > 0
        gaps = np.abs(self.confidence - self.accuracy)[filled]
        return float((gaps * self.count[filled]).sum() / self.count.sum())


def measure_calibration(labels: Array, probabilities: Array) -> Calibration:
    """Measure log loss, Brier score and calibration error.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, C), rows sum to 1.

    Returns:
        The three numbers.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    return Calibration(
        log_loss(labels, probabilities),
        brier_score(labels, probabilities),
        reliability_diagram(labels, probabilities).ece,
    )


def log_loss(labels: Array, probabilities: Array) -> float:
    """Compute the mean of −ln of the label's probability; a probability of 0 counts as float32's smallest.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, C), rows sum to 1.

    Returns:
        The loss in nats.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    _require_probabilities(labels, probabilities)
    return -float(_logarithms(probabilities)[np.arange(len(labels)), labels].mean())


def brier_score(labels: Array, probabilities: Array) -> float:
    """Compute the multiclass Brier score: the mean over rows of Σ over classes (probability − label)².

    Args:
        labels: (n,) class numbers.
        probabilities: (n, C), rows sum to 1.

    Returns:
        The score, 0 to 2.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    _require_probabilities(labels, probabilities)
    one_hot = labels[:, None] == np.arange(probabilities.shape[1])
    return float(((probabilities.astype(np.float64) - one_hot) ** 2).sum(axis=1).mean())


def reliability_diagram(labels: Array, probabilities: Array, bins: int = BINS) -> Reliability:
    """Bin rows by the probability of their top label, in bins of equal width.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, C), rows sum to 1.
        bins: Number of bins.

    Returns:
        Count, mean probability and accuracy of every bin.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    _require_probabilities(labels, probabilities)
    top = probabilities.max(axis=1).astype(np.float64)
    bin_of_row = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), top, side="left") - 1, 0, bins - 1)
    count = np.bincount(bin_of_row, minlength=bins)
    correct = np.bincount(bin_of_row, probabilities.argmax(axis=1) == labels, bins)
    with np.errstate(invalid="ignore"):
        return Reliability(count, np.bincount(bin_of_row, top, bins) / count, correct / count)


def fit_temperature(labels: Array, probabilities: Array) -> float:
    """Fit the temperature whose `apply_temperature` has the lowest log loss; fit it on val.

    Source: Guo et al. 2017, arXiv 1706.04599.

    Args:
        labels: (n,) class numbers.
        probabilities: (n, C), rows sum to 1.

    Returns:
        The temperature, 0.01 to 100; above 1 the probabilities were too confident.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    from scipy.optimize import minimize_scalar

    _require_probabilities(labels, probabilities)
    bounds = tuple(np.log(TEMPERATURES).tolist())
    optimum = minimize_scalar(
        lambda log_t: log_loss(labels, apply_temperature(probabilities, float(np.exp(log_t)))), bounds=bounds
    )
    return float(np.exp(optimum.x))


def apply_temperature(probabilities: Array, temperature: float) -> npt.NDArray[np.float64]:
    """Compute softmax(ln(probabilities) / temperature); the order of classes in a row stays.

    Args:
        probabilities: (n, C), rows sum to 1.
        temperature: The temperature (`fit_temperature`).

    Returns:
        (n, C) float64, rows sum to 1.
    """
    from scipy.special import softmax

    return np.asarray(softmax(_logarithms(probabilities) / temperature, axis=1))


def _logarithms(probabilities: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)))


def _require_probabilities(labels: Array, probabilities: Array) -> None:
    require_labels(labels, probabilities)
    sums = probabilities.sum(axis=1)
    if labels.ndim != 1 or probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
        raise AnalysisError(
            "Expected probabilities of classes that exclude each other, in rows that sum to 1; found rows that sum to "
            f"{sums.min():.4g} … {sums.max():.4g}. Cosines and multi-label scores have no calibration here."
        )
