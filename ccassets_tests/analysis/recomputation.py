"""The results of a study computed again from its file alone, by other libraries or by formulas written anew.

Nothing of `ccassets.analysis` is used. `numbers_that_differ` walks every number of a result and names those that differ
or that nothing here computes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from cleanlab.filter import find_label_issues
from scipy.optimize import brentq, minimize
from scipy.special import log_softmax, logsumexp, softmax
from scipy.stats import beta, binomtest, kurtosis, t as student
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    matthews_corrcoef,
    recall_score,
    roc_auc_score,
)
from sklearn.model_selection import StratifiedKFold
from sklearn.tree import DecisionTreeClassifier, export_text
from torchmetrics.functional.classification import multiclass_calibration_error

Tree = Any
"""What is expected in the place of JSON: numbers, None, and lists and objects of them."""

TOLERANCE = 1e-6
BINS = 15
STRENGTHS = [10.0**power for power in range(-3, 4)]


class Between(NamedTuple):
    """A number that rests on random draws: it lies within their error."""

    low: float
    high: float


def around(value: float, error: float) -> Between:
    return Between(value - error, value + error)


# --- what is compared --------------------------------------------------------------------------------


def numbers_that_differ(actual: Any, expected: Tree, path: str = "") -> Iterator[str]:
    """Name every number and null of JSON that is not as expected, or not expected at all."""
    if isinstance(actual, dict):
        for name, value in actual.items():
            known = expected.get(name) if isinstance(expected, dict) else None
            is_covered = isinstance(expected, dict) and name in expected
            yield from numbers_that_differ(value, known if is_covered else _NOTHING, f"{path}.{name}")
    elif isinstance(actual, list):
        parts = list(expected) if isinstance(expected, (list, tuple, np.ndarray)) else []
        if len(parts) != len(actual):
            parts = [_NOTHING] * len(actual)
        for number, (value, part) in enumerate(zip(actual, parts, strict=True)):
            yield from numbers_that_differ(value, part, f"{path}[{number}]")
    elif not isinstance(actual, (str, bool)) and not _is_right(actual, expected):
        yield f"{path}: {actual}, recomputed {'by nothing' if expected is _NOTHING else expected}"


_NOTHING = object()


def _is_right(actual: float | None, expected: Tree) -> bool:
    if isinstance(expected, Between):
        return actual is not None and expected.low <= actual <= expected.high
    if expected is None or (isinstance(expected, float) and np.isnan(expected)):
        return actual is None
    is_number = isinstance(expected, (int, float, np.number))
    return actual is not None and is_number and abs(actual - expected) <= TOLERANCE * max(1, abs(expected))


# --- the file ----------------------------------------------------------------------------------------


def unit(vectors: Any) -> np.ndarray:
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


@dataclass
class StoredFile:
    """What the file of a single-label study holds, in float64."""

    path: Path

    def __post_init__(self) -> None:
        with h5py.File(self.path) as file:
            self.attributes = {name: _parsed(value) for name, value in file.attrs.items()}
            self.features = unit(file["image_features"][:])
            self.tokens = unit(file["image_token_features"][:])
            self.labels = file["labels"][:]
            self.ids = file["ids"][:]
            self.split = file["split"].asstr()[:]
            self.keys = file["keys"].asstr()[:]
            self.templates = {
                name: {part: values[:] for part, values in group.items() if part != "texts"}
                for name, group in file["templates"].items()
            }
        self.concepts = self.attributes["concepts"]
        self.classes = self.attributes["label_classes"]

    def rows(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.split == split)

    def of_kind(self, kind: str) -> list[dict[str, np.ndarray]]:
        return [template for name, template in self.templates.items() if name.startswith(f"{kind}_prompts_t")]

    def _vectors(self, kind: str, words: Sequence[Sequence[str]], local: bool) -> np.ndarray:
        texts = self.attributes[f"{kind}_texts"]
        templates = self.of_kind(kind)
        if local:
            prompts = np.stack(
                [
                    [tokens[start:end].mean(axis=0) for tokens, (start, end) in zip(
                        template["text_token_features"].astype(np.float64), template["subject_span"], strict=True
                    )]
                    for template in templates
                ]
            )  # fmt: skip
        else:
            prompts = np.stack([unit(template["text_features"]) for template in templates])
        rows = [[texts.index(word) for word in synonyms] for synonyms in words]
        return unit([prompts[:, own].reshape(-1, prompts.shape[-1]).mean(axis=0) for own in rows])

    @cached_property
    def synonyms(self) -> list[list[str]]:
        return [[concept["word"], *concept["synonyms"]] for concept in self.concepts]

    @cached_property
    def scores(self) -> np.ndarray:
        """(N, K): cosines of images and concepts."""
        return self.features @ self._vectors("concept", self.synonyms, local=False).T

    @cached_property
    def maps(self) -> np.ndarray:
        """(N, K, T): cosines of patches and concepts."""
        return np.einsum("ntd,kd->nkt", self.tokens, self._vectors("concept", self.synonyms, local=True))

    def zero_shot_logits(self, rows: np.ndarray) -> list[np.ndarray]:
        """The logits of both halves of the authors' score."""
        words = [[word] for word in self.attributes["label_texts"]]
        patches = np.einsum("ntd,kd->nkt", self.tokens[rows], self._vectors("label", words, local=True))
        best = np.sort(patches, axis=2)[:, :, -128:].mean(axis=2)
        whole = self.features[rows] @ self._vectors("label", words, local=False).T
        factors = [np.exp(self.attributes[name]) for name in ("logit_scale", "concept_logit_scale")]
        return [factor * part for factor, part in zip(factors, (whole, best), strict=True)]


