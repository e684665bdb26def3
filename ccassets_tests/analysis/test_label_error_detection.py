"""Label errors: how many flipped labels are detected, as cleanlab would, and what is written about them."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cleanlab.count import compute_confident_joint
from cleanlab.filter import find_label_issues
from PIL import Image

from ccassets.analysis.label_error_detection import (
    confident_joint,
    doubtful_labels,
    find_label_errors,
    label_errors,
    listed_errors,
    out_of_fold_probabilities,
    save_label_error_images,
    unjudged_classes,
    write_label_errors,
)
from ccassets.analysis.samples import Samples, concept_samples
from ccassets.database.reader import open_database
from ccassets.datasets.phantom import PhantomDataset
from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS
from ccassets.errors import AnalysisError
from ccassets.study.schema import PhantomDatasetConfig
from ccassets_tests.analysis.made_cells import cells, write_cells
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study

ROWS = 480


@pytest.fixture(scope="module")
def phantoms() -> Samples:
    """Phantom cells, described by scores that tell their known concepts up to noise."""
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": ROWS}, size=32))
    shown = [list(dataset.concepts("train", row).values()) for row in range(ROWS)]
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


def flipped(samples: Samples, share: float, seed: int = 1) -> tuple[Samples, set[int]]:
    """The samples with a share of labels turned into another class, and the rows where."""
    rng = np.random.default_rng(seed)
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


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """The concept scores of the demo."""
    folder = tmp_path_factory.mktemp("demo")
    store = extracted(phantom_study(folder / "demo", lambda attributes: None), folder / "storage")
    with open_database(store.database) as database:
        return concept_samples(database)


@pytest.mark.slow
def test_turned_labels_of_the_demo_are_listed_and_few_others(demo: Samples, record_property):
    assert len(find_label_errors(demo)) <= 2
    recalls, precisions = [], []
    for seed in range(20):
        samples, wrong = flipped(demo, 0.05, seed)
        listed = {error.id for error in find_label_errors(samples)}
        recalls.append(len(listed & wrong) / len(wrong))
        precisions.append(len(listed & wrong) / len(listed))
    record_property("recall", float(np.mean(recalls)))
    record_property("precision", float(np.mean(precisions)))
    print(f"5 % turned labels, 20 seeds: recall {np.mean(recalls):.3f}, precision {np.mean(precisions):.3f}")
    assert np.mean(recalls) >= 0.85
    assert np.mean(precisions) >= 0.85


def test_labels_in_doubt_are_those_of_cleanlab(demo: Samples):
    for seed in range(8):
        samples, _ = flipped(demo, 0.05 * (1 + seed % 4), seed)
        probabilities = out_of_fold_probabilities(samples)
        expected = find_label_issues(samples.labels, probabilities, filter_by="prune_by_class", n_jobs=1)
        assert doubtful_labels(samples.labels, probabilities).tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:May not flag all label issues:UserWarning")
def test_made_probabilities_are_counted_and_pruned_as_by_cleanlab():
    different = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        classes, rows = int(rng.integers(2, 9)), int(rng.integers(20, 400))
        labels = rng.integers(0, classes, rows)
        labels[:classes] = np.arange(classes)
        probabilities = rng.dirichlet(np.full(classes, rng.choice([0.2, 1.0])), rows)
        probabilities[np.arange(rows), labels] += rng.choice([0.2, 1.0, 3.0])
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        joint = confident_joint(labels, probabilities)
        np.fill_diagonal(joint, np.maximum(joint.diagonal(), 1))  # cleanlab believes one row of every class.
        assert joint.tolist() == compute_confident_joint(labels, probabilities, calibrate=False).tolist()
        expected = find_label_issues(labels, probabilities, filter_by="prune_by_class", n_jobs=1)
        different.append(int((doubtful_labels(labels, probabilities) != expected).sum()))
    # Where shares of a class lie halfway between two counts, one row more or less is in doubt.
    assert max(different) <= 1
    assert sum(different) <= 4


def test_a_class_of_few_rows_is_named_and_the_others_are_judged(phantoms: Samples):
    samples, wrong = flipped(phantoms, 0.05)
    first = np.flatnonzero(samples.labels == 0)
    few = samples.take(np.setdiff1d(np.arange(len(samples)), first[4:]))
    assert unjudged_classes(samples) == {}
    assert unjudged_classes(few) == {CLASSES[0]: 4}
    errors = find_label_errors(few)
    assert CLASSES[0] not in {name for error in errors for name in (error.label, error.predicted)}
    # A turned label of the class that is not judged has no right answer left to prefer.
    left = wrong & set(few.ids.tolist()) - set(np.flatnonzero(phantoms.labels == 0).tolist())
    assert len({error.id for error in errors} & left) / len(left) >= 0.85
    with pytest.raises(AnalysisError, match=r"Expected two classes of 5 rows or more to judge labels by, found \{"):
        find_label_errors(samples.take(first))


def test_few_patients_are_fewer_folds_and_one_patient_is_refused(phantoms: Samples):
    samples, wrong = flipped(phantoms, 0.05)
    patients = np.array([f"patient {row % 3}" for row in range(ROWS)], object)
    listed = {error.id for error in find_label_errors(replace(samples, groups=patients))}
    assert len(listed & wrong) / len(wrong) >= 0.85
    with pytest.raises(AnalysisError, match="Expected two groups or more"):
        find_label_errors(replace(samples, groups=np.full(ROWS, "patient", object)))


def test_a_class_of_one_patient_is_judged_without_a_guess_at_it(phantoms: Samples):
    patients = np.array([f"patient {label or row % 9}" for row, label in enumerate(phantoms.labels)], object)
    samples = replace(phantoms, groups=patients)
    assert all(error.label != error.predicted for error in find_label_errors(samples))


def test_each_label_of_several_is_judged_by_itself(phantoms: Samples):
    shown = (phantoms.features > 0.5).astype(np.int64)
    shown[:, 0] = 0
    shown[:3, 0] = 1
    turned = np.random.default_rng(0).choice(ROWS, 24, replace=False)
    shown[turned, 1] = 1 - shown[turned, 1]
    samples = replace(phantoms, labels=shown, classes=CONCEPTS)
    assert unjudged_classes(samples) == {CONCEPTS[0]: 3}
    errors = find_label_errors(samples)
    own = {error.id for error in errors if CONCEPTS[1] in (error.label, error.predicted)}
    assert len(own & set(turned.tolist())) >= 20
    assert not [error for error in errors if CONCEPTS[0] in (error.label, error.predicted)]


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


def test_a_list_of_other_fields_says_what_to_do(phantoms: Samples):
    error = vars(find_label_errors(flipped(phantoms, 0.05)[0])[0])
    for other in ({**error, "doubt": 1}, {"id": 1}):
        with pytest.raises(AnalysisError, match=r"has other fields than expected .*materialize label_errors again"):
            listed_errors({"errors": [error, other]})


def test_images_are_saved_under_rank_and_classes(phantoms: Samples, tmp_path: Path):
    errors = find_label_errors(flipped(phantoms, 0.05)[0])[:2]
    dataset = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": ROWS}, size=32))
    saved = save_label_error_images(errors, lambda error: dataset.read("train", error.id), tmp_path)
    assert saved[0].name == f"0001_{errors[0].label}_as_{errors[0].predicted}.png"
    with Image.open(saved[0]) as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(dataset.read("train", errors[0].id)))
