"""Folders of image files: which files are rows, in which order, under which label."""

import os
from pathlib import Path

import numpy as np
import pytest

from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets_tests.datasets.made_datasets import dataset_of, noise, save_folder, save_image

KEYS = ["train/b/2.png", "train/b/10.png", "train/a/x.png", "test/c/y.png"]


def folder_of(root: Path, **options: object):
    options.setdefault("splits", ["train", "test"])
    return dataset_of(root, kind="folder", root=root, **options)


def test_rows_are_sorted_by_key_and_labels_are_the_class_folders_of_all_splits(tmp_path: Path):
    dataset = folder_of(save_folder(tmp_path / "cells", KEYS))
    dataset.fetch(silent)
    assert (dataset.name, dataset.version, dataset.classes, dataset.labelled) == ("cells", None, ("a", "b", "c"), True)
    train = dataset.rows("train")
    assert train.keys == ["train/a/x.png", "train/b/10.png", "train/b/2.png"]
    assert train.labels.tolist() == [0, 1, 1]
    assert train.labels.dtype == np.int64
    assert (train.groups, train.label_matrix) == (None, None)
    assert dataset.rows("test").labels.tolist() == [2]
    assert np.array_equal(np.asarray(dataset.read("train", 1)), np.asarray(noise(1)))


def test_a_relative_root_starts_at_the_study_folder(tmp_path: Path):
    save_folder(tmp_path / "cells", KEYS)
    assert len(dataset_of(tmp_path, kind="folder", root="cells", splits=["train"]).rows("train")) == 3


def test_keys_are_in_byte_order_with_upper_case_first(tmp_path: Path):
    keys = ["train/a/b.png", "train/a/B.png", "train/a/é.png", "train/a/z.png", "train/a-b/a.png", "train/a/1/a.png"]
    keys_read = folder_of(save_folder(tmp_path, keys), splits=["train"]).rows("train").keys
    assert keys_read == sorted(keys, key=str.encode)
    assert keys_read[0] == "train/a-b/a.png"


def test_folders_below_a_class_are_part_of_the_key_only(tmp_path: Path):
    rows = folder_of(save_folder(tmp_path, ["train/a/x.png", "train/b/p1/day 2/x.JPG"]), splits=["train"]).rows("train")
    assert (rows.keys, rows.labels.tolist()) == (["train/a/x.png", "train/b/p1/day 2/x.JPG"], [0, 1])


def test_the_study_sets_the_order_of_the_labels(tmp_path: Path):
    dataset = folder_of(save_folder(tmp_path, KEYS), classes=["c", "never seen", "b", "a"])
    assert dataset.classes == ("c", "never seen", "b", "a")
    assert dataset.rows("train").labels.tolist() == [3, 2, 2]


def test_a_folder_that_the_study_does_not_name_is_an_error(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"classes \['c'\], which dataset.classes does not name"):
        folder_of(save_folder(tmp_path, KEYS), classes=["a", "b"]).rows("train")


def test_label_words_set_the_order_when_the_folders_are_such_words(tmp_path: Path):
    root = save_folder(tmp_path, ["train/Monocyte/x.png", "train/basophil/x.png"])
    dataset = folder_of(root, splits=["train"], words=("monocyte", "platelet", "Basophil"))
    assert dataset.classes == ("Monocyte", "platelet", "basophil")
    assert dataset.rows("train").labels.tolist() == [0, 2]


def test_other_label_words_leave_the_alphabetical_order(tmp_path: Path):
    assert folder_of(save_folder(tmp_path, KEYS), words=("c", "b", "x")).classes == ("a", "b", "c")


def test_class_folders_that_are_numbers_are_in_the_order_of_numbers(tmp_path: Path):
    names = ["0", "1", "10", "2", "02"]
    assert folder_of(save_folder(tmp_path / "a", [f"train/{n}/x.png" for n in names]), splits=["train"]).classes == (
        *("0", "1", "02", "2", "10"),
    )
    mixed = save_folder(tmp_path / "b", [f"train/{n}/x.png" for n in ("10", "2", "b")])
    assert folder_of(mixed, splits=["train"]).classes == ("10", "2", "b")


