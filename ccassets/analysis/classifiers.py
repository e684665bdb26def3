"""Classifiers a person can read: logistic regression and a decision tree, on standardised columns.

Everything is fitted on `train` and chosen on `val`; `evaluate_on_holdout` is the only way to any other split, and it
records the access. A fitted classifier is plain arrays: it predicts with numpy alone and is stored as JSON
(`concept_models`).
"""

from __future__ import annotations

import functools
import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.calibration import log_loss
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.metrics import balanced_accuracy
from ccassets.analysis.samples import Samples, folds
from ccassets.errors import AnalysisError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

FloatArray = npt.NDArray[np.float64]

STRENGTHS = tuple(10.0**power for power in range(-3, 4))
"""Values of C, the inverse strength of the L2 penalty, to choose from."""

LEAVES = (4, 8, 16, 32, 64)
"""Numbers of leaves to choose from."""

EFFECTIVE = 1e-5
"""A weight counts as effective above this (VLG-CBM)."""

_FOLDS = 5
_MOST_SINGLE_THREADED = 1 << 22
_MOST_ITERATIONS = 2000


@dataclass(frozen=True, eq=False)
class LinearClassifier:
    """Softmax regression on K standardised columns.

    Attributes:
        columns: Names of the columns.
        classes: Names of the C classes.
        mean: (K,), mean of the rows it was fitted on.
        scale: (K,), their standard deviation.
        weights: (C, K), for standardised values.
        intercept: (C,).
        chosen: Hyper-parameters, how they were chosen, and the splits it was fitted on.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray
    weights: FloatArray
    intercept: FloatArray
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def standardise(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Express values in standard deviations of train above the mean of train.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, K).
        """
        return (np.asarray(features, np.float64) - self.mean) / self.scale

    def logits(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Compute logits.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, C).
        """
        logits: FloatArray = self.standardise(features) @ self.weights.T + self.intercept
        return logits

    def probabilities(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Predict probabilities.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, C), with rows that sum to 1.
        """
        logits = self.logits(features)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: FloatArray = powers / powers.sum(axis=1, keepdims=True)
        return shares

    def contributions(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Compute weight times standardised value; with the intercept they add up to the logits.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, C, K).
        """
        return self.standardise(features)[:, None, :] * self.weights

    def strongest(self, count: int = 8) -> dict[str, dict[str, list[tuple[str, float]]]]:
        """List by class the columns with the largest positive and negative weights, strongest first.

        Args:
            count: Columns of each sign and class.

        Returns:
            By class: `positive` and `negative`, each a list of column and weight.
        """
        strongest = {}
        for name, weights in zip(self.classes, self.weights, strict=True):
            order = np.argsort(-weights, kind="stable")
            pairs = [(self.columns[column], float(weights[column])) for column in order]
            strongest[name] = {
                "positive": [pair for pair in pairs[:count] if pair[1] > 0],
                "negative": [pair for pair in pairs[::-1][:count] if pair[1] < 0],
            }
        return strongest

    @property
    def nec(self) -> float:
        """Number of effective concepts: the mean number of weights of a class that are not zero."""
        return float((np.abs(self.weights) > EFFECTIVE).sum(axis=1).mean())


class OneVsRestClassifier(LinearClassifier):
    """A logistic regression for each class of a multi-label set, on K standardised columns."""

    def probabilities(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Predict the probability of each class separately.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, C); rows need not sum to 1.
        """
        from scipy.special import expit

        return np.asarray(expit(self.logits(features)))


