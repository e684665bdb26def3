"""Suspect labels: how many deliberately wrong ones are found, and what is written down about them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccassets.analysis.label_error_detection import (
    find_label_errors,
    out_of_fold_probabilities,
    save_images,
    write_label_errors,
)
from ccassets.analysis.samples import Samples
from ccassets.datasets.phantom import PhantomDataset
from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS
from ccassets.study.schema import PhantomDatasetConfig
from ccassets_tests.analysis.made_cells import cells

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
    suspects = find_label_errors(samples)
    found = [suspect.id in wrong for suspect in suspects]
    recall, first = sum(found) / len(wrong), sum(found[: len(wrong)]) / len(wrong)
    record_property("recall", recall)
    record_property("recall among as many as were flipped", first)
    print(f"recall {recall:.2f}; among the first {len(wrong)} of {len(suspects)} suspects {first:.2f}")
    # Blindly drawn, 5 % of the first rows would be flipped ones.
    assert recall >= 0.9
    assert first >= 0.6


def test_the_least_believed_label_comes_first(phantoms: Samples):
    suspects = find_label_errors(flipped(phantoms, 0.05)[0])
    confidences = [suspect.confidence for suspect in suspects]
    assert confidences == sorted(confidences)
    assert all(suspect.label != suspect.predicted for suspect in suspects)
    assert all(suspect.confidence < suspect.predicted_confidence for suspect in suspects)


def test_no_row_is_judged_by_a_classifier_that_saw_its_patient():
    samples = cells(grouped=True).samples
    # A column that names the patient, with labels that follow the patient: known only to who saw him.
    rng = np.random.default_rng(2)
    patients = np.unique(samples.groups.astype(str), return_inverse=True)[1]
    codes = rng.standard_normal((patients.max() + 1, 40)).astype(np.float32)
    columns = tuple(f"code {number}" for number in range(40))
    told = replace(
        samples.with_features(codes[patients], columns), labels=rng.integers(0, 4, patients.max() + 1)[patients]
    )
    seen = out_of_fold_probabilities(replace(told, groups=None)).argmax(axis=1) == told.labels
    unseen = out_of_fold_probabilities(told).argmax(axis=1) == told.labels
    assert seen.mean() > 0.9
    assert unseen.mean() < 0.5


def test_the_list_is_written_as_csv(phantoms: Samples, tmp_path: Path):
    suspects = find_label_errors(flipped(phantoms, 0.05)[0])
    write_label_errors(suspects, tmp_path / "suspects.csv")
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open(encoding="utf-8")))
    assert len(rows) == len(suspects)
    assert rows[0]["rank"] == "1"
    assert rows[0]["key"] == f"train/{int(rows[0]['id']):05d}"
    assert float(rows[0]["confidence"]) == suspects[0].confidence


def test_pictures_are_saved_under_rank_and_classes(phantoms: Samples, tmp_path: Path):
    suspects = find_label_errors(flipped(phantoms, 0.05)[0])[:2]
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": ROWS}, size=32))
    saved = save_images(suspects, lambda suspect: dataset.read("train", suspect.id), tmp_path)
    assert saved[0].name == f"0001_{suspects[0].label}_as_{suspects[0].predicted}.png"
    with Image.open(saved[0]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(dataset.read("train", suspects[0].id)))
