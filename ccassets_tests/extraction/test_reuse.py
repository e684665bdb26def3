"""Nothing is encoded twice: how many images and prompts each change costs, and that the result is a fresh build's."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import ccassets
from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.errors import DatasetError, StorageError
from ccassets.extraction import plan_study
from ccassets.files import fingerprint, shared
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import (
    Built,
    arrays,
    build,
    build_in_storage,
    deep_errors,
    differences,
    far_rows,
    parts,
    read_sources,
)
from ccassets_tests.made_studies import VOCABULARY, picture, save_images, write_study


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """More pictures than elsewhere, so that shards are whole and partly held."""
    return save_images(tmp_path / "pictures", {"train": 15, "val": 6, "test": 4})


def assert_like_a_fresh_build(built: Built, study: Study, folder: Path) -> None:
    """Deep-valid, and row by row what a build from nothing gives: see `far_rows` for the tolerance."""
    assert deep_errors(built, study) == []
    assert far_rows(built.path, build_in_storage(study, folder / "elsewhere").path) == []


def test_nothing_changed_costs_nothing_and_leaves_the_file_as_it_is(study: Study) -> None:
    first = build(study)
    before = fingerprint(first.path)

    again = build(study)

    assert (first.encoded, again.encoded, again.prompts_encoded) == (25, 0, {})
    assert (first.assembly.unchanged, again.assembly.unchanged) == (False, True)
    assert again.assembly.digest == first.assembly.digest
    assert fingerprint(again.path) == before


def test_a_corrected_label_costs_nothing(study: Study, image_folder: Path, tmp_path: Path) -> None:
    build(study)
    (image_folder / "train" / "blood" / "003.png").rename(image_folder / "train" / "white" / "003.png")

    built = build(study)

    assert built.encoded == 0
    with open_database(built.path) as database:
        row = database.keys.tolist().index("train/white/003.png")
        assert database.labels[row] == 2
    assert_like_a_fresh_build(built, study, tmp_path)


def test_images_added_in_the_middle_and_removed_cost_what_was_added(
    study: Study, image_folder: Path, tmp_path: Path
) -> None:
    build(study)
    for number in range(10):
        picture(1000 + number).save(image_folder / "train" / "platelet" / f"004-{number}.png")
    for name in ("blood/003.png", "platelet/004.png", "white/014.png"):
        (image_folder / "train" / name).unlink()

    planned = plan_of(study)
    built = build(study)

    assert planned == {"train": 10, "val": 0, "test": 0}
    assert {split: part.encoded for split, part in built.images.items()} == planned
    assert built.images["train"].rows == 22
    assert_like_a_fresh_build(built, study, tmp_path)


def plan_of(study: Study) -> dict[str, int]:
    """What the plan says after the images were read again."""
    for split in study.splits:
        ccassets.read_images(study, split)
    return {part.split: part.to_encode for part in plan_study(study).images}


def test_train_and_val_cut_anew_cost_nothing(study: Study, image_folder: Path, tmp_path: Path) -> None:
    build(study)
    shuffled = np.random.default_rng(0).permutation(
        sorted(
            path.relative_to(image_folder)
            for split in ("train", "val")
            for path in (image_folder / split).rglob("*.png")
        )
    )
    (image_folder / "train").rename(image_folder / "old train")
    (image_folder / "val").rename(image_folder / "old val")
    for number, old in enumerate(shuffled):
        new = image_folder / ("train" if number % 2 else "val") / old.parts[1] / f"{number:03d}.png"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(image_folder / f"old {old.parts[0]}" / Path(*old.parts[1:]), new)

    built = build(study)

    assert built.encoded == 0
    assert [part.rows for part in built.images.values()] == [10, 11, 4]
    assert_like_a_fresh_build(built, study, tmp_path)


def test_other_splits_of_the_same_pictures_cost_nothing(
    study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    build(study)
    (image_folder / "val").rename(image_folder / "fold 1")
    folds = write_study(study.folder, images=image_folder, encoder=weights, splits=("test", "fold 1"))

    built = build(folds)

    assert built.encoded == 0
    with open_database(built.path) as database:
        assert dict(database.splits) == {"test": slice(0, 4), "fold 1": slice(4, 10)}
    assert_like_a_fresh_build(built, folds, tmp_path)


def test_a_second_study_over_the_same_pictures_costs_nothing_but_its_own_prompts(
    study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    build(study)
    vocabulary = {**VOCABULARY, "labels": {"words": ["a", "b", "c"], "templates": ["one {}"]}}
    second = write_study(tmp_path / "studies" / "second", images=image_folder, encoder=weights, vocabulary=vocabulary)

    built = build(second)

    assert built.encoded == 0
    assert built.prompts_encoded == {"label_prompts_t01": 3}
    assert built.path == Store.of(second).database
    assert_like_a_fresh_build(built, second, tmp_path)


def test_another_batch_size_costs_nothing_unless_the_study_is_strict(
    study: Study, image_folder: Path, weights: Path
) -> None:
    build(study)
    larger = write_study(study.folder, images=image_folder, encoder=weights, extraction={"batch_size": 4})
    strict = write_study(study.folder, images=image_folder, encoder=weights, extraction={"strict": True})

    assert build(larger).encoded == 0
    assert build(strict).encoded == 25


def test_one_edited_word_of_one_template_costs_that_template_and_keeps_the_image_bytes(
    study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    before = arrays(build(study).path)
    concepts = {**VOCABULARY["concepts"], "templates": ["a cell showing {}", "that is {}"]}
    edited = write_study(
        study.folder, images=image_folder, encoder=weights, vocabulary={**VOCABULARY, "concepts": concepts}
    )

    built = build(edited)

    after = arrays(built.path)
    assert built.encoded == 0
    assert built.prompts_encoded == {"concept_prompts_t02": 3}
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert {name.rpartition("/")[0] for name in changed} == {"templates/concept_prompts_t02"}
    assert [text.decode() for text in after["templates/concept_prompts_t02/texts"]] == [
        "that is pigment network",
        "that is red cell",
        "that is immature granulocytes",
    ]
    assert_like_a_fresh_build(built, edited, tmp_path)


def test_templates_in_another_order_cost_nothing(
    study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    build(study)
    concepts = {**VOCABULARY["concepts"], "templates": VOCABULARY["concepts"]["templates"][::-1]}
    turned = write_study(
        study.folder, images=image_folder, encoder=weights, vocabulary={**VOCABULARY, "concepts": concepts}
    )

    built = build(turned)

    assert (built.encoded, built.prompts_encoded) == (0, {})
    assert_like_a_fresh_build(built, turned, tmp_path)


def test_a_prompt_whose_word_stands_elsewhere_is_another_prompt(
    study: Study, image_folder: Path, weights: Path
) -> None:
    """Equal texts, and another span of the word in them: the span is stored with the features."""

    def with_words(words: list[str], template: str) -> Study:
        vocabulary = {"concepts": {"words": words, "templates": [template]}}
        return write_study(study.folder, images=image_folder, encoder=weights, vocabulary=vocabulary)

    first = build(with_words(["red"], "{} cell"))
    second = build(with_words(["red cell"], "{}"))

    assert second.prompts_encoded == {"concept_prompts_t01": 1}
    spans = [
        arrays(part.part)["templates/concept_prompts_t01/subject_span"].tolist()
        for part in (first.templates["concept_prompts_t01"], second.templates["concept_prompts_t01"])
    ]
    assert spans == [[[1, 2]], [[1, 3]]]


# --- files that are open in another program ---------------------------------------------------------


@contextmanager
def opened_by_another_process(path: Path) -> Iterator[None]:
    """The file, held open for writing by another process, as a notebook does."""
    code = "import h5py, sys\nfile = h5py.File(sys.argv[1], 'r+')\nprint(flush=True)\nsys.stdin.read()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.communicate()


def test_a_file_that_is_open_elsewhere_is_not_damaged_and_not_encoded_again(study: Study) -> None:
    built = build(study)
    store = Store.of(study)
    files = [built.path, *(next(store.root.glob(f"features/*/{kind}/*.h5")) for kind in ("rows", "templates"))]
    for file in files:
        before = file.stat().st_ino
        with opened_by_another_process(file):
            refusals = [plan_study]
            if file != built.path:
                refusals += [ccassets.extract_text if "templates" in str(file) else ccassets.extract_images]
            for use in refusals:
                with pytest.raises(StorageError, match=f"{file.name} is open for writing in another program") as caught:
                    use(study)
                assert caught.value.transient
                assert not re.search("damaged|cut off", str(caught.value))
            with pytest.raises(StorageError, match="HDF5_USE_FILE_LOCKING=FALSE"):
                open_database(file)
        assert file.stat().st_ino == before
    assert plan_of(study) == dict.fromkeys(study.splits, 0)
    assert build(study).encoded == 0


def test_a_database_that_is_open_elsewhere_is_not_encoded_again_where_no_parts_are(lean: Study) -> None:
    built = build(lean)
    with opened_by_another_process(built.path):
        with pytest.raises(StorageError, match="open for writing in another program"):
            ccassets.extract_images(lean)
        with pytest.raises(StorageError, match="open for writing in another program"):
            validate_database(built.path)
    assert build(lean).encoded == 0


# --- without parts -----------------------------------------------------------------------------------


@pytest.fixture
def lean(study: Study, image_folder: Path, weights: Path) -> Study:
    """The study with `keep_parts: false`."""
    return write_study(study.folder, images=image_folder, encoder=weights, storage={"keep_parts": False})


def test_without_parts_the_database_is_what_is_built_on(lean: Study, image_folder: Path, tmp_path: Path) -> None:
    first = build(lean)
    assert parts(lean) == []
    picture(1000).save(image_folder / "train" / "platelet" / "004a.png")
    (image_folder / "test" / "blood" / "000.png").unlink()

    second = build(lean, allow_loss=True)  # The removed image's row was nowhere else.

    assert (first.encoded, second.encoded) == (25, 1)
    assert parts(lean) == []
    assert_like_a_fresh_build(second, lean, tmp_path)
    third = build(lean)
    assert (third.encoded, third.assembly.unchanged) == (0, True)


def test_without_parts_equal_bits_come_out_as_with_them(lean: Study, study: Study, tmp_path: Path) -> None:
    assert differences(build(lean).path, build_in_storage(study, tmp_path / "elsewhere").path) == []


def test_parts_of_another_studys_pictures_are_kept(study: Study, lean: Study, weights: Path, tmp_path: Path) -> None:
    """They are under the same encoder, and in no database yet."""
    for number in range(5):
        path = tmp_path / "others" / "train" / "blood" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(2000 + number).save(path)
    other = write_study(tmp_path / "studies" / "other", images=tmp_path / "others", encoder=weights, splits=["train"])
    ccassets.extract_images(other, "train")
    theirs = parts(other)

    build(lean)

    assert parts(lean) == theirs
    assert build(other).encoded == 0


def test_parts_are_dropped_when_nobody_copies_from_them(lean: Study) -> None:
    ccassets.extract_text(lean)
    ccassets.extract_images(lean)
    store = Store.of(lean)
    with ThreadPoolExecutor(1) as thread:
        with shared(store.encoder_parts(ccassets.identify_encoder(lean).identity)):
            assembly = thread.submit(ccassets.assemble_database, lean)
            while not store.database.exists():
                wait([assembly], timeout=0.01)
            assert wait([assembly], timeout=1).not_done
            assert len(parts(lean)) == 7
        assert not assembly.result().unchanged
    assert parts(lean) == []


@pytest.mark.slow
def test_two_studies_of_the_same_pictures_assemble_at_once_while_one_drops_the_parts(
    lean: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    other = write_study(tmp_path / "studies" / "other", images=image_folder, encoder=weights)
    for study in (lean, other):
        read_sources(study)
    for number in range(4):
        for study in (lean, other):
            ccassets.extract_text(study)
            ccassets.extract_images(study, fresh=True)
            Store.of(study).database.unlink(missing_ok=True)
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(ccassets.assemble_database, (lean, other)))
        assert parts(lean) == [], number
        assert differences(Store.of(lean).database, Store.of(other).database) == []


def test_a_database_written_elsewhere_does_not_cost_the_parts(lean: Study, tmp_path: Path) -> None:
    ccassets.extract_text(lean)
    for split in lean.splits:
        ccassets.extract_images(lean, split)

    made = ccassets.assemble_database(lean, output=tmp_path / "out" / "mine.h5")

    assert made.path == tmp_path / "out" / "mine.h5"
    assert [path.name for path in made.path.parent.iterdir()] == ["mine.h5"]
    assert not Store.of(lean).database.exists()
    assert len(parts(lean)) == 7
    assert ccassets.assemble_database(lean, output=made.path).unchanged


# --- labels ------------------------------------------------------------------------------------------


def test_splits_read_under_different_classes_are_not_merged(study: Study, image_folder: Path, weights: Path) -> None:
    """A new class changes the numbers of all labels after it, in the splits that are read again."""
    vocabulary = {**VOCABULARY, "labels": {}}
    free = write_study(study.folder, images=image_folder, encoder=weights, vocabulary=vocabulary)
    build(free)
    (image_folder / "val" / "band").mkdir()
    picture(1000).save(image_folder / "val" / "band" / "000.png")
    ccassets.read_images(free, "val")
    ccassets.extract_images(free, "val")

    with pytest.raises(
        DatasetError, match=r"'train' of cells was read with .*'blood', 'platelet', 'white'\], split 'val'"
    ):
        ccassets.assemble_database(free)

    built = build(free)
    assert built.encoded == 0
    with open_database(built.path) as database:
        assert database.attributes["label_classes"] == ["band", "blood", "platelet", "white"]
        assert {key.split("/")[1]: label for key, label in zip(database.keys, database.labels, strict=True)} == {
            "band": 0,
            "blood": 1,
            "platelet": 2,
            "white": 3,
        }
