"""Files that were there before: taken over where they match a study, named or left out where they do not."""

from __future__ import annotations

import csv
import hashlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import ccassets
from ccassets.cli import app
from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.errors import DatabaseError, DatasetError, StorageError
from ccassets.extraction import assemble_database, extract_splits, extract_text
from ccassets.extraction.adoption import Adoption, AdoptionError, adopt
from ccassets.findings import has_errors
from ccassets.storage import Store
from ccassets.study import Study, load_study
from ccassets_tests.building import picture
from ccassets_tests.database import original_scripts

LEGACY = Path(__file__).parents[1] / "data" / "legacy"
FULL = {"train": 36, "val": 20, "test": 14}

STAND_IN = """
import hashlib

import numpy as np

from ccassets.encoders import ImageFeatures, TextFeatures
from ccassets.encoders.contract import EncoderCard


class StandIn:
    device = "cpu"

    def __init__(self, dim, tokens, **logits):
        self.card = EncoderCard(
            kind="python", weights_digest="ab" * 32, architecture={}, preprocessing={}, text_pooling="mean",
            tokenizer_digest="cd" * 32, dim=dim, token_count=tokens, image_size=8, dtype="float32", **logits,
        )

    def preprocess(self, image):
        return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255

    def encode_pixels(self, pixels):
        made = np.stack([self._vectors(image.tobytes(), 1 + self.card.token_count) for image in pixels])
        return ImageFeatures(made[:, 0], made[:, 1:] if self.card.token_count else None)

    def encode_images(self, images):
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts):
        made = np.stack([self._vectors(prompt.encode(), 5) for prompt in prompts])
        ids = np.ones((len(prompts), 4), np.int32)
        offsets = np.array([[(0, 0), (0, len(prompt)), (0, 0), (0, 0)] for prompt in prompts], np.int32)
        return TextFeatures(made[:, 0], made[:, 1:], ids, ids.astype(np.uint8), offsets)

    def _vectors(self, seed, count):
        number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "little")
        vectors = np.random.default_rng(number).standard_normal((count, self.card.dim)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
"""


def write_study(
    folder: Path,
    labels: Mapping[str, Sequence[int] | int],
    vocabulary: Mapping[str, Any],
    *,
    dim: int = 16,
    tokens: int = 9,
    pictures: Mapping[tuple[str, int], int] | None = None,
    extraction: Mapping[str, Any] | None = None,
    **logits: float,
) -> Study:
    """A study whose images lie in the order of a table; `labels` of every split, or their number where it has none.

    `pictures` gives some images the picture of another number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stand_in.py").write_text(STAND_IN)
    labelled = not any(isinstance(values, int) for values in labels.values())
    rows = []
    for split, values in labels.items():
        for number in range(values if isinstance(values, int) else len(values)):
            key = f"images/{split}-{number:03d}.png"
            path = folder / key
            path.parent.mkdir(exist_ok=True)
            picture((pictures or {}).get((split, number), len(rows))).save(path)
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
    return load_study(folder)


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


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """The study that the golden files of the original scripts were made for."""
    return write_study(
        tmp_path / "studies" / "blood",
        legacy_labels(),
        vocabulary_of(LEGACY / "legacy_good.h5"),
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
    images = extract_splits(study, study.splits)
    texts = extract_text(study)
    path = assemble_database(study).path
    assert not has_errors(validate_database(path, study=study, deep=True))
    return path, sum(part.encoded for part in images) + sum(part.encoded for part in texts)


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
        origins = {(part["origin"], part["rows"]) for part in (file.provenance or {})["parts"]}
        assert file.provenance is not None
        assert file.provenance["origin"] == "adopted"
    assert sum(rows for origin, rows in origins if origin == "extracted") == 8 + 4 + 6  # distinct sizes of parts


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
        logit_scale=4.570647716522217,
        concept_logit_bias=-11.0343017578125,
    )
    database, encoded = build(corrected)
    assert encoded == 0
    with open_database(database) as file:
        assert file.labels[5] == labels["train"][5]