@dataclass(frozen=True, eq=False)
class TreeClassifier:
    """A decision tree on K standardised columns.

    Node i tests whether the standardised column `column[i]` is at most `threshold[i]`; yes leads to node `left[i]`, no
    to `right[i]`. A leaf has -1 in all three.

    Attributes:
        columns: Names of the columns.
        classes: Names of the C classes.
        mean: (K,), mean of the rows it was fitted on.
        scale: (K,), their standard deviation.
        column: (nodes,), the column that is tested.
        threshold: (nodes,), in standard deviations.
        left: (nodes,), the node for yes.
        right: (nodes,), the node for no.
        shares: (nodes, C), shares of the classes among the rows it was fitted on.
        chosen: Hyper-parameters, how they were chosen, and the splits it was fitted on.
    """

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    mean: FloatArray
    scale: FloatArray
    column: npt.NDArray[np.int64]
    threshold: FloatArray
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    shares: FloatArray
    chosen: Mapping[str, Any] = field(default_factory=dict)

    def standardise(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Express values in standard deviations of train above the mean of train.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, K).
        """
        return (np.asarray(features, np.float64) - self.mean) / self.scale

    def leaves(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """Find the leaf of every row.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n,) numbers of nodes.
        """
        # The tree was grown on float32 values; a threshold must meet the same ones.
        values = self.standardise(features).astype(np.float32)
        rows = np.arange(len(values))
        node = np.zeros(len(values), np.int64)
        while np.any(inside := self.column[node] >= 0):
            tested = node[inside]
            is_below = values[rows[inside], self.column[tested]] <= self.threshold[tested]
            node[inside] = np.where(is_below, self.left[tested], self.right[tested])
        return node

    def probabilities(self, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
        """Predict probabilities: the shares of the leaf.

        Args:
            features: (n, K) floats, the columns of `columns`.

        Returns:
            (n, C), with rows that sum to 1.
        """
        return self.shares[self.leaves(features)]

    def text(self) -> str:
        """Format the tree as text, a test or a class on each line.

        Returns:
            The lines, indented by depth; thresholds are in standard deviations of train.
        """
        return "\n".join(self._lines(0, ""))

    def _lines(self, node: int, indent: str) -> Iterator[str]:
        if self.column[node] < 0:
            best = int(self.shares[node].argmax())
            yield f"{indent}{self.classes[best]} ({self.shares[node, best]:.0%})"
            return
        name, threshold = self.columns[self.column[node]], self.threshold[node]
        yield f"{indent}{name} at most {threshold:+.2f}:"
        yield from self._lines(int(self.left[node]), f"{indent}  ")
        yield f"{indent}{name} above {threshold:+.2f}:"
        yield from self._lines(int(self.right[node]), f"{indent}  ")


Classifier = LinearClassifier | TreeClassifier


def classifier_digest(classifier: Classifier) -> str:
    """Identify a fitted classifier by 16 hex digits: SHA-256 of its names and arrays."""
    digest = hashlib.sha256()
    for name, value in vars(classifier).items():
        if name == "chosen":
            continue
        digest.update(name.encode())
        is_array = isinstance(value, np.ndarray)
        digest.update(np.ascontiguousarray(value).tobytes() if is_array else json.dumps(value).encode())
    return digest.hexdigest()[:16]


def evaluate_on_holdout(classifier: Classifier, samples: Samples, split: str, log: HoldoutLog, what: str) -> FloatArray:
    """Predict the rows of a held-out split; the access is recorded first.

    Args:
        classifier: The classifier.
        samples: The rows.
        split: The held-out split.
        log: Records the access.
        what: What is computed, for the log.

    Returns:
        Probabilities, (n, C), in the order of the rows.

    Raises:
        AnalysisError: The split has no rows, or the columns or classes are not the classifier's.
        StorageError: The access cannot be recorded.
    """
    held_out = samples.of(split)
    _require_columns(classifier, held_out)
    log.record(what, model=classifier_digest(classifier), split=split, rows=len(held_out))
    return classifier.probabilities(held_out.features)


# --- logistic regression -----------------------------------------------------------------------------


def fit_logistic(
    samples: Samples,
    *,
    train: str = "train",
    val: str | None = "val",
    refit: bool = False,
    strengths: Sequence[float] = STRENGTHS,
) -> LinearClassifier:
    """Fit a multinomial logistic regression with an L2 penalty; the strength with the lowest log loss is chosen.

    A multi-label set gets a logistic regression for each class, all of the same strength.

    Args:
        samples: The rows.
        train: The split to fit on.
        val: The split to choose on; None chooses by five folds of `train`, which keep groups together.
        refit: Fit once more on train and val with the chosen strength, as published results often do.
        strengths: Values of C to choose from.

    Returns:
        The classifier.

    Raises:
        AnalysisError: A split has no rows, or a class has none in `train`.
    """
    trials = _trials(samples, train, val)
    log_losses = np.mean([_log_losses(fitted, held_out, strengths) for fitted, held_out in trials], axis=0)
    best = float(strengths[int(np.argmin(log_losses))])
    fitted_on = _fitted_on(train, val, refit)
    chosen = {
        "C": best,
        "chosen_on": _chosen_on(train, val),
        "log_loss": {f"{strength:g}": float(loss) for strength, loss in zip(strengths, log_losses, strict=True)},
        "fitted_on": list(fitted_on),
    }
    classifier = fit_logistic_with(samples.of(*fitted_on), best)
    return replace(classifier, chosen={**chosen, **classifier.chosen})


def fit_logistic_with(samples: Samples, strength: float) -> LinearClassifier:
    """Fit a multinomial logistic regression with an L2 penalty of C = `strength` on all of these rows."""
    (classifier,) = _logistic_path(samples, [strength])
    return classifier


def _log_losses(fitted: Samples, held_out: Samples, strengths: Sequence[float]) -> list[float]:
    return [
        log_loss(held_out.labels, classifier.probabilities(held_out.features))
        for classifier in _logistic_path(fitted, strengths)
    ]


def limit_threads(size: int) -> AbstractContextManager[object]:
    """Fit on one thread if `size` is small: on busy cores, more threads can take ten times as long."""
    limits: AbstractContextManager[object] = _thread_pools().limit(limits=1 if size < _MOST_SINGLE_THREADED else None)
    return limits


@functools.cache
def _thread_pools() -> ThreadpoolController:
    # Finding the pools takes longer than a small fit: it is done once, when all libraries are loaded.
    import sklearn.linear_model  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _logistic_path(samples: Samples, strengths: Sequence[float]) -> Iterator[LinearClassifier]:
    """Logistic regressions of growing C, each started from the one before."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = mean_and_scale(samples)
    standardised = (samples.features - mean) / scale
    models = [
        LogisticRegression(warm_start=True, max_iter=_MOST_ITERATIONS, tol=1e-9)
        for _ in (samples.classes if samples.multilabel else ["all"])
    ]
    targets = list(samples.labels.T) if samples.multilabel else [samples.labels]
    kind = OneVsRestClassifier if samples.multilabel else LinearClassifier
    for strength in strengths:
        with warnings.catch_warnings(), limit_threads(standardised.size):
            # `chosen` says so instead, where it stays with the result.
            warnings.simplefilter("ignore", ConvergenceWarning)
            for model, target in zip(models, targets, strict=True):
                model.set_params(C=strength).fit(standardised, target)
        weights = np.concatenate([model.coef_ for model in models])
        intercept = np.concatenate([model.intercept_ for model in models])
        if len(weights) == 1 and not samples.multilabel:
            # scikit-learn gives one logit for two classes; half of it for each is the same softmax.
            weights, intercept = np.concatenate([-weights, weights]) / 2, np.concatenate([-intercept, intercept]) / 2
        yield kind(
            columns=samples.columns,
            classes=samples.classes,
            mean=mean,
            scale=scale,
            weights=weights.astype(np.float64),
            intercept=intercept.astype(np.float64),
            chosen={"C": float(strength), "converged": bool(max(m.n_iter_.max() for m in models) < _MOST_ITERATIONS)},
        )


