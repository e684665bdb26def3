"""Softmax regression with an elastic net penalty: a path of minima, each with the duality gap that it was solved to.

scikit-learn's `saga` is the one solver of this problem among the maintained libraries, and it needs tens of thousands
of passes where columns are correlated. Here each penalty takes two or three proximal Newton steps (Lee, Sun and
Saunders 2014, doi 10.1137/130921428): a quadratic model of the loss on the columns that may move, minimised exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

TOLERANCE = 1e-6
"""A minimum counts as reached when its duality gap is at most this share of the objective."""

_STEPS = 50
_HALVINGS = 30
_INTERCEPT_STEPS = 50
_BLOCK = 1 << 14
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class ElasticNetFit:
    """The minimum at one penalty.

    Attributes:
        strength: C, the inverse of the penalty's weight, as scikit-learn has it.
        weights: (C, K).
        intercept: (C,), its mean is 0.
        gap: The relative duality gap: the objective lies above its minimum by at most this share of itself.
    """

    strength: float
    weights: FloatArray
    intercept: FloatArray
    gap: float


def elastic_net_path(
    features: FloatArray,
    labels: npt.NDArray[np.int64],
    strengths: Sequence[float],
    *,
    mixing: float,
    tolerance: float = TOLERANCE,
) -> Iterator[ElasticNetFit]:
    """Minimise the penalised loss at each strength in turn, each from the minimum before.

    The objective is that of scikit-learn, divided by C: the sum over rows of the log loss of softmax(W x + b), plus
    (mixing |W| + (1 - mixing) / 2 |W|^2) / C, where b is free.

    Args:
        features: (n, K), standardised.
        labels: (n,), from 0 to C - 1; every class has a row.
        strengths: Values of C, growing.
        mixing: The share of the absolute values in the penalty, below 1.
        tolerance: The relative duality gap to reach.

    Yields:
        One fit for each strength; its `gap` exceeds `tolerance` where the steps did not suffice.
    """
    loss = _SoftmaxLoss(features, labels)
    point = loss.at(np.zeros((len(loss.counts), features.shape[1])), np.log(loss.counts / len(labels)))
    for strength in strengths:
        penalty = _Penalty(mixing / strength, (1 - mixing) / strength)
        for _ in range(_STEPS):
            gradient = loss.gradient(point)
            gap = _relative_gap(point, gradient, penalty)
            if gap <= tolerance:
                break
            point = _newton_step(loss, point, gradient, penalty)
        yield ElasticNetFit(strength, point.weights, point.intercept - point.intercept.mean(), gap)


@dataclass(frozen=True)
class _Penalty:
    absolute: float
    square: float

    def __call__(self, weights: FloatArray) -> float:
        return float(self.absolute * np.abs(weights).sum() + self.square / 2 * (weights**2).sum())


@dataclass(frozen=True, eq=False)
class _Point:
    """Weights with the intercept that suits them best, the probabilities (C, n) there, and the loss."""

    weights: FloatArray
    intercept: FloatArray
    probabilities: FloatArray
    loss: float


class _SoftmaxLoss:
    """The sum of log losses as a function of the weights alone: the intercept is always the best one."""

    def __init__(self, features: FloatArray, labels: npt.NDArray[np.int64]) -> None:
        indicators = (labels == np.arange(labels.max() + 1)[:, None]).astype(np.float64)
        self.features = features
        self.counts = indicators.sum(axis=1)
        self._sums = indicators @ features

    def at(self, weights: FloatArray, intercept: FloatArray) -> _Point:
        """Find the best intercept by Newton's method, which starts from `intercept`."""
        logits = weights @ self.features.T
        rows, classes = logits.shape[1], len(self.counts)
        probabilities, normaliser = _softmax(logits + intercept[:, None])
        for _ in range(_INTERCEPT_STEPS):
            slope = probabilities.sum(axis=1) - self.counts
            if np.abs(slope).max() <= _ROUNDING * rows:
                break
            bend = np.diag(probabilities.sum(axis=1)) - probabilities @ probabilities.T
            # A constant added to all intercepts changes nothing; the added constant makes the matrix regular.
            step = -np.linalg.solve(bend + np.trace(bend) / classes**2, slope)
            before, size = normaliser - self.counts @ intercept, 1.0
            for _ in range(_HALVINGS):
                moved = intercept + size * step
                probabilities, normaliser = _softmax(logits + moved[:, None])
                if normaliser - self.counts @ moved <= before + _ROUNDING * abs(before):
                    break
                size /= 2
            intercept = moved
        loss = normaliser - float(self.counts @ intercept) - float((weights * self._sums).sum())
        return _Point(weights, intercept, probabilities, loss)

    def gradient(self, point: _Point) -> FloatArray:
        """(C, K)."""
        gradient: FloatArray = point.probabilities @ self.features - self._sums
        return gradient

    def curvature(
        self, point: _Point, classes: npt.NDArray[np.intp], columns: npt.NDArray[np.intp]
    ) -> tuple[FloatArray, FloatArray]:
        """The second derivative by the weights of these classes and columns, and how the intercept follows them.

        (a, a), and (C, a): the intercept's change by the weights'.
        """
        count, size = len(self.counts), len(classes)
        full = np.zeros((size + count, size + count))
        owners = np.concatenate([classes, np.arange(count)])
        members = [np.flatnonzero(owners == label) for label in range(count)]
        for first in range(0, self.features.shape[0], _BLOCK):
            rows = self.features[first : first + _BLOCK]
            described = np.concatenate([rows[:, columns], np.ones((len(rows), count))], axis=1)
            weighted = described * point.probabilities[owners, first : first + _BLOCK].T
            full -= weighted.T @ weighted
            for member in members:
                full[np.ix_(member, member)] += weighted[:, member].T @ described[:, member]
        inner = full[size:, size:]
        follow = -np.linalg.solve(inner + np.trace(inner) / count**2, full[size:, :size])
        return full[:size, :size] + full[:size, size:] @ follow, follow


