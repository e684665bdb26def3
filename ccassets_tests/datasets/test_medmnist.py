"""MedMNIST archives of the published layout, small and made here: verified, unpacked once, mapped."""

import hashlib
import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import medmnist
import numpy as np
import pytest

from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets_tests.datasets.made_datasets import MEDMNIST_COUNTS, MedMnistSite
from ccassets_tests.http_server import answering


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MedMnistSite:
    return MedMnistSite(tmp_path, monkeypatch)


@pytest.mark.parametrize("size", [28, 64])
def test_rows_are_those_of_the_archive(site: MedMnistSite, size: int):
    arrays = np.load(site.archive("bloodmnist", size))
    dataset = site.dataset("bloodmnist", size)
    dataset.fetch(silent)
    assert dataset.name == f"bloodmnist_{size}"
    assert dataset.labelled
    assert dataset.classes[0] == "basophil"
    assert len(dataset.classes) == 8
    for split, n in MEDMNIST_COUNTS.items():
        rows = dataset.rows(split)
        assert rows.keys == [str(row) for row in range(n)]
        assert rows.labels.tolist() == arrays[f"{split}_labels"][:, 0].tolist()
        assert rows.labels.dtype == np.int64
        assert rows.label_matrix is None
        for row in range(n):
            assert np.array_equal(np.asarray(dataset.read(split, row)), arrays[f"{split}_images"][row])


def test_every_2d_set_of_the_collection_can_be_read(site: MedMnistSite):
    names = [name for name in medmnist.INFO if not name.endswith("3d")]
    assert len(names) == 12
    for name in names:
        arrays = np.load(site.archive(name))
        dataset = site.dataset(name)
        dataset.fetch(silent)
        assert dataset.read("test", 1).mode == "RGB"
        assert len(dataset.rows("test")) == len(arrays["test_labels"])


def test_grey_is_repeated_in_three_channels(site: MedMnistSite):
    arrays = np.load(site.archive("tissuemnist"))
    dataset = site.dataset("tissuemnist")
    dataset.fetch(silent)
    assert np.array_equal(np.asarray(dataset.read("val", 1)), np.repeat(arrays["val_images"][1][..., None], 3, axis=2))


def test_a_multi_label_set_has_a_matrix_and_the_first_set_label(site: MedMnistSite):
    labels = np.zeros((2, 14), np.uint8)
    labels[1, [4, 9]] = 1
    site.archive("chestmnist", val_labels=labels)
    dataset = site.dataset("chestmnist")
    dataset.fetch(silent)
    rows = dataset.rows("val")
    assert rows.labels.tolist() == [0, 4]
    assert rows.label_matrix is not None
    assert rows.label_matrix.dtype == np.uint8
    assert np.array_equal(rows.label_matrix, labels)


def test_an_archive_is_unpacked_once_and_again_when_it_changed(site: MedMnistSite):
    path = site.archive("bloodmnist")
    steps: list[tuple[int, int]] = []
    site.dataset("bloodmnist").fetch(lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 0
    before = site.dataset("bloodmnist").rows("train").fingerprints

    steps.clear()
    site.dataset("bloodmnist").fetch(lambda done, total: steps.append((done, total)))
    assert steps == []

    site.archive("bloodmnist", train_labels=np.full((6, 1), 7, np.uint8))
    changed = site.dataset("bloodmnist")
    with pytest.raises(DatasetError, match="fetch the data set first"):
        changed.rows("train")
    changed.fetch(silent)
    assert changed.rows("train").labels.tolist() == [7] * 6
    assert changed.rows("train").fingerprints[0] != before[0]
    assert sorted(child.name for child in (site.folder / "storage/datasets").iterdir() if child.is_dir()) == [
        "bloodmnist_28"
    ]
    assert path.is_file()


def test_memory_stays_flat_while_unpacking_and_reading(site: MedMnistSite):
    images = np.zeros((400, 128, 128, 3), np.uint8)  # 20 MB
    site.archive("bloodmnist", 128, train_images=images, train_labels=np.zeros((400, 1), np.uint8))
    dataset = site.dataset("bloodmnist", 128)
    tracemalloc.start()
    dataset.fetch(silent)
    for row in range(400):
        dataset.read("train", row)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_what_a_killed_unpacking_left_is_no_data_set(site: MedMnistSite):
    site.archive("bloodmnist")
    left = site.folder / "storage/datasets/.bloodmnist_28.partial"
    left.mkdir(parents=True)
    (left / "train_images.npy").write_bytes(b"half")
    dataset = site.dataset("bloodmnist")
    dataset.fetch(silent)
    assert len(dataset.rows("train")) == 6
    assert not left.exists()


def test_an_archive_of_another_md5_is_refused_with_both(site: MedMnistSite):
    path = site.archive("bloodmnist")
    published = medmnist.INFO["bloodmnist"]["MD5"]
    path.write_bytes(path.read_bytes() + b"\0")
    actual = hashlib.md5(path.read_bytes()).hexdigest()
    with pytest.raises(DatasetError, match=f"MD5 {actual}, published is {published}"):
        site.dataset("bloodmnist").fetch(silent)


def test_nothing_is_downloaded_unasked(site: MedMnistSite):
    with pytest.raises(DatasetError, match=r"bloodmnist_224\.npz does not exist. Set `download: true`"):
        site.dataset("bloodmnist", 224).fetch(silent)


@pytest.mark.parametrize("name", ["organmnist3d", "mnist"])
def test_a_set_that_is_not_2d_or_not_there_is_named(site: MedMnistSite, name: str):
    with pytest.raises(DatasetError, match=f"no 2D set '{name}'; it has pathmnist, chestmnist"):
        site.dataset(name).fetch(silent)


def test_a_pickled_member_is_refused_and_not_run(site: MedMnistSite):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(site.folder / "sprung"),)

    site.archive("bloodmnist", val_images=np.array([Trap(), Trap()], dtype=object))
    with pytest.raises(DatasetError, match="val_images is not a plain array"):
        site.dataset("bloodmnist").fetch(silent)
    assert not (site.folder / "sprung").exists()


