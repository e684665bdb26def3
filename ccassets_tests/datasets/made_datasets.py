"""Small studies and pictures for the tests of data sets."""

import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import medmnist
import numpy as np
import pytest
from datasets import Dataset as HuggingfaceTable, Features
from PIL import Image

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.study.schema import Study
from ccassets.study.storage import Store

MEDMNIST_COUNTS = {"train": 6, "val": 2, "test": 3}


def study_of(folder: Path, *, words: tuple[str, ...] = (), **dataset: object) -> Study:
    """A study with that `dataset` section in a folder."""
    return Study(
        name="study",
        folder=folder,
        dataset=dataset,
        encoder={"kind": "phantom"},
        vocabulary={"labels": {"words": words}},
    )


def dataset_of(folder: Path, *, words: tuple[str, ...] = (), **dataset: object) -> Dataset:
    study = study_of(folder, words=words, **dataset)
    return open_dataset(study, Store.of(study, folder / "storage"))


def noise(seed: int, size: tuple[int, int] = (12, 9)) -> Image.Image:
    """A picture that no other seed gives."""
    width, height = size
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def save_image(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(seed).save(path, "PNG")
    return path


def save_folder(root: Path, keys: list[str]) -> Path:
    """Different pictures under those keys."""
    for seed, key in enumerate(keys):
        save_image(root / key, seed)
    return root


def save_parquet(folder: Path, labels: Mapping[str, Sequence[Any]], features: Features | None = None) -> Path:
    """A folder with `<split>.parquet`, as on the hub: a column of images as bytes, and one of labels."""
    folder.mkdir(parents=True, exist_ok=True)
    seed = 0
    for split, of_split in labels.items():
        images = []
        for _ in of_split:
            file = io.BytesIO()
            noise(seed).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
            seed += 1
        columns = {"image": images, "label": list(of_split)}
        HuggingfaceTable.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    return folder


BLOOD_WORDS = [
    "basophil",
    "eosinophil",
    "erythroblast",
    "granulocyte",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
]
"""A label word for each class of BloodMNIST."""


class MedMnistSite:
    """A folder for archives whose MD5 sums take the place of the published ones."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.root = folder / "medmnist"
        self.root.mkdir()
        self._monkeypatch = monkeypatch

    def archive(self, name: str, size: int = 28, **changes: np.ndarray) -> Path:
        info = medmnist.INFO[name]
        rng = np.random.default_rng(size)
        pixels = (size, size, 3) if info["n_channels"] == 3 else (size, size)
        labels = len(info["label"])
        arrays: dict[str, np.ndarray] = {}
        for split, n in MEDMNIST_COUNTS.items():
            arrays[f"{split}_images"] = rng.integers(0, 256, (n, *pixels), np.uint8)
            arrays[f"{split}_labels"] = (
                rng.integers(0, 2, (n, labels), np.uint8)
                if "multi-label" in info["task"]
                else rng.integers(0, labels, (n, 1), np.uint8)
            )
        path = self.root / f"{name}{'' if size == 28 else f'_{size}'}.npz"
        np.savez_compressed(path, **(arrays | changes))
        return self.publish(path, name, size)

    def publish(self, path: Path, name: str, size: int = 28) -> Path:
        key = "MD5" if size == 28 else f"MD5_{size}"
        self._monkeypatch.setitem(medmnist.INFO[name], key, hashlib.md5(path.read_bytes()).hexdigest())
        return path

    def dataset(self, name: str, size: int = 28, **options: object):
        return dataset_of(self.folder, kind="medmnist", name=name, size=size, root=self.root, **options)
