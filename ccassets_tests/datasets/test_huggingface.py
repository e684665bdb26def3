"""Data sets of the Hugging Face library: local folders in every form, and the hub as a small server plays it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset as Table, DatasetDict, Features, Image as ImageFeature, Value, load_dataset

from ccassets.datasets import read_manifest
from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets_tests.datasets.made_datasets import dataset_of, noise, save_folder, save_parquet
from ccassets_tests.encoders.hub import COMMIT, Hub, hub_of

CLASSES = Features({"image": ImageFeature(), "label": ClassLabel(names=["white", "red"])})
LABELS = {"train": [0, 1, 1], "test": [1]}


def huggingface_of(folder: Path, **options: Any):
    options.setdefault("splits", ["train", "test"])
    return dataset_of(folder, kind="huggingface", **{"path": "hf", **options})


@pytest.mark.parametrize("form", ["parquet", "saved", "images"])
def test_every_local_form_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    if form == "images":
        save_folder(tmp_path / "hf", ["train/white/0.png", "train/red/1.png", "train/red/2.png", "test/red/3.png"])
    else:
        save_parquet(tmp_path / "hf", LABELS, CLASSES)
    if form == "saved":
        tables: DatasetDict = load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
        tables.save_to_disk(tmp_path / "saved")
    dataset = huggingface_of(tmp_path, path="saved" if form == "saved" else "hf")
    dataset.fetch(silent)
    train, test = dataset.rows("train"), dataset.rows("test")
    assert (dataset.name, dataset.version, dataset.labelled) == ("saved" if form == "saved" else "hf", None, True)
    assert (set(dataset.classes), list(train.keys), list(test.keys)) == ({"white", "red"}, ["0", "1", "2"], ["0"])
    assert [dataset.classes[label] for label in test.labels] == ["red"]
    assert sorted(dataset.classes[label] for label in train.labels) == ["red", "red", "white"]
    assert (train.labels.dtype, len(train.fingerprints)) == (np.int64, 3)
    assert np.array_equal(np.asarray(dataset.read("test", 0)), np.asarray(noise(3)))
    assert read_manifest(dataset, "train").image_digest.shape == (3, 32)


def test_plain_parquet_with_bytes_and_a_single_file_are_read(tmp_path: Path) -> None:
    save_parquet(tmp_path / "hf", LABELS)
    plain = Features({"image": {"bytes": Value("binary"), "path": Value("null")}, "label": Value("int64")})
    assert load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "c"))["train"].features == plain
    assert huggingface_of(tmp_path).read("train", 2).size == (12, 9)
    single = huggingface_of(tmp_path, path="hf/test.parquet", splits=["train"])
    assert (list(single.rows("train").keys), single.classes) == (["0"], ())
    image = (tmp_path / "hf/train.parquet", save_parquet(tmp_path / "bytes", {"train": [0]}))
    table = Table.from_parquet(str(image[0]), cache_dir=str(tmp_path / "d"))
    raw = Table.from_dict({"scan": [row["bytes"] for row in table["image"]]})
    raw.to_parquet(tmp_path / "bytes/train.parquet")
    dataset = huggingface_of(tmp_path, path="bytes", splits=["train"], image="scan")
    assert (dataset.labelled, dataset.read("train", 0).size) == (False, (12, 9))


def test_labels_are_class_names_or_numbers_and_a_changed_file_is_seen(tmp_path: Path) -> None:
    save_parquet(tmp_path / "hf", {"train": ["b", "a"], "test": ["c"]})
    named = huggingface_of(tmp_path)
    before = named.rows("train").fingerprints
    assert (named.classes, named.rows("train").labels.tolist()) == (("a", "b", "c"), [1, 0])
    assert huggingface_of(tmp_path, words=("c", "b", "a")).classes == ("c", "b", "a")
    assert huggingface_of(tmp_path, label=None).labelled is False
    save_parquet(tmp_path / "hf", {"train": [4, 2], "test": [0]})
    numbered = huggingface_of(tmp_path)
    assert (numbered.classes, numbered.rows("train").labels.tolist()) == ((), [4, 2])
    assert numbered.rows("train").fingerprints != before


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ({"train": [0]}, {}, r"has no split 'test'; it has \['train'\]"),
        (LABELS, {"image": "scan"}, r"has no column 'scan'; it has \['image', 'label'\]"),
        (LABELS, {"label": "dx"}, "has no column 'dx'"),
        ({"train": [0], "test": [-1]}, {}, r"row 0 of split 'test' has -1 \(1 such rows\).*`label: null`"),
        ({"train": [0.5], "test": [1.0]}, {}, r"a whole number in every row of column 'label', found \['float'\]"),
        (LABELS, {"path": "./nowhere"}, "nowhere does not exist"),
        (LABELS, {"path": "empty"}, "empty cannot be opened as a Hugging Face data set"),
        (LABELS, {"path": "not a hub id"}, "neither a folder nor a hub id"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, labels: Any, options: dict[str, Any], said: str) -> None:
    save_parquet(tmp_path / "hf", labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=said):
        huggingface_of(tmp_path, **options).fetch(silent)


def test_without_the_extra_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_parquet(tmp_path / "hf", LABELS)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DatasetError, match=r"pip install 'ccassets\[datasets\]'"):
        huggingface_of(tmp_path).fetch(silent)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with hub_of(save_parquet(tmp_path / "repository", LABELS, CLASSES)) as hub:
        yield hub


def test_a_data_set_of_the_hub_is_taken_at_its_commit_and_then_found_offline(tmp_path: Path, hub: Hub) -> None:
    code = """
import json
from pathlib import Path
from huggingface_hub import constants
from ccassets.datasets.huggingface import HuggingfaceDataset
from ccassets.errors import CcassetsError
from ccassets.study.schema import HuggingfaceConfig
def ask(**options):
    try:
        config = HuggingfaceConfig(kind="huggingface", splits=["train", "test"], **options)
        dataset = HuggingfaceDataset(config, local=None, cache=Path("cache"), words=())
        before = dataset.downloaded
        return before, dataset.name, dataset.version, dataset.classes, dataset.rows("train").labels.tolist()
    except CcassetsError as error:
        return str(error)
answers = [ask(path=path) for path in ("lab/tiny", "lab/gated", "lab/typo")] + [ask(path="lab/tiny", revision="v9")]
constants.HF_HUB_OFFLINE = True
print(json.dumps([*answers, ask(path="lab/tiny"), ask(path="lab/other")]))
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment | hf, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    first, gated, typo, revision, offline, other = json.loads(result.stdout.splitlines()[-1])
    rows = ["lab/tiny", f"commit:{COMMIT}", ["white", "red"], [0, 1, 1]]
    assert (first, offline) == ([False, *rows], [True, *rows])
    assert f"accept its terms at {hub.url}/datasets/lab/gated" in gated
    assert "no data set of that name" in typo
    assert "lab/tiny has no revision 'v9'" in revision
    assert "lab/other at 'main' is not in the local cache" in other