@pytest.mark.parametrize(
    ("member", "array", "said"),
    [
        ("train_images", np.zeros((6, 28, 28, 3), np.float32), "must be uint8 .* found float32"),
        ("train_images", np.zeros((6, 28, 28), np.uint8), r"\(n, 28, 28, 3\); found uint8 \(6, 28, 28\)"),
        ("train_images", np.array(3, np.uint8), "a single value"),
        ("test_labels", np.zeros((2, 1), np.uint8), r"integers of the shape \(3, 1\); found uint8 \(2, 1\)"),
        ("test_labels", np.zeros((3, 1)), "found float64"),
        ("test_labels", np.full((3, 1), 8, np.uint8), "must be 0 to 7; found 8 to 8"),
        ("test_labels", np.full((3, 1), -1), "must be 0 to 7; found -1 to -1"),
    ],
)
def test_an_archive_that_is_not_what_it_says_is_refused(site: MedMnistSite, member: str, array: np.ndarray, said: str):
    site.archive("bloodmnist", **{member: array})
    with pytest.raises(DatasetError, match=said):
        site.dataset("bloodmnist").fetch(silent)


def test_a_missing_member_and_a_file_that_is_no_archive_are_refused(site: MedMnistSite):
    path = site.root / "bloodmnist.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train_images.npy", b"")
    site.publish(path, "bloodmnist")
    with pytest.raises(DatasetError, match=r"lacks .*val_images.npy.*; it holds"):
        site.dataset("bloodmnist").fetch(silent)
    path.write_bytes(b"no archive")
    site.publish(path, "bloodmnist")
    with pytest.raises(DatasetError, match=r"not a valid \.npz archive"):
        site.dataset("bloodmnist").fetch(silent)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Path]]:
    """An HTTP server of a folder on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "*")
    folder = tmp_path / "www"
    folder.mkdir()
    with answering(ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))) as address:
        yield address, folder


def test_an_archive_is_downloaded_verified_and_kept(site: MedMnistSite, server: tuple[str, Path], monkeypatch):
    address, folder = server
    site.archive("bloodmnist", 64).rename(folder / "blood.npz")
    monkeypatch.setitem(medmnist.INFO["bloodmnist"], "url_64", f"{address}/blood.npz")
    steps: list[tuple[int, int]] = []
    dataset = site.dataset("bloodmnist", 64, download=True)
    dataset.fetch(lambda done, total: steps.append((done, total)))
    size = (folder / "blood.npz").stat().st_size
    assert (size, size) in steps
    assert len(dataset.rows("train")) == 6
    assert (site.root / "bloodmnist_64.npz").read_bytes() == (folder / "blood.npz").read_bytes()


def test_a_wrong_download_is_not_kept(site: MedMnistSite, server: tuple[str, Path], monkeypatch):
    address, folder = server
    (folder / "blood.npz").write_bytes(b"a sign-in page")
    monkeypatch.setitem(medmnist.INFO["bloodmnist"], "url", f"{address}/blood.npz")
    with pytest.raises(DatasetError, match="it was not kept"):
        site.dataset("bloodmnist", download=True).fetch(silent)
    assert list(site.root.glob("*.npz")) == []
    assert list(site.root.glob(".*.partial")) == []


def test_a_download_that_fails_says_from_where_and_what_to_do(
    site: MedMnistSite, server: tuple[str, Path], monkeypatch
):
    address, _ = server
    for url, said in ((f"{address}/none.npz", "404"), ("http://127.0.0.1:9/none.npz", "refused")):
        monkeypatch.setitem(medmnist.INFO["bloodmnist"], "url", url)
        with pytest.raises(DatasetError, match=f"{url} could not be downloaded to .*{said}.*put it there"):
            site.dataset("bloodmnist", download=True).fetch(silent)
