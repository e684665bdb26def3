"""What nothing else holds is not overwritten: which builds stop, what they say, and what goes on with `allow_loss`."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

import ccassets
from ccassets.errors import StorageError, StudyError
from ccassets.extraction.data_loss import require_no_loss
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.study.loading import SHIPPED_STUDIES, command_argument, load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.database import original_scripts
from ccassets_tests.extraction.made_parts import build, parts
from ccassets_tests.made_studies import edit_study, save_images, write_study


@pytest.fixture
def lean(study: Study, image_folder: Path, weights: Path) -> Study:
    """The study with `keep_parts: false`, built: the database alone holds its 18 rows."""
    lean = write_study(study.folder, images=image_folder, encoder=weights, storage={"keep_parts": False})
    build(lean)
    assert parts(lean) == []
    return lean


def without_a_class(study: Study, images: Path) -> Study:
    for folder in images.glob("*/white"):
        shutil.rmtree(folder)
        folder.mkdir()
    return study


def without_an_image(study: Study, images: Path) -> Study:
    (images / "test" / "blood" / "000.png").unlink()
    return study


def without_a_split(study: Study, images: Path) -> Study:
    return edit_study(study, lambda a: a["dataset"].update(splits=["train", "val"]))


def with_another_dtype(study: Study, images: Path) -> Study:
    return edit_study(study, lambda a: a["encoder"].update(dtype="bfloat16"))


def without_tokens(study: Study, images: Path) -> Study:
    return edit_study(study, lambda a: a["encoder"].update(tokens=False))


@pytest.mark.parametrize(
    ("change", "lost", "message"),
    [
        (without_a_class, 5, "1 of test, 3 of train, 1 of val"),
        (without_an_image, 1, "1 of test, .*first is 'test/blood/000.png'"),
        (without_a_split, 4, "4 of test"),
        (with_another_dtype, 18, "encoded by conceptclip in float32"),
        (without_tokens, 18, "4 of test, 9 of train, 5 of val"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_rows_that_only_the_database_holds_are_not_dropped_unasked(
    change: Callable[[Study, Path], Study], lost: int, message: str, lean: Study, image_folder: Path
) -> None:
    database = Store.of(lean).database
    before = database.read_bytes()
    changed = change(lean, image_folder)

    with pytest.raises(StorageError, match=f"{lost} of 18 rows nowhere else") as caught:
        build(changed)

    assert re.search(message, str(caught.value))
    assert f"ccassets build {command_argument(changed)} --allow-loss" in str(caught.value)
    assert database.read_bytes() == before
    rows = build(changed, allow_loss=True).assembly.rows
    assert rows == len(ccassets.open_database(database)) == (18 if lost == 18 else 18 - lost)
    assert build(changed).assembly.unchanged


def test_what_parts_or_another_database_hold_may_be_dropped(
    lean: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    other = write_study(tmp_path / "studies" / "other", images=image_folder, encoder=weights)
    build(other)
    assert build(without_a_class(lean, image_folder)).assembly.rows == 13

    with_parts = write_study(tmp_path / "studies" / "third", images=save_images(tmp_path / "third"), encoder=weights)
    ccassets.extract_images(with_parts, fresh=True)
    build(with_parts)
    assert build(with_another_dtype(with_parts, image_folder)).assembly.rows == 18


def test_rows_under_another_name_label_or_split_are_not_lost(lean: Study, image_folder: Path) -> None:
    (image_folder / "test" / "blood" / "000.png").rename(image_folder / "train" / "white" / "moved.png")
    assert build(lean).encoded == 0


def test_a_damaged_database_is_built_again(lean: Study) -> None:
    database = Store.of(lean).database
    database.write_bytes(database.read_bytes()[:1000])
    assert build(lean).encoded == 18


def without_provenance_json(file: h5py.File) -> None:
    file.attrs["provenance"] = file.attrs["provenance"][:-20]


def without_an_encoder(file: h5py.File) -> None:
    provenance = json.loads(file.attrs["provenance"])
    del provenance["encoder"]
    file.attrs["provenance"] = json.dumps(provenance)


def without_readable_digests(file: h5py.File) -> None:
    rows = len(file["image_digest"])
    del file["image_digest"]
    file["image_digest"] = np.zeros((rows, 7), np.uint8)


@pytest.mark.parametrize("damage", [without_provenance_json, without_an_encoder, without_readable_digests])
@pytest.mark.parametrize("change", [None, with_another_dtype])
def test_the_only_copy_of_rows_is_not_replaced_when_its_record_is_damaged(
    damage: Callable[[h5py.File], None],
    change: Callable[[Study, Path], Study] | None,
    lean: Study,
    image_folder: Path,
) -> None:
    database = Store.of(lean).database
    with h5py.File(database, "r+") as file:
        damage(file)
    before = database.read_bytes()
    ccassets.identify_encoder(changed := change(lean, image_folder) if change else lean)
    manifests = [recorded_manifest(changed, split, Store.of(changed)) for split in changed.splits]
    with pytest.raises(StorageError, match=r"would be replaced.*cells --allow-loss"):
        require_no_loss(
            changed, Store.of(changed), database, recorded_card(changed, Store.of(changed)).identity, manifests
        )
    if change:
        with pytest.raises(StorageError, match=r"would be replaced.*cells --allow-loss"):
            build(changed)
    assert database.read_bytes() == before
    assert build(changed, allow_loss=True).assembly.rows == 18


def test_a_damaged_record_is_written_again_where_parts_hold_the_rows(study: Study) -> None:
    database = build(study).path
    with h5py.File(database, "r+") as file:
        without_provenance_json(file)
    assert build(study).encoded == 0
    assert ccassets.validate_database(database, deep=True) == []


def test_a_file_of_unknown_rows_is_not_replaced(lean: Study, tmp_path: Path) -> None:
    """Neither in the study's folder nor where `--output` points."""
    legacy = Path(__file__).parents[1] / "data" / "legacy"
    file = next(legacy.rglob("*.h5"))
    for path in (Store.of(lean).database, tmp_path / "out.h5"):
        path.unlink(missing_ok=True)
        shutil.copy(file, path)
        ccassets.extract_images(lean)
        with pytest.raises(StorageError, match="rows nowhere else"):
            ccassets.assemble_database(lean, output=path)
        assert path.read_bytes() == file.read_bytes()


