"""A manifest: every image read once, bad ones named, digests reused by file, changes noticed, leaks found."""

import os
import sys
import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.image_decoding import blank_image, image_digest
from ccassets.datasets.labels import find_label_mismatch, find_similar_classes, require_words_for_labels
from ccassets.datasets.manifest import (
    Manifest,
    OnBadImage,
    compare_manifests,
    find_leaks,
    is_current,
    read_image,
    read_manifest,
    readable_again,
)
from ccassets.errors import DatasetError, StorageError
from ccassets.progress import Progress
from ccassets_tests.datasets.made_datasets import dataset_of, noise, save_folder, save_image, study_of

SPLITS = ("train", "test")
KEYS = [f"{split}/{name}/{i}.png" for split in SPLITS for name in "ab" for i in range(3)]


class Counting:
    """A data set that counts the images it decodes."""

    def __init__(self, dataset) -> None:
        self._dataset = dataset
        self.name, self.version = dataset.name, dataset.version
        self.classes, self.labelled = dataset.classes, dataset.labelled
        self.read_rows: list[int] = []

    def fetch(self, progress: Progress) -> None:
        self._dataset.fetch(progress)

    def rows(self, split: str) -> Rows:
        return self._dataset.rows(split)

    def read(self, split: str, row: int) -> Image.Image:
        self.read_rows.append(row)
        return self._dataset.read(split, row)


def folder_of(root: Path, splits: Sequence[str] = SPLITS) -> Counting:
    return Counting(dataset_of(root.parent, kind="folder", root=root, splits=splits))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return save_folder(tmp_path / "cells", KEYS)


def damage(root: Path, keys: Iterable[str]) -> None:
    for key in keys:
        (root / key).write_bytes((root / key).read_bytes()[:60])


def test_a_manifest_holds_what_the_split_holds(root: Path):
    steps: list[tuple[int, int]] = []
    manifest = read_manifest(folder_of(root), "train", progress=lambda done, total: steps.append((done, total)))
    assert manifest.keys == KEYS[:6]
    assert manifest.rows.tolist() == list(range(6))
    assert manifest.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (manifest.groups, manifest.label_matrix, manifest.skipped, manifest.limit) == (None, None, (), None)
    assert (manifest.classes, manifest.labelled, len(manifest)) == (("a", "b"), True, 6)
    assert not manifest.blank.any()
    assert [bytes(row) for row in manifest.image_digest] == [image_digest(noise(seed)) for seed in range(6)]
    assert steps == [(done, 6) for done in range(1, 7)]
    assert np.array_equal(np.asarray(read_image(folder_of(root), manifest, 4)), np.asarray(noise(4)))


@pytest.mark.parametrize("workers", [1, 7])
def test_the_order_does_not_depend_on_the_workers(tmp_path: Path, workers: int):
    dataset = folder_of(save_folder(tmp_path / "cells", [f"train/{i:03}.png" for i in range(100)]), ["train"])
    manifest = read_manifest(dataset, "train", workers=workers)
    assert [bytes(row) for row in manifest.image_digest] == [image_digest(noise(seed)) for seed in range(100)]


def test_zero_rows_are_legal(tmp_path: Path):
    (tmp_path / "cells/train").mkdir(parents=True)
    manifest = read_manifest(folder_of(tmp_path / "cells", ["train"]), "train", limit=3)
    assert (len(manifest), manifest.image_digest.shape) == (0, (0, 32))
    manifest.save(tmp_path / "m.parquet")
    assert Manifest.load(tmp_path / "m.parquet").digest == manifest.digest


def test_the_digest_is_that_of_the_content(root: Path, tmp_path: Path):
    manifest = read_manifest(folder_of(root), "train")
    other_files = save_folder(tmp_path / "copy" / "cells", KEYS)
    assert read_manifest(folder_of(other_files), "train").digest == manifest.digest
    flipped = manifest.image_digest.copy()
    flipped[3, 7] ^= 1
    variants = [
        replace(manifest, split="test"),
        replace(manifest, keys=["other", *manifest.keys[1:]]),
        replace(manifest, keys=[manifest.keys[0] + manifest.keys[1][0], manifest.keys[1][1:], *manifest.keys[2:]]),
        replace(manifest, labels=manifest.labels + 1),
        replace(manifest, groups=[""] * 6),
        replace(manifest, groups=list("abcdef")),
        replace(manifest, label_matrix=np.zeros((6, 2), np.uint8)),
        replace(manifest, label_matrix=np.zeros((6, 3), np.uint8)),
        replace(manifest, image_digest=flipped),
        replace(manifest, blank=~manifest.blank),
    ]
    assert len({manifest.digest, *(variant.digest for variant in variants)}) == len(variants) + 1
    assert replace(manifest, fingerprints=["x"] * 6, source="x", limit=6).digest == manifest.digest


