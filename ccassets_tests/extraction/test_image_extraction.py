"""Image extraction: what is stored is what the encoder gives, and nothing else is ever taken for it."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

import ccassets
from ccassets.database.reader import open_database
from ccassets.encoders import load_encoder
from ccassets.errors import DatasetError, EncoderError, StorageError
from ccassets.extraction import extract_images, identify_encoder, plan_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import (
    COLOURS,
    arrays,
    attributes,
    build,
    build_in_storage,
    deep_errors,
    differences,
    direct,
    errors,
    far_rows,
    parts,
    read_sources,
)
from ccassets_tests.made_studies import picture, write_study

# --- what is stored ----------------------------------------------------------------------------------


def test_the_database_holds_what_the_encoder_gives_row_by_row(study: Study, image_folder: Path) -> None:
    built = build(study)

    assert built.encoded == 18
    assert deep_errors(built, study) == []
    encoder = load_encoder(study)
    with open_database(built.path) as database:
        for split in study.splits:
            features, tokens = direct(study, encoder, split)
            chosen = database.select(split)
            assert np.array_equal(chosen.image_features, features)
            assert np.array_equal(chosen.image_token_features, tokens)
            files = sorted(path.relative_to(image_folder).as_posix() for path in (image_folder / split).rglob("*.png"))
            assert chosen.keys.tolist() == files
            classes = [("blood", "platelet", "white").index(key.split("/")[1]) for key in files]
            assert chosen.labels.tolist() == classes
        assert list(database.splits) == ["train", "val", "test"]
        assert database.logit_scale == encoder.card.logit_scale
        assert database.attributes["dataset"] == "pictures"


def test_one_call_encodes_one_split_several_or_all(study: Study) -> None:
    one = extract_images(study, "val")
    several = extract_images(study, ["val", "test"])
    every = extract_images(study)

    assert [[split.split for split in done.splits] for done in (one, several, every)] == [
        ["val"],
        ["val", "test"],
        ["train", "val", "test"],
    ]
    assert [done.encoded for done in (one, several, every)] == [5, 4, 9]
    assert [done.rows for done in (one, several, every)] == [5, 9, 18]
    assert every.digests.items() > several.digests.items() > one.digests.items()
    assert plan_study(study).to_encode == 0


def test_parts_are_small_valid_databases_of_a_shard_each(study: Study) -> None:
    build(study)

    paths = parts(study)

    assert [len(arrays(part)["ids"]) for part in paths] == [4, 4, 1, 4, 1, 4]
    for part in paths:
        assert errors(ccassets.validate_database(part, deep=True)) == []
        with open_database(part) as opened:
            assert opened.profile == "image-part"
            assert opened.provenance["extraction"] == {"batch_size": 2, "device": "cpu"}


def test_equal_pictures_of_a_split_are_encoded_once(study: Study, image_folder: Path) -> None:
    for number in (1, 3, 7):
        shutil.copy(
            image_folder / "train" / "blood" / "000.png", image_folder / "train" / "white" / f"copy {number}.png"
        )

    built = build(study)

    assert built.images["train"].rows == 12
    assert built.images["train"].encoded == 9
    with open_database(built.path) as database:
        rows = [row for row, key in enumerate(database.keys) if "copy" in key or key == "train/blood/000.png"]
        assert len(rows) == 4
        assert len(np.unique(database.image_features[rows], axis=0)) == 1
        assert sorted(database.labels[rows]) == [0, 2, 2, 2]
    assert deep_errors(built, study) == []


def test_a_picture_in_two_splits_is_encoded_once_and_reported(study: Study, image_folder: Path) -> None:
    shutil.copy(image_folder / "train" / "blood" / "000.png", image_folder / "test" / "white" / "leak.png")

    built = build(study)

    assert [part.encoded for part in built.images.values()] == [9, 5, 4]
    warnings = [finding.check for finding in ccassets.validate_database(built.path)]
    assert warnings == ["image_in_two_splits"]


def test_a_split_without_images_is_an_empty_split(study: Study, image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    (image_folder / "val").mkdir()

    built = build(study)

    assert built.images["val"].rows == built.images["val"].encoded == 0
    with open_database(built.path) as database:
        assert dict(database.splits) == {"train": slice(0, 9), "test": slice(9, 13), "val": slice(13, 13)}
        assert database.attributes["split_counts"] == {"train": 9, "val": 0, "test": 4}
    assert deep_errors(built, study) == []


def test_a_limit_takes_evenly_spaced_rows_into_a_file_of_their_own(
    study: Study, image_folder: Path, weights: Path
) -> None:
    whole = build(study)
    limited = write_study(study.folder, images=image_folder, encoder=weights, extraction={"limit": 3})

    few = build(limited)

    assert few.encoded == 0
    assert few.path.name == "conceptclip_features.limit-3.h5"
    assert whole.path.exists()
    with open_database(few.path) as database, open_database(whole.path) as all_rows:
        assert database.attributes["limit"] == 3
        assert "limit" not in all_rows.attributes
        rows = {key: row for row, key in enumerate(all_rows.keys)}
        assert [rows[key] for key in database.select("train").keys] == [0, 4, 8]
        assert [rows[key] for key in database.select("val").keys] == [9, 11, 13]
    assert deep_errors(few, limited) == []


def test_a_manifest_of_another_limit_is_not_built_on(study: Study, image_folder: Path, weights: Path) -> None:
    limited = write_study(study.folder, images=image_folder, encoder=weights, extraction={"limit": 2})
    build(limited)
    whole = write_study(study.folder, images=image_folder, encoder=weights)

    for step in (lambda: extract_images(whole, "train"), lambda: ccassets.assemble_database(whole)):
        with pytest.raises(DatasetError, match=r"'train' of cells were read with the limit 2, and the study now says"):
            step()
    assert not Store.of(whole).database.exists()


def test_an_encoder_without_tokens_and_text_gives_a_valid_database_without_templates(
    tmp_path: Path, image_folder: Path
) -> None:
    for name, tokens in (("plain", 0), ("patches", 2)):
        encoder = {"kind": "python", "target": "colours:Colours", "options": {"tokens": tokens}}
        study = write_study(tmp_path / "studies" / name, images=image_folder, encoder=encoder, vocabulary={})
        (study.folder / "colours.py").write_text(COLOURS)

        built = build(study)

        assert built.templates == {}
        assert deep_errors(built, study) == []
        with open_database(built.path) as database:
            assert (database.dim, database.token_count, len(database.templates)) == (8, tokens, 0)
            assert database.logit_scale is None


def test_bad_images_that_are_skipped_are_listed_in_the_database(
    study: Study, image_folder: Path, weights: Path
) -> None:
    (image_folder / "val" / "white" / "broken.png").write_bytes(b"no picture")
    skipping = write_study(study.folder, images=image_folder, encoder=weights, extraction={"on_bad_image": "skip"})

    built = build(skipping)

    with open_database(built.path) as database:
        splits = database.provenance["dataset"]["splits"]
        assert splits["val"]["rows"] == len(database.select("val")) == 5
        assert [entry["key"] for entry in splits["val"]["skipped"]] == ["val/white/broken.png"]
        assert splits["train"]["skipped"] == []
    findings = ccassets.validate_database(built.path, study=skipping, deep=True)
    assert errors(findings) == []
    assert "val/white/broken.png" in " ".join(finding.message for finding in findings)


def test_bad_images_that_are_blanked_are_rows_the_validator_reports(
    study: Study, image_folder: Path, weights: Path
) -> None:
    (image_folder / "val" / "blood" / "000a.png").write_bytes(b"no picture")
    (image_folder / "val" / "white" / "broken.png").write_bytes(b"no picture")
    blanking = write_study(study.folder, images=image_folder, encoder=weights, extraction={"on_bad_image": "blank"})

    built = build(blanking)

    assert built.images["val"].encoded == 6  # Five pictures, and one stand-in for both.
    with open_database(built.path) as database:
        blank = database.provenance["dataset"]["splits"]["val"]["blank"]
        assert [database.keys[row] for row in blank] == ["val/blood/000a.png", "val/white/broken.png"]
    findings = ccassets.validate_database(built.path, study=blanking, deep=True)
    assert errors(findings) == []
    assert [finding.check for finding in findings] == ["blank_rows"]


def test_all_bad_images_are_named_before_anything_is_encoded(study: Study, image_folder: Path) -> None:
    for name in ("one.png", "two.png"):
        (image_folder / "train" / "blood" / name).write_bytes(b"no picture")

    with pytest.raises(DatasetError) as caught:
        extract_images(study, "train")

    assert "train/blood/one.png" in str(caught.value)
    assert "train/blood/two.png" in str(caught.value)
    assert parts(study) == []


# --- what an encoder may do wrong --------------------------------------------------------------------


def faulty(folder: Path, image_folder: Path, fault: str) -> Study:
    """A study whose encoder fails on one white picture, the third of its split."""
    Image.new("RGB", (30, 30), (255, 255, 255)).save(image_folder / "train" / "blood" / "006.png")
    encoder = {"kind": "python", "target": "colours:Colours", "options": {"fault": fault}}
    study = write_study(folder / "studies" / fault, images=image_folder, encoder=encoder, vocabulary={})
    (study.folder / "colours.py").write_text(COLOURS)
    return study


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("nan", "features: expected finite values"),
        ("overflow", "image_token_features that are not finite in float16 for ['train/blood/006.png']"),
        ("shape", "features: expected (2, 8) float32 or float16, found (2, 7)"),
        ("raises", "colours:Colours failed in encode_pixels: RuntimeError: out of order"),
        ("preprocess", "train/blood/006.png: colours:Colours failed in preprocess: ValueError: no such picture"),
    ],
)
def test_an_encoder_that_fails_is_an_error_that_names_the_images(
    tmp_path: Path, image_folder: Path, fault: str, says: str
) -> None:
    study = faulty(tmp_path, image_folder, fault)

    with pytest.raises(EncoderError) as caught:
        extract_images(study, "train")

    assert says in str(caught.value)
    assert "train/blood/006.png" in str(caught.value)
    assert parts(study) == []  # The first shard holds the picture.
    assert build_left_nothing(study)


def build_left_nothing(study: Study) -> bool:
    root = Store.of(study).root
    return not [path for path in root.rglob("*") if ".partial" in path.name]


def test_shards_before_the_failing_one_are_kept(tmp_path: Path, image_folder: Path) -> None:
    study = faulty(tmp_path, image_folder, "nan")
    (image_folder / "train" / "blood" / "006.png").rename(image_folder / "train" / "white" / "zz.png")

    with pytest.raises(EncoderError, match=r"It was encoding 'train/white/zz\.png' to"):
        extract_images(study, "train")

    assert [len(arrays(part)["ids"]) for part in parts(study)] == [4, 4]


def test_an_encoder_that_is_not_the_recorded_one_is_refused(study: Study, image_folder: Path) -> None:
    other = write_study(
        study.folder.parent / "other",
        images=image_folder,
        encoder={**study.encoder.model_dump(mode="json", exclude_none=True), "tokens": False},
    )
    identify_encoder(study)

    with pytest.raises(EncoderError, match="The encoder that was loaded has identity"):
        extract_images(study, "train", encoder=lambda: load_encoder(other))


def test_a_study_that_asks_for_another_encoder_is_not_built_from_the_old_ones_parts(
    study: Study, image_folder: Path, weights: Path
) -> None:
    build(study)
    encoder = {"kind": "conceptclip", "weights": str(weights), "dtype": "bfloat16"}
    changed = write_study(study.folder, images=image_folder, encoder=encoder)

    steps: list[Callable[[], Any]] = [
        lambda: extract_images(changed, "train"),
        lambda: ccassets.extract_text(changed),
        lambda: ccassets.assemble_database(changed),
        lambda: plan_study(changed),
    ]
    for step in steps:
        with pytest.raises(EncoderError, match="The encoder section of cells changed since its encoder was identified"):
            step()


def test_an_image_that_changed_after_its_manifest_is_an_error_that_names_it(study: Study, image_folder: Path) -> None:
    read_sources(study)
    picture(1000).save(image_folder / "train" / "platelet" / "004.png")

    with pytest.raises(DatasetError, match=r"train/platelet/004\.png is not the image that was read"):
        extract_images(study, "train")

    built = build(study)  # Reading the images again is all it takes.
    assert built.images["train"].encoded == 5  # The shard before the changed image was finished.
    assert deep_errors(built, study) == []


def test_a_disk_that_is_too_small_is_said_before_anything_is_encoded(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify_encoder(study)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))

    def must_not_load() -> Any:
        raise AssertionError("the encoder was loaded")

    with pytest.raises(StorageError, match=r"Encoding 9 images of cells needs .* GB .* Free some space"):
        extract_images(study, "train", encoder=must_not_load)
    monkeypatch.undo()


def test_a_full_disk_at_assembly_leaves_the_old_database(
    study: Study, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = build(study)
    before = built.path.read_bytes()
    picture(1000).save(image_folder / "train" / "blood" / "009.png")
    ccassets.read_images(study, "train")
    extract_images(study, "train")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))

    with pytest.raises(StorageError, match="The database of cells needs"):
        ccassets.assemble_database(study)

    assert built.path.read_bytes() == before


# --- parts that are not what was written -------------------------------------------------------------


def flip(path: Path, name: str, byte: int = 5) -> None:
    """Flip one bit of a data set where it lies in the file."""
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    data = bytearray(path.read_bytes())
    data[offset + byte] ^= 1
    path.write_bytes(data)


def swap_rows(path: Path, *names: str) -> None:
    """Exchange the first two rows of data sets."""
    with h5py.File(path, "r+") as file:
        for name in names:
            file[name][:2] = file[name][:2][::-1]


def copy_other_encoder(path: Path) -> None:
    """Replace a part by that of the same images and another encoder."""
    study = ccassets.load_study(path.parents[5] / "studies" / "cells")
    encoder = {**study.encoder.model_dump(mode="json", exclude_none=True), "dtype": "bfloat16"}
    other = write_study(
        path.parents[5] / "studies" / "other", images=study.resolve(study.dataset.root), encoder=encoder
    )
    extract_images(other, "train")
    other_part = Store.of(other).image_parts(identify_encoder(other).identity) / path.name
    assert other_part.read_bytes() != path.read_bytes()
    shutil.copy(other_part, path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "a bit of the features": lambda path: flip(path, "image_features"),
    "a bit of the tokens": lambda path: flip(path, "image_token_features", 1001),
    "a bit of an image digest": lambda path: flip(path, "image_digest", 40),
    "a bit of a feature digest": lambda path: flip(path, "feature_digest", 20),
    "features swapped": lambda path: swap_rows(path, "image_features"),
    "tokens swapped": lambda path: swap_rows(path, "image_token_features"),
    "images swapped": lambda path: swap_rows(path, "image_digest"),
    "features and their digests swapped": lambda path: swap_rows(
        path, "image_features", "image_token_features", "feature_digest"
    ),
    "one byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"x" * 5000),
    "another encoder's": copy_other_encoder,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home, pictures, weights and a study whose pictures are encoded and whose database is assembled."""
    from ccassets_tests.made_studies import save_golden_weights, save_images

    folder = tmp_path_factory.mktemp("finished")
    study = write_study(
        folder / "studies" / "cells",
        images=save_images(folder / "pictures"),
        encoder=save_golden_weights(folder / "weights"),
    )
    build_in_storage(study, folder / "home" / "storage")
    return folder


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda name: name.replace(" ", "-"))
def test_a_damaged_part_is_never_used_but_named_and_encoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Path, damage: str
) -> None:
    """The same bits come out as if nothing had happened, since the shard is encoded in the same batches."""
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "home"))
    shutil.copytree(finished / "home" / "storage" / "features", tmp_path / "home" / "storage" / "features")
    study = write_study(tmp_path / "studies" / "cells", images=finished / "pictures", encoder=finished / "weights")
    # The shard of the first four rows of train.
    whole = finished / "home" / "storage" / "cells" / "conceptclip_features.h5"
    first = arrays(whole)["image_digest"][:4]
    [part] = [path for path in parts(study) if np.array_equal(arrays(path)["image_digest"], first)]

    DAMAGES[damage](part)
    built = build(study)

    assert part.name in built.damaged
    assert built.encoded == 4
    assert differences(built.path, whole) == []
    assert deep_errors(built, study) == []
    assert build(study).damaged == set()


