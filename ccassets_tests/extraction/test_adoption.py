"""Files that were there before: taken over where they match a study, named or left out where they do not."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import ccassets.h5
from ccassets.cli import app
from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS, validate_database
from ccassets.errors import AdoptionError, DatabaseError, DatasetError, StorageError
from ccassets.extraction import assemble_database, extract_images, extract_text
from ccassets.extraction.adoption import Adoption, adopt
from ccassets.findings import has_errors
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests import made_studies as building
from ccassets_tests.database import original_scripts
from ccassets_tests.extraction.made_parts import STAND_IN
from ccassets_tests.made_studies import picture

LEGACY = Path(__file__).parents[1] / "data" / "legacy"
FULL = {"train": 36, "val": 20, "test": 14}


def write_study(
    folder: Path,
    labels: Mapping[str, Sequence[int] | int],
    vocabulary: Mapping[str, Any],
    *,
    dim: int = 16,
    tokens: int = 9,
    equal_images: Mapping[tuple[str, int], int] | None = None,
    extraction: Mapping[str, Any] | None = None,
    features: Callable[[str, int], np.ndarray] = original_scripts.features_of,
    texts: Callable[[str], np.ndarray] = lambda text: original_scripts.features_of(text, 0),
    **logits: float,
) -> Study:
    """A study whose images lie in the order of a table; `labels` of every split, or their number where it has none.

    `equal_images` gives some rows the image of another number. `features` of split and number, and `texts` of a prompt,
    are what the encoder gives: a feature, or a feature and its tokens; else the tokens are that, as in
    `original_scripts`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    labelled = not any(isinstance(values, int) for values in labels.values())
    rows = []
    known = {}
    for split, values in labels.items():
        for number in range(values if isinstance(values, int) else len(values)):
            key = f"images/{split}-{number:03d}.png"
            path = folder / key
            path.parent.mkdir(exist_ok=True)
            image = picture((equal_images or {}).get((split, number), len(rows)))
            image.save(path)
            pixels = np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255
            vector = features(split, number)
            if vector.shape[-1] == dim:
                known.setdefault(hashlib.sha256(pixels.tobytes()).hexdigest(), vector.reshape(-1, dim))
            rows.append([key, split, *([] if isinstance(values, int) else [values[number]])])
    with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "split", *(["label"] if labelled else [])], *rows])
    attributes = {
        "dataset": {"kind": "table", "file": "table.csv", "splits": list(labels)},
        "encoder": {
            "kind": "python",
            "target": "stand_in:StandIn",
            "options": {"dim": dim, "tokens": tokens, **logits},
        },
        "vocabulary": dict(vocabulary),
        "extraction": {"batch_size": 4, "rows_per_shard": 8, **(extraction or {})},
    }
    text = yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": attributes}, allow_unicode=True)
    (folder / "defs.yaml").write_text(text, encoding="utf-8")
    study = load_study(folder)
    for template in study.vocabulary.templates().values():
        width = original_scripts.token_count(template.prompts)
        for prompt in template.prompts:
            if (vector := texts(prompt)).shape[-1] == dim:
                vectors = vector if vector.ndim == 2 else np.repeat(vector[None], 1 + width, axis=0)
                known[hashlib.sha256(prompt.encode()).hexdigest()] = vectors
    np.savez(folder / "features.npz", **known)
    return study


def vocabulary_of(path: Path) -> dict[str, Any]:
    with h5py.File(path) as file:
        lists = {
            name: json.loads(file.attrs[name])
            for name in file.attrs
            if name.endswith(("texts", "s")) and name.startswith(("label_texts", "concept_texts", "prompt_temp"))
        }
    return {
        "labels": {"words": lists["label_texts"], "templates": lists["prompt_temp_for_labels"]},
        "concepts": {"words": lists["concept_texts"], "templates": lists["prompt_temp_for_concepts"]},
    }


def legacy_labels() -> dict[str, list[int]]:
    with h5py.File(LEGACY / "legacy_good.h5") as file:
        labels, split = file["labels"][:], file["split"].asstr()[:]
    return {name: labels[split == name].tolist() for name in FULL}


def legacy_features(split: str, number: int) -> np.ndarray:
    """The features and tokens that the golden files hold for an image."""
    with h5py.File(LEGACY / "legacy_good.h5") as file:
        row = sum(list(FULL.values())[: list(FULL).index(split)]) + number
        return np.asarray([file["image_features"][row], *file["image_token_features"][row]], np.float32)