def test_a_saved_manifest_comes_back_whole(root: Path, tmp_path: Path):
    manifest = replace(
        read_manifest(folder_of(root), "train", limit=4),
        groups=["p 1", "p 1", "p 2", ""],
        label_matrix=np.arange(12, dtype=np.uint8).reshape(4, 3),
        blank=np.array([False, True, False, False]),
        skipped=(("train/a/x.png", "it is no image"),),
    )
    path = tmp_path / "manifest" / "train.parquet"
    manifest.save(path)
    loaded = Manifest.load(path)
    for name in Manifest.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, name), getattr(manifest, name)), name
    assert loaded.digest == manifest.digest
    assert [child.name for child in path.parent.iterdir()] == ["train.parquet"]


def test_two_readings_are_compared_by_key_and_then_by_picture(root: Path):
    before = read_manifest(folder_of(root), "train")
    assert asdict(compare_manifests(None, before)) == {"added": 6, "removed": 0, "changed": 0, "relabelled": 0}
    (root / "train/a/0.png").rename(root / "train/b/9.png")  # the class is the folder
    (root / "train/a/1.png").unlink()
    save_image(root / "train/b/0.png", 77)
    save_image(root / "train/b/8.png", 78)
    after = read_manifest(folder_of(root), "train")
    assert asdict(compare_manifests(before, after)) == {"added": 1, "removed": 1, "changed": 1, "relabelled": 1}


def test_labels_of_several_columns_are_compared_as_a_whole(root: Path):
    matrix = np.eye(6, 3, dtype=np.uint8)
    before = replace(read_manifest(folder_of(root), "train"), label_matrix=matrix)
    after = replace(before, label_matrix=matrix ^ np.array([[0, 0, 1]] + [[0, 0, 0]] * 5, np.uint8))
    assert compare_manifests(before, after).relabelled == 1
    assert compare_manifests(before, replace(after, label_matrix=None)).relabelled == 6


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_manifest_that_cannot_be_read_is_said_in_a_sentence(tmp_path: Path, content: bytes | None):
    path = tmp_path / "train.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"train\.parquet"):
        Manifest.load(path)


@pytest.mark.parametrize("column", ["label", "row", "key", "fingerprint", "image_digest"])
def test_a_manifest_that_was_edited_is_refused(root: Path, tmp_path: Path, column: str):
    path = tmp_path / "train.parquet"
    read_manifest(folder_of(root), "train").save(path)
    table = pq.ParquetFile(path).read()
    position = table.column_names.index(column)
    swapped = table[column].take([len(table) - 1, *range(1, len(table) - 1), 0])  # Of two classes.
    pq.write_table(table.set_column(position, column, swapped), path)
    with pytest.raises(DatasetError, match="not those that were written"):
        Manifest.load(path)


def test_every_bad_image_is_named_at_once(root: Path):
    bad = ["train/a/1.png", "train/b/0.png"]
    damage(root, bad)
    (root / "train/b/2.png").write_bytes(b"")
    with pytest.raises(DatasetError) as caught:
        read_manifest(folder_of(root), "train")
    message = str(caught.value)
    assert message.startswith(
        "3 of 6 images of the split 'train' cannot be read:\n  train/a/1.png: it cannot be decoded"
    )
    assert all(f"\n  {key}: " in message for key in [*bad, "train/b/2.png"])
    assert "on_bad_image" in message


def test_skip_leaves_bad_images_out_and_keeps_their_keys_and_reasons(root: Path, tmp_path: Path):
    damage(root, ["train/a/1.png"])
    (root / "train/a/3.png").symlink_to(tmp_path / "gone.png")
    manifest = read_manifest(folder_of(root), "train", on_bad_image="skip")
    assert manifest.keys == [key for key in KEYS[:6] if key != "train/a/1.png"]
    assert manifest.rows.tolist() == [0, 2, 4, 5, 6]
    assert manifest.labels.tolist() == [0, 0, 1, 1, 1]
    assert bytes(manifest.image_digest[1]) == image_digest(noise(2))
    assert manifest.skipped[0][0] == "train/a/1.png"
    assert manifest.skipped[1] == ("train/a/3.png", "there is no such file")
    assert np.array_equal(np.asarray(read_image(folder_of(root), manifest, 1)), np.asarray(noise(2)))


