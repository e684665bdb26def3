"""Label errors: how many flipped labels are detected, and what is written about them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccassets.analysis.label_error_detection import (
    find_label_errors,
    label_errors,
    out_of_fold_probabilities,
    save_label_error_images,
    write_label_errors,
)
from ccassets.analysis.samples import Samples, concept_samples
from ccassets.database.reader import open_database
from ccassets.datasets.phantom import PhantomDataset
from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS
from ccassets.study.schema import PhantomDatasetConfig
from ccassets_tests.analysis.made_cells import cells, write_cells

ROWS = 480


@pytest.fixture(scope="module")
def phantoms() -> Samples:
    """Phantom cells, described by scores that tell their known concepts up to noise."""
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": ROWS}, size=32))
    shown = [list(dataset.annotations("train", row).concepts.values()) for row in range(ROWS)]
    noise = np.random.default_rng(0).standard_normal((ROWS, len(CONCEPTS)))
    return Samples(
        features=(np.array(shown, np.float32) + 0.25 * noise).astype(np.float32),
        columns=CONCEPTS,
        labels=np.array([dataset.label("train", row) for row in range(ROWS)]),
        split=np.full(ROWS, "train", object),
        classes=CLASSES,
        ids=np.arange(ROWS),
        keys=np.array([f"train/{row:05d}" for row in range(ROWS)], object),
    )


def flipped(samples: Samples, share: float) -> tuple[Samples, set[int]]:
    """The samples with a share of labels turned into another class, and the rows where."""
    rng = np.random.default_rng(1)
    rows = rng.choice(len(samples), int(share * len(samples)), replace=False)
    labels = samples.labels.copy()
    labels[rows] = (labels[rows] + rng.integers(1, len(samples.classes), len(rows))) % len(samples.classes)
    return replace(samples, labels=labels), set(rows.tolist())


def test_most_flipped_phantom_labels_are_found(phantoms: Samples, record_property):
    samples, wrong = flipped(phantoms, 0.05)
    errors = find_label_errors(samples)
    is_flipped = [error.id in wrong for error in errors]
    recall, first = sum(is_flipped) / len(wrong), sum(is_flipped[: len(wrong)]) / len(wrong)
    record_property("recall", recall)
    record_property("recall among as many as were flipped", first)
    print(f"recall {recall:.2f}; among the first {len(wrong)} of {len(errors)} label errors {first:.2f}")
    # Blindly drawn, 5 % of the first rows would be flipped ones.
    assert recall >= 0.9
    assert first >= 0.6


def test_the_least_believed_label_comes_first(phantoms: Samples):
    errors = find_label_errors(flipped(phantoms, 0.05)[0])
    confidences = [error.confidence for error in errors]
    assert confidences == sorted(confidences)
    assert all(error.label != error.predicted for error in errors)
    assert all(error.confidence < error.predicted_confidence for error in errors)


def test_the_label_errors_of_a_database_are_those_of_its_concept_scores(tmp_path: Path):
    with open_database(write_cells(tmp_path / "cells.h5", cells(grouped=True).samples)) as database:
        errors = label_errors(database)
        assert errors == find_label_errors(concept_samples(database))
    assert [error.confidence for error in errors] == sorted(error.confidence for error in errors)
    assert len(errors) > 5


def test_no_row_is_judged_by_a_classifier_that_saw_its_patient():
    samples = cells(grouped=True).samples
    # A column that names the patient, with labels that follow the patient: known only to who saw him.
    rng = np.random.default_rng(2)
    patients = np.unique(samples.groups.astype(str), return_inverse=True)[1]
    codes = rng.standard_normal((patients.max() + 1, 40)).astype(np.float32)
    columns = tuple(f"code {number}" for number in range(40))
    known = replace(
        samples.with_features(codes[patients], columns), labels=rng.integers(0, 4, patients.max() + 1)[patients]
    )
    seen = out_of_fold_probabilities(replace(known, groups=None)).argmax(axis=1) == known.labels
    unseen = out_of_fold_probabilities(known).argmax(axis=1) == known.labels
    assert seen.mean() > 0.9
    assert unseen.mean() < 0.5


def test_the_list_is_written_as_csv(phantoms: Samples, tmp_path: Path):
    errors = find_label_errors(flipped(phantoms, 0.05)[0])
    write_label_errors(errors, tmp_path / "label_errors.csv")
    rows = list(csv.DictReader((tmp_path / "label_errors.csv").open(encoding="utf-8")))
    assert len(rows) == len(errors)
    assert rows[0]["rank"] == "1"
    assert rows[0]["key"] == f"train/{int(rows[0]['id']):05d}"
    assert float(rows[0]["confidence"]) == errors[0].confidence


def test_images_are_saved_under_rank_and_classes(phantoms: Samples, tmp_path: Path):
    errors = find_label_errors(flipped(phantoms, 0.05)[0])[:2]
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": ROWS}, size=32))
    saved = save_label_error_images(errors, lambda error: dataset.read("train", error.id), tmp_path)
    assert saved[0].name == f"0001_{errors[0].label}_as_{errors[0].predicted}.png"
    with Image.open(saved[0]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(dataset.read("train", errors[0].id)))
