"""Label errors by confident learning: rows whose label is in doubt to classifiers that were fitted without them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.analysis.classifiers import FloatArray, fit_logistic_with
from ccassets.analysis.results import RESULT_FILES, AnalysisResult, write_result
from ccassets.analysis.row_files import save_images, write_csv
from ccassets.analysis.samples import Samples, concept_samples, folds
from ccassets.database.reader import Database, open_database
from ccassets.errors import AnalysisError
from ccassets.study.storage import Store

Labels = npt.NDArray[np.integer[Any]]
Rows = npt.NDArray[np.intp]

FOLDS = 5
"""Folds, where there are as many groups; a class with fewer rows is not judged."""

STRENGTHS = (1.0, 10**0.5, 10**0.5)
"""C, the inverse strength of the L2 penalty, by pass: more once the rows are left out whose labels are in doubt."""


@dataclass(frozen=True)
class LabelError:
    """A row whose label is in doubt.

    Attributes:
        id: The row's own number.
        key: Where the row came from; "" where that is not known.
        split: Its split.
        group: Its patient or slide; "" where none is known.
        label: The class that it is labelled with; of a multi-label set `nodule` or `no nodule`.
        predicted: The class that is predicted out of fold.
        confidence: Out-of-fold probability of `label`.
        predicted_confidence: Out-of-fold probability of `predicted`.
    """

    id: int
    key: str
    split: str
    group: str
    label: str
    predicted: str
    confidence: float
    predicted_confidence: float


def label_errors(database: Database) -> list[LabelError]:
    """List the rows of a database whose label is in doubt, judged by their concept scores (`find_label_errors`).

    Args:
        database: A database with labels.

    Returns:
        The rows, the least believed label first.

    Raises:
        AnalysisError: Rows have no label, or there are no two classes, or no two groups, to learn from.
    """
    return find_label_errors(concept_samples(database))


def find_label_errors(samples: Samples, probabilities: FloatArray | None = None) -> list[LabelError]:
    """List the rows whose label is in doubt by confident learning (`doubtful_labels`), by self-confidence.

    In a multi-label set each label of a row is judged by itself. A label in doubt may be right all the same: check the
    image. Rows of `unjudged_classes` are not in the list.

    Args:
        samples: The labelled rows.
        probabilities: (N, C), each row by a classifier that was not fitted on it; by default
            `out_of_fold_probabilities`.

    Returns:
        The rows, the least believed label first.

    Raises:
        AnalysisError: There are no two classes of five rows, or no two groups, to learn from.
    """
    if samples.multilabel:
        return sorted(_errors_by_label(samples, probabilities), key=lambda error: error.confidence)
    if probabilities is None:
        samples = _judged(samples)
        probabilities = out_of_fold_probabilities(samples)
    confidence = probabilities[np.arange(len(samples)), samples.labels]
    predicted = probabilities.argmax(axis=1)
    doubtful = np.flatnonzero(doubtful_labels(samples.labels, probabilities))
    return [
        LabelError(
            id=int(samples.ids[row]),
            key="" if samples.keys is None else str(samples.keys[row]),
            split=str(samples.split[row]),
            group="" if samples.groups is None else str(samples.groups[row]),
            label=samples.classes[samples.labels[row]],
            predicted=samples.classes[predicted[row]],
            confidence=float(confidence[row]),
            predicted_confidence=float(probabilities[row, predicted[row]]),
        )
        for row in doubtful[np.argsort(confidence[doubtful], kind="stable")]
    ]


def _errors_by_label(samples: Samples, probabilities: FloatArray | None) -> Iterator[LabelError]:
    unjudged = unjudged_classes(samples) if probabilities is None else {}
    for label, name in enumerate(samples.classes):
        if name not in unjudged:
            one = replace(samples, labels=samples.labels[:, label].astype(np.int64), classes=(f"no {name}", name))
            yes = None if probabilities is None else probabilities[:, label]
            yield from find_label_errors(one, None if yes is None else np.stack([1 - yes, yes], axis=1))


def unjudged_classes(samples: Samples) -> dict[str, int]:
    """Count the rows of classes that have too few to learn from: their labels are not judged."""
    counts = samples.class_counts
    scarce = (counts > 0) & (counts < FOLDS)
    if samples.multilabel:
        scarce = np.minimum(counts, len(samples) - counts) < FOLDS
    return {samples.classes[label]: int(counts[label]) for label in np.flatnonzero(scarce)}


def _judged(samples: Samples) -> Samples:
    """The rows of the classes that can be judged, and these classes alone."""
    judged = np.flatnonzero(samples.class_counts >= FOLDS)
    if len(judged) < 2:
        counts = dict(zip(samples.classes, samples.class_counts.tolist(), strict=True))
        raise AnalysisError(f"Expected two classes of {FOLDS} rows or more to judge labels by, found {counts}.")
    return _with_classes(samples.take(np.isin(samples.labels, judged)), judged)


def _with_classes(samples: Samples, labels: npt.NDArray[np.intp]) -> Samples:
    """The same rows with only these classes; all labels of the rows are among them."""
    classes = tuple(samples.classes[label] for label in labels)
    return replace(samples, labels=np.searchsorted(labels, samples.labels), classes=classes)


# --- confident learning ------------------------------------------------------------------------------


def confident_joint(labels: Labels, probabilities: FloatArray) -> npt.NDArray[np.int64]:
    """Count rows (C, C) by their label and by the class that is predicted with confidence.

    A row counts as a class if its probability reaches the class's threshold, which is the mean self-confidence of the
    rows with that label; if several classes qualify, as the most probable one (Northcutt et al. 2021, arXiv 1911.00068,
    as cleanlab 2.9 counts).
    """
    count = probabilities.shape[1]
    members = labels[:, None] == np.arange(count)
    totals = members.sum(axis=0)
    means = np.where(members, probabilities, 0).sum(axis=0) / np.maximum(totals, 1)
    # A mean of equal numbers can lie above them by a rounding.
    confident = (probabilities >= means - 1e-6) & (totals > 0)
    rows = confident.any(axis=1)
    classes = np.where(confident.sum(axis=1) > 1, probabilities.argmax(axis=1), confident.argmax(axis=1))
    joint = np.zeros((count, count), np.int64)
    np.add.at(joint, (labels[rows], classes[rows]), 1)
    return joint


def doubtful_labels(labels: Labels, probabilities: FloatArray) -> npt.NDArray[np.bool_]:
    """Find the rows (N,) whose label is in doubt, as confident learning prunes by class (arXiv 1911.00068).

    The confident joint, scaled to a class's number of rows, says how many of its rows belong to other classes; that
    many rows of the lowest self-confidence are in doubt. A row whose label is the most probable class is not in doubt.
    """
    joint = confident_joint(labels, probabilities)
    doubtful = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        joint[label, label] = max(joint[label, label], 1)
        believed = max(_rounded(joint[label] / joint[label].sum() * len(rows))[label], 1)
        order = np.argsort(probabilities[rows, label], kind="stable")
        doubtful[rows[order[: len(rows) - believed]]] = True
    doubtful &= probabilities.argmax(axis=1) != labels
    return doubtful


def _rounded(values: FloatArray) -> npt.NDArray[np.int64]:
    """Round to whole numbers with the same sum; if rounding changes it, the worst rounded ones are corrected."""
    whole = np.rint(values).astype(np.int64)
    missing = round(values.sum()) - int(whole.sum())
    order = np.argsort(values - whole, kind="stable")
    whole[order[len(order) - missing :] if missing > 0 else order[:-missing]] += np.sign(missing)
    return whole


def out_of_fold_probabilities(samples: Samples, *, seed: int = 0) -> FloatArray:
    """Predict every row (N, C) by a logistic regression that was fitted without its fold and its group.

    Rows whose label is in doubt would distort the fit: later passes leave out those that the pass before found.

    Args:
        samples: The rows, each of one class, five or more of every class.
        seed: Of the folds.

    Raises:
        AnalysisError: A class has too few rows, or there is only one group.
    """
    count = FOLDS if samples.groups is None else min(FOLDS, len(set(samples.groups.tolist())))
    if count < 2:
        raise AnalysisError("Expected two groups or more to judge labels by, found 1.")
    parts = folds(samples, count, seed)
    probabilities = np.empty((len(samples), len(samples.classes)))
    believed = np.ones(len(samples), bool)
    for strength in STRENGTHS:
        for inside, outside in parts:
            fitted = samples.take(inside[believed[inside]])
            probabilities[outside] = _predict(fitted, strength, samples.features[outside])
        believed = ~doubtful_labels(samples.labels, probabilities)
    return probabilities


def _predict(fitted: Samples, strength: float, features: npt.NDArray[np.floating[Any]]) -> FloatArray:
    """Predict probabilities (n, C); those of classes that no row was fitted on are 0."""
    known = np.flatnonzero(fitted.class_counts)
    probabilities = np.zeros((len(features), len(fitted.classes)))
    if len(known) == 1:
        probabilities[:, known] = 1
    else:
        classifier = fit_logistic_with(_with_classes(fitted, known), strength)
        probabilities[:, known] = classifier.probabilities(features)
    return probabilities


# --- files -------------------------------------------------------------------------------------------


def judge_labels(store: Store) -> AnalysisResult:
    """List the label errors of a study's database in `label_errors.json` and `label_errors.csv`.

    Args:
        store: The store of the study.

    Returns:
        The result; a database that does not allow the judgement has its `unavailable_reason`.

    Raises:
        DatabaseError: The database cannot be read.
        StorageError: A result cannot be written.
    """
    with open_database(store.database) as database:
        result = write_result(store.analysis / RESULT_FILES["label_errors"], database, lambda: _judgement(database))
    write_label_errors(listed_errors(result.content), result.path.with_suffix(".csv"))
    return result


def _judgement(database: Database) -> dict[str, Any]:
    samples = concept_samples(database)
    errors = [vars(error) for error in find_label_errors(samples)]
    return {"rows": len(samples), "unjudged": unjudged_classes(samples), "errors": errors}


def listed_errors(content: Mapping[str, Any]) -> list[LabelError]:
    """The label errors in a result of `judge_labels`; `AnalysisError` where it was written with other fields."""
    try:
        return [LabelError(**error) for error in content.get("errors", ())]
    except TypeError as error:
        raise AnalysisError(
            f"{RESULT_FILES['label_errors']} has other fields than expected ({error}): materialize label_errors again."
        ) from error


def write_label_errors(errors: Sequence[LabelError], path: str | os.PathLike[str]) -> None:
    """Write label errors as CSV, with `rank` from 1 before their attributes.

    Args:
        errors: The rows, in the order of their ranks.
        path: The file.

    Raises:
        StorageError: The file cannot be written.
    """
    columns = ["rank", *(field.name for field in fields(LabelError))]
    write_csv(path, columns, ([rank, *astuple(error)] for rank, error in enumerate(errors, start=1)))


def save_label_error_images(
    errors: Sequence[LabelError], read_image: Callable[[LabelError], Image.Image], folder: str | os.PathLike[str]
) -> list[Path]:
    """Save the image of every label error as `<rank>_<label>_as_<predicted>.png`.

    Args:
        errors: The rows, in the order of their ranks.
        read_image: Returns the image of a row.
        folder: The folder, made where it is missing.

    Returns:
        The files.

    Raises:
        StorageError: A file cannot be written.
    """
    names = [quote(f"{error.label}_as_{error.predicted}", safe=" ") for error in errors]
    return save_images(zip(names, map(read_image, errors), strict=True), folder)