def test_blank_keeps_bad_images_as_rows_of_a_stand_in(root: Path):
    damage(root, ["train/a/1.png"])
    dataset = folder_of(root)
    manifest = read_manifest(dataset, "train", on_bad_image="blank")
    assert manifest.keys == KEYS[:6]
    assert manifest.blank.tolist() == [False, True, False, False, False, False]
    assert bytes(manifest.image_digest[1]) == image_digest(blank_image())
    assert manifest.skipped == ()
    assert read_image(dataset, manifest, 1).tobytes() == blank_image().tobytes()


def test_a_shard_holds_its_rows_of_the_manifest_and_reads_their_images(root: Path):
    dataset = folder_of(root)
    damage(root, KEYS[1:2])
    manifest = read_manifest(dataset, "train", on_bad_image="blank")

    shard = manifest.take(np.array([4, 1]))

    assert (shard.split, len(shard), shard.keys) == ("train", 2, [KEYS[4], KEYS[1]])
    assert shard.labels.tolist() == [1, 0]
    assert shard.blank.tolist() == [False, True]
    assert [image_digest(read_image(dataset, shard, row)) for row in (0, 1)] == [
        digest.tobytes() for digest in manifest.image_digest[[4, 1]]
    ]


def test_an_image_that_is_lost_later_is_named_with_split_and_key(root: Path):
    manifest = read_manifest(folder_of(root), "train")
    damage(root, ["train/b/2.png"])
    with pytest.raises(DatasetError, match=r"Split 'train', image 'train/b/2\.png': it cannot be decoded"):
        read_image(folder_of(root), manifest, 5)


@pytest.mark.parametrize(
    ("limit", "rows"), [(1, [0]), (2, [0, 5]), (3, [0, 2, 5]), (6, [0, 1, 2, 3, 4, 5]), (100, [0, 1, 2, 3, 4, 5])]
)
def test_a_limit_takes_evenly_spaced_rows(root: Path, limit: int, rows: list[int]):
    dataset = folder_of(root)
    manifest = read_manifest(dataset, "train", limit=limit)
    assert manifest.rows.tolist() == rows
    assert manifest.keys == [KEYS[row] for row in rows]
    assert bytes(manifest.image_digest[-1]) == image_digest(noise(rows[-1]))
    assert sorted(dataset.read_rows) == rows
    assert manifest.limit == limit


def test_only_new_and_changed_files_are_decoded_again(root: Path, tmp_path: Path):
    first = read_manifest(folder_of(root), "train")
    first.save(tmp_path / "train.parquet")
    save_image(root / "train/a/00.png", 100)
    save_image(root / "train/b/1.png", 101)
    (root / "train/a/2.png").unlink()
    dataset = folder_of(root)
    steps: list[tuple[int, int]] = []
    again = read_manifest(
        dataset,
        "train",
        previous=Manifest.load(tmp_path / "train.parquet"),
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [again.keys[row] for row in sorted(dataset.read_rows)] == ["train/a/00.png", "train/b/1.png"]
    assert again.digest == read_manifest(folder_of(root), "train").digest
    assert steps[-1] == (6, 6)

    dataset = folder_of(root)
    assert read_manifest(dataset, "train", previous=again).digest == again.digest
    assert dataset.read_rows == []


def test_what_another_decoder_read_is_read_again(root: Path):
    first = replace(read_manifest(folder_of(root), "train"), decoder="policy 0")
    dataset = folder_of(root)
    read_manifest(dataset, "train", previous=first)
    assert len(dataset.read_rows) == 6
    assert not is_current(first, dataset, limit=None, on_bad_image="error")


def test_an_image_once_unreadable_is_tried_again(root: Path):
    damage(root, ["train/a/1.png"])
    first = read_manifest(folder_of(root), "train", on_bad_image="blank")
    dataset = folder_of(root)
    with pytest.raises(DatasetError, match="1 of 6"):
        read_manifest(dataset, "train", previous=first)
    assert dataset.read_rows == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="the file is Linux's")
@pytest.mark.parametrize("mode", ["skip", "blank"])
def test_a_file_that_the_system_does_not_read_is_neither_skipped_nor_blank(root: Path, mode: OnBadImage):
    # The first page of a process's memory is mapped nowhere: reading it is an input/output error.
    (root / "train/a/9.png").symlink_to("/proc/self/mem")
    with pytest.raises(StorageError, match=r"9.png cannot be read: Input/output error") as caught:
        read_manifest(folder_of(root), "train", on_bad_image=mode)
    assert caught.value.transient


class Passing(Counting):
    """A data set whose images of some rows cannot be read until the trouble passes."""

    bad: Sequence[int] = ()

    def read(self, split: str, row: int) -> Image.Image:
        self.read_rows.append(row)
        if row in self.bad:
            raise DatasetError("it cannot be decoded (Input/output error)")
        return self._dataset.read(split, row)