def _parsed(value: Any) -> Any:
    if isinstance(value, str) and value[:1] in "[{":
        return json.loads(value)
    return value.tolist() if isinstance(value, np.generic) else value


# --- intervals ---------------------------------------------------------------------------------------


def estimate(value: float, limits: Any, units: int) -> Tree:
    low, high = limits
    return {"value": value, "low": low, "high": high, "units": units, "reason": None}


def exact(right: int, rows: int) -> Tree:
    """A share with Clopper and Pearson's limits, as scipy has them."""
    interval = binomtest(int(right), int(rows)).proportion_ci(0.95, "exact")
    return estimate(right / rows, (interval.low, interval.high), int(rows))


def binomial_limits(value: float, size: float) -> np.ndarray:
    low = beta.ppf(0.025, value * size, (1 - value) * size + 1) if value * size > 1e-9 else 0.0
    high = beta.ppf(0.975, value * size + 1, (1 - value) * size) if (1 - value) * size > 1e-9 else 1.0
    return np.array([low, high])


class Part(NamedTuple):
    """One of the shares or areas that a metric is the mean of: a function of row weights, and its rows."""

    formula: Callable[[torch.Tensor], torch.Tensor]
    size: float
    correction: np.ndarray | float = 1.0


def mean_estimate(parts: Sequence[Part], rows: int, transform: Callable[[Any], Any] = lambda x: x) -> Tree:
    """The mean of parts; what a row moves is the derivative by its weight (the infinitesimal jackknife)."""
    values, moves = [], []
    for part in parts:
        weights = torch.ones(rows, dtype=torch.float64, requires_grad=True)
        value = part.formula(weights)
        (slope,) = torch.autograd.grad(value, weights)
        values.append(value.item())
        moves.append(slope.numpy() * part.correction)
    influence, sizes = np.array(moves), np.array([part.size for part in parts])
    covariance = influence @ influence.T
    spread = np.where(np.diag(covariance) > 1e-18, np.sqrt(np.diag(covariance)), np.inf)
    correlation = covariance / spread / spread[:, None]
    np.fill_diagonal(correlation, 1)
    limits = np.array(
        [binomial_limits(v, worth(v, c, s)) for v, c, s in zip(values, np.diag(covariance), sizes, strict=True)]
    )
    shares = [transform(value) for value in values]
    mean = float(np.mean(shares))
    down, up = ((np.array(shares) - transform(limits[:, 0])), (transform(limits[:, 1]) - np.array(shares)))
    reach = [np.sqrt(max(step @ correlation @ step, 0)) / len(parts) for step in (down, up)]
    slopes = [(transform(v + 1e-6) - transform(v - 1e-6)) / 2e-6 for v in values]
    variance = float(((influence.T @ slopes / len(parts)) ** 2).sum())
    least, greatest = binomial_limits(mean, worth(mean, variance, len(parts) ** 2 / (1 / sizes).sum()))
    low, high = max(0.0, min(mean - reach[0], least)), min(1.0, max(mean + reach[1], greatest))
    return estimate(mean, (low, high), rows)


def worth(value: float, variance: float, most: float) -> float:
    return min(value * (1 - value) / variance, most) if variance > 1e-18 else most