# --- the tree ----------------------------------------------------------------------------------------


def fit_tree(
    samples: Samples,
    *,
    train: str = "train",
    val: str | None = "val",
    refit: bool = False,
    leaves: Sequence[int] = LEAVES,
) -> TreeClassifier:
    """Fit a decision tree; the number of leaves with the highest balanced accuracy is chosen, the fewer on a tie.

    Args:
        samples: The rows.
        train: The split to fit on.
        val: The split to choose on; None chooses by five folds of `train`, which keep groups together.
        refit: Fit once more on train and val with the chosen number of leaves.
        leaves: Numbers of leaves to choose from.

    Returns:
        The classifier.

    Raises:
        AnalysisError: A split has no rows, or a class has none in `train`.
    """
    samples.require_single("A decision tree")
    trials = _trials(samples, train, val)
    scores = []
    for count in leaves:
        trial_scores = []
        for fitted, held_out in trials:
            probabilities = _fit_tree_with(fitted, count).probabilities(held_out.features)
            trial_scores.append(balanced_accuracy(held_out.labels, probabilities).value)
        scores.append(float(np.mean(trial_scores)))
    best = int(leaves[int(np.argmax(scores))])
    fitted_on = _fitted_on(train, val, refit)
    chosen = {
        "leaves": best,
        "chosen_on": _chosen_on(train, val),
        "balanced_accuracy": {str(count): score for count, score in zip(leaves, scores, strict=True)},
        "fitted_on": list(fitted_on),
    }
    return replace(_fit_tree_with(samples.of(*fitted_on), best), chosen=chosen)