@pytest.mark.parametrize("mode", ["skip", "blank"])
def test_images_once_unreadable_are_tried_again_and_no_others(root: Path, mode: OnBadImage):
    dataset = Passing(dataset_of(root.parent, kind="folder", root=root, splits=SPLITS))
    dataset.bad = [1, 4]
    first = read_manifest(dataset, "train", on_bad_image=mode)
    dataset.read_rows.clear()

    assert is_current(first, dataset, limit=None, on_bad_image=mode)
    assert readable_again(first, dataset) == []
    dataset.bad = [4]
    assert readable_again(first, dataset) == [KEYS[1]]
    assert dataset.read_rows == [1, 4, 1, 4]
    dataset.read_rows.clear()
    again = read_manifest(dataset, "train", on_bad_image=mode, previous=first)

    assert sorted(dataset.read_rows) == [1, 4]
    assert KEYS[1] in again.keys
    assert again.blank.sum() + len(again.skipped) == 1


def test_a_manifest_is_current_until_its_source_changes(root: Path):
    def current(**options: object) -> bool:
        dataset = folder_of(root)
        result = is_current(manifest, dataset, **({"limit": None, "on_bad_image": "error"} | options))
        assert dataset.read_rows == []
        return result

    manifest = read_manifest(folder_of(root), "train")
    assert current()
    assert current(on_bad_image="skip")
    assert not current(limit=2)
    save_image(root / "test/a/9.png", 9)
    assert current()
    save_image(root / "train/b/9.png", 9)
    assert not current()
    (root / "train/b/9.png").unlink()
    assert current()
    (root / "train/c").mkdir()
    assert not current(), "a class more can give other label numbers"
    (root / "train/c").rmdir()
    os.utime(root / "train/b/1.png", (1, 1))
    assert not current()


def test_a_manifest_with_bad_images_is_current_in_its_own_mode_only_and_until_they_are_repaired(root: Path):
    damage(root, ["train/a/1.png"])
    for mode, others in (("skip", ("error", "blank")), ("blank", ("error", "skip"))):
        manifest = read_manifest(folder_of(root), "train", on_bad_image=mode)
        assert is_current(manifest, folder_of(root), limit=None, on_bad_image=mode)
        assert not any(is_current(manifest, folder_of(root), limit=None, on_bad_image=other) for other in others)
    save_image(root / "train/a/1.png", 1)
    assert not is_current(manifest, folder_of(root), limit=None, on_bad_image="blank")


def test_a_data_set_that_is_gone_is_not_current(root: Path):
    manifest = read_manifest(folder_of(root), "train")
    dataset = dataset_of(root.parent, kind="folder", root=root / "gone", splits=SPLITS)
    assert not is_current(manifest, dataset, limit=None, on_bad_image="error")


def test_an_image_in_two_splits_is_a_warning_with_both_keys(root: Path):
    assert find_leaks([read_manifest(folder_of(root), split) for split in SPLITS]) == []
    save_image(root / "test/a/again.png", 4)
    save_image(root / "train/a/twice in one split.png", 0)
    findings = find_leaks([read_manifest(folder_of(root), split) for split in SPLITS])
    assert [(finding.check, finding.severity, finding.where) for finding in findings] == [
        ("image_in_two_splits", "warning", "train, test")
    ]
    assert "1 are in more, for example 'train/b/1.png' (train) = 'test/a/again.png' (test)" in findings[0].message


def test_blank_rows_are_no_leak(root: Path):
    damage(root, ["train/a/1.png", "test/a/1.png"])
    assert find_leaks([read_manifest(folder_of(root), split, on_bad_image="blank") for split in SPLITS]) == []


def test_a_group_in_two_splits_is_a_warning(root: Path):
    train, test = (read_manifest(folder_of(root), split) for split in SPLITS)
    train = replace(train, groups=["p1", "p1", "p2", "p2", "p3", "p3"])
    assert find_leaks([train, replace(test, groups=["p4"] * 6)]) == []
    (finding,) = find_leaks([train, replace(test, groups=["p4", "p4", "p4", "p4", "p2", "p1"])])
    assert (finding.check, finding.severity) == ("group_in_two_splits", "warning")
    assert "2 are in more, for example 'train/a/0.png' (train) = 'test/b/2.png' (test)" in finding.message