def share_of(right: np.ndarray, counted: np.ndarray) -> Part:
    right, counted = torch.tensor(right, dtype=torch.float64), torch.tensor(counted, dtype=torch.float64)
    return Part(lambda w: (w * right * counted).sum() / (w * counted).sum(), float(counted.sum()))


def area_of(scores: np.ndarray, positive: np.ndarray, negative: np.ndarray | None = None) -> Part:
    negative = ~positive if negative is None else negative
    first, second = scores[positive], scores[negative]
    above = torch.tensor((first[:, None] > second) + 0.5 * (first[:, None] == second), dtype=torch.float64)
    p, q = torch.tensor(positive), torch.tensor(negative)
    a, b = len(first), len(second)
    correction = np.where(positive, np.sqrt(a / max(a - 1, 1)), np.sqrt(b / max(b - 1, 1)))
    return Part(lambda w: w[p] @ above @ w[q] / w[p].sum() / w[q].sum(), 4 * a * b / (a + b + 2), correction)


def precision_of(scores: np.ndarray, positive: np.ndarray) -> Part:
    above = torch.tensor(scores[None, :] >= scores[positive][:, None], dtype=torch.float64)
    p = torch.tensor(positive)
    hits = above * p

    def formula(w: torch.Tensor) -> torch.Tensor:
        return (w[p] * (hits @ w) / (above @ w)).sum() / w[p].sum()

    return Part(formula, float(positive.sum()))


def resampled(
    value: float, statistic: Callable[[np.ndarray], np.ndarray], rows: int, size: float, least: float = 0.0
) -> Tree:
    """Limits from resamples of our own; a thousand others differ from them by the error of a variance."""
    weights = np.random.default_rng(20260).poisson(1, (2000, rows)).astype(np.float64)
    with np.errstate(invalid="ignore"):
        values = statistic(weights)
    values = (values[np.isfinite(values)] - least) / (1 - least)
    share = (value - least) / (1 - least)
    error = 5 * np.sqrt((kurtosis(values, fisher=False) - 1) * (2 + 1) / len(values)) if values.std() else 0.0
    limits = np.array(
        [binomial_limits(share, worth(share, values.var() * factor, size)) for factor in (1 / (1 + error), 1 + error)]
    )
    low, high = (least + (1 - least) * own for own in limits.T)
    return estimate(value, [Between(own.min() - 1e-9, own.max() + 1e-9) for own in (low, high)], rows)


def mean_difference(gain: np.ndarray) -> Tree:
    """Agresti and Min's adjusted Wald interval of paired shares, with the t distribution."""
    rows = len(gain)
    values = np.concatenate([gain, [1, -1, 0]])
    weights = np.concatenate([np.ones(rows), [0.5, 0.5, 1]])
    centre = weights @ values / (rows + 2)
    half = student.ppf(0.975, rows - 1) * np.sqrt(weights @ (values - centre) ** 2 / (rows + 1) / (rows + 2))
    value = float(gain.mean())
    return estimate(value, (max(-1, min(value, centre - half)), min(1, max(value, centre + half))), rows)


# --- metrics -----------------------------------------------------------------------------------------