def test_an_empty_class_folder_counts_and_zero_rows_are_legal(tmp_path: Path):
    (tmp_path / "train/a").mkdir(parents=True)
    save_image(tmp_path / "test/b/x.png", 0)
    dataset = folder_of(tmp_path)
    assert dataset.classes == ("a", "b")
    assert len(dataset.rows("train")) == 0
    assert dataset.rows("test").labels.tolist() == [1]


def test_without_class_folders_the_data_set_has_no_labels(tmp_path: Path):
    dataset = folder_of(save_folder(tmp_path, ["train/x.png", "test/y.png"]))
    assert (dataset.labelled, dataset.classes) == (False, ())
    assert dataset.rows("train").labels.tolist() == [0]


def test_images_beside_class_folders_are_named(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"outside them: test/loose\.png"):
        folder_of(save_folder(tmp_path, [*KEYS, "test/loose.png"])).rows("train")


def test_classes_without_class_folders_are_an_error(tmp_path: Path):
    with pytest.raises(DatasetError, match="has no class folders"):
        folder_of(save_folder(tmp_path, ["train/x.png", "test/y.png"]), classes=["a"]).rows("train")


def test_a_missing_split_folder_is_named_with_those_that_are_there(tmp_path: Path):
    with pytest.raises(DatasetError, match=r"no folder for the split 'val'; it has \['test', 'train'\]"):
        folder_of(save_folder(tmp_path, KEYS), splits=["train", "val"]).fetch(silent)


def test_a_missing_root_is_named(tmp_path: Path):
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        folder_of(tmp_path / "nowhere").fetch(silent)


def test_a_split_that_the_study_does_not_have_is_an_error(tmp_path: Path):
    with pytest.raises(DatasetError, match="no split 'val'"):
        folder_of(save_folder(tmp_path, KEYS)).rows("val")


def test_hidden_files_are_passed_over_and_other_files_are_named(tmp_path: Path):
    save_folder(tmp_path, KEYS)
    for name in (".DS_Store", "._x.png", "Thumbs.db"):
        (tmp_path / "train/a" / name).write_bytes(b"")
    assert len(folder_of(tmp_path).rows("train")) == 3
    for number in range(12):
        (tmp_path / f"train/a/slide {number:02}.svs").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"train/a/slide 00\.svs, .*train/a/slide 09\.svs, … \(12 in all\)"):
        folder_of(tmp_path).rows("train")


def test_folders_of_archives_and_systems_are_neither_class_nor_split(tmp_path: Path):
    save_folder(tmp_path, [*KEYS, "train/__MACOSX/._x.png", "train/@eaDir/x.png"])
    assert folder_of(tmp_path).classes == ("a", "b", "c")


def test_links_are_followed_but_not_in_a_circle(tmp_path: Path):
    save_image(tmp_path / "elsewhere/x.png", 0)
    root = save_folder(tmp_path / "cells", ["train/a/x.png"])
    (root / "train/b").symlink_to(tmp_path / "elsewhere")
    (root / "train/a/y.png").symlink_to(tmp_path / "elsewhere/x.png")
    dataset = folder_of(root, splits=["train"])
    assert dataset.rows("train").keys == ["train/a/x.png", "train/a/y.png", "train/b/x.png"]
    (root / "train/a/again").symlink_to(root / "train")
    with pytest.raises(DatasetError, match="link to a folder that it lies in"):
        folder_of(root, splits=["train"]).rows("train")


@pytest.mark.parametrize("name", [b"line\nbreak.png", b"latin-1 \xe9.png"])
def test_a_name_that_cannot_be_a_key_is_refused(tmp_path: Path, name: bytes):
    save_folder(tmp_path, KEYS)
    try:
        Path(os.fsdecode(bytes(tmp_path) + b"/train/a/" + name)).write_bytes(b"")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(DatasetError, match="rename"):
        folder_of(tmp_path).rows("train")


def test_the_fingerprint_changes_with_the_file_even_if_size_and_mtime_stay(tmp_path: Path):
    save_folder(tmp_path, KEYS)
    before = folder_of(tmp_path).rows("train").fingerprints
    path = tmp_path / "train/a/x.png"
    times = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    after = folder_of(tmp_path).rows("train").fingerprints
    assert before[0] != after[0]
    assert before[1:] == after[1:]