def _softmax(logits: FloatArray) -> tuple[FloatArray, float]:
    """Probabilities (C, n) by column, and the sum of the logarithms of their normalisers."""
    top = logits.max(axis=0)
    powers = np.exp(logits - top)
    totals = powers.sum(axis=0)
    return powers / totals, float((np.log(totals) + top).sum())


def _relative_gap(point: _Point, gradient: FloatArray, penalty: _Penalty) -> float:
    """The duality gap as a share of the objective.

    The dual variable of a row is its probabilities minus its label; the best intercept makes their sum 0, as the dual
    problem demands. The dual value is then the entropy of the probabilities minus the penalty's conjugate.
    """
    probabilities = np.maximum(point.probabilities, np.finfo(float).tiny)
    entropy = -float((point.probabilities * np.log(probabilities)).sum())
    excess = np.maximum(np.abs(gradient) - penalty.absolute, 0)
    primal = point.loss + penalty(point.weights)
    return (primal - entropy + float((excess**2).sum()) / (2 * penalty.square)) / primal


def _newton_step(loss: _SoftmaxLoss, point: _Point, gradient: FloatArray, penalty: _Penalty) -> _Point:
    """The minimum of the quadratic model, or the first halving of the way there that lowers the objective enough."""
    classes, columns = np.nonzero((point.weights != 0) | (np.abs(gradient) > penalty.absolute))
    start, slope = point.weights[classes, columns], gradient[classes, columns]
    curvature, follow = loss.curvature(point, classes, columns)
    target = _sparse_minimum(
        curvature + penalty.square * np.eye(len(start)), curvature @ start - slope, penalty.absolute, start
    )
    step = target - start
    promised = float(slope @ step) + penalty(target) - penalty(start)
    before, size = point.loss + penalty(point.weights), 1.0
    for _ in range(_HALVINGS):
        weights = point.weights.copy()
        weights[classes, columns] = start + size * step
        moved = loss.at(weights, point.intercept + size * (follow @ step))
        if moved.loss + penalty(weights) <= before + 1e-4 * size * promised:
            return moved
        size /= 2
    return point


def _sparse_minimum(matrix: FloatArray, linear: FloatArray, absolute: float, start: FloatArray) -> FloatArray:
    """The w that minimises w'Aw / 2 - b'w + absolute |w|, for a positive definite A.

    Feature-sign search (Lee, Battle, Raina and Ng 2006): with known signs the minimum is a linear system. Move towards
    it, drop the weight that first reaches 0, add the one with the largest gradient, and repeat until no gradient is
    large enough.
    """
    weights: FloatArray = start.copy()
    signs = np.sign(start)
    for _ in range(100 + 20 * len(start)):
        members = np.flatnonzero(signs)
        now = weights[members]
        target = np.linalg.solve(matrix[np.ix_(members, members)], linear[members] - absolute * signs[members])
        crossing = np.flatnonzero(target * signs[members] <= 0)
        if len(crossing):
            shares = now[crossing] / (now[crossing] - target[crossing])
            first = int(shares.argmin())
            weights[members] = now + shares[first] * (target - now)
            weights[members[crossing[first]]] = signs[members[crossing[first]]] = 0
            continue
        weights[members] = target
        pull = np.where(signs == 0, linear - matrix @ weights, 0)
        strongest = int(np.abs(pull).argmax())
        if abs(pull[strongest]) <= absolute * (1 + _ROUNDING):
            break
        signs[strongest] = np.sign(pull[strongest])
    return weights