def evaluation(labels: np.ndarray, ranks: np.ndarray) -> Tree:
    """Every metric of scores of classes that exclude each other, all of which have rows."""
    rows, count = ranks.shape
    predicted, classes = ranks.argmax(axis=1), np.arange(count)
    members, said = labels[:, None] == classes, predicted[:, None] == classes
    right = predicted == labels
    areas = [area_of(ranks[:, k], members[:, k]) for k in classes]
    recalls = recall_score(labels, predicted, average=None, labels=classes)
    parts = {
        "auc": (areas, roc_auc_score(members, ranks, average="macro")),
        "average_precision": (
            [precision_of(ranks[:, k], members[:, k]) for k in classes],
            average_precision_score(members, ranks, average="macro"),
        ),
        "balanced_accuracy": (
            [share_of(right, members[:, k]) for k in classes],
            balanced_accuracy_score(labels, predicted),
        ),
    }
    jaccard = [share_of(members[:, k] & said[:, k], members[:, k] | said[:, k]) for k in classes]
    expected = {name: {**mean_estimate(own, rows), "value": value} for name, (own, value) in parts.items()}
    f1 = f1_score(labels, predicted, average="macro", labels=classes)

    def sensitivities(weights: np.ndarray) -> np.ndarray:
        each = []
        for k in classes:
            above = ranks[None, :, k] >= np.unique(ranks[:, k])[:, None]
            hits, errors = ((above * kind) @ weights.T for kind in (members[:, k], ~members[:, k]))
            allowed = errors <= 0.1 * (weights @ ~members[:, k]) + 1e-9
            each.append(np.where(allowed, hits, 0).max(axis=0) / (weights @ members[:, k]))
        return np.mean(each, axis=0)

    def correlations(weights: np.ndarray) -> np.ndarray:
        hits = weights @ right
        truth, answers, total = weights @ members, weights @ said, weights.sum(axis=1)
        spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (answers**2).sum(axis=1))
        return (hits * total - (truth * answers).sum(axis=1)) / np.sqrt(np.where(spread > 0, spread, np.inf))

    counts = members.sum(axis=0)
    sensitivity = float(sensitivities(np.ones((1, rows)))[0])
    return {
        "rows": rows,
        "accuracy": exact(round(accuracy_score(labels, predicted) * rows), rows),
        "auc_by_class": [mean_estimate([area], rows) for area in areas],
        "sensitivity": resampled(sensitivity, sensitivities, rows, count**2 / (1 / counts).sum()),
        "recall": [exact(round(recall * own), own) for recall, own in zip(recalls, counts, strict=True)],
        "macro_f1": {**mean_estimate(jaccard, rows, lambda j: 2 * j / (1 + j)), "value": f1},
        "mcc": resampled(matthews_corrcoef(labels, predicted), correlations, rows, rows, least=-1.0),
        "quadratic_kappa": None,
        "mean_absolute_error": None,
        "confusion": confusion_matrix(labels, predicted, labels=classes),
        "absent": [],
        "always_no": None,
        **expected,
    }


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> Tree:
    classes = probabilities.shape[1]
    one_hot = np.eye(classes)[labels]
    ece = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), classes, n_bins=BINS)
    return {
        "log_loss": log_loss(labels, probabilities, labels=np.arange(classes)),
        "brier": float(((probabilities - one_hot) ** 2).sum(axis=1).mean()),
        "ece": float(ece),
    }


def reliability(labels: np.ndarray, probabilities: np.ndarray) -> Tree:
    stated, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = [(stated > low / BINS) & (stated <= (low + 1) / BINS) for low in range(BINS)]
    return {
        "count": [int(own.sum()) for own in bins],
        "confidence": [stated[own].mean() if own.any() else None for own in bins],
        "accuracy": [right[own].mean() if own.any() else None for own in bins],
    }


def temperature_of(labels: np.ndarray, probabilities: np.ndarray) -> float:
    """Where the derivative of the log loss by the inverse temperature is 0."""
    logits = np.log(probabilities)
    own = logits[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(inverse * logits, axis=1) * logits).sum(axis=1) - own).mean())

    return 1 / brentq(slope, 0.01, 100, xtol=1e-14)


def measured(labels: np.ndarray, probabilities: np.ndarray, ranks: np.ndarray, temperature: float) -> Tree:
    return {
        **evaluation(labels, ranks),
        "calibration": calibration(labels, probabilities),
        "reliability": reliability(labels, probabilities),
        "calibrated": calibration(labels, softmax(np.log(probabilities) / temperature, axis=1)),
    }


# --- the results -------------------------------------------------------------------------------------


def zero_shot(file: StoredFile) -> Tree:
    labels = {split: file.labels[file.rows(split)] for split in ("val", "test")}
    halves = {split: file.zero_shot_logits(file.rows(split)) for split in labels}
    probabilities = {split: np.mean([softmax(own, axis=1) for own in both], axis=0) for split, both in halves.items()}
    temperature = temperature_of(labels["val"], probabilities["val"])

    def ranks(split: str) -> np.ndarray:
        logs = np.stack([log_softmax(own, axis=1) for own in halves[split]])
        positive = logsumexp(logs, axis=0)
        rest = np.stack([np.delete(positive, k, axis=1) for k in range(positive.shape[1])], axis=1)
        return positive - logsumexp(rest, axis=2)

    return {
        "patches": min(128, file.tokens.shape[1]),
        "bias": 0,
        "temperature": temperature,
        "thresholds": None,
        "platt": None,
        "groups": None,
        "splits": {split: measured(labels[split], probabilities[split], ranks(split), temperature) for split in labels},
    }