def test_a_part_that_was_copied_from_elsewhere_is_checked_and_used(study: Study, tmp_path: Path) -> None:
    build_in_storage(study, tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "elsewhere" / "features", Store.of(study).root / "features")

    assert build(study).encoded == 0


def test_a_database_that_was_damaged_is_made_anew(study: Study) -> None:
    built = build(study)
    good = arrays(built.path)
    flip(built.path, "image_token_features")

    again = build(study)

    assert (again.encoded, again.assembly.unchanged) == (0, False)
    assert {name: np.array_equal(values, good[name]) for name, values in arrays(again.path).items()} == dict.fromkeys(
        good, True
    )


# --- fresh -------------------------------------------------------------------------------------------


def test_fresh_encodes_everything_again_and_replaces_the_old_parts(study: Study, image_folder: Path) -> None:
    build(study)
    for number in (1, 2):  # Parts of a grown data set, that a build from nothing would not leave.
        picture(1000 + number).save(image_folder / "train" / "blood" / f"00{number}.png")
        build(study)
    newest = max(part.stat().st_mtime_ns for part in parts(study))

    built = build(study, fresh=True)

    assert built.encoded == 20
    assert built.prompts_encoded == {
        "concept_prompts_t01": 3,
        "concept_prompts_t02": 3,
        "label_prompts_t01": 3,
        "label_prompts_t02": 3,
    }
    assert [len(arrays(part)["ids"]) for part in parts(study)] == [4, 4, 3, 4, 1, 4]
    assert min(part.stat().st_mtime_ns for part in parts(study)) > newest
    assert far_rows(built.path, build_in_storage(study, study.folder / "elsewhere").path) == []


