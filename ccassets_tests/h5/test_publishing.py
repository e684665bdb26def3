"""A growing file is published whole, contiguous and valid; templates are removed on purpose only."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets import CcassetsError
from ccassets.database.feature_digests import feature_digests
from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.h5 import (
    access_batch,
    append_batch,
    clear_all_templates,
    encode_and_store_image_features,
    finalize,
    get_template_names,
    init_file,
    run_full_pipeline,
    store_prompt_features,
    write_template,
)
from ccassets_tests.h5.batches import LEGACY, assert_same, contents, rows
from ccassets_tests.h5.stand_in_model import PROMPTS, stand_in
from ccassets_tests.h5.test_pipeline import loaders

ADDED = {"keys", "feature_digest"}


def errors(path: Path) -> list[Any]:
    return [finding for finding in validate_database(path, deep=True) if finding.severity == "error"]


@pytest.fixture
def grown(tmp_path: Path) -> Path:
    path = tmp_path / "features.h5"
    run_full_pipeline(
        stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False, extra_metadata={"dataset": "pictures"}
    )
    return path


# --- finalize -----------------------------------------------------------------------------------------


def test_a_growing_file_is_valid_before_and_after_it_is_published(grown: Path) -> None:
    assert validate_database(grown) == []
    before = contents(grown)
    attributes = dict(h5py.File(grown).attrs)

    assert finalize(grown) == grown

    assert errors(grown) == []
    after = contents(grown)
    assert_same({name: values for name, values in after.items() if name not in ADDED}, before)
    assert after["keys"] == [str(row).encode() for count in (20, 9, 5) for row in range(count)]
    with h5py.File(grown) as file:
        for name in ("image_features", "image_token_features"):
            assert file[name].chunks is None
            assert file[name].id.get_offset() % 4096 == 0
        for name in ("ids", "labels", "feature_digest", "templates/label_prompts_t01/text_features"):
            assert file[name].id.get_offset() % 64 == 0
        kept = set(attributes) - {"created_at", "provenance"}
        assert {name: file.attrs[name] for name in kept} == {name: attributes[name] for name in kept}
        assert file.attrs["profile"] == "database"


def test_digests_and_origin_are_recorded(grown: Path) -> None:
    finalize(grown)

    with open_database(grown) as database:
        assert isinstance(database.image_features, np.memmap)
        assert database.feature_digest is not None
        np.testing.assert_array_equal(
            database.feature_digest, feature_digests(database.image_features, database.image_token_features)
        )
        assert database.image_digest is None  # a loader's tensors are not the pictures as they were stored
        record = database.provenance
    assert record is not None
    assert record["origin"] == "extracted"
    assert record["extraction"] == {"writer": "ccassets.h5", "model": "StandIn"}
    assert list(record["digests"]["splits"]) == ["train", "val", "test"]
    assert {split: entry["rows"] for split, entry in record["dataset"]["splits"].items()} == {
        "train": 20,
        "val": 9,
        "test": 5,
    }


@pytest.mark.parametrize("split", ["all", "val"])
@pytest.mark.parametrize("idx", [None, [3, 0, 3, -1], slice(None, None, -2), 4], ids=str)
@pytest.mark.parametrize("kind", ["image", "patches", "label"])
def test_a_published_file_is_read_as_the_growing_one(
    tmp_path_factory: pytest.TempPathFactory, grown: Path, split: str, idx: Any, kind: str
) -> None:
    before = access_batch(split, idx, kind, grown)

    published = finalize(grown, tmp_path_factory.mktemp("out") / "published.h5")

    np.testing.assert_array_equal(access_batch(split, idx, kind, published), before, strict=True)


def test_a_file_of_the_original_scripts_is_published_as_adopted(tmp_path: Path) -> None:
    path = LEGACY / "legacy_good.h5"
    before = path.read_bytes()

    published = finalize(path, tmp_path / "published.h5")

    assert path.read_bytes() == before
    assert errors(published) == []
    stored = contents(published)
    assert_same({name: values for name, values in stored.items() if name not in ADDED}, contents(path))
    with open_database(published) as database:
        assert database.provenance is not None
        assert database.provenance["origin"] == "adopted"
        assert database.file.attrs["dataset"] == '"bloodmnist"'
        assert database.file.attrs["logit_scale_space"] == "log"


def test_a_file_without_tokens_is_published(tmp_path: Path) -> None:
    path = tmp_path / "plain.h5"
    with init_file(path, 4, t_img=0) as file:
        append_batch(file, np.eye(4), None, None, "train", [0, 1, 2, 3])

    finalize(path)

    assert errors(path) == []
    with open_database(path) as database:
        assert database.image_token_features is None
        assert database.file.attrs["T_img"] == -1


def test_an_empty_split_stays_known(tmp_path: Path) -> None:
    path = tmp_path / "empty.h5"
    from ccassets.h5 import build_dataloaders
    from ccassets_tests.h5.stand_in_model import GreyImages

    split_loaders = build_dataloaders({"train": GreyImages(3, 0, [0, 1, 0]), "later": GreyImages(0)})
    encode_and_store_image_features(stand_in(), split_loaders, output_path=path, show_progress=False)

    finalize(path)

    with h5py.File(path) as file:
        assert json.loads(file.attrs["split_counts"]) == {"train": 3, "later": 0}
    assert access_batch("later", None, "image", path).shape == (0, 16)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("legacy_duplicated", "doubled_rows"),
        ("legacy_partial", "stopped_extraction"),
        ("legacy_no_labels", "missing_labels"),
    ],
)
def test_a_file_with_errors_is_not_published(tmp_path: Path, name: str, expected: str) -> None:
    path = Path(shutil.copy(LEGACY / f"{name}.h5", tmp_path))
    before = path.read_bytes()

    with pytest.raises(CcassetsError, match=rf"is not published, validation found \d+ errors:(.|\n)*{expected}"):
        finalize(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_unfinished_run_is_not_published(tmp_path: Path) -> None:
    path = tmp_path / "stopped.h5"

    def stop(row: int) -> None:
        if row == 9:
            raise OSError("stopped")

    from ccassets_tests.h5.stand_in_model import GreyImages

    store_prompt_features(stand_in(), PROMPTS, output_path=path)
    with pytest.raises(CcassetsError, match="stopped"):
        encode_and_store_image_features(
            stand_in(), loaders(val=GreyImages(9, 20, [0] * 9, lambda row: stop(row + 2))), output_path=path
        )

    with pytest.raises(CcassetsError, match=r"'val': expected 9, found 0"):
        finalize(path)


def test_features_that_are_not_unit_length_are_not_published(tmp_path: Path) -> None:
    path = tmp_path / "long.h5"
    with init_file(path, 6, 9) as file:
        append_batch(file, **{**rows(0), "image_feats": np.full((4, 6), 2.0)}, split_names="train", labels=[0, 1, 2, 3])

    with pytest.raises(CcassetsError, match="norms at"):
        finalize(path)


def test_a_finished_file_does_not_grow(grown: Path) -> None:
    finalize(grown)
    before = grown.read_bytes()

    with pytest.raises(CcassetsError, match="is a finished file"):
        init_file(grown)
    with pytest.raises(CcassetsError, match="is a finished file"):
        encode_and_store_image_features(stand_in(), loaders(), output_path=grown)
    assert finalize(grown) == grown  # nothing is left to do
    assert grown.read_bytes() == before


def test_a_file_that_is_still_open_is_not_published(tmp_path: Path) -> None:
    with init_file(tmp_path / "open.h5", 6, 9), pytest.raises(CcassetsError, match="is open elsewhere"):
        finalize(tmp_path / "open.h5")


def test_a_large_file_is_published_in_small_blocks(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with init_file(path, 64, 256) as file:
        for first in range(0, 2048, 256):
            features = np.random.default_rng(first).standard_normal((256, 64))
            features /= np.linalg.norm(features, axis=1, keepdims=True)
            append_batch(file, features, np.ones((256, 256, 64)), None, "train", np.arange(256) % 2)
    assert path.stat().st_size > 64 << 20
    finalize(path, tmp_path / "warm.h5")

    tracemalloc.start()
    finalize(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 40 << 20


# --- clear_all_templates ------------------------------------------------------------------------------


def test_templates_are_not_removed_unasked(grown: Path) -> None:
    before = grown.read_bytes()

    with pytest.raises(CcassetsError, match=r"Call clear_all_templates\(path, confirm=True\) to remove them"):
        clear_all_templates(grown)
    assert grown.read_bytes() == before


def test_a_growing_file_says_that_the_space_is_kept(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = {name: values for name, values in contents(grown).items() if not name.startswith("templates")}

    clear_all_templates(grown, confirm=True)

    printed = capsys.readouterr().out
    assert printed.startswith("Cleared 3 template groups: ['concept_prompts_t01'")
    assert "kept in the file until finalize()" in printed
    assert get_template_names(grown) == []
    assert_same(contents(grown), images)
    with h5py.File(grown) as file:
        assert "concept_texts" not in file.attrs
        assert "logit_scale" in file.attrs
    assert [finding for finding in validate_database(grown) if finding.severity == "error"] == []
    store_prompt_features(stand_in(), PROMPTS, output_path=grown)
    assert len(get_template_names(grown)) == 3


def test_a_finished_file_gives_the_space_back(grown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with init_file(grown) as file:
        write_template(file, "large", [str(row) for row in range(64)], np.full((64, 16), 0.25), np.ones((64, 60, 16)))
    finalize(grown)
    images = {name: values for name, values in contents(grown).items() if not name.startswith("templates")}
    size = grown.stat().st_size
    with open_database(grown) as held:
        clear_all_templates(grown, confirm=True)
        assert len(held.templates) == 4  # who holds the old file keeps it

    assert "given back" in capsys.readouterr().out
    assert size - grown.stat().st_size > 64 * 60 * 16 * 4
    assert get_template_names(grown) == []
    assert_same(contents(grown), images)
    assert errors(grown) == []


def test_nothing_to_clear_needs_no_confirmation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init_file(tmp_path / "new.h5", 6, 9).close()

    clear_all_templates(tmp_path / "new.h5")

    assert capsys.readouterr().out.startswith("Cleared 0 template groups: []")
