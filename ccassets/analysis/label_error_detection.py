"""Label errors: rows that a classifier fitted without them would label otherwise, the least believed first."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.analysis.classifiers import FloatArray, fit_logistic_with
from ccassets.analysis.row_files import save_images, write_csv
from ccassets.analysis.samples import Samples, concept_samples, folds
from ccassets.database.reader import Database


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
        AnalysisError: Rows have no label, or a class has too few rows.
    """
    return find_label_errors(concept_samples(database))


def find_label_errors(samples: Samples, probabilities: FloatArray | None = None) -> list[LabelError]:
    """List the rows whose label is not the most probable class out of fold, by self-confidence, the lowest first.

    In a multi-label set each label of a row is judged by itself. Self-confidence is the probability of the label that
    the row has (Northcutt et al. 2021, arXiv 1911.00068). A label in doubt may be right all the same: check the image.

    Args:
        samples: The labelled rows.
        probabilities: (N, C), each row by a classifier that was not fitted on it; by default
            `out_of_fold_probabilities`.

    Returns:
        The rows, the least believed label first.

    Raises:
        AnalysisError: A class has fewer rows, or the data fewer groups, than there are folds.
    """
    if probabilities is None:
        probabilities = out_of_fold_probabilities(samples)
    if samples.multilabel:
        return sorted(_errors_by_label(samples, probabilities), key=lambda error: error.confidence)
    return _errors(samples, samples.labels, probabilities, samples.classes)


def _errors_by_label(samples: Samples, probabilities: FloatArray) -> Iterator[LabelError]:
    for label, name in enumerate(samples.classes):
        yes = probabilities[:, label]
        yield from _errors(samples, samples.labels[:, label], np.stack([1 - yes, yes], axis=1), (f"no {name}", name))


def _errors(
    samples: Samples, labels: npt.NDArray[np.integer[Any]], probabilities: FloatArray, classes: Sequence[str]
) -> list[LabelError]:
    confidence = probabilities[np.arange(len(samples)), labels]
    predicted = probabilities.argmax(axis=1)
    doubtful = np.flatnonzero(predicted != labels)
    return [
        LabelError(
            id=int(samples.ids[row]),
            key="" if samples.keys is None else str(samples.keys[row]),
            split=str(samples.split[row]),
            group="" if samples.groups is None else str(samples.groups[row]),
            label=classes[labels[row]],
            predicted=classes[predicted[row]],
            confidence=float(confidence[row]),
            predicted_confidence=float(probabilities[row, predicted[row]]),
        )
        for row in doubtful[np.argsort(confidence[doubtful], kind="stable")]
    ]


def out_of_fold_probabilities(samples: Samples, *, count: int = 5, strength: float = 1.0, seed: int = 0) -> FloatArray:
    """Predict every row (N, C) by a logistic regression that was fitted without its fold and its group."""
    probabilities = np.empty((len(samples), len(samples.classes)))
    for fitted, left_out in folds(samples, count, seed):
        classifier = fit_logistic_with(samples.take(fitted), strength)
        probabilities[left_out] = classifier.probabilities(samples.features[left_out])
    return probabilities


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