# --- traces ------------------------------------------------------------------------------------------


def test_no_path_host_or_token_is_in_any_attribute(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image_folder: Path, weights: Path
) -> None:
    import socket

    monkeypatch.setenv("HF_TOKEN", "hf_secretsecretsecret")
    (image_folder / "train" / "white" / "broken.png").write_bytes(b"no picture")
    skipping = write_study(study.folder, images=image_folder, encoder=weights, extraction={"on_bad_image": "skip"})
    built = build(skipping)
    store = Store.of(skipping)
    files = [built.path, *parts(skipping), *(part.part for part in built.templates.values())]

    texts = [f"{name} {value}" for file in files for name, value in attributes(file).items()]
    texts += [store.encoder_card.read_text(), *(path.read_text() for path in store.root.rglob("*.json*"))]

    assert any("broken.png" in text for text in texts)
    for secret in ("hf_secretsecretsecret", socket.gethostname(), str(tmp_path), str(Path.home()), "/tmp"):
        assert [text for text in texts if secret in text] == []


def test_nothing_unfinished_is_left_after_a_build(study: Study) -> None:
    build(study)

    assert build_left_nothing(study)


def test_an_unknown_split_is_named(study: Study) -> None:
    with pytest.raises(DatasetError, match="no split 'tset', only"):
        extract_images(study, "tset")
