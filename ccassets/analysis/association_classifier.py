"""The interpretable classifier of ConceptCLIP's authors: each class is one mixture of concepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.calibration import log_loss
from ccassets.analysis.classifiers import STRENGTHS, FloatArray, LinearClassifier
from ccassets.analysis.samples import Samples

_MOST_ITERATIONS = 500


def fit_association(
    samples: Samples,
    multiplier: float,
    *,
    train: str = "train",
    val: str = "val",
    strengths: Sequence[float] = STRENGTHS,
) -> LinearClassifier:
    """Fit the association of classes with concepts; the strength with the lowest log loss on `val` is chosen.

    The logits of an image are the encoder's factor times the cosine with each class's mixture of concepts; the shares
    of a class are a softmax over concepts, positive with a sum of 1 (Yang et al. 2023, arXiv 2211.11158; so used in the
    evaluation code of ConceptCLIP, arXiv 2501.15579). All shares start equal, since nothing says which class a concept
    was written for. Two things differ from that code: an optimiser with an L2 penalty that converges, where theirs
    runs 500 epochs, and the choice on `val`, where theirs takes the epoch that is best on test.

    Args:
        samples: The rows, described by cosine concept scores.
        multiplier: The encoder's factor of similarities, `Database.logit_multiplier`.
        train: The split to fit on.
        val: The split to choose on.
        strengths: Values of C, the inverse strength of the penalty, to choose from.

    Returns:
        The classifier, on scores that are not standardised; its weights are the factor times the shares.

    Raises:
        AnalysisError: A split has no rows, or a row can have several classes.
    """
    from scipy.special import softmax

    samples.require_single("The association of classes with concepts")
    fitted, held_out = samples.of(train), samples.of(val)
    candidates = []
    start = np.zeros((len(samples.classes), len(samples.columns)))
    for strength in strengths:
        start = _fit(np.asarray(fitted.features, np.float64), fitted.labels, multiplier, strength, start)
        classifier = LinearClassifier(
            columns=samples.columns,
            classes=samples.classes,
            mean=np.zeros(len(samples.columns)),
            scale=np.ones(len(samples.columns)),
            weights=multiplier * softmax(start, axis=1),
            intercept=np.zeros(len(samples.classes)),
        )
        loss = log_loss(held_out.labels, classifier.probabilities(held_out.features))
        candidates.append((loss, strength, classifier))
    loss, strength, classifier = min(candidates, key=lambda candidate: candidate[0])
    return replace(
        classifier, chosen={"C": float(strength), "chosen_on": val, "log_loss": float(loss), "fitted_on": [train]}
    )


def _fit(
    scores: FloatArray, labels: npt.NDArray[np.integer[Any]], multiplier: float, strength: float, start: FloatArray
) -> FloatArray:
    """The association (C, K) of least penalised cross-entropy, by L-BFGS with its gradient."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax, softmax

    truth = np.eye(len(start))[labels]

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        association = flat.reshape(start.shape)
        shares = softmax(association, axis=1)
        log_probabilities = log_softmax(multiplier * scores @ shares.T, axis=1)
        by_share = multiplier * (np.exp(log_probabilities) - truth).T @ scores
        gradient = shares * (by_share - (by_share * shares).sum(axis=1, keepdims=True)) + association / strength
        value = -float(log_probabilities[truth > 0].sum()) + float((association**2).sum()) / (2 * strength)
        return value, gradient.ravel()

    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": _MOST_ITERATIONS})
    fitted: FloatArray = result.x.reshape(start.shape)
    return fitted
