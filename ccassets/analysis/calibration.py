"""Calibration of probabilities: log loss, Brier score, calibration error, and how to correct them.

Labels are class numbers (n,) with probabilities (n, C) whose rows sum to 1, or 0 and 1 (n, C) of a multi-label set with
a probability for each.
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
"""Range of the fitted temperature; a value at either end means that no temperature helps."""


@dataclass(frozen=True)
class Calibration:
    """How well probabilities are calibrated.

    Attributes:
        log_loss: Mean of −ln of the label's probability, in nats; multi-label: of right answers, mean over labels.
        brier: Multiclass Brier score, 0 to 2; multi-label: mean over labels, 0 to 1.
        ece: Expected calibration error of the top label, 0 to 1; multi-label: of each label's own probability, mean
            over labels.
    """

    log_loss: float
    brier: float
    ece: float


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: bins of top-label probability, or of all labels' probabilities; each array (bins,).

    Bin b holds probabilities above b / bins, up to (b + 1) / bins.

    Attributes:
        count: Rows of the bin.
        confidence: Mean probability; nan in an empty bin.
        accuracy: Share of correct rows, or of labels that rows have; nan in an empty bin.
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
        labels: (n,) or (n, C).
        probabilities: (n, C).

    Returns:
        The three numbers.

    Raises:
        AnalysisError: Rows have no label, or do not sum to 1.
    """
    if labels.ndim == 2:
        ece = float(np.mean([_binned(p, y).ece for p, y in zip(probabilities.T, labels.T, strict=True)]))
    else:
        ece = reliability_diagram(labels, probabilities).ece
    return Calibration(log_loss(labels, probabilities), brier_score(labels, probabilities), ece)


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
    if labels.ndim == 2:
        return -float(_logarithms(np.where(labels > 0, probabilities, 1 - probabilities)).mean())
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
    if labels.ndim == 2:
        return float(((probabilities.astype(np.float64) - labels) ** 2).mean())
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
    if labels.ndim == 2:
        return _binned(probabilities.ravel(), labels.ravel(), bins)
    return _binned(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins)


def _binned(probabilities: Array, right: Array, bins: int = BINS) -> Reliability:
    """Bin single answers (n,) by their probability."""
    stated = probabilities.astype(np.float64)
    bin_of_row = np.clip(np.searchsorted(np.linspace(0, 1, bins + 1), stated, side="left") - 1, 0, bins - 1)
    count = np.bincount(bin_of_row, minlength=bins)
    correct = np.bincount(bin_of_row, right, bins)
    with np.errstate(invalid="ignore"):
        return Reliability(count, np.bincount(bin_of_row, stated, bins) / count, correct / count)


def fit_temperature(labels: Array, probabilities: Array) -> float:
    """Fit the temperature whose `apply_temperature` has the lowest log loss; use the rows of val.

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
        lambda log_t: log_loss(labels, apply_temperature(probabilities, float(np.exp(log_t)))),
        bounds=bounds,
        options={"xatol": 1e-9},
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


def fit_platt(labels: Array, log_odds: Array) -> npt.NDArray[np.float64]:
    """For each label of a multi-label set, fit the line of log-odds with the lowest log loss; use the rows of val.

    Source: Platt 1999, scaling by a logistic regression on one column.

    Args:
        labels: (n, C) of 0 and 1.
        log_odds: (n, C).

    Returns:
        (C, 2), slope and intercept; 1 and 0 for a label that no row or every row has.

    Raises:
        AnalysisError: Log-odds are not finite.
    """
    from sklearn.linear_model import LogisticRegression

    require_labels(labels, log_odds)
    lines = np.tile([1.0, 0.0], (labels.shape[1], 1))
    for label in np.flatnonzero((labels > 0).any(axis=0) & (labels == 0).any(axis=0)):
        own = log_odds[:, label]
        mean, scale = own.mean(), own.std() or 1.0
        model = LogisticRegression(C=1e6).fit((own[:, None] - mean) / scale, labels[:, label])
        slope = model.coef_[0, 0] / scale
        lines[label] = slope, model.intercept_[0] - slope * mean
    return lines


def apply_platt(log_odds: Array, lines: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Compute probabilities from log-odds by the line of each label.

    Args:
        log_odds: (n, C).
        lines: (C, 2), slope and intercept (`fit_platt`).

    Returns:
        (n, C) float64.
    """
    from scipy.special import expit

    return np.asarray(expit(log_odds * lines[:, 0] + lines[:, 1]))


def log_odds(probabilities: Array) -> npt.NDArray[np.float64]:
    """Compute ln p − ln(1 − p) of probabilities; 0 and 1 count as float32's smallest distance from them."""
    return _logarithms(probabilities) - _logarithms(1 - probabilities)


def _logarithms(probabilities: Array) -> npt.NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)))


def _require_probabilities(labels: Array, probabilities: Array) -> None:
    require_labels(labels, probabilities)
    if labels.ndim == 2:
        if probabilities.min() < 0 or probabilities.max() > 1:
            raise AnalysisError("Expected probabilities between 0 and 1, one for each label.")
        return
    sums = probabilities.sum(axis=1)
    if probabilities.min() < 0 or not np.allclose(sums, 1, atol=1e-3):
        raise AnalysisError(
            "Expected probabilities of classes that exclude each other, in rows that sum to 1; found rows that sum to "
            f"{sums.min():.4g} … {sums.max():.4g}. Cosines have no calibration."
        )
