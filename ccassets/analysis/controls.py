"""Controls of a concept classifier: the same classifier on other columns, compared on the same images.

Cosine concept scores are a linear map of the features. A linear classifier on K of them is a linear probe of rank K,
and may do well whatever the concepts mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import Classifier, FloatArray, evaluate_on_holdout, fit_logistic
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervals import Estimate, Groups, area, mean_difference, mean_proportion, mean_value, share
from ccassets.analysis.metrics import accuracy
from ccassets.analysis.samples import Samples, feature_samples
from ccassets.analysis.scores import image_cosines, normalise
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept

OFF_DOMAIN = "off_domain"
"""Id of the custom template whose prompts have nothing to do with the images."""

Array = npt.NDArray[Any]
Fit = Callable[[Samples], Classifier]
Metric = Literal["accuracy", "auc", "average_precision"]


# --- differences -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """The accuracy of a first classifier minus that of a second on the same images; in a multi-label set the AUC.

    Attributes:
        estimate: The difference with its interval.
        mcnemar: P-value of the exact McNemar test. None if groups are known, because the test assumes independent
            images, or if one side is a mean over seeds.
    """

    estimate: Estimate
    mcnemar: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes zero, else 0."""
        return int(self.estimate.low > 0) - int(self.estimate.high < 0)

    @property
    def points(self) -> str:
        """The difference with its interval, in percentage points."""
        value, low, high = (100 * part for part in (self.estimate.value, self.estimate.low, self.estimate.high))
        limits = "no interval" if self.estimate.reason else f"{low:+.1f} to {high:+.1f}"
        return f"{value:+.1f} points ({limits})"


def paired_difference(first: Array, second: Array, groups: Groups = None) -> Difference:
    """Compare two accuracies on the same n images.

    `first` and `second` (n,) say whether each image is predicted correctly: bool, or a share over seeds. If `groups`
    (n,) are known, the images of a group are treated as dependent.
    """
    from scipy.stats import binomtest

    gain = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    mcnemar = None
    if groups is None and set(np.unique(gain)) <= {-1.0, 0.0, 1.0}:
        better, worse = int((gain > 0).sum()), int((gain < 0).sum())
        mcnemar = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
    return Difference(mean_difference(gain, groups), mcnemar)


def metric_difference(metric: Metric, first: Array, second: Array, groups: Groups = None) -> Difference:
    """Compare two values of a metric on the same images by what each image adds to them, (n,)."""
    if metric == "accuracy":
        return paired_difference(first, second, groups)
    return Difference(mean_value(first - second, groups))


# --- class names -------------------------------------------------------------------------------------


def class_name_concepts(concepts: Sequence[str], classes: Sequence[str]) -> dict[str, str]:
    """Find the concepts that contain a class name, and how: as a `word`, or as the `stem` of another word.

    "Giant platelets" contains the class platelet as a word (a plural is the same word), "Basophilic granules" the class
    basophil as a stem. For a name of several words, the whole name counts, and each of its words that has at least five
    letters and is in no other class name.
    """
    names = [_words(name) for name in classes]
    owners = Counter(word for name in names for word in set(name))
    patterns = {tuple(name) for name in names if name}
    patterns |= {(word,) for name in names for word in name if len(word) >= 5 and owners[word] == 1}
    occurrences = {}
    for concept in concepts:
        words = _words(concept)
        if any(_contains(words, pattern, str.__eq__) for pattern in patterns):
            occurrences[concept] = "word"
        elif any(_contains(words, pattern, str.startswith) for pattern in patterns):
            occurrences[concept] = "stem"
    return occurrences


def _words(text: str) -> list[str]:
    """The words of a text in lower case; the plural s is dropped."""
    return [word[:-1] if word.endswith("s") and len(word) > 3 else word for word in re.findall(r"\w+", text.casefold())]


def _contains(words: Sequence[str], pattern: Sequence[str], same: Callable[[str, str], bool]) -> bool:
    starts = range(len(words) - len(pattern) + 1)
    return any(all(same(words[start + offset], part) for offset, part in enumerate(pattern)) for start in starts)


# --- controls ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Control:
    """The same classifier on other columns, measured on the same images.

    Attributes:
        name: Name of the control.
        columns: Number of columns.
        probabilities: (n, C) for every seed.
        estimate: Accuracy, mean over seeds; in a multi-label set the AUC.
        difference: That of the concepts minus that of the control.
    """

    name: str
    columns: int
    probabilities: tuple[FloatArray, ...]
    estimate: Estimate
    difference: Difference

    @property
    def verdict(self) -> str:
        """The difference as a sentence."""
        sentences = {
            1: "The concepts are better than this control",
            -1: "The concepts are worse than this control",
            0: "The concepts cannot be told from this control",
        }
        return f"{sentences[self.difference.sign]}: {self.difference.points}."


