"""Calibration against scikit-learn's numbers, cases one can do in the head, and a temperature that is known."""

from __future__ import annotations

import numpy as np
import pytest

from ccassets.analysis import calibration as c
from ccassets.errors import AnalysisError


def sample(rows: int = 20_000, classes: int = 4, *, heat: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from probabilities, and these as a model gives them whose logits are `heat` times too large."""
    rng = np.random.default_rng(2)
    logits = 2 * rng.standard_normal((rows, classes))
    exact = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (exact.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    stated = np.exp(heat * logits)
    return labels, (stated / stated.sum(axis=1, keepdims=True)).astype(np.float32)


def test_log_loss_and_brier_are_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss, log_loss

    labels, probabilities = sample(500)
    exact = probabilities.astype(np.float64) / probabilities.sum(axis=1, keepdims=True, dtype=np.float64)
    assert c.log_loss(labels, exact) == pytest.approx(log_loss(labels, exact), rel=1e-9)
    by_class = [brier_score_loss(labels == k, exact[:, k]) for k in range(4)]
    assert c.brier_score(labels, exact) == pytest.approx(sum(by_class), rel=1e-9)


def several_labels(rows: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Labels (n, 3) and log-odds that are too high and too sure: their own line is 0.25 z - 3."""
    rng = np.random.default_rng(2)
    log_odds = 10 + 4 * rng.standard_normal((rows, 3))
    return (rng.random((rows, 3)) < 1 / (1 + np.exp(3 - 0.25 * log_odds))).astype(np.uint8), log_odds


def test_log_loss_and_brier_of_several_labels_are_scikit_learns() -> None:
    from sklearn.metrics import brier_score_loss, log_loss

    labels, log_odds = several_labels(200)
    shares = 1 / (1 + np.exp(-log_odds / 10))
    pairs = list(zip(labels.T, shares.T, strict=True))
    assert c.log_loss(labels, shares) == pytest.approx(np.mean([log_loss(*pair) for pair in pairs]))
    assert c.brier_score(labels, shares) == pytest.approx(np.mean([brier_score_loss(*pair) for pair in pairs]))


def test_platt_scaling_finds_the_line_and_calibrates_every_label() -> None:
    labels, log_odds = several_labels()
    labels[:, 2] = 0
    lines = c.fit_platt(labels, log_odds)
    np.testing.assert_allclose(lines[:2], [[0.25, -3]] * 2, rtol=0.2)
    assert lines[2].tolist() == [1, 0]
    before = c.measure_calibration(labels[:, :2], c.apply_platt(log_odds[:, :2], np.array([[1, 0], [1, 0]])))
    after = c.measure_calibration(labels[:, :2], c.apply_platt(log_odds[:, :2], lines[:2]))
    assert before.ece > 0.3 > 0.03 > after.ece
    assert before.log_loss > after.log_loss


def test_the_calibration_error_is_that_of_a_case_done_by_hand() -> None:
    # Two bins are used: 0.9 said and 3 of 4 right, 0.6 said and 1 of 2 right.
    labels = np.array([0, 0, 0, 1, 0, 1])
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    diagram = c.reliability_diagram(labels, probabilities)
    assert diagram.count.sum() == 6
    assert diagram.count[diagram.count > 0].tolist() == [2, 4]
    assert diagram.accuracy[diagram.count > 0].tolist() == [0.5, 0.75]
    assert diagram.ece == pytest.approx((4 * 0.15 + 2 * 0.1) / 6)
    assert np.isnan(diagram.confidence[0])


def test_a_probability_on_an_edge_belongs_to_the_bin_below() -> None:
    probabilities = np.array([[0.2, 0.8], [0.0, 1.0], [0.4, 0.6]])
    assert c.reliability_diagram(np.array([1, 1, 1]), probabilities, bins=5).count.tolist() == [0, 0, 1, 1, 1]


def test_a_calibrated_model_has_a_small_error_and_needs_no_temperature() -> None:
    labels, probabilities = sample()
    assert c.reliability_diagram(labels, probabilities).ece < 0.01
    assert c.fit_temperature(labels, probabilities) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("heat", [0.25, 3.0])
def test_the_temperature_on_val_mends_test(heat: float) -> None:
    labels, probabilities = sample(heat=heat)
    temperature = c.fit_temperature(labels[:10_000], probabilities[:10_000])
    assert temperature == pytest.approx(heat, rel=0.05)
    before = c.measure_calibration(labels[10_000:], probabilities[10_000:])
    after = c.measure_calibration(labels[10_000:], c.apply_temperature(probabilities[10_000:], temperature))
    assert after.ece < 0.02 < 0.1 < before.ece
    assert after.log_loss < before.log_loss
    assert after.brier < before.brier


def test_a_label_that_was_given_no_probability_keeps_the_loss_finite() -> None:
    assert c.log_loss(np.array([1]), np.array([[1.0, 0.0]], np.float32)) == pytest.approx(87.3, abs=0.1)


def test_cosines_are_refused() -> None:
    with pytest.raises(AnalysisError, match="sum to 1"):
        c.measure_calibration(np.array([0, 1]), np.array([[0.3, 0.2], [0.1, 0.4]]))