def test_a_file_of_templates_alone_is_not_replaced(lean: Study) -> None:
    database = Store.of(lean).database
    database.unlink()
    with original_scripts.start(database) as file:
        original_scripts.write_all_templates(file)
    before = database.read_bytes()
    ccassets.extract_images(lean)
    with pytest.raises(StorageError, match="holds templates that no build wrote"):
        ccassets.assemble_database(lean)
    assert database.read_bytes() == before
    assert ccassets.assemble_database(lean, allow_loss=True).rows == 18


# --- two studies of one name -------------------------------------------------------------------------


@pytest.fixture
def twin(tmp_path: Path, weights: Path) -> Study:
    """Another study of the name `cells`, over other pictures."""
    images = save_images(tmp_path / "others", {"train": 3, "val": 3, "test": 3})
    return write_study(tmp_path / "twins" / "cells", images=images, encoder=weights)


def test_two_studies_of_one_name_in_one_storage_are_refused_with_both_paths(study: Study, twin: Study) -> None:
    built = build(study).path.read_bytes()
    for step in (
        ccassets.identify_encoder,
        partial(ccassets.read_images, split="train"),
        ccassets.extract_images,
        ccassets.assemble_database,
        ccassets.build,
    ):
        with pytest.raises(StudyError) as caught:
            step(twin)
        assert str(study.folder / "defs.yaml") in str(caught.value)
        assert str(twin.folder / "defs.yaml") in str(caught.value)
    assert Store.of(study).database.read_bytes() == built
    assert build(study).assembly.unchanged


def test_a_study_that_moved_takes_its_files_along(study: Study, tmp_path: Path) -> None:
    build(study)
    moved = load_study(study.folder.rename(tmp_path / "cells"))
    assert build(moved).assembly.unchanged
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    assert build(load_study(tmp_path / "link" / "cells")).assembly.unchanged


def test_a_study_of_ones_own_does_not_replace_the_files_of_a_shipped_one(tmp_path: Path, twin: Study) -> None:
    """A shipped study lies elsewhere in every installation; it stays the same study."""
    demo = load_study("demo")
    ccassets.identify_encoder(demo)
    assert str(SHIPPED_STUDIES) not in Store.of(demo).study_record.read_text()
    own = load_study(shutil.copytree(twin.folder, tmp_path / "studies" / "demo"))
    with pytest.raises(StudyError, match=re.escape(str(SHIPPED_STUDIES / "demo" / "defs.yaml"))):
        ccassets.identify_encoder(own)


def test_a_record_that_is_damaged_is_written_again(study: Study) -> None:
    ccassets.identify_encoder(study)
    record = Store.of(study).study_record
    for text in ("", "[]", "{}", '{"folder": 3}'):
        record.write_text(text)
        ccassets.identify_encoder(study)
        # Relative: an absolute path would tell who built it, and where.
        assert json.loads(record.read_text()) == {"folder": os.path.relpath(study.folder, record.parent)}
