"""Batches to append, and files compared to the bit; nothing heavy, so that killed processes start quickly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

LEGACY = Path(__file__).parents[1] / "data" / "legacy"


def rows(first: int, count: int = 4) -> dict[str, Any]:
    """A batch with D = 6 and T_img = 9 whose every value follows from its row number."""
    values = np.stack(
        [np.random.default_rng(row).standard_normal((10, 6)).astype(np.float32) for row in range(first, first + count)]
    )
    return {
        "image_feats": values[:, 0] / np.linalg.norm(values[:, 0], axis=1, keepdims=True),
        "image_token_feats": values[:, 1:],
        "ids": np.arange(first, first + count),
    }


def contents(path: Path) -> dict[str, Any]:
    """Every data set of a file by its path, as arrays; strings as a list."""
    datasets: dict[str, Any] = {}

    def read(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            datasets[name] = item[:].tolist() if h5py.check_string_dtype(item.dtype) else item[:]

    with h5py.File(path) as file:
        file.visititems(read)
    return datasets


def assert_same(left: Mapping[str, Any], right: Mapping[str, Any]) -> None:
    """Equal to the bit, in every data set."""
    assert left.keys() == right.keys()
    for name, values in left.items():
        np.testing.assert_array_equal(values, right[name], err_msg=name, strict=isinstance(values, np.ndarray))
