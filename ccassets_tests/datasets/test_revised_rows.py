"""Subsets of rows and corrected labels: of every kind of data set, named by key, refused where a key is unknown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccassets.datasets import read_manifest
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Manifest
from ccassets.datasets.revised_rows import RevisedDataset, distinct_names
from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets_tests.datasets.made_datasets import dataset_of, save_folder, save_image

KEYS = ["train/a/1.png", "train/a/2.png", "train/b/3.png", "val/a/1.png", "val/b/2.png"]


def revised(
    folder: Path, *, subset: Sequence[str] = (), labels: Mapping[str, str] | str | None = None, **dataset: Any
) -> RevisedDataset:
    """A data set with a subset and corrected labels; by default the folder of `KEYS`."""
    if not dataset:
        save_folder(folder / "images", KEYS)
        dataset = {"kind": "folder", "root": "images", "splits": ["train", "val"]}
    if subset:
        (folder / "keys.txt").write_text("\n".join(subset) + "\n", encoding="utf-8")
        dataset["subset"] = "keys.txt"
    if labels is not None:
        rows = labels if isinstance(labels, str) else "".join(f"{key},{label}\n" for key, label in labels.items())
        text = rows if rows.startswith("key,") else f"key,label\n{rows}"
        (folder / "labels.csv").write_text(text, encoding="utf-8")
        dataset["labels_override"] = "labels.csv"
    opened = dataset_of(folder, **dataset)
    assert isinstance(opened, RevisedDataset)
    opened.fetch(silent)
    return opened


def manifests(dataset: RevisedDataset, **options: Any) -> list[Manifest]:
    return [read_manifest(dataset, split, **options) for split in dataset.splits]


def test_a_subset_has_the_named_rows_in_the_order_of_the_data_set(tmp_path: Path) -> None:
    dataset = revised(tmp_path, subset=["val/b/2.png", "train/b/3.png", "train/a/1.png"])

    train, val = manifests(dataset)

    assert (train.keys, val.keys) == (["train/a/1.png", "train/b/3.png"], ["val/b/2.png"])
    assert (train.labels.tolist(), val.labels.tolist(), dataset.classes) == ([0, 1], [1], ("a", "b"))
    whole = dataset.source
    assert image_digest(dataset.read("train", 1)) == image_digest(whole.read("train", 2))
    assert bytes(val.image_digest[0]) == image_digest(whole.read("val", 1))


def test_a_corrected_label_says_what_the_data_set_had(tmp_path: Path) -> None:
    dataset = revised(tmp_path, labels={"train/a/1.png": "b", "val/b/2.png": "0"})

    train, val = manifests(dataset)

    assert (train.labels.tolist(), val.labels.tolist()) == ([1, 0, 1], [0, 0])
    assert (train.overridden, val.overridden) == ({"train/a/1.png": "a"}, {"val/b/2.png": "b"})
    train.save(tmp_path / "train.parquet")
    assert Manifest.load(tmp_path / "train.parquet").overridden == train.overridden
    before = read_manifest(dataset.source, "train")
    assert np.array_equal(before.image_digest, train.image_digest)
    assert before.digest != train.digest
    assert before.source != train.source
    assert dataset.find_unneeded_overrides([train, val]) == []


def test_rows_of_a_phantom_are_those_of_the_whole(tmp_path: Path) -> None:
    section = {"kind": "phantom", "rows": {"train": 4, "test": 2}, "size": 32}
    whole = dataset_of(tmp_path, **section)
    labels = {"test/00001": "platelet"}

    dataset = revised(tmp_path, subset=["train/00003", "test/00001"], labels=labels, **section)

    assert dataset.rows("train").keys == ["train/00003"]
    assert dataset.rows("test").labels.tolist() == [whole.classes.index("platelet")]
    assert image_digest(dataset.read("train", 0)) == image_digest(whole.read("train", 3))


def test_a_key_of_two_splits_is_told_apart_by_its_split(tmp_path: Path) -> None:
    for seed, key in enumerate("abc"):
        save_image(tmp_path / f"{key}.png", seed)
    rows = [("a", "train"), ("b", "train"), ("a", "test"), ("c", "test")]
    (tmp_path / "t.csv").write_text("path,label,split\n" + "".join(f"{key}.png,0,{split}\n" for key, split in rows))
    section = {"kind": "table", "file": "t.csv", "splits": ["train", "test"]}

    one = revised(tmp_path, subset=["test/a.png", "b.png"], **section)
    assert (one.rows("train").keys, one.rows("test").keys) == (["b.png"], ["a.png"])
    both = revised(tmp_path, subset=["a.png"], **section)
    assert (both.rows("train").keys, both.rows("test").keys) == (["a.png"], ["a.png"])
    keys, splits = [f"{key}.png" for key, _ in rows], [split for _, split in rows]
    assert distinct_names(keys, splits) == ["train/a.png", "train/b.png", "test/a.png", "test/c.png"]
    assert distinct_names(["train/a.png", "a.png"], ["train", "test"]) == ["train/a.png", "test/a.png"]


def test_a_row_of_several_labels_is_corrected_as_a_whole(tmp_path: Path) -> None:
    for seed, key in enumerate("abc"):
        save_image(tmp_path / f"{key}.png", seed)
    (tmp_path / "t.csv").write_text("path,split,oedema,nodule\na.png,train,1,1\nb.png,train,0,1\nc.png,train,1,0\n")
    section = {"kind": "table", "file": "t.csv", "splits": ["train"], "columns": {"label": ["oedema", "nodule"]}}

    rows = revised(tmp_path, labels={"a.png": "none", "b.png": "oedema|nodule"}, **section).rows("train")

    assert rows.label_matrix is not None
    assert rows.label_matrix.tolist() == [[0, 0], [1, 1], [1, 0]]
    assert rows.labels.tolist() == [0, 0, 0]
    assert rows.overridden == {"a.png": "oedema|nodule", "b.png": "nodule"}


def test_what_is_unknown_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"keys.txt: images has no image of 1 of the keys: 'train/a/9.png'"):
        revised(tmp_path, subset=["train/a/1.png", "train/a/9.png"])
    with pytest.raises(DatasetError, match=r"labels.csv: images has no image of 1 of the keys: 'val/a/9.png'"):
        revised(tmp_path, labels={"val/a/9.png": "a"})
    with pytest.raises(DatasetError, match=r"labels.csv: 'c' is not a label of images; expected 'a', 'b'"):
        revised(tmp_path, labels={"val/a/1.png": "c"})
    with pytest.raises(DatasetError, match=r"'2' is not a label"):
        revised(tmp_path, labels={"val/a/1.png": "2"})
    with pytest.raises(DatasetError, match=r"gives 'val/a/1.png' two labels"):
        revised(tmp_path, labels="val/a/1.png,a\nval/a/1.png,b\n")
    with pytest.raises(DatasetError, match=r"must have the columns \['label'\]"):
        revised(tmp_path, labels="key,class\nval/a/1.png,a\n")
    with pytest.raises(DatasetError, match=r"There is no file .*no.txt; dataset.subset"):
        dataset_of(tmp_path, kind="folder", root="images", splits=["train"], subset="no.txt").fetch(silent)


def test_a_data_set_without_labels_has_none_to_correct(tmp_path: Path) -> None:
    save_folder(tmp_path / "images", ["train/1.png"])
    with pytest.raises(DatasetError, match="corrects labels, but images has none"):
        revised(tmp_path, labels={"train/1.png": "0"}, kind="folder", root="images", splits=["train"])


def test_a_label_that_is_not_needed_any_more_is_a_warning(tmp_path: Path) -> None:
    whole = revised(tmp_path, subset=KEYS).source
    first = image_digest(whole.read("train", 0)).hex()
    lines = [
        "key,label,image_digest",
        f"{KEYS[0]},b,{first}",  # As it should be.
        f"{KEYS[1]},b,{first}",  # Given to another image.
        f"{KEYS[2]},b,",  # The data set says so, too.
        f"{KEYS[4]},a,",  # Not in the subset.
        f"train/a/gone.png,b,{first}",
    ]
    dataset = revised(tmp_path, subset=KEYS[:4], labels="\n".join(lines) + "\n")

    findings = dataset.find_unneeded_overrides(manifests(dataset))

    assert {finding.severity for finding in findings} == {"warning"}
    assert sorted(finding.message.split("not: ")[1] for finding in findings) == [
        f"another image is under the key {KEYS[1]}. Remove the lines.",
        "the data set has no image under the key train/a/gone.png. Remove the lines.",
        f"the data set itself has the label under the key {KEYS[2]}. Remove the lines.",
        f"the study has no image under the key {KEYS[4]}. Remove the lines.",
    ]
    with_limit = dataset.find_unneeded_overrides(manifests(dataset, limit=1))
    assert not [finding for finding in with_limit if "the study has no image" in finding.message]