def _fit_tree_with(samples: Samples, leaves: int) -> TreeClassifier:
    from sklearn.tree import DecisionTreeClassifier

    mean, scale = mean_and_scale(samples)
    model = DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0)
    tree = model.fit((samples.features - mean) / scale, samples.labels).tree_
    leaf = tree.children_left < 0
    counts = tree.value[:, 0, :]
    return TreeClassifier(
        columns=samples.columns,
        classes=samples.classes,
        mean=mean,
        scale=scale,
        column=np.where(leaf, -1, tree.feature).astype(np.int64),
        threshold=np.where(leaf, -1.0, tree.threshold),
        left=tree.children_left.astype(np.int64),
        right=tree.children_right.astype(np.int64),
        shares=counts / counts.sum(axis=1, keepdims=True),
    )


# --- shared by both ---------------------------------------------------------------------------------


def mean_and_scale(samples: Samples) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of every column; 1 where a column is constant."""
    missing = np.flatnonzero(samples.class_counts == 0)
    if len(missing):
        raise AnalysisError(
            f"The classes {[samples.classes[label] for label in missing]} have no rows to learn from "
            f"(splits {sorted(set(samples.split.tolist()))}). Take more rows, or leave the classes out."
        )
    if samples.multilabel and (everywhere := np.flatnonzero(samples.class_counts == len(samples))).size:
        names = [samples.classes[label] for label in everywhere]
        raise AnalysisError(
            f"Every row has the classes {names}, so a classifier cannot learn to recognise them. Leave them out."
        )
    features = np.asarray(samples.features, np.float64)
    scale = features.std(axis=0)
    return features.mean(axis=0), np.where(scale > 0, scale, 1.0)


def _trials(samples: Samples, train: str, val: str | None) -> list[tuple[Samples, Samples]]:
    """Pairs of samples to fit on and to choose on: train and val, or folds of train."""
    fitted = samples.of(train)
    if val is not None:
        return [(fitted, samples.of(val))]
    return [(fitted.take(inside), fitted.take(outside)) for inside, outside in folds(fitted, _FOLDS)]


def _chosen_on(train: str, val: str | None) -> str:
    return val if val is not None else f"{_FOLDS} folds of {train}"


def _fitted_on(train: str, val: str | None, refit: bool) -> tuple[str, ...]:
    return (train, val) if refit and val is not None else (train,)


def _require_columns(classifier: Classifier, samples: Samples) -> None:
    if samples.columns != classifier.columns or samples.classes != classifier.classes:
        raise AnalysisError(
            f"The classifier was fitted on the columns {list(classifier.columns)} and classes "
            f"{list(classifier.classes)}; the rows have {list(samples.columns)} and {list(samples.classes)}."
        )
