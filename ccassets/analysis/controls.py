"""Controls: what an accuracy on concepts has to be held against before it says anything about concepts.

Cosine concept scores are a linear map of the features. A linear classifier on K of them is a linear probe of rank K,
and may do well whatever the concepts mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import Classifier, FloatArray, evaluate_on_holdout, fit_logistic
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.metrics import Estimate, accuracy, bootstrap
from ccassets.analysis.samples import Samples, feature_samples
from ccassets.analysis.scores import image_cosines, normalise
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept

OFF_DOMAIN = "off_domain"
"""The custom template whose prompts have nothing to do with the images."""

Array = npt.NDArray[Any]
Fit = Callable[[Samples], Classifier]


# --- differences -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """Accuracy of the first minus accuracy of the second on the same images.

    `mcnemar` is the p-value of the exact McNemar test; None where groups are known, which it cannot respect, or where
    one side is a mean over seeds.
    """

    accuracy: Estimate
    mcnemar: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0: no difference can be seen."""
        return int(self.accuracy.low > 0) - int(self.accuracy.high < 0)

    @property
    def points(self) -> str:
        """The difference with its interval, in percentage points."""
        value, low, high = (100 * part for part in (self.accuracy.value, self.accuracy.low, self.accuracy.high))
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"


def paired_difference(first: Array, second: Array, groups: npt.NDArray[np.object_] | None = None) -> Difference:
    """The difference of two accuracies on the same n images, by a paired bootstrap.

    `first` and `second` (n,) say how often each image was right: bool, or a share over seeds. Where `groups` (n,) are
    known, whole groups are resampled.
    """
    from scipy.stats import binomtest

    gain = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mcnemar = None
    if groups is None and set(np.unique(gain)) <= {-1.0, 0.0, 1.0}:
        better, worse = int((gain > 0).sum()), int((gain < 0).sum())
        mcnemar = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Difference(_mean(gain, groups), mcnemar)


def _mean(values: Array, groups: npt.NDArray[np.object_] | None) -> Estimate:
    return bootstrap(lambda weights: weights @ values / np.maximum(weights.sum(axis=1), 1), len(values), groups)


# --- class names -------------------------------------------------------------------------------------


