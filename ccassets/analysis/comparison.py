"""Encoders compared: what several databases of the same images reach, with paired differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.classifiers import evaluate_on_holdout, fit_logistic
from ccassets.analysis.concept_annotations import ConceptAnnotations, read_concept_annotations
from ccassets.analysis.controls import Difference, Metric, measure_performance, metric_difference
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.image_source import image_reader
from ccassets.analysis.intervals import (
    Estimate,
    FloatArray,
    Groups,
    Proportions,
    Units,
    mean_proportion,
    precision_area,
)
from ccassets.analysis.metrics import require_labels
from ccassets.analysis.paper_tables import METRICS, SOURCES, Rows, estimate_text, independent_units
from ccassets.analysis.results import TEST, VAL, as_json
from ccassets.analysis.samples import Samples, class_names, concept_samples, feature_samples, is_labelled, row_classes
from ccassets.analysis.scores import concept_scores, row_range
from ccassets.analysis.zero_shot_scores import ALL_ROWS, has_local_scores, zero_shot
from ccassets.database.reader import Database
from ccassets.database.summary import summarize
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study

Array = npt.NDArray[Any]

SIGNIFICANT = 0.05
"""Corrected p-values below this are called a difference."""

_BLOCK = 1 << 20
"""Numbers that a permutation test holds at a time."""


@dataclass(frozen=True)
class ComparedDatabase:
    """A database of a comparison.

    Attributes:
        name: The name of its file, with as many folders as tell the files apart.
        encoder: Kind, weights, precision and identity of its encoder, with the digest of the weights.
        digest: The digest of the database.
        rows: Its rows.
        unmatched: Rows left out because their image is not in every file.
        repeated: Rows left out because their image occurs several times in a file.
    """

    name: str
    encoder: dict[str, Any]
    digest: str | None
    rows: int
    unmatched: int
    repeated: int

    @property
    def encoder_name(self) -> str:
        """Kind, weights and precision of the encoder, as far as the file records them."""
        return ", ".join(str(self.encoder[fact]) for fact in ("kind", "weights", "dtype") if self.encoder[fact])


@dataclass(frozen=True)
class Measurement:
    """What one method reaches on one database.

    Attributes:
        method: The method.
        database: The name of the database.
        metric: What is measured.
        columns: The number of columns that it reads.
        chosen_on: The split that the penalty was chosen on; None where nothing was chosen.
        estimate: The value with its interval.
    """

    method: str
    database: str
    metric: Metric
    columns: int
    chosen_on: str | None
    estimate: Estimate


@dataclass(frozen=True)
class PairedDifference:
    """The value of a method on a first database minus that on a second, on the same images.

    Attributes:
        method: The method.
        first: The name of the first database.
        second: The name of the second.
        difference: The difference with its interval, which is not corrected for the number of comparisons.
        p_value: Of the exact McNemar test where accuracies by image are compared, else of a permutation test that
            exchanges the two databases for an image, or a group; None where there are too few groups.
        corrected: The p-value after Holm's correction for all differences of the comparison.
    """

    method: str
    first: str
    second: str
    difference: Difference
    p_value: float | None
    corrected: float | None = None

    @property
    def verdict(self) -> str:
        """The difference as a sentence."""
        if self.corrected is None:
            return f"No test: {self.difference.estimate.reason}"
        if self.corrected >= SIGNIFICANT:
            return f"{self.first} and {self.second} cannot be told apart."
        names = (self.first, self.second) if self.difference.estimate.value > 0 else (self.second, self.first)
        return f"{names[0]} is better than {names[1]}."


@dataclass(frozen=True)
class Comparison:
    """Several databases of the same images, compared.

    Attributes:
        split: The held-out split that was measured; "all" rows where there is none.
        images: The number of images that were measured.
        databases: The databases.
        measurements: What each method reaches on each database.
        differences: The differences between pairs of databases, by method.
        unavailable: Why a method is not measured on a database: method, name and a sentence.
        test_accesses: How often the log holds an access to `test`.
    """

    split: str
    images: int
    databases: tuple[ComparedDatabase, ...]
    measurements: tuple[Measurement, ...]
    differences: tuple[PairedDifference, ...]
    unavailable: tuple[tuple[str, str, str], ...]
    test_accesses: int

    def as_dict(self) -> dict[str, Any]:
        """Convert to JSON types, with the verdict of each difference.

        Returns:
            The attributes by name; a number that is not finite is None.
        """
        content: dict[str, Any] = as_json(self)
        for difference, own in zip(self.differences, content["differences"], strict=True):
            own["verdict"] = difference.verdict
        return content

    def lines(self) -> list[str]:
        """Format the comparison as lines of text.

        Returns:
            The lines that `ccassets compare` prints: rows, measurements, differences, and what could not be measured.
        """
        content = self.as_dict()
        lines = [f"{self.images:,} images compared, split {self.split}."]
        for database in self.databases:
            left_out = f"{database.unmatched:,} rows without a counterpart and {database.repeated:,} repeated ones"
            lines.append(f"{database.name}: {database.encoder_name}; {database.rows:,} rows, {left_out} left out.")
        for own in content["measurements"]:
            lines.append(
                f"{own['method']}  {own['database']}  {METRICS[own['metric']]} {estimate_text(own['estimate'])}"
            )
        for difference in self.differences:
            p_value = "" if difference.corrected is None else f", p after Holm {difference.corrected:.3g}"
            lines.append(f"{difference.method}: {difference.verdict} {difference.difference.points}{p_value}")
        return lines + [f"{method}  {name}  not measured: {reason}" for method, name, reason in self.unavailable]

    def tables(self) -> dict[str, Rows]:
        """Make the tables `results` and `differences` in the form of the tables of a paper.

        Returns:
            The tables by name; a row is a mapping of columns to values.
        """
        content = self.as_dict()
        encoders = {database.name: database.encoder_name for database in self.databases}
        results = [
            {
                "method": own["method"],
                "file": own["database"],
                "encoder": encoders[own["database"]],
                "split": self.split,
                "images": self.images,
                "independent units": independent_units({own["metric"]: own["estimate"]}),
                **{title: estimate_text(own["estimate"] if name == own["metric"] else None) for name, title in _TITLES},
                "columns": own["columns"],
                "chosen on": own["chosen_on"],
                "accesses to test": self.test_accesses if self.split == TEST else None,
                "source": SOURCES[own["method"]],
            }
            for own in content["measurements"]
        ]
        differences = [
            {
                "method": own["method"],
                "first": own["first"],
                "second": own["second"],
                "difference": estimate_text(own["difference"]["estimate"]),
                "p": own["p_value"],
                "p after Holm": own["corrected"],
            }
            for own in content["differences"]
        ]
        return {"results": results, "differences": differences}


_TITLES = tuple((name, METRICS[name]) for name in ("accuracy", "auc", "average_precision"))


def compare_databases(
    databases: Sequence[Database],
    *,
    study: Study | None = None,
    log: HoldoutLog | None = None,
    progress: Progress = silent,
) -> Comparison:
    """Compare what encoders reach on the same images: zero-shot, linear probe, concept classifier and retrieval.

    Rows are matched by image digest; images that are not in every database, or repeated in one, are left out. Both
    classifiers are fitted on `train` and chosen on `val`. `test` is measured, `val` where there is no test, and all
    rows where there is neither. The metric is the accuracy, or the AUC in a multi-label set; for retrieval it is the
    mean average precision over concepts.

    Args:
        databases: The databases, two or more.
        study: A study of the first database, which knows which images show which concepts; without it there is no
            retrieval.
        log: Records every access to a held-out split; by default they are counted in the result alone.
        progress: Counts methods, on all databases.

    Returns:
        The comparison.

    Raises:
        AnalysisError: There are fewer than two databases, they have no image digests or no image in common, or
            labels, splits or groups of an image differ.
        DatabaseError: A database cannot be read.
        DatasetError: The data set of `study` cannot be read, or is not that of the first database.
        StorageError: An access cannot be recorded.
    """
    if len(databases) < 2:
        raise AnalysisError(f"A comparison needs at least two databases, found {len(databases)}.")
    log = HoldoutLog() if log is None else log
    names = _names(databases)
    rows, repeated = _match_rows(databases, names)
    _require_equal_facts(databases, names, rows)
    splits = databases[0].split[rows[0]]
    split = next((name for name in (TEST, VAL) if (splits == name).any()), ALL_ROWS)
    held_out = np.flatnonzero(splits == split) if split != ALL_ROWS else np.arange(len(splits))
    images = [_Images(database, own, split, own[held_out], log) for database, own in zip(databases, rows, strict=True)]
    methods: dict[str, Callable[[_Images], _Measured]] = {
        "Zero-shot": _zero_shot,
        "Linear probe": partial(_classifier, feature_samples),
        "Concept classifier": partial(_classifier, concept_samples),
        "Retrieval of concepts": partial(_retrieval, *_annotations(study, databases, images[0])),
    }
    measurements: list[Measurement] = []
    differences: list[PairedDifference] = []
    unavailable: list[tuple[str, str, str]] = []
    for number, (method, measure) in enumerate(methods.items()):
        measured: dict[str, _Measured] = {}
        for position, (name, own) in enumerate(zip(names, images, strict=True)):
            progress(number * len(names) + position, len(methods) * len(names))
            try:
                measured[name] = measure(own)
            except (AnalysisError, DatabaseError) as error:
                unavailable.append((method, name, str(error)))
        measurements += [
            Measurement(method, name, own.metric, own.columns, own.chosen_on, own.estimate)
            for name, own in measured.items()
        ]
        for first, second in combinations(measured, 2):
            difference, p_value = _compare(measured[first], measured[second], images[0].groups)
            differences.append(PairedDifference(method, first, second, difference, p_value))
    progress(len(methods) * len(names), len(methods) * len(names))
    return Comparison(
        split,
        len(held_out),
        tuple(
            _described(database, name, len(rows[0]), again)
            for database, name, again in zip(databases, names, repeated, strict=True)
        ),
        tuple(measurements),
        _corrected(differences),
        tuple(unavailable),
        sum(access.split == TEST for access in log.accesses()),
    )


def _described(database: Database, name: str, matched: int, repeated: int) -> ComparedDatabase:
    facts = summarize(database)
    unmatched = len(database) - matched - repeated
    return ComparedDatabase(name, facts["encoder"], facts["digest"], len(database), unmatched, repeated)


# --- the same images ---------------------------------------------------------------------------------


def _names(databases: Sequence[Database]) -> list[str]:
    """The names of the files, with enough of their folders to be distinct; a file that is repeated gets a number."""
    paths = [database.path.absolute() for database in databases]
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number}. {path.name}" for number, path in enumerate(paths, start=1)]


def _match_rows(databases: Sequence[Database], names: Sequence[str]) -> tuple[list[npt.NDArray[np.intp]], list[int]]:
    """The rows of the images that every database has once, in the order of the first, and the repeated rows of each."""
    digests = [_digests(database, name) for database, name in zip(databases, names, strict=True)]
    distinct = [np.unique(own, return_index=True, return_counts=True) for own in digests]
    repeated = reduce(np.union1d, [values[counts > 1] for values, _, counts in distinct])
    shared = np.setdiff1d(reduce(np.intersect1d, [values for values, _, _ in distinct]), repeated)
    if not len(shared):
        raise AnalysisError(
            f"{', '.join(names)} have no image in common that each holds once. Compare databases of the same data set."
        )
    rows = [first[np.searchsorted(values, shared)] for values, first, _ in distinct]
    order = np.argsort(rows[0])
    return [own[order] for own in rows], [int(np.isin(own, repeated).sum()) for own in digests]


def _digests(database: Database, name: str) -> npt.NDArray[np.bytes_]:
    digests = database.image_digest
    if digests is None:
        raise AnalysisError(
            f"{name} has no image digests, by which rows are matched; a file of the original scripts has none. Adopt "
            "it into a study (`ccassets adopt`), or build it again."
        )
    if digests.shape != (len(database), 32) or digests.dtype != np.uint8:
        raise DatabaseError(
            f"{name}: /image_digest: expected uint8 of shape ({len(database)}, 32), found {digests.dtype} of shape "
            f"{digests.shape}. `ccassets validate` says more."
        )
    # Of one width, texts are equal exactly where bytes are.
    return np.ascontiguousarray(digests).view("S32")[:, 0]


def _require_equal_facts(
    databases: Sequence[Database], names: Sequence[str], rows: Sequence[npt.NDArray[np.intp]]
) -> None:
    """Raise `AnalysisError` unless every image has the same split, label and group in all databases."""
    first = databases[0]
    classes = class_names(first)
    for database, name, own in zip(databases[1:], names[1:], rows[1:], strict=True):
        if is_labelled(first) and is_labelled(database) and classes != class_names(database):
            raise AnalysisError(
                f"The classes differ: {names[0]} has {list(classes)}, {name} {list(class_names(database))}. Compare "
                "databases with the same labels."
            )
        if (first.label_matrix is None) != (database.label_matrix is None):
            raise AnalysisError(f"The labels differ: an image can have several in one of {names[0]} and {name} alone.")
        for fact, values_of in {"split": _splits, "label": _labels, "group": _groups}.items():
            expected, values = values_of(first)[rows[0]], values_of(database)[own]
            if len(differing := np.flatnonzero(expected != values)):
                index = differing[0]
                raise AnalysisError(
                    f"The {fact}s of {len(differing)} of {len(own)} images differ: {names[0]} has the {fact} "
                    f"{expected[index]!r} at row {rows[0][index]}, {name} has {values[index]!r} for the same image at "
                    f"row {own[index]}. Compare databases that agree, or build one of them again."
                )


def _splits(database: Database) -> Array:
    return database.split


def _labels(database: Database) -> Array:
    return np.array(row_classes(database) if is_labelled(database) else [""] * len(database), object)


def _groups(database: Database) -> Array:
    return np.full(len(database), "", object) if database.groups is None else database.groups


# --- methods -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Images:
    """The matched images of a database: all of their rows, and the held-out ones, whose accesses are recorded."""

    database: Database
    rows: npt.NDArray[np.intp]
    split: str
    held_out: npt.NDArray[np.intp]
    log: HoldoutLog

    @property
    def groups(self) -> Groups:
        """(n,): the groups of the held-out rows."""
        return None if self.database.groups is None else self.database.groups[self.held_out]

    def record(self, method: str) -> None:
        """Record an access by a method that has no classifier, which would record it."""
        if self.split != ALL_ROWS:
            identity = str(summarize(self.database)["encoder"]["identity"])[:16]
            self.log.record(f"comparison: {method}", model=identity, split=self.split, rows=len(self.held_out))


@dataclass(frozen=True, eq=False)
class _Measured:
    """A value with what each held-out image adds to it, (n,)."""

    metric: Metric
    columns: int
    chosen_on: str | None
    estimate: Estimate
    contributions: FloatArray


def _zero_shot(images: _Images) -> _Measured:
    database = images.database
    if not is_labelled(database):
        raise AnalysisError(f"{database.path.name} has no labels: there is nothing to measure zero-shot classes by.")
    split = None if images.split == ALL_ROWS else images.split
    scores = zero_shot(database, split=split, rule="span" if has_local_scores(database) else None)
    ranks = scores.log_odds[images.held_out - row_range(database, split).start]
    labels = (database.labels if database.label_matrix is None else database.label_matrix)[images.held_out]
    require_labels(labels, ranks)
    images.record("zero-shot")
    return _performance(ranks, labels, images.groups, len(scores.words), None)


def _classifier(samples_of: Callable[[Database], Samples], images: _Images) -> _Measured:
    """A logistic regression on the columns that `samples_of` gives."""
    samples = samples_of(images.database).take(images.rows)
    if images.split == ALL_ROWS:
        raise AnalysisError(
            f"There is no split {TEST} or {VAL}: a classifier is measured on rows that it has not seen."
        )
    _require_finite(samples.features, images)
    classifier = fit_logistic(samples, val=VAL if (samples.split == VAL).any() else None)
    probabilities = evaluate_on_holdout(classifier, samples, images.split, images.log, "comparison: accuracy")
    held_out = samples.of(images.split)
    chosen_on = str(classifier.chosen["chosen_on"])
    return _performance(probabilities, held_out.labels, held_out.groups, len(samples.columns), chosen_on)


def _require_finite(values: Array, images: _Images) -> None:
    if wrong := int((~np.isfinite(values).all(axis=1)).sum()):
        raise AnalysisError(
            f"{images.database.path.name}: {wrong} of {len(values)} images have numbers that are not finite. "
            "`ccassets validate` names them."
        )


def _performance(scores: Array, labels: Array, groups: Groups, columns: int, chosen_on: str | None) -> _Measured:
    metric: Metric = "accuracy" if labels.ndim == 1 else "auc"
    return _Measured(metric, columns, chosen_on, *measure_performance([scores], labels, groups))


def _annotations(
    study: Study | None, databases: Sequence[Database], images: _Images
) -> tuple[list[str], ConceptAnnotations | None]:
    """The concepts that all databases share, and which held-out images show them; None where nothing is known."""
    if study is None:
        return [], None
    if (kind := summarize(images.database)["dataset"].get("kind")) != study.dataset.kind:
        raise AnalysisError(
            f"{study.name} is not the study of {images.database.path.name}: its data set is of the kind "
            f"{study.dataset.kind!r}, the file's of the kind {kind!r}."
        )
    annotations = read_concept_annotations(study, images.database)
    if annotations is None:
        return [], None
    # Another data set of that kind would be taken for the truth: one image is proof that it is this one.
    image_reader(study, images.database)(int(images.held_out[0]))
    words = [concept.word for concept in study.vocabulary.concepts.words]
    annotations = annotations[images.held_out]
    shown = [
        column
        for column, word in enumerate(words)
        if all(word in database.concepts for database in databases) and (annotations[:, column] > 0.5).any()
    ]
    return [words[column] for column in shown], annotations[:, shown]


def _retrieval(words: Sequence[str], annotations: ConceptAnnotations | None, images: _Images) -> _Measured:
    """How well concept scores find the images that show each concept: the mean average precision."""
    if annotations is None:
        raise AnalysisError("No study (--study) says which images show which concepts; a database does not hold that.")
    if not words:
        raise AnalysisError("No image is known to show a concept that all databases share.")
    database = images.database
    split = None if images.split == ALL_ROWS else images.split
    scores = concept_scores(database, words, split=split)[images.held_out - row_range(database, split).start]
    _require_finite(scores, images)
    images.record("retrieval")
    known, positive = ~np.isnan(annotations), annotations > 0.5
    values, influence = np.empty(len(words)), np.zeros(scores.shape)
    for column in range(len(words)):
        inside = known[:, column]
        part = precision_area(scores[inside][:, [column]], positive[inside][:, [column]])
        values[column], influence[inside, column] = part.values[0], part.influence[:, 0]
    areas = Proportions(values, influence, (positive,))
    return _Measured("average_precision", len(words), None, mean_proportion(areas, images.groups), areas.contributions)


# --- differences -------------------------------------------------------------------------------------


def _compare(first: _Measured, second: _Measured, groups: Groups) -> tuple[Difference, float | None]:
    """The difference of two measured values, and its p-value."""
    from scipy.stats import permutation_test

    difference = metric_difference(first.metric, first.contributions, second.contributions, groups)
    if difference.estimate.reason or difference.mcnemar is not None:
        return difference, difference.mcnemar
    gain = (first.contributions - second.contributions)[:, None]
    sums = Units.of(groups, len(gain)).sums(gain)[:, 0]
    test = permutation_test(
        (sums,),
        lambda values, axis: values.mean(axis=axis),
        permutation_type="samples",
        vectorized=True,
        batch=max(1, _BLOCK // len(sums)),
        random_state=0,
    )
    return difference, float(test.pvalue)


def _corrected(differences: Sequence[PairedDifference]) -> tuple[PairedDifference, ...]:
    """The differences with their p-values corrected for all of them."""
    corrected = iter(holm([own.p_value for own in differences if own.p_value is not None]))
    return tuple(own if own.p_value is None else replace(own, corrected=next(corrected)) for own in differences)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    The smallest of m is multiplied by m, the next by m - 1, and none becomes smaller than the one before it.
    """
    order = np.argsort(p_values)
    steps = np.asarray(p_values)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return [float(value) for value in corrected]