@dataclass(frozen=True, eq=False)
class Controls:
    """The controls of a classifier on K concepts; `controls[name]` is one of them.

    Attributes:
        metric: What is compared: the AUC in a multi-label set.
        estimate: That of the concepts.
        controls: The controls.
        price: The price of interpretability: that of the linear probe minus that of the concepts.
        class_names: The concepts that contain a class name, and how: as a word or a stem.
        missing: The controls that are not available, and why.
    """

    metric: Metric
    estimate: Estimate
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
    """Fit and measure the controls of a classifier on concept scores.

    `linear probe`: all D image features. `random directions`: as many random unit vectors as there are concepts, for
    every seed. `off-domain phrases`: as many prompts of the template `off_domain`, chosen anew for every seed if there
    are more. `without class names`: the concepts that contain none.

    Args:
        database: The database.
        samples: The concept scores of the whole database.
        classifier: The classifier that `fit` made of them.
        split: The held-out split.
        log: Records every access to `split`.
        fit: Fits a classifier on samples.
        seeds: Seeds of the random choices.

    Returns:
        The controls.

    Raises:
        AnalysisError: `samples` are not the rows of the database.
    """
    if len(samples) != len(database):
        raise AnalysisError(f"Expected the {len(database)} rows of {database.path.name}, found {len(samples)}.")
    count = len(samples.columns)
    held_out = samples.of(split)
    probabilities = evaluate_on_holdout(classifier, samples, split, log, "accuracy")
    metric: Metric = "auc" if samples.multilabel else "accuracy"
    estimate, own_rows = measure_performance([probabilities], held_out.labels, held_out.groups)
    with_class_name = class_name_concepts(samples.columns, samples.classes)
    missing: dict[str, str] = {}
    variants_of: dict[str, list[Samples]] = {
        "linear probe": [feature_samples(database)],
        "random directions": [_random_directions(database, samples, count, seed) for seed in seeds],
    }
    try:
        variants_of["off-domain phrases"] = _off_domain(database, samples, count, seeds)
    except AnalysisError as error:
        missing["off-domain phrases"] = str(error)
    rest = [name for name in samples.columns if name not in with_class_name]
    if with_class_name and rest:
        variants_of["without class names"] = [samples.select(rest)]
    else:
        missing["without class names"] = (
            "Every concept contains a class name." if with_class_name else "No concept contains a class name."
        )
    controls = []
    rows_of = {}
    for name, variants in variants_of.items():
        variant_probabilities = tuple(
            evaluate_on_holdout(fit(variant), variant, split, log, f"control: {name}") for variant in variants
        )
        control_estimate, rows_of[name] = measure_performance(variant_probabilities, held_out.labels, held_out.groups)
        controls.append(
            Control(
                name=name,
                columns=len(variants[0].columns),
                probabilities=variant_probabilities,
                estimate=control_estimate,
                difference=metric_difference(metric, own_rows, rows_of[name], held_out.groups),
            )
        )
    return Controls(
        metric=metric,
        estimate=estimate,
        controls=tuple(controls),
        price=metric_difference(metric, rows_of["linear probe"], own_rows, held_out.groups),
        class_names=with_class_name,
        missing=missing,
    )


def measure_performance(
    seeds: Sequence[FloatArray], labels: Array, groups: Groups = None
) -> tuple[Estimate, FloatArray]:
    """Measure the accuracy of scores, mean over seeds; in a multi-label set the AUC (DeLong et al. 1988).

    Args:
        seeds: Scores (n, C), one array for each seed.
        labels: (n,) class numbers, or (n, C) of 0 and 1 in a multi-label set.
        groups: (n,) the patient or slide of every row.

    Returns:
        The value with its interval, and what each row adds to it, (n,), as `metric_difference` takes it.

    Raises:
        AnalysisError: Every label is on all rows or on none, so there is nothing to compare.
    """
    if labels.ndim == 1:
        correct = np.mean([scores.argmax(axis=1) == labels for scores in seeds], axis=0)
        return mean_proportion(share(correct, answers=len(seeds)), groups), correct
    positive = labels > 0
    compared = positive.any(axis=0) & ~positive.all(axis=0)
    if not compared.any():
        raise AnalysisError("No label is on some of the held-out rows and not on others: there is no AUC to compare.")
    areas = [area(scores[:, compared], positive[:, compared]) for scores in seeds]
    mean = replace(
        areas[0],
        values=np.mean([one.values for one in areas], axis=0),
        influence=np.mean([one.influence for one in areas], axis=0),
    )
    return mean_proportion(mean, groups), mean.contributions


def _random_directions(database: Database, samples: Samples, count: int, seed: int) -> Samples:
    directions = normalise(np.random.default_rng(seed).standard_normal((count, database.dim)))
    return samples.with_features(image_cosines(database, directions), [f"direction {i}" for i in range(count)])


def _off_domain(database: Database, samples: Samples, count: int, seeds: Sequence[int]) -> list[Samples]:
    """Scores of as many off-domain phrases as there are concepts; one choice where there are no more."""
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
    """A classifier on the concepts up to a level.

    Attributes:
        level: The level.
        concepts: Number of concepts.
        classifier: The classifier.
        probabilities: (n, C) on the held-out split.
        accuracy: Accuracy on it.
    """

    level: int
    concepts: int
    classifier: Classifier
    probabilities: FloatArray
    accuracy: Estimate


def accuracy_by_level(
    samples: Samples, concepts: Sequence[Concept], *, split: str, log: HoldoutLog, fit: Fit = fit_logistic
) -> list[LevelAccuracy]:
    """Measure accuracy against the number of concepts: the classifier fitted anew on the concepts up to each level.

    Args:
        samples: The concept scores of a database.
        concepts: Its concepts (`database_concepts`); one without a level is in no level.
        split: The held-out split.
        log: Records every access to `split`.
        fit: Fits a classifier on samples.

    Returns:
        One accuracy for each level, the lowest first; [] where no concept has a level.

    Raises:
        AnalysisError: `split` has no rows, or a class has none to fit on.
    """
    accuracies = []
    for level in sorted({concept.level for concept in concepts if concept.level is not None}):
        words = [concept.word for concept in concepts if concept.level is not None and concept.level <= level]
        chosen = samples.select(words)
        classifier = fit(chosen)
        probabilities = evaluate_on_holdout(
            classifier, chosen, split, log, f"accuracy of the concepts up to level {level}"
        )
        held_out = chosen.of(split)
        estimate = accuracy(held_out.labels, probabilities, held_out.groups)
        accuracies.append(LevelAccuracy(level, len(words), classifier, probabilities, estimate))
    return accuracies