def test_the_groups_of_a_table_reach_the_manifest(root: Path):
    (root / "t.csv").write_text("path,label,split,patient\ntrain/a/0.png,x,s,p1\ntrain/a/1.png,y,s,p2\n")
    dataset = dataset_of(root, kind="table", file="t.csv", splits=["s"], columns={"group": "patient"})
    manifest = read_manifest(dataset, "s")
    assert (manifest.groups, manifest.labels.tolist(), manifest.classes) == (["p1", "p2"], [0, 1], ("x", "y"))
    (root / "t.csv").write_text("path,label,split,patient\ntrain/a/0.png,x,s,p1\ntrain/a/1.png,y,s,p1\n")
    dataset = dataset_of(root, kind="table", file="t.csv", splits=["s"], columns={"group": "patient"})
    assert not is_current(manifest, dataset, limit=None, on_bad_image="error")


def test_label_words_that_are_not_the_classes_are_a_warning(root: Path):
    def checks(words: tuple[str, ...], **options: object) -> list[str]:
        study = study_of(root, words=words, kind="folder", root=root, splits=SPLITS, **options)
        return [finding.check for finding in find_label_mismatch(study, ("a", "b"))]

    assert checks(()) == checks(("A", "b")) == checks(("first", "second"), classes=["a", "b"]) == []
    assert checks(("first", "second")) == ["label_words_are_not_the_classes"]
    assert checks(("a", "b", "c"), classes=["a", "b"]) == ["label_words_are_not_the_classes"]


def test_only_as_many_images_as_workers_are_held_at_once(root: Path):
    class Watched(Counting):
        held, most = 0, 0

        def read(self, split: str, row: int) -> Image.Image:
            image = super().read(split, row)
            with lock:
                self.held += 1
                self.most = max(self.most, self.held)
            weakref.finalize(image, self.let_go)
            return image

        def let_go(self) -> None:
            with lock:
                self.held -= 1

    lock = threading.RLock()
    for i in range(200):
        save_image(root / f"train/a/many {i}.png", i)
    dataset = Watched(dataset_of(root.parent, kind="folder", root=root, splits=SPLITS))
    read_manifest(dataset, "train", workers=3)
    assert len(dataset.read_rows) == 206
    assert 1 <= dataset.most <= 3


@pytest.fixture(scope="module")
def crops() -> Path:
    root = os.environ.get("CCASSETS_TEST_DATA")
    if not root or not (Path(root) / "data/bccd").is_dir():
        pytest.skip("CCASSETS_TEST_DATA names no folder with data/bccd")
    return Path(root) / "data/bccd"


def test_real_crops_have_the_label_of_their_folder(crops: Path, tmp_path: Path):
    words = ("RBC", "WBC", "Platelets")
    dataset = dataset_of(tmp_path, words=words, kind="folder", root=crops)
    manifests = {split: read_manifest(dataset, split) for split in ("train", "val", "test")}
    assert {split: len(manifest) for split, manifest in manifests.items()} == {"train": 360, "val": 120, "test": 120}
    for split, manifest in manifests.items():
        assert list(manifest.keys) == sorted(manifest.keys)
        for key, label in zip(manifest.keys, manifest.labels, strict=True):
            assert key.split("/")[:2] == [split, words[label]]
        assert np.bincount(manifest.labels).tolist() == [len(manifest) // 3] * 3
        for i in (0, len(manifest) - 1):
            with Image.open(crops / manifest.keys[i]) as image:
                assert bytes(manifest.image_digest[i]) == image_digest(image.convert("RGB"))
    assert find_leaks(list(manifests.values())) == []
    again = dataset_of(tmp_path, words=words, kind="folder", root=crops)
    assert read_manifest(again, "val").digest == manifests["val"].digest


def test_an_image_whose_label_has_no_word_is_refused(tmp_path: Path):
    study = study_of(tmp_path, words=("first", "second"), kind="folder", root=tmp_path)
    require_words_for_labels(study, ("a", "b"), np.array([0, 1]))
    with pytest.raises(DatasetError, match=r"has 2 words, but .* the label number 2 \('c'\).*, \['a', 'b', 'c'\]"):
        require_words_for_labels(study, ("a", "b", "c"), np.array([0, 2]))
    require_words_for_labels(study_of(tmp_path, kind="folder", root=tmp_path), ("a",), np.array([7]))


@pytest.mark.parametrize(
    "names", [("Neutrophil", "neutrophil"), ("a b", "a_b"), ("a-b", "a  b"), ("ä", "a\u0308"), ("Straße", "STRASSE")]
)
def test_classes_that_differ_in_their_form_alone_are_found(names: tuple[str, ...]):
    assert [finding.check for finding in find_similar_classes((*names, "other"))] == ["classes_alike"]
    assert find_similar_classes(("grade 1", "grade 10", "+", "-")) == []
