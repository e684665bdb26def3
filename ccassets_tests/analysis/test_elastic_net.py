"""The elastic net against scikit-learn solved to the end, against its own duality gap, and where data are difficult."""

import warnings

import numpy as np
import pytest

from ccassets.analysis.elastic_net import TOLERANCE, elastic_net_path


def correlated(rows: int = 300, columns: int = 12, classes: int = 5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Standardised columns that share most of what they say, as concept scores do."""
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, rows - classes)])
    hidden = rng.standard_normal((classes, 6))[labels] + rng.standard_normal((rows, 6))
    features = hidden @ (rng.standard_normal((6, columns)) + 1) + 0.3 * rng.standard_normal((rows, columns))
    return (features - features.mean(axis=0)) / features.std(axis=0), labels


def objective(weights, intercept, features, labels, strength, mixing):
    logits = features @ weights.T + intercept
    top = logits.max(axis=1)
    losses = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(labels)), labels]
    return losses.sum() + (mixing * np.abs(weights).sum() + (1 - mixing) / 2 * (weights**2).sum()) / strength


@pytest.mark.parametrize("mixing", [0.99, 0.5])
def test_the_minimum_is_that_of_saga_run_to_the_end(mixing: float):
    from sklearn.linear_model import LogisticRegression

    features, labels = correlated()
    for fit in elastic_net_path(features, labels, [0.03, 0.3, 1.0], mixing=mixing):
        with warnings.catch_warnings():
            # Older releases want to be told the penalty; newer ones take it from `l1_ratio` and warn.
            warnings.simplefilter("ignore")
            model = LogisticRegression(
                penalty="elasticnet", l1_ratio=mixing, C=fit.strength, solver="saga", tol=1e-8, max_iter=100_000
            ).fit(features, labels)
        assert fit.gap <= TOLERANCE
        np.testing.assert_allclose(fit.weights, model.coef_, atol=1e-3)
        np.testing.assert_allclose(fit.intercept, model.intercept_ - model.intercept_.mean(), atol=1e-3)
        assert ((fit.weights != 0) == (np.abs(model.coef_) > 1e-5)).mean() > 0.98


def test_the_gap_bounds_what_is_left_to_gain():
    features, labels = correlated(seed=1)
    rough, fine = (
        next(iter(elastic_net_path(features, labels, [0.5], mixing=0.99, tolerance=tolerance)))
        for tolerance in (0.05, 1e-10)
    )
    high, low = (objective(fit.weights, fit.intercept, features, labels, 0.5, 0.99) for fit in (rough, fine))
    assert 1e-10 < rough.gap <= 0.05
    assert 0 <= high - low <= rough.gap * high * (1 + 1e-9)


def test_where_the_penalty_is_too_strong_no_weight_appears_and_shares_are_the_classes():
    features, labels = correlated()
    (fit,) = elastic_net_path(features, labels, [1e-6], mixing=0.99)
    assert not fit.weights.any()
    shares = np.exp(fit.intercept) / np.exp(fit.intercept).sum()
    np.testing.assert_allclose(shares, np.bincount(labels) / len(labels), atol=1e-9)


def test_equal_columns_constant_columns_and_more_columns_than_rows_converge():
    features, labels = correlated(rows=40, columns=60)
    features[:, 1] = features[:, 0]
    features[:, 2] = 0
    for fit in elastic_net_path(features, labels, np.geomspace(0.01, 100, 20).tolist(), mixing=0.99):
        assert fit.gap <= TOLERANCE
        assert np.isfinite(fit.weights).all()
        assert not fit.weights[:, 2].any()
    np.testing.assert_allclose(fit.weights[:, 0], fit.weights[:, 1], atol=1e-6)


def test_classes_that_columns_separate_entirely_converge():
    labels = np.arange(90) % 3
    features = np.eye(3)[labels] * 4 + np.random.default_rng(0).standard_normal((90, 3)) * 0.1
    features = (features - features.mean(axis=0)) / features.std(axis=0)
    *_, last = elastic_net_path(features, labels, np.geomspace(0.01, 1e4, 60).tolist(), mixing=0.99)
    assert last.gap <= TOLERANCE
    assert ((features @ last.weights.T + last.intercept).argmax(axis=1) == labels).all()


def test_two_classes_have_opposite_weights():
    features, labels = correlated(classes=2)
    (fit,) = elastic_net_path(features, labels, [0.2], mixing=0.99)
    assert fit.weights.any()
    np.testing.assert_allclose(fit.weights[0], -fit.weights[1], atol=1e-9)