def class_name_concepts(concepts: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """The concepts that contain a class name, and how: as a `word`, or as the `stem` of another word.

    "Giant platelets" holds the class platelet as a word (a plural is the same word), "Basophilic granules" the class
    basophil as a stem. A name of several words counts as a whole, and by those of its words of at least five letters
    that belong to no other class.
    """
    names = [_words(name) for name in classes]
    owners = Counter(word for name in names for word in set(name))
    patterns = {tuple(name) for name in names if name}
    patterns |= {(word,) for name in names for word in name if len(word) >= 5 and owners[word] == 1}
    found = {}
    for concept in concepts:
        words = _words(concept)
        if any(_stands_in(words, pattern, str.__eq__) for pattern in patterns):
            found[concept] = "word"
        elif any(_stands_in(words, pattern, str.startswith) for pattern in patterns):
            found[concept] = "stem"
    return found


def _words(text: str) -> list[str]:
    """The words of a text in lower case; the plural s is dropped."""
    return [word[:-1] if word.endswith("s") and len(word) > 3 else word for word in re.findall(r"\w+", text.casefold())]


def _stands_in(words: Sequence[str], pattern: Sequence[str], same: Callable[[str, str], bool]) -> bool:
    starts = range(len(words) - len(pattern) + 1)
    return any(all(same(words[start + place], part) for place, part in enumerate(pattern)) for start in starts)


# --- controls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Control:
    """The same classifier on other columns, measured on the same images.

    `columns` is their number; `probabilities` holds (n, C) for every seed, and `accuracy` is the mean over seeds.
    `difference` is the accuracy of the concepts minus that of the control.
    """

    name: str
    columns: int
    probabilities: tuple[FloatArray, ...]
    accuracy: Estimate
    difference: Difference

    @property
    def verdict(self) -> str:
        """The difference as a sentence."""
        words = {
            1: "The concepts are better than this control",
            -1: "The concepts are worse than this control",
            0: "The concepts cannot be told from this control",
        }
        return f"{words[self.difference.sign]}: {self.difference.points}."


@dataclass(frozen=True, eq=False)
class Controls:
    """What stands beside the accuracy of a classifier on K concepts.

    `class_names` tells which concepts contain a class name, and how. `missing` says which controls could not be had,
    and why. `price` is the price of interpretability: the accuracy of the linear probe minus that of the concepts.
    """

    accuracy: Estimate
    controls: tuple[Control, ...]
    price: Difference
    class_names: dict[str, str]
    missing: dict[str, str]

    def __getitem__(self, name: str) -> Control:
        return next(control for control in self.controls if control.name == name)


def run_controls(
    database: Database,
    samples: Samples,
    classifier: Classifier,
    *,
    split: str,
    log: HoldoutLog,
    fit: Fit = fit_logistic,
    seeds: Sequence[int] = (0, 1, 2),
) -> Controls:
    """The controls of a classifier that `fit` made on the concept scores `samples` of the whole database.

    `linear probe`: all D image features. `random directions`: as many random unit vectors as there are concepts, for
    every seed. `off-domain phrases`: as many prompts of the template `off_domain`, another choice for every seed
    where there are more. `without class names`: the concepts that contain none. Every access to `split` is logged.
    """
    if len(samples) != len(database):
        raise AnalysisError(f"The {len(database)} rows of {database.path.name} were expected; found {len(samples)}.")
    count = len(samples.columns)
    held = samples.of(split)
    probabilities = evaluate_on_holdout(classifier, samples, split, log, "accuracy")
    right = _right(probabilities, held)
    named = class_name_concepts(samples.columns, samples.classes)
    missing: dict[str, str] = {}
    described: dict[str, list[Samples]] = {
        "linear probe": [feature_samples(database)],
        "random directions": [_random_directions(database, samples, count, seed) for seed in seeds],
    }
    try:
        described["off-domain phrases"] = _off_domain(database, samples, count, seeds)
    except AnalysisError as error:
        missing["off-domain phrases"] = str(error)
    rest = [name for name in samples.columns if name not in named]
    if named and rest:
        described["without class names"] = [samples.select(rest)]
    else:
        missing["without class names"] = (
            "Every concept contains a class name." if named else "No concept contains a class name."
        )
    controls = []
    rights = {}
    for name, variants in described.items():
        found = tuple(
            evaluate_on_holdout(fit(variant), variant, split, log, f"control: {name}") for variant in variants
        )
        rights[name] = np.mean([_right(shares, held) for shares in found], axis=0)
        controls.append(
            Control(
                name=name,
                columns=len(variants[0].columns),
                probabilities=found,
                accuracy=_mean(rights[name], held.groups),
                difference=paired_difference(right, rights[name], held.groups),
            )
        )
    return Controls(
        accuracy=accuracy(held.labels, probabilities, held.groups),
        controls=tuple(controls),
        price=paired_difference(rights["linear probe"], right, held.groups),
        class_names=named,
        missing=missing,
    )


def _right(probabilities: FloatArray, samples: Samples) -> npt.NDArray[np.bool_]:
    right: npt.NDArray[np.bool_] = probabilities.argmax(axis=1) == samples.labels
    return right


def _random_directions(database: Database, samples: Samples, count: int, seed: int) -> Samples:
    directions = normalise(np.random.default_rng(seed).standard_normal((count, database.dim)))
    return samples.with_features(image_cosines(database, directions), [f"direction {i}" for i in range(count)])


def _off_domain(database: Database, samples: Samples, count: int, seeds: Sequence[int]) -> list[Samples]:
    """The scores of as many phrases as there are concepts; one choice where there are no more."""
    template = database.templates.get(OFF_DOMAIN)
    if template is None:
        raise AnalysisError(
            f"{database.path.name} has no template {OFF_DOMAIN!r}. Add {count} prompts that have nothing to do with "
            f"the images to the study's vocabulary, under custom: {{{OFF_DOMAIN}: […]}}."
        )
    phrases = list(template.texts)
    if len(phrases) < count:
        raise AnalysisError(
            f"The template {OFF_DOMAIN!r} holds {len(phrases)} prompts; as many as there are concepts, {count}, are "
            "needed."
        )
    scores = image_cosines(database, normalise(template.text_features))
    chosen = [np.random.default_rng(seed).permutation(len(phrases))[:count] for seed in seeds]
    if len(phrases) == count:
        chosen = [np.arange(count)]
    return [samples.with_features(scores[:, rows], [phrases[row] for row in rows]) for rows in chosen]


# --- accuracy against the number of concepts ---------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LevelAccuracy:
    """The classifier on the concepts up to a level: how many they are, and (n, C) probabilities on the split."""

    level: int
    concepts: int
    classifier: Classifier
    probabilities: FloatArray
    accuracy: Estimate


def accuracy_by_level(
    samples: Samples, concepts: Sequence[Concept], *, split: str, log: HoldoutLog, fit: Fit = fit_logistic
) -> list[LevelAccuracy]:
    """Accuracy against the number of concepts: the classifier fitted anew on the concepts up to each level.

    Concepts without a level belong to none; without any level the list is empty. See `database_concepts`.
    """
    found = []
    for level in sorted({concept.level for concept in concepts if concept.level is not None}):
        words = [concept.word for concept in concepts if concept.level is not None and concept.level <= level]
        chosen = samples.select(words)
        classifier = fit(chosen)
        probabilities = evaluate_on_holdout(
            classifier, chosen, split, log, f"accuracy of the concepts up to level {level}"
        )
        held = chosen.of(split)
        estimate = accuracy(held.labels, probabilities, held.groups)
        found.append(LevelAccuracy(level, len(words), classifier, probabilities, estimate))
    return found
