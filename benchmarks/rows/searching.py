"""Rows about scores and search: every row or patch compared with words, against the bare matrix product."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks.contest import Contest, Contestant
from benchmarks.material import material
from benchmarks.sizes import Size
from benchmarks.stand_in import random_float16
from ccassets.analysis import nearest_images, zero_shot
from ccassets.analysis.scores import local_features
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.layout import IMAGE_FEATURES
from ccassets.database.reader import open_database
from ccassets.database.writer import FileContent, RowContent, new_file

HITS = 10
BLOCK = 16_384


def search(folder: Path, size: Size) -> Contest:
    return _search(folder, size, size.search[0])


def search_large(folder: Path, size: Size) -> Contest:
    return _search(folder, size, size.search[1])


def token_scores(folder: Path, size: Size) -> Contest:
    """The zero-shot score of every image, patches included."""
    made = material(folder, size)
    database = made.open()
    words = np.ascontiguousarray(local_features(database, kind="label").T)

    def plain() -> None:
        for _, block in iter_blocks(database.image_token_features):
            block.astype(np.float32).reshape(-1, size.dim) @ words

    return Contest(
        work=f"zero-shot scores of {size.rows} images with {size.tokens} patches and {words.shape[1]} words",
        ours=lambda: zero_shot(database),
        limit=Contestant("converting the patches to float32 and multiplying", plain),
    )


def _search(folder: Path, size: Size, rows: int) -> Contest:
    path = folder / "search" / f"{rows}.h5"
    if not path.is_file():
        _write(path, rows, size.dim)
    database = open_database(path)
    vector = np.random.default_rng(2).standard_normal(size.dim, np.float32)
    vector /= np.linalg.norm(vector)
    ready: list[npt.NDArray[np.float32]] = []

    def product() -> None:
        # As many products as the file has rows, over a block that is larger than any cache.
        if not ready:
            ready.append(np.asarray(database.image_features[:BLOCK], np.float32))
        for first in range(0, rows, BLOCK):
            ready[0][: rows - first] @ vector

    return Contest(
        work=f"the {HITS} nearest of {rows:,} images, exactly",
        ours=lambda: [hit.row for hit in nearest_images(database, vector, HITS)],
        limit=Contestant("the bare product of float32 rows that are in memory", product),
        usual=Contestant(
            "load, convert, normalise, multiply and sort, by h5py and numpy", lambda: _usual(path, vector)
        ),
    )


def _usual(path: Path, vector: npt.NDArray[np.float32]) -> list[int]:
    with h5py.File(path, "r") as file:
        features = file[IMAGE_FEATURES][:].astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    nearest: list[int] = np.argsort(-(features @ vector))[:HITS].tolist()
    return nearest


def _write(path: Path, rows: int, dim: int) -> None:
    rng = np.random.default_rng(0)
    content: Any = RowContent(
        split=["train"] * rows,
        labels=np.zeros(rows, np.int64),
        keys=[f"{row}" for row in range(rows)],
        image_digest=np.zeros((rows, 32), np.uint8),
        feature_digest=np.zeros((rows, 16), np.uint8),
    )
    with new_file(path, FileContent("database", dim, 0, content)) as writer:
        for first in range(0, rows, BLOCK):
            count = min(BLOCK, rows - first)
            writer.write(IMAGE_FEATURES, first, random_float16(rng, count * dim).reshape(count, dim))
