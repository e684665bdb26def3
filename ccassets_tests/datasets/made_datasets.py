"""Small studies and pictures for the tests of data sets."""

from pathlib import Path

import numpy as np
from PIL import Image

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.study.schema import Study
from ccassets.study.storage import Store


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