def logistic(features: np.ndarray, labels: np.ndarray, strength: float) -> Callable[[np.ndarray], np.ndarray]:
    """A logistic regression on standardised columns, by Newton's method if they are few: to log probabilities."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale = np.where(scale > 0, scale, 1)
    solver = "newton-cholesky" if features.shape[1] <= 40 else "lbfgs"
    model = LogisticRegression(C=strength, solver=solver, tol=1e-12, max_iter=5000)
    model.fit((features - mean) / scale, labels)
    logits = model.decision_function
    if len(model.classes_) == 2:
        return lambda values: log_softmax(np.outer(logits((values - mean) / scale), [-0.5, 0.5]), axis=1)
    return lambda values: log_softmax(logits((values - mean) / scale), axis=1)


class Chosen(NamedTuple):
    predict: Callable[[np.ndarray], np.ndarray]
    strength: float
    losses: list[float]


def chosen_logistic(features: np.ndarray, file: StoredFile, strengths: Sequence[float] = STRENGTHS) -> Chosen:
    """The logistic regression on train whose strength has the lowest log loss on val."""
    fitted, held_out = file.rows("train"), file.rows("val")
    models = [logistic(features[fitted], file.labels[fitted], strength) for strength in strengths]
    losses = [
        -float(model(features[held_out])[np.arange(len(held_out)), file.labels[held_out]].mean()) for model in models
    ]
    best = int(np.argmin(losses))
    return Chosen(models[best], strengths[best], losses)


def share_estimate(answers: np.ndarray) -> Tree:
    """The accuracy of several seeds: (seeds, n) of right and wrong."""
    seeds, rows = answers.shape
    if seeds == 1:
        return exact(int(answers.sum()), rows)
    own = share_of(answers.mean(axis=0), np.ones(rows))
    return mean_estimate([own._replace(size=float(seeds * rows))], rows) if answers.std() else _NOTHING


def bottleneck(file: StoredFile, annotations: np.ndarray, content: Mapping[str, Any], path: Sequence[float]) -> Tree:
    """The results of the concept bottleneck.

    `content` names the concepts with class names in them and holds the text of the tree; `path` are penalties of the
    sparse path before and where it reaches each level.
    """
    scores, labels, test = file.scores, file.labels, file.rows("test")
    chosen = chosen_logistic(scores, file)
    probabilities = {split: np.exp(chosen.predict(scores[file.rows(split)])) for split in ("val", "test")}
    temperature = temperature_of(labels[file.rows("val")], probabilities["val"])
    right = probabilities["test"].argmax(axis=1) == labels[test]
    return {
        "nec": scores.shape[1],
        "controls": _controls(file, right, content["controls"]["class_names"]),
        "groups": None,
        "chosen": {
            "C": chosen.strength,
            # A minimum of hardly any penalty is flat: L-BFGS stops a little before it.
            "log_loss": {
                f"{strength:g}": around(loss, 1e-5) if strength > chosen.strength else loss
                for strength, loss in zip(STRENGTHS, chosen.losses, strict=True)
            },
        },
        "temperature": temperature,
        "splits": {
            split: measured(
                labels[file.rows(split)], own, np.log(own) - np.log1p(-own), temperature
            )
            for split, own in probabilities.items()
        },
        "sparse": _sparse(file, path),
        "association": _association(file),
        "tree": _tree(file, content["tree"]["text"]),
        "levels": _levels(file),
        "truth": {
            "interventions": [
                {"accuracy": _intervention(file, annotations, chosen.predict, order)} for order in ("random", "doubt")
            ],
            "leakage": _leakage(file, annotations),
        },
    }  # fmt: skip


def _controls(file: StoredFile, right: np.ndarray, class_names: Mapping[str, str]) -> Tree:
    test, count = file.rows("test"), file.scores.shape[1]

    def answers(features: np.ndarray) -> np.ndarray:
        return chosen_logistic(features, file).predict(features[test]).argmax(axis=1) == file.labels[test]

    rest = [k for k, concept in enumerate(file.concepts) if concept["word"] not in class_names]
    dim = file.features.shape[1]
    directions = [unit(np.random.default_rng(seed).standard_normal((count, dim))) for seed in range(3)]
    columns = {
        "linear probe": [file.features],
        "random directions": [file.features @ own.T for own in directions],
        "without class names": [file.scores[:, rest]],
    }
    controls, by_name = [], {}
    for name, variants in columns.items():
        by_name[name] = np.array([answers(features) for features in variants])
        mean = by_name[name].mean(axis=0)
        controls.append(
            {
                "columns": variants[0].shape[1],
                "seeds": len(variants),
                "estimate": share_estimate(by_name[name]),
                "difference": _difference(right, mean),
            }
        )
    return {"controls": controls, "price": _difference(by_name["linear probe"][0], right)}


def _difference(first: np.ndarray, second: np.ndarray) -> Tree:
    gain = first.astype(float) - second
    better, worse = int((gain == 1).sum()), int((gain == -1).sum())
    whole = set(gain.tolist()) <= {-1.0, 0.0, 1.0}
    p = binomtest(better, better + worse).pvalue if better + worse else 1.0
    return {"estimate": mean_difference(gain), "mcnemar": p if whole else None}


def _sparse(file: StoredFile, path: Sequence[float]) -> Tree:
    """Elastic nets as smooth problems with bounds: weights are differences of two parts that are not negative."""
    fitted = file.rows("train")
    features = file.scores[fitted]
    mean, scale = features.mean(axis=0), features.std(axis=0)
    x, labels = (features - mean) / scale, file.labels[fitted]
    classes, columns = len(file.classes), x.shape[1]
    truth, size = np.eye(classes)[labels], classes * columns

    def solve(strength: float, start: np.ndarray) -> np.ndarray:
        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            up, down, intercept = flat[:size], flat[size : 2 * size], flat[2 * size :]
            weights = (up - down).reshape(classes, columns)
            logs = log_softmax(x @ weights.T + intercept, axis=1)
            slope = np.exp(logs) - truth
            by_weight = (slope.T @ x).ravel() + 0.01 / strength * weights.ravel()
            value = -(logs * truth).sum() + (0.99 * (up + down).sum() + 0.005 * (weights**2).sum()) / strength
            gradient = np.concatenate([by_weight + 0.99 / strength, 0.99 / strength - by_weight, slope.sum(axis=0)])
            return value, gradient

        bounds = [(0, None)] * (2 * size) + [(None, None)] * classes
        options = {"maxiter": 20000, "maxfun": 40000, "ftol": 1e-15, "gtol": 1e-8, "maxcor": 40}
        return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x

    def weights_of(flat: np.ndarray) -> np.ndarray:
        return (flat[:size] - flat[size : 2 * size]).reshape(classes, columns)

    start, solved = np.zeros(2 * size + classes), []
    for strength in path:
        start = solve(strength, start)
        solved.append(start)
    levels = [level for level in (5, 10, 15, 20, 25, 30) if level <= columns]
    points: dict[str, list[Tree]] = {"val": [], "test": []}
    for level in levels:
        used = [(np.abs(weights_of(flat)) > 1e-5).sum() / classes for flat in solved]
        flat = solved[next((k for k, own in enumerate(used) if own >= level), len(solved) - 1)]
        weights = weights_of(flat)
        order = np.argsort(-np.abs(weights).ravel(), kind="stable")
        weights[np.unravel_index(order[level * classes :], weights.shape)] = 0
        for split, own in points.items():
            rows = file.rows(split)
            logits = (file.scores[rows] - mean) / scale @ weights.T + flat[2 * size :]
            correct = int((logits.argmax(axis=1) == file.labels[rows]).sum())
            nec = (np.abs(weights) > 1e-5).sum() / classes
            own.append({"level": level, "nec": nec, "accuracy": exact(correct, len(rows))})
    accuracies = {split: [point["accuracy"]["value"] for point in own] for split, own in points.items()}
    return {
        split: {"points": points[split], "anec_5": own[0], "anec_avg": float(np.mean(own))}
        for split, own in accuracies.items()
    }


def _association(file: StoredFile) -> Tree:
    """Each class a softmax mixture of concepts; the gradient is torch's."""
    factor = float(np.exp(file.attributes["logit_scale"]))
    fitted, val = file.rows("train"), file.rows("val")
    x, y = torch.tensor(file.scores[fitted]), torch.tensor(file.labels[fitted])
    flat, candidates = np.zeros(len(file.classes) * x.shape[1]), []

    def logits(values: Any, features: torch.Tensor) -> torch.Tensor:
        return factor * features @ torch.softmax(values.reshape(len(file.classes), -1), dim=1).T

    for strength in STRENGTHS:

        def loss(values: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
            own = torch.tensor(values, requires_grad=True)
            value = (
                torch.nn.functional.cross_entropy(logits(own, x), y, reduction="sum") + (own**2).sum() / 2 / strength
            )
            (gradient,) = torch.autograd.grad(value, own)
            return value.item(), gradient.numpy()

        flat = minimize(loss, flat, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
        held_out = logits(torch.tensor(flat), torch.tensor(file.scores[val]))
        candidates.append((torch.nn.functional.cross_entropy(held_out, torch.tensor(file.labels[val])).item(), flat))
    best = torch.tensor(min(candidates, key=lambda candidate: candidate[0])[1])
    return {
        split: evaluation(
            file.labels[file.rows(split)], logits(best, torch.tensor(file.scores[file.rows(split)])).softmax(1).numpy()
        )
        for split in ("val", "test")
    }


def _tree(file: StoredFile, text: str) -> Tree:
    fitted = file.rows("train")
    mean, scale = file.scores[fitted].mean(axis=0), file.scores[fitted].std(axis=0)
    standardised = (file.scores - mean) / scale
    trees = [
        DecisionTreeClassifier(max_leaf_nodes=leaves, random_state=0).fit(standardised[fitted], file.labels[fitted])
        for leaves in (4, 8, 16, 32, 64)
    ]
    val = file.rows("val")
    quality = [balanced_accuracy_score(file.labels[val], tree.predict(standardised[val])) for tree in trees]
    best = trees[int(np.argmax(quality))]
    thresholds = re.findall(r"(?:at most|above) ([+-][\d.]+)", text)
    exported = re.findall(r"(?:<=|>) +(-?[\d.]+)", export_text(best, max_depth=99))
    assert np.allclose(np.array(thresholds, float), np.array(exported, float), atol=0.0051)
    answers = {
        split: best.predict(standardised[file.rows(split)]) == file.labels[file.rows(split)]
        for split in ("val", "test")
    }
    return {
        "leaves": (4, 8, 16, 32, 64)[int(np.argmax(quality))],
        "accuracy": {split: exact(int(own.sum()), len(own)) for split, own in answers.items()},
    }


def _levels(file: StoredFile) -> Tree:
    levels, test = [concept["level"] for concept in file.concepts], file.rows("test")
    expected = []
    for level in sorted({level for level in levels if level is not None}):
        columns = [k for k, own in enumerate(levels) if own is not None and own <= level]
        features = file.scores[:, columns]
        answers = chosen_logistic(features, file).predict(features[test]).argmax(axis=1) == file.labels[test]
        expected.append({"level": level, "concepts": len(columns), "accuracy": exact(int(answers.sum()), len(test))})
    return expected


def _intervention(
    file: StoredFile, annotations: np.ndarray, predict: Callable[[np.ndarray], np.ndarray], order: str
) -> list[Any]:
    train, test = file.rows("train"), file.rows("test")
    scores, known = file.scores[test], annotations[test]
    absent, present = np.percentile(file.scores[train], (5, 95), axis=0)
    for k in range(scores.shape[1]):
        shown, hidden = annotations[train, k] == 1, annotations[train, k] == 0
        if shown.any() and hidden.any():
            present[k], absent[k] = file.scores[train][shown, k].mean(), file.scores[train][hidden, k].mean()
    corrected = np.where(np.isnan(known), scores, np.where(known == 1, present, absent))
    names = [concept["group"] or concept["word"] for concept in file.concepts]
    members = np.array([[name == own for name in names] for own in dict.fromkeys(names)])
    middle = 1 - np.abs(2 * np.clip((scores - absent) / (present - absent), 0, 1) - 1)
    doubt = np.stack([middle[:, own].mean(axis=1) for own in members], axis=1)
    rng = np.random.default_rng(0)
    urgencies = [doubt] if order == "doubt" else [rng.random(doubt.shape) for _ in range(5)]
    curves = []
    for urgency in urgencies:
        first = np.argsort(-urgency, axis=1, kind="stable")
        curve = []
        for count in range(len(members) + 1):
            done = np.array([members[own[:count]].any(axis=0) for own in first])
            answers = predict(np.where(done, corrected, scores)).argmax(axis=1)
            curve.append((answers == file.labels[test]).mean())
        curves.append(curve)
    return np.mean(curves, axis=0).tolist()


def _leakage(file: StoredFile, annotations: np.ndarray, exchanges: int = 10) -> Tree:
    """The information of scores beyond annotations, by exchanges drawn anew."""
    known = np.flatnonzero(~np.isnan(annotations).all(axis=0))
    truth, scores, test = annotations[:, known], file.scores[:, known], file.rows("test")
    kinds: dict[bytes, list[int]] = {}
    for row, own in enumerate(truth):
        kinds.setdefault(own.tobytes(), []).append(row)
    expected, alone = np.empty_like(scores), [rows[0] for rows in kinds.values() if len(rows) == 1]
    for rows in kinds.values():
        expected[rows] = scores[rows].mean(axis=0)
    centred = truth - truth.mean(axis=0)
    pairs = [centred[:, a] * centred[:, b] for a in range(len(known)) for b in range(a + 1, len(known))]
    described = np.column_stack([centred, *pairs])
    ridge = RidgeCV([0.1, 1, 10, 100, 1000], alpha_per_target=True).fit(described, scores)
    expected[alone] = ridge.predict(described[alone])

    def bits_lost(given: np.ndarray) -> np.ndarray:
        features = np.column_stack([given, truth])
        predict = chosen_logistic(features, file, [0.01, 0.1, 1, 10]).predict
        return -predict(features[test])[np.arange(len(test)), file.labels[test]] / np.log(2)

    both, rng = bits_lost(scores), np.random.default_rng(7)
    exchanged = []
    for _ in range(exchanges):
        moved = np.arange(len(scores))
        for rows in [*(rows for rows in kinds.values() if len(rows) > 1), alone]:
            moved[rows] = rng.permutation(rows)
        exchanged.append(bits_lost(expected + (scores - expected)[moved]))
    own = np.array(exchanged)
    spread = own.mean(axis=1).std(ddof=1)
    gain = own.mean(axis=0) - both
    error = 5 * spread * np.sqrt(2 / exchanges)
    half = student.ppf(0.975, len(test) - 1) * np.sqrt(gain.var(ddof=1) / len(test) + spread**2 * (1 + 1 / exchanges))
    # The half width rests on the variance of ten exchanges, too.
    return {
        "given_truth": around(own.mean(), error),
        "given_both": both.mean(),
        "concepts": len(known),
        "rows": len(test),
        "matched": sum(len(rows) for rows in ([r for r in k if r in test] for k in kinds.values() if len(k) > 1)),
        "information": estimate(
            around(gain.mean(), error),
            (around(gain.mean() - half, error + half / 3), around(gain.mean() + half, error + half / 3)),
            len(test),
        ),
    }


def label_errors(file: StoredFile) -> Tree:
    """Labels in doubt, by folds of scikit-learn and cleanlab's rule."""
    labels, count = file.labels, len(file.classes)
    believed, probabilities = np.ones(len(labels), bool), np.zeros((len(labels), count))
    parts = list(StratifiedKFold(5, shuffle=True, random_state=0).split(file.scores, labels))
    doubtful = believed
    for strength in (1.0, 10**0.5, 10**0.5):
        for inside, outside in parts:
            fitted = inside[believed[inside]]
            known = np.unique(labels[fitted])
            probabilities[outside] = 0
            predicted = logistic(file.scores[fitted], np.searchsorted(known, labels[fitted]), strength)
            probabilities[np.ix_(outside, known)] = np.exp(predicted(file.scores[outside]))
        doubtful = find_label_issues(labels, probabilities, filter_by="prune_by_class", n_jobs=1)
        believed = ~doubtful
    own = probabilities[np.arange(len(labels)), labels]
    rows = [row for row in np.argsort(own, kind="stable") if doubtful[row]]
    errors = [
        {"id": file.ids[row], "confidence": own[row], "predicted_confidence": probabilities[row].max()} for row in rows
    ]
    return {"rows": len(labels), "unjudged": {}, "errors": errors}


# --- the page ----------------------------------------------------------------------------------------


def chart_data(file: StoredFile, zero: Tree, fitted: Tree) -> Tree:
    """The numbers behind the charts of the atlas, which are rounded: to hundredths, points to thousandths."""
    train = file.rows("train")
    scores = (file.scores - file.scores[train].mean(axis=0)) / file.scores[train].std(axis=0)
    centred = file.features - file.features.mean(axis=0)
    points = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    return {
        "scores": [[around(value, 0.0051) for value in column] for column in scores.T],
        "correlation": [[around(value, 0.0051) for value in row] for row in np.corrcoef(scores.T)],
        "points": {
            "label": file.labels,
            "picture": list(range(len(file.labels))),
            # The direction of a principal component is a convention: compared are distances from the middle.
            **{axis: [around(abs(x), 0.00051) for x in own] for axis, own in zip("xy", points.T, strict=True)},
        },
        "sprite": {"columns": int(np.ceil(np.sqrt(len(file.labels)))), "side": 40},
        "fewest": 20,
        "zero": zero["splits"],
        "fitted": {name: fitted[name] for name in ("splits", "sparse", "levels", "truth", "controls")},
    }
