"""The layout and the habits of the original scripts, from their description: chunked, LZF, resized, fancy-indexed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt


def create(path: Path, dim: int, tokens: int) -> h5py.File:
    """An empty file whose data sets grow."""
    file = h5py.File(path, "w")
    for name, shape, dtype, chunk in (
        ("image_features", (dim,), "f2", 64),
        ("image_token_features", (tokens, dim), "f2", 4),
        ("labels", (), "i8", 4096),
    ):
        file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape), compression="lzf"
        )
    return file


def append(
    file: h5py.File, features: npt.NDArray[Any], tokens: npt.NDArray[Any], labels: npt.NDArray[np.int64]
) -> None:
    """Add a batch at the end, cast to float16, and flush."""
    rows = {"image_features": features, "image_token_features": tokens, "labels": labels}
    for name, values in rows.items():
        dataset = file[name]
        first = len(dataset)
        dataset.resize(first + len(values), axis=0)
        dataset[first:] = values.astype(dataset.dtype, copy=False)
    file.flush()


def rows(dataset: h5py.Dataset, numbers: Sequence[int]) -> npt.NDArray[Any]:
    """Rows by a list of numbers, in its order; h5py itself wants them increasing."""
    increasing, places = np.unique(numbers, return_inverse=True)
    values: npt.NDArray[Any] = dataset[increasing.tolist()][places]
    return values


def sample(path: Path, row: int) -> dict[str, Any]:
    """All that is known of a row; the file is opened for it, as every call of the original access code does."""
    with h5py.File(path, "r") as file:
        return {name: file[name][row] for name in ("image_features", "image_token_features", "labels")}


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


class Rows:
    """A data set for a loader that reads a row at a time; every worker opens the file for itself."""

    def __init__(self, path: Path, length: int) -> None:
        self._path = path
        self._length = length
        self._opened: tuple[int, h5py.File] | None = None

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), h5py.File(self._path, "r")
        file = self._opened[1]
        return file["image_features"][row], file["image_token_features"][row], int(file["labels"][row])