@functools.cache
def legacy_texts(prompt: str) -> np.ndarray:
    """The features and tokens that the golden files hold for a prompt."""
    with h5py.File(LEGACY / "legacy_good.h5") as file:
        for group in file["templates"].values():
            texts = group["texts"].asstr()[:].tolist()
            if prompt in texts:
                row = texts.index(prompt)
                return np.asarray([group["text_features"][row], *group["text_token_features"][row]], np.float32)
    raise KeyError(prompt)


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The study that the golden files of the original scripts were made for."""
    return write_study(
        tmp_path / "studies" / "blood",
        legacy_labels(),
        vocabulary_of(LEGACY / "legacy_good.h5"),
        features=legacy_features,
        texts=legacy_texts,
        logit_scale=4.570647716522217,
        concept_logit_bias=-11.0343017578125,
    )


def checks(error: AdoptionError | Adoption) -> set[str]:
    return {finding.check for finding in error.findings if finding.severity == "error"}


def refused(path: Path, study: Study, **arguments: Any) -> set[str]:
    """The checks that refuse a file; nothing may have been written."""
    with pytest.raises(AdoptionError) as caught:
        adopt(path, study, **arguments)
    assert not list(Store.of(study).root.glob("features/**/*.h5"))
    return checks(caught.value)


def taken(adoption: Adoption) -> dict[str, int]:
    return {split.split: split.taken for split in adoption.splits}


def missing(adoption: Adoption) -> dict[str, list[int]]:
    return {split.split: split.missing.tolist() for split in adoption.splits if len(split.missing)}


def build(study: Study) -> tuple[Path, int]:
    """The study's database by the library's steps, and how many images and prompts were encoded for it."""
    images = extract_images(study, study.splits)
    texts = extract_text(study)
    path = assemble_database(study).path
    assert not has_errors(validate_database(path, study=study, deep=True))
    return path, images.encoded + sum(part.encoded for part in texts)


def assert_equal(path: Path, original: Path, rows: slice = slice(None)) -> None:
    """Features, tokens, labels, splits and texts of a database are those of an original file."""
    with open_database(path) as ours, h5py.File(original) as theirs:
        for name in ("image_features", "image_token_features", "labels"):
            np.testing.assert_array_equal(getattr(ours, name)[rows], theirs[name][rows])
        assert ours.split[rows].tolist() == theirs["split"].asstr()[rows].tolist()
        assert set(ours.templates) == set(theirs["templates"])
        for template_id, group in theirs["templates"].items():
            template = ours.templates[template_id]
            assert template.texts == group["texts"].asstr()[:].tolist()
            np.testing.assert_array_equal(template.text_features, group["text_features"][:])
            np.testing.assert_array_equal(template.text_token_features, group["text_token_features"][:])
            assert template.attributes["texts_hash"] == group.attrs["texts_hash"]


# --- the golden files ---------------------------------------------------------------------------------


def test_a_finished_file_becomes_the_database_and_nothing_is_encoded(study: Study) -> None:
    before = (LEGACY / "legacy_good.h5").read_bytes()
    adoption = adopt(LEGACY / "legacy_good.h5", study)

    assert taken(adoption) == FULL
    assert missing(adoption) == {}
    assert len(adoption.templates) == 12
    assert adoption.matched_by == "position and label"
    database, encoded = build(study)
    assert encoded == 0
    assert_equal(database, LEGACY / "legacy_good.h5")
    assert (LEGACY / "legacy_good.h5").read_bytes() == before


def test_every_part_tells_where_it_came_from(study: Study) -> None:
    adopt(LEGACY / "legacy_good.h5", study)

    parts = sorted(Store.of(study).root.glob("features/*/*/*.h5"))
    assert len(parts) == 5 + 3 + 2 + 12
    for path in parts:
        assert validate_database(path, deep=True) == []
        with open_database(path) as part:
            record = part.provenance
            assert len(part) <= 8
        assert record is not None
        assert record["origin"] == "adopted"
        assert record["source"]["name"] == "legacy_good.h5"
        assert record["source"]["sha256"] == hashlib.sha256((LEGACY / "legacy_good.h5").read_bytes()).hexdigest()
        assert record["source"]["attributes"]["created_at"] == "2026-11-24 06:13:08"
        assert record["source"]["attributes"]["split_counts"] == FULL
        assert record["matched_by"] == ("prompts" if path.parent.name == "templates" else "position and label")
        assert record["repaired"] is False
    database, _ = build(study)
    with open_database(database) as file:
        assert file.provenance is not None
        assert file.provenance["origin"] == "adopted"
        assert {part["origin"] for part in file.provenance["parts"]} == {"adopted"}
        assert {template["origin"] for template in file.provenance["templates"].values()} == {"adopted"}


def test_a_resumed_file_is_refused_and_repaired_to_the_rows_of_the_finished_one(study: Study) -> None:
    path = LEGACY / "legacy_duplicated.h5"
    assert refused(path, study) == {"doubled_rows", "split_counts", "contiguous_splits"}

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == FULL
    database, encoded = build(study)
    assert encoded == 0
    assert_equal(database, LEGACY / "legacy_good.h5")


def test_a_stopped_file_keeps_its_rows_and_names_the_rest(study: Study) -> None:
    path = LEGACY / "legacy_partial.h5"
    assert refused(path, study) == {"stopped_extraction", "study_splits", "data_set_rows"}

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 36, "val": 8, "test": 0}
    assert missing(adoption) == {"val": list(range(8, 20)), "test": list(range(14))}
    assert adoption.splits[1].missing_keys[0] == "images/val-008.png"
    database, encoded = build(study)
    assert encoded == 12 + 14
    assert_equal(database, path, slice(0, 44))
    with open_database(database) as file:
        assert file.provenance is not None
        assert file.provenance["origin"] == "adopted"
        rows = {"adopted": 0, "extracted": 0}
        for part in file.provenance["parts"]:
            rows[part["origin"]] += part["rows"]
    assert rows == {"adopted": 44, "extracted": 26}


@pytest.mark.parametrize("name", ["legacy_no_labels", "legacy_no_labels_zero"])
def test_a_file_without_labels_is_refused_and_takes_those_of_the_data_set(name: str, study: Study) -> None:
    path = LEGACY / f"{name}.h5"
    assert refused(path, study) == {"missing_labels" if name == "legacy_no_labels" else "data_set_labels"}

    adoption = adopt(path, study, repair=True)
    assert adoption.matched_by == "position"
    database, encoded = build(study)
    assert encoded == 0
    assert_equal(database, LEGACY / "legacy_good.h5")


def test_a_second_adoption_takes_nothing_over(study: Study) -> None:
    adopt(LEGACY / "legacy_partial.h5", study, repair=True)
    adoption = adopt(LEGACY / "legacy_duplicated.h5", study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 12, "test": 14}
    assert adoption.templates == []
    assert taken(adopt(LEGACY / "legacy_good.h5", study)) == {"train": 0, "val": 0, "test": 0}
    database, encoded = build(study)
    assert encoded == 0
    assert_equal(database, LEGACY / "legacy_good.h5")


def test_labels_corrected_after_adoption_cost_nothing(study: Study, tmp_path: Path) -> None:
    adopt(LEGACY / "legacy_good.h5", study)
    labels = legacy_labels()
    labels["train"][5] = (labels["train"][5] + 1) % 8
    corrected = write_study(
        tmp_path / "studies" / "corrected",
        labels,
        vocabulary_of(LEGACY / "legacy_good.h5"),
        features=legacy_features,
        texts=legacy_texts,
        logit_scale=4.570647716522217,
        concept_logit_bias=-11.0343017578125,
    )
    database, encoded = build(corrected)
    assert encoded == 0
    with open_database(database) as file:
        assert file.labels[5] == labels["train"][5]


# --- other files of the original scripts --------------------------------------------------------------

SMALL = {"train": 12, "val": 7, "test": 5}
RESUMES: Mapping[str, tuple[list[dict[str, int]], Mapping[str, int] | None]] = {
    "in the first split": ([{"train": 8}, SMALL], SMALL),
    "after one row": ([{"train": 1}, SMALL], SMALL),
    "before the second split": ([{"train": 12}, SMALL], SMALL),
    "in the last split": ([{"train": 12, "val": 7, "test": 3}, SMALL], SMALL),
    "twice, the second time later": ([{"train": 4}, {"train": 8}, SMALL], SMALL),
    "twice, the second time earlier": ([{"train": 8}, {"train": 4}, SMALL], SMALL),
    "twice in different splits": ([{"train": 8}, {"train": 12, "val": 4}, SMALL], SMALL),
    "when finished": ([SMALL, SMALL], SMALL),
    "when finished, and stopped again": ([SMALL, {"train": 8}], SMALL),
    "and stopped": ([{"train": 12, "val": 4}, {"train": 12, "val": 6}], None),
    "and stopped in the first split": ([{"train": 4}, {"train": 8}], None),
}


def labels_of(splits: Mapping[str, int]) -> dict[str, list[int]]:
    """The labels that `original_scripts.append` gives the images of every split."""
    return {split: [1 + image % 2 for image in range(rows)] for split, rows in splits.items()}


def small_vocabulary(**changes: Any) -> dict[str, Any]:
    sections = {
        "labels": {"words": original_scripts.LABELS, "templates": original_scripts.LABEL_TEMPLATES},
        "concepts": {"words": original_scripts.CONCEPTS, "templates": original_scripts.CONCEPT_TEMPLATES},
    }
    return {**sections, **changes}


def small_study(folder: Path, splits: Mapping[str, int] = SMALL, **arguments: Any) -> Study:
    """The study of files that `original_scripts` writes."""
    arguments.setdefault("labels", labels_of(splits))
    arguments.setdefault("vocabulary", small_vocabulary())
    return write_study(folder / "studies" / "small", tokens=original_scripts.TOKENS, **arguments)


def finished(path: Path, splits: Mapping[str, int] = SMALL) -> Path:
    return original_scripts.write_runs(path, [splits], splits)


def assert_right(study: Study, adoption: Adoption, noise: float = 0.0) -> None:
    """Every row that was taken over has the features of its own image, and no other row has any."""
    left = missing(adoption)
    store = Store.of(study)
    features = {}
    for path in store.root.glob("features/*/rows/*.h5"):
        with open_database(path) as part:
            assert part.keys is not None
            features |= dict(zip(part.keys.tolist(), np.asarray(part.image_features, np.float32), strict=True))
    for split in adoption.splits:
        for image in range(split.rows):
            key = f"images/{split.split}-{image:03d}.png"
            assert (key in features) == (image not in left.get(split.split, [])), key
            if key in features:
                expected = original_scripts.features_of(split.split, image)
                np.testing.assert_allclose(features[key], expected, atol=2e-3 + noise)


@pytest.mark.parametrize("name", RESUMES)
def test_a_resume_leaves_every_image_once(name: str, tmp_path: Path) -> None:
    runs, counts = RESUMES[name]
    study = small_study(tmp_path)
    path = original_scripts.write_runs(tmp_path / "old.h5", runs, counts, noise=2e-4)
    assert "doubled_rows" in refused(path, study)

    adoption = adopt(path, study, repair=True)
    rows = {split: max(run.get(split, 0) for run in runs) for split in SMALL}
    assert taken(adoption) == rows
    assert missing(adoption) == {
        split: list(range(rows[split], SMALL[split])) for split in SMALL if rows[split] < SMALL[split]
    }
    assert_right(study, adoption)


def test_splits_and_words_may_be_in_any_language(tmp_path: Path) -> None:
    splits = {"训练 集": 5, "LIDC-IDRI-0001_0": 1, "prüfung": 3}
    study = small_study(tmp_path, splits)
    adoption = adopt(finished(tmp_path / "旧 文件.h5", splits), study)

    assert taken(adoption) == splits
    assert_right(study, adoption)
    _, encoded = build(study)
    assert encoded == 0


def test_many_splits_are_taken_over(tmp_path: Path) -> None:
    splits = {f"LIDC-IDRI-{number:04d}_0": 1 + number % 3 for number in range(80)}
    study = small_study(tmp_path, splits)
    assert taken(adopt(finished(tmp_path / "old.h5", splits), study)) == splits


@pytest.mark.parametrize(
    "first",
    [{"train": 8}, {"train": 12, "val": 4}, {"train": 12, "val": 7, "test": 2}],
    ids=["in the first split", "in the second split", "in the last split"],
)
def test_a_complete_last_run_is_kept_whatever_stood_before_it(first: dict[str, int], tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with original_scripts.start(tmp_path / "old.h5") as file:
        original_scripts.write_all_templates(file)
        for split, rows in first.items():  # The data set had other images then.
            original_scripts.append(file, split, range(100, 100 + rows))
        for split, rows in SMALL.items():
            original_scripts.append(file, split, range(rows))
        original_scripts.finish(file, SMALL)
    assert "split_counts" in refused(tmp_path / "old.h5", study)

    adoption = adopt(tmp_path / "old.h5", study, repair=True)
    assert taken(adoption) == SMALL
    assert_right(study, adoption)


def test_a_last_run_that_is_not_complete_is_not_kept(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with original_scripts.start(tmp_path / "old.h5") as file:
        original_scripts.write_all_templates(file)
        original_scripts.append(file, "train", range(100, 108))
        for split, rows in {**SMALL, "train": 11}.items():
            original_scripts.append(file, split, range(rows))
        original_scripts.finish(file, SMALL)
    adoption = adopt(tmp_path / "old.h5", study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}


# --- torn, foreign and unsound rows -------------------------------------------------------------------


def with_torn_rows(path: Path, batches: Sequence[tuple[str, Sequence[int], bool]], counts: Any = SMALL) -> Path:
    """A file of batches (split, images, torn)."""
    with original_scripts.start(path) as file:
        original_scripts.write_all_templates(file)
        for split, images, torn in batches:
            original_scripts.append(file, split, images, torn=torn)
        if counts:
            original_scripts.finish(file, counts)
    return path


TORN: Mapping[str, tuple[list[tuple[str, Sequence[int], bool]], Mapping[str, int]]] = {
    "then the batch again": (
        [("train", range(8), False), ("train", range(8, 12), True), ("train", range(8, 12), False)],
        {"train": 12},
    ),
    "then the next batch": (
        [("train", range(4), False), ("train", range(4, 8), True), ("train", range(8, 12), False)],
        {"train": 8},
    ),
    "at the end of its split": ([("train", range(8), False), ("train", range(8, 12), True)], {"train": 8}),
    "at the end of the file": (
        [("train", range(12), False), ("val", range(4), False), ("val", range(4, 7), True)],
        {"train": 12, "val": 4},
    ),
    "then everything again": (
        [("train", range(8), False), ("train", range(8, 12), True), ("train", range(12), False)],
        {"train": 12},
    ),
}


@pytest.mark.parametrize("name", TORN)
def test_torn_rows_are_left_out_and_shift_no_others(name: str, tmp_path: Path) -> None:
    batches, expected = TORN[name]
    complete = all(split != "val" for split, _, _ in batches)
    if complete:
        batches = [*batches, ("val", range(7), False), ("test", range(5), False)]
    study = small_study(tmp_path)
    path = with_torn_rows(tmp_path / "old.h5", batches, SMALL if complete else None)
    assert "torn_rows" in refused(path, study)

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"val": 7, "test": 5, **expected} if complete else {**expected, "test": 0}
    assert_right(study, adoption)


def test_rows_of_other_splits_are_left_out(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5", {"train": 12, "extra": 4, "val": 7, "test": 5})
    assert "foreign_split" in refused(path, study)

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == SMALL
    assert_right(study, adoption)


def test_unsound_rows_are_encoded_again(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        file["image_features"][2, 3] = np.nan
        file["image_token_features"][4] = 0
        file["image_features"][13] *= 2
    assert refused(path, study) == {"finite", "zero_rows", "norms"}

    adoption = adopt(path, study, repair=True)
    assert missing(adoption) == {"train": [2, 4], "val": [1]}
    assert_right(study, adoption)
    _, encoded = build(study)
    assert encoded == 3


def test_a_row_whose_copy_is_sound_is_taken_from_there(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = original_scripts.write_runs(tmp_path / "old.h5", [{"train": 12, "val": 4}, SMALL], SMALL)
    with h5py.File(path, "r+") as file:
        file["image_features"][0, 0] = np.inf
        file["image_features"][11] = 0
        file["image_features"][15, 2] = np.nan
        file["image_features"][16 + 5] = 0
    adoption = adopt(path, study, repair=True)
    assert missing(adoption) == {}
    assert_right(study, adoption)


def test_copies_that_contradict_each_other_are_both_left_out(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = original_scripts.write_runs(tmp_path / "old.h5", [{"train": 12, "val": 4}, SMALL], SMALL)
    with h5py.File(path, "r+") as file:
        file["image_features"][3] = file["image_features"][4]
    adoption = adopt(path, study, repair=True)
    assert missing(adoption) == {"train": [3]}
    assert "equal_images" in checks(adoption)
    assert_right(study, adoption)


def test_rows_behind_broken_bytes_are_encoded_again(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path) as file:
        chunk = file["image_token_features"].id.get_chunk_info(1)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset : chunk.byte_offset + chunk.size] = b"\xff" * chunk.size
    path.write_bytes(content)
    assert "unreadable_rows" in refused(path, study)

    adoption = adopt(path, study, repair=True)
    assert missing(adoption) == {"train": [4, 5, 6, 7]}
    assert_right(study, adoption)


# --- files of another data set ------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [11, 13])
def test_a_split_of_another_size_is_not_taken_over(rows: int, tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5", {**SMALL, "train": rows})
    assert refused(path, study) == {"data_set_rows"}

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def test_a_short_split_before_the_one_that_was_stopped_is_not_taken_over(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = original_scripts.write_runs(tmp_path / "old.h5", [{"train": 11, "val": 4}], None)
    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 4, "test": 0}


def test_a_split_in_another_order_is_not_taken_over(tmp_path: Path) -> None:
    # The first image is missing, and there is one more at the end: half of the labels are right by accident.
    labels = {**labels_of(SMALL), "train": [1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2]}
    study = small_study(tmp_path, labels=labels)
    with original_scripts.start(tmp_path / "old.h5") as file:
        original_scripts.write_all_templates(file)
        original_scripts.append(file, "train", range(1, 13), labels=[*labels["train"][1:], 1])
        original_scripts.append(file, "val", range(7))
        original_scripts.append(file, "test", range(5))
        original_scripts.finish(file, SMALL)
    with pytest.raises(AdoptionError, match="found others in 6 of 12 rows of 'train'"):
        adopt(tmp_path / "old.h5", study)

    adoption = adopt(tmp_path / "old.h5", study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def test_equal_pictures_with_different_features_show_that_the_order_is_wrong(tmp_path: Path) -> None:
    study = small_study(tmp_path, equal_images={("train", 3): 1})
    path = finished(tmp_path / "old.h5")
    assert refused(path, study) == {"equal_images"}
    adoption = adopt(path, study, repair=True)
    assert missing(adoption) == {"train": [1]}  # and with it the equal row 3


def test_equal_pictures_are_taken_over_once(tmp_path: Path) -> None:
    study = small_study(tmp_path, equal_images={("train", 3): 1, ("val", 0): 1})
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features"):
            for row in (3, 12):
                file[name][row] = file[name][1]
    assert taken(adopt(path, study)) == {"train": 11, "val": 6, "test": 5}
    _, encoded = build(study)
    assert encoded == 0


def test_a_picture_of_two_splits_is_not_taken_over_if_the_order_of_one_is_wrong(tmp_path: Path) -> None:
    study = small_study(tmp_path, equal_images={("val", 0): 1})
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features"):
            file[name][12] = file[name][1]
            file[name][2:12] = file[name][2:12][::-1]
    assert refused(path, study) == {"row_order"}

    adoption = adopt(path, study, repair=True)

    assert taken(adoption) == {"train": 0, "val": 6, "test": 5}
    assert missing(adoption)["val"] == [0]
    assert_right(study, adoption)


def test_a_data_set_without_labels_is_told_by_position(tmp_path: Path) -> None:
    study = small_study(tmp_path, labels=SMALL)
    with original_scripts.start(tmp_path / "old.h5") as file:
        original_scripts.write_all_templates(file)
        for split, rows in SMALL.items():
            original_scripts.append(file, split, range(rows), labels=[0] * rows)
        original_scripts.finish(file, SMALL)
    adoption = adopt(tmp_path / "old.h5", study)
    assert adoption.matched_by == "position"
    assert_right(study, adoption)


def test_a_study_with_a_limit_takes_its_own_rows(tmp_path: Path) -> None:
    study = small_study(tmp_path, extraction={"limit": 3})
    path = finished(tmp_path / "old.h5")
    assert refused(path, study) == {"study_limit"}
    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 3, "val": 3, "test": 3}
    with open_database(build(study)[0]) as file:
        assert file.keys is not None
        for key, features in zip(file.keys.tolist(), np.asarray(file.image_features, np.float32), strict=True):
            split, image = key.removeprefix("images/").removesuffix(".png").split("-")
            np.testing.assert_allclose(features, original_scripts.features_of(split, int(image)), atol=2e-3)


def test_an_image_that_cannot_be_read_any_more_shifts_no_others(tmp_path: Path) -> None:
    for choice in ("skip", "blank"):
        study = small_study(tmp_path / choice, extraction={"on_bad_image": choice})
        (study.folder / "images" / "train-002.png").write_bytes(b"no picture")
        store = Store.of(study, tmp_path / choice / "storage")
        adoption = adopt(finished(tmp_path / "old.h5"), study, store=store)
        assert taken(adoption) == {**SMALL, "train": 11}
        assert missing(adoption) == ({} if choice == "skip" else {"train": [2]})


# --- templates ----------------------------------------------------------------------------------------


def test_templates_that_are_wrong_are_encoded_again(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        templates = file["templates"]
        templates["concept_prompts_t01"].attrs["texts_hash"] = "0" * 64
        templates["concept_prompts_t02/texts"][0] = "something else"
        templates["label_prompts_t01/text_features"][1] = np.nan
        original_scripts.write_templates(file, {"concept_prompts_t04": ["left over"]})
    assert {"texts_hash", "texts", "finite", "study_vocabulary"} <= refused(path, study)

    adoption = adopt(path, study, repair=True)
    assert sorted(adoption.templates) == ["concept_prompts_t03", "label_prompts_t02"]
    assert set(adoption.missing_templates) == {"concept_prompts_t01", "concept_prompts_t02", "label_prompts_t01"}
    _, encoded = build(study)
    assert encoded == 4 + 4 + 3


def test_a_stale_template_is_a_warning_and_is_left_out(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        original_scripts.write_templates(file, {"label_prompts_t03": ["a", "b", "c"]})
    adoption = adopt(path, study)
    assert {finding.check for finding in adoption.findings} == {"no_provenance", "no_digests", "stale_template"}
    with open_database(build(study)[0]) as file:
        assert len(file.templates) == 5


def test_a_template_is_found_by_its_prompts_whatever_its_number(tmp_path: Path) -> None:
    turned = {"words": original_scripts.CONCEPTS, "templates": original_scripts.CONCEPT_TEMPLATES[::-1]}
    study = small_study(tmp_path, vocabulary=small_vocabulary(concepts=turned))
    path = finished(tmp_path / "old.h5")
    assert refused(path, study) == {"study_vocabulary"}
    adopt(path, study, repair=True)
    database, encoded = build(study)
    assert encoded == 0
    with open_database(database) as file:
        expected = [original_scripts.features_of(f"a cell with {word}", 0) for word in original_scripts.CONCEPTS]
        np.testing.assert_array_equal(file.templates["concept_prompts_t03"].text_features, np.stack(expected))


def test_a_changed_word_leaves_the_images_and_the_other_templates(tmp_path: Path) -> None:
    words = {"words": [*original_scripts.CONCEPTS[:-1], "rod"], "templates": original_scripts.CONCEPT_TEMPLATES}
    study = small_study(tmp_path, vocabulary=small_vocabulary(concepts=words))
    path = finished(tmp_path / "old.h5")
    assert refused(path, study) == {"study_vocabulary"}
    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == SMALL
    assert adoption.templates == ["label_prompts_t01", "label_prompts_t02"]


def test_a_text_only_file_gives_its_templates(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features", "ids", "labels", "split"):
            del file[name]
        for name in ("D", "T_img", "split_counts"):
            del file.attrs[name]
        file.attrs["version"] = "text-only-1.0"
    assert refused(path, study) == {"study_splits"}
    adoption = adopt(path, study, repair=True)
    assert len(adoption.templates) == 5
    assert taken(adoption) == {"train": 0, "val": 0, "test": 0}


def test_a_text_only_file_lacks_no_template_that_it_holds_under_another_id(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features", "ids", "labels", "split"):
            del file[name]
        for name in ("D", "T_img", "split_counts"):
            del file.attrs[name]
        file.attrs["version"] = "text-only-1.0"
        for name in list(file["templates"]):
            file["templates"].move(name, f"my_{name}")
    assert not has_errors(validate_database(path))
    assert len(adopt(path, study, repair=True).templates) == 5
    with h5py.File(path, "r+") as file:
        del file["templates/my_concept_prompts_t02"]
    assert {finding.check for finding in validate_database(path) if finding.severity == "error"} == {"missing_template"}


# --- the encoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dim": 12}, "expected D = 12, the encoder's, found 16"),
        ({"tokens": 4}, "expected T_img = 4, the encoder's, found 9"),
        ({"tokens": 0}, "expected T_img = 0, the encoder's, found 9"),
        ({"logit_scale": 4.6052}, "expected 4.6052, the encoder's, found 4.57065"),
        ({"extraction": {"strict": True}}, "the file records none"),
    ],
    ids=["dim", "patches", "no patches", "logit scale", "strict"],
)
def test_features_of_another_encoder_are_refused_whatever_is_asked(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    study = write_study(tmp_path / "blood", legacy_labels(), vocabulary_of(LEGACY / "legacy_good.h5"), **changes)
    for repair in (False, True):
        with pytest.raises(AdoptionError, match="made with another encoder") as caught:
            adopt(LEGACY / "legacy_good.h5", study, repair=repair)
        assert any(said in finding.message for finding in caught.value.findings)


@pytest.fixture
def study_of_weights(tmp_path: Path, image_folder: Path, weights: Path) -> Study:
    """A study of the golden ConceptCLIP, whose tokenizer is at hand."""
    return building.write_study(tmp_path / "studies" / "cells", images=image_folder, encoder=weights)


def as_original(parts: Sequence[Path], path: Path, shorter: int = 0) -> dict[str, int]:
    """A text-only file of the original scripts with the templates of our parts, which are moved out of the way.

    Tokens are cut to the longest prompt, as theirs are; the T_txt of every template.
    """
    widths = {}
    with h5py.File(path, "w") as file:
        file.attrs["version"] = "text-only-1.0"
        for source in parts:
            with open_database(source) as part:
                (template,) = part.templates.values()
                assert template.attention_mask is not None
                assert template.text_token_features is not None
                width = int(template.attention_mask.sum(axis=1).max()) - shorter
                group = file.create_group(f"templates/{template.template_id}")
                group["text_features"] = template.text_features
                group["text_token_features"] = template.text_token_features[:, :width]
                group.create_dataset("texts", data=np.array(template.texts, object), dtype=h5py.string_dtype())
                group.attrs["texts_hash"] = template.attributes["texts_hash"]
                widths[template.template_id] = width
            source.rename(source.with_suffix(".encoded"))
    return widths


def test_tokens_of_the_prompts_are_added_where_the_tokenizer_is_at_hand(study_of_weights: Study) -> None:
    encoded = {done.template_id: done.part for done in extract_text(study_of_weights)}
    widths = as_original(list(encoded.values()), study_of_weights.folder / "old.h5")
    assert len(set(widths.values())) > 1

    assert len(adopt(study_of_weights.folder / "old.h5", study_of_weights, repair=True).templates) == len(encoded)
    for template_id, path in encoded.items():
        with open_database(path) as part, open_database(path.with_suffix(".encoded")) as original:
            ours, theirs = part.templates[template_id], original.templates[template_id]
            width = widths[template_id]
            assert theirs.input_ids is not None
            assert theirs.attention_mask is not None
            np.testing.assert_array_equal(ours.input_ids, theirs.input_ids[:, :width])
            np.testing.assert_array_equal(ours.attention_mask, theirs.attention_mask[:, :width])
            np.testing.assert_array_equal(ours.subject_span, theirs.subject_span)
        assert {finding.check for finding in validate_database(path, deep=True)} <= {"random_weights"}


def test_prompts_that_were_tokenized_otherwise_get_no_tokens(study_of_weights: Study) -> None:
    encoded = extract_text(study_of_weights)
    as_original([done.part for done in encoded], study_of_weights.folder / "old.h5", shorter=1)
    adopt(study_of_weights.folder / "old.h5", study_of_weights, repair=True)
    for done in encoded:
        with open_database(done.part) as part:
            (template,) = part.templates.values()
            assert template.text_token_features is not None
            assert template.input_ids is None
            assert template.subject_span is None


# --- our own files ------------------------------------------------------------------------------------


def test_our_own_database_is_told_by_its_image_digests(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    database, _ = build(study)
    path = tmp_path / "elsewhere.h5"
    shutil.copy(database, path)
    shutil.rmtree(Store.of(study).root)

    adoption = adopt(path, study)
    assert adoption.matched_by == "image digest"
    assert taken(adoption) == SMALL
    again, encoded = build(study)
    assert encoded == 0
    with open_database(path) as before, open_database(again) as after:
        np.testing.assert_array_equal(before.image_token_features, after.image_token_features)
        for name, template in before.templates.items():
            np.testing.assert_array_equal(template.input_ids, after.templates[name].input_ids)
            np.testing.assert_array_equal(template.subject_span, after.templates[name].subject_span)
        assert before.provenance is not None
        assert after.provenance is not None
        assert before.provenance["digests"] == after.provenance["digests"]


def test_our_own_rows_are_found_again_in_other_splits_but_not_when_changed(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = tmp_path / "elsewhere.h5"
    shutil.copy(build(study)[0], path)
    shutil.rmtree(Store.of(study).root)
    rows = (study.folder / "table.csv").read_text(encoding="utf-8").splitlines()
    (study.folder / "table.csv").write_text(
        "\n".join([rows[0], *sorted(rows[1:], reverse=True)]).replace(",val,", ",test,"), encoding="utf-8"
    )
    (study.folder / "images" / "train-004.png").unlink()
    picture(999).save(study.folder / "images" / "train-004.png")
    text = yaml.safe_load((study.folder / "defs.yaml").read_text(encoding="utf-8"))
    text["attributes"]["dataset"]["splits"] = ["train", "test"]
    (study.folder / "defs.yaml").write_text(yaml.safe_dump(text, allow_unicode=True), encoding="utf-8")
    study = load_study(study.folder)
    with h5py.File(path, "r+") as file:
        file["image_features"][0, 0] += np.float16(1e-3)
    assert {"feature_digest", "foreign_split", "data_set_rows"} <= refused(path, study)

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 10, "test": 12}
    assert adoption.splits[0].missing_keys == ["images/train-004.png", "images/train-000.png"]


def test_our_own_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = tmp_path / "elsewhere.h5"
    shutil.copy(build(study)[0], path)
    other = small_study(tmp_path, logit_bias=-10.0)
    with pytest.raises(AdoptionError, match="encoder identity"):
        adopt(path, other, repair=True)


def test_a_growing_file_is_told_by_position(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = tmp_path / "growing.h5"
    with ccassets.h5.init_file(path, 16, 3) as file:
        for split, rows in SMALL.items():
            if split == "val":
                rows = 4
            features = np.stack([original_scripts.features_of(split, image) for image in range(rows)])
            tokens = np.repeat(features[:, None], 3, axis=1)
            ccassets.h5.append_batch(file, features, tokens, None, split, labels_of({split: rows})[split])
            if split == "val":
                break
    adoption = adopt(path, study, repair=True)
    assert taken(adoption)["train"] == 12
    assert_right(study, adoption)


PAGE = Path(__file__).parents[2] / "docs" / "adopt.md"


def test_the_page_names_only_checks_there_are_and_its_example_runs(
    study: Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?)(?::| \|)", text, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} <= set(CHECKS)
    assert len(rows) >= 8

    monkeypatch.chdir(study.folder)
    shutil.copy(LEGACY / "legacy_partial.h5", "old.h5")
    study.folder.rename(study.folder.with_name("bloodmnist"))
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, PAGE.name, "exec"), {})
    assert capsys.readouterr().out.startswith("train 36 []\nval 8 ['images/val-008.png'")


# --- what stands around it ----------------------------------------------------------------------------


def test_private_details_of_the_file_are_not_recorded(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["data_root"] = "/home/somebody/images"
        file.attrs["batch"] = 64
        file.attrs["loss"] = np.nan
        file.attrs["hf_token"] = "hf_" + "a" * 30
    adopt(path, study)
    for part in Store.of(study).root.glob("features/*/*/*.h5"):
        assert b"somebody" not in part.read_bytes()
        with open_database(part) as opened:
            assert opened.provenance is not None
            source = opened.provenance["source"]
        assert source["left_out"] == ["data_root", "hf_token", "loss"]
        assert source["attributes"]["batch"] == 64


def test_without_the_images_it_says_what_to_do(study: Study) -> None:
    shutil.rmtree(study.folder / "images")
    with pytest.raises(DatasetError, match=r"digests of their images.*Make the data set readable first"):
        adopt(LEGACY / "legacy_good.h5", study)


@pytest.mark.parametrize("content", [None, b"", b"not HDF5", (LEGACY / "legacy_good.h5").read_bytes()[:9000]])
def test_a_file_that_cannot_be_read_is_another_matter(content: bytes | None, study: Study, tmp_path: Path) -> None:
    path = tmp_path / "file.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatabaseError):
        adopt(path, study)
    result = CliRunner().invoke(app, ["adopt", str(path), str(study.folder)])
    assert isinstance(result.exception, DatabaseError)


def test_a_file_of_something_else_holds_nothing_to_keep(study: Study, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "file.h5", "w") as file:
        file["weights"] = np.ones(3)
    for repair in (False, True):
        with pytest.raises(AdoptionError):
            adopt(tmp_path / "file.h5", study, repair=repair)


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 100))
    with pytest.raises(StorageError, match="Adopting 70 rows of"):
        adopt(LEGACY / "legacy_good.h5", study)
    assert not list(Store.of(study).root.glob("features/**/*.h5"))


MEASURE = """
import resource, sys
from pathlib import Path
from ccassets.extraction.adoption import adopt
from ccassets.study.loading import load_study
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
adopt(sys.argv[1], load_study(sys.argv[2]), repair=True)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for factor in (1, 4):
        splits = {"train": 64 * factor}
        folder = tmp_path / str(factor)
        study = write_study(folder, labels_of(splits), small_vocabulary(), dim=16, tokens=4096)
        path = folder / "old.h5"
        with original_scripts.start(path) as file:
            del file["image_token_features"]
            shape = (splits["train"], 4096, 16)
            tokens = file.create_dataset("image_token_features", shape, "f2", chunks=(4, 4096, 16), compression="lzf")
            features = np.stack([original_scripts.features_of("train", image) for image in range(shape[0])])
            for first in range(0, shape[0], 64):
                noise = np.random.default_rng(first).standard_normal((64, 4096, 16)) / 100
                tokens[first : first + 64] = features[first : first + 64, None] + noise
            for name in ("image_features", "ids", "labels", "split"):
                file[name].resize(shape[0], axis=0)
            file["image_features"][:] = features
            file["ids"][:] = range(shape[0])
            file["labels"][:] = labels_of(splits)["train"]
            file["split"][:] = ["train"] * shape[0]
            file.attrs["T_img"] = 4096
        command = [sys.executable, "-c", MEASURE, str(path), str(study.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        assert sum(part.stat().st_size for part in Store.of(study).root.glob("features/*/rows/*.h5")) > 8 << 20
    assert peaks[1] - peaks[0] < 8 << 10  # KiB; the files are 8 and 34 MB


# --- the command, and the build after it --------------------------------------------------------------


def test_the_command_prints_every_finding_and_what_is_left(study: Study) -> None:
    command = ["adopt", str(LEGACY / "legacy_partial.h5"), str(study.folder)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    for check in ("stopped_extraction", "data_set_rows", "no_provenance"):
        assert check in result.stdout
    assert "`--repair` keeps what is provably right" in result.stderr

    result = CliRunner().invoke(app, [*command, "--repair"])
    assert result.exit_code == 0
    assert "imported: 44 rows (matched by position and label) and 12 templates" in result.stdout
    assert "  train: 36 of 36 rows imported\n" in result.stdout
    assert (
        "  val: 8 of 20 rows imported; the next build encodes rows 8-19 "
        "(12 images: images/val-008.png … images/val-019.png)\n"
    ) in result.stdout


@pytest.mark.slow
def test_a_build_through_dagster_shows_what_was_adopted(study: Study) -> None:
    from ccassets.orchestration.build import run_build
    from ccassets.orchestration.instance import dagster_instance
    from ccassets.orchestration.names import asset_key

    adopt(LEGACY / "legacy_partial.h5", study, repair=True)
    built = run_build(study)
    assert built.path is not None
    assert_equal(built.path, LEGACY / "legacy_partial.h5", slice(0, 44))
    with dagster_instance() as instance:
        rows = {}
        for split in study.splits:
            record = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key(study, "image_features"), asset_partitions=[split]), limit=1
            ).records[0]
            metadata = record.asset_materialization.metadata
            rows[split] = metadata["adopted"].value, metadata["encoded"].value
        event = instance.get_latest_materialization_event(asset_key(study, "template_features", "label_prompts_t01"))
    assert rows == {"train": (36, 0), "val": (8, 12), "test": (0, 14)}
    assert event.asset_materialization.metadata["origin"].value == "adopted"
    assert run_build(study).materialized == []
