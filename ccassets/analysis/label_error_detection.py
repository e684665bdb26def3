"""Suspect labels: rows that a classifier which never saw them would label otherwise, the least believed first."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from ccassets.analysis.classifiers import FloatArray, fit_logistic_with
from ccassets.analysis.samples import Samples, folds
from ccassets.files import write_text


@dataclass(frozen=True)
class LabelError:
    """A row whose label is in doubt.

    `confidence` is the out-of-fold probability of the label that the row has, `predicted_confidence` that of the
    class that is predicted instead.
    """

    id: int
    key: str
    split: str
    group: str
    label: str
    predicted: str
    confidence: float
    predicted_confidence: float


def out_of_fold_probabilities(samples: Samples, *, count: int = 5, strength: float = 1.0, seed: int = 0) -> FloatArray:
    """(N, C): every row's probabilities by a logistic regression that was fitted without its fold and its group."""
    probabilities = np.empty((len(samples), len(samples.classes)))
    for fitted, left_out in folds(samples, count, seed):
        classifier = fit_logistic_with(samples.take(fitted), strength)
        probabilities[left_out] = classifier.probabilities(samples.features[left_out])
    return probabilities


def find_label_errors(samples: Samples, probabilities: FloatArray | None = None) -> list[LabelError]:
    """Every row whose label is not the most probable class out of fold, by self-confidence, the lowest first.

    Self-confidence is the probability of the label that the row has (Northcutt et al., 2021, arXiv 1911.00068).
    `probabilities` (N, C) default to `out_of_fold_probabilities`. A label in doubt may be wrong, and so may the
    classifier: look at the picture.
    """
    if probabilities is None:
        probabilities = out_of_fold_probabilities(samples)
    own = probabilities[np.arange(len(samples)), samples.labels]
    predicted = probabilities.argmax(axis=1)
    doubtful = np.flatnonzero(predicted != samples.labels)
    return [
        LabelError(
            id=int(samples.ids[row]),
            key="" if samples.keys is None else str(samples.keys[row]),
            split=str(samples.split[row]),
            group="" if samples.groups is None else str(samples.groups[row]),
            label=samples.classes[samples.labels[row]],
            predicted=samples.classes[predicted[row]],
            confidence=float(own[row]),
            predicted_confidence=float(probabilities[row, predicted[row]]),
        )
        for row in doubtful[np.argsort(own[doubtful], kind="stable")]
    ]


def write_label_errors(suspects: Sequence[LabelError], path: Path) -> None:
    """The list as CSV, with `rank` from 1."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", *(field.name for field in fields(LabelError))])
    writer.writerows([rank, *astuple(suspect)] for rank, suspect in enumerate(suspects, start=1))
    write_text(path, text.getvalue())


def save_images(
    suspects: Sequence[LabelError], picture: Callable[[LabelError], Image.Image], folder: Path
) -> list[Path]:
    """Save every suspect's picture as `<rank>_<label>_as_<predicted>.png`; `picture` gives it."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for rank, suspect in enumerate(suspects, start=1):
        name = f"{rank:04d}_{suspect.label}_as_{suspect.predicted}"
        path = folder / f"{quote(name, safe=' ')}.png"
        picture(suspect).save(path)
        saved.append(path)
    return saved
