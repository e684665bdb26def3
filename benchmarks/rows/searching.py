"""Rows about scores and search: rows or patches compared with vectors, against reading their bytes once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import material
from benchmarks.sizes import Size
from benchmarks.stand_in import random_float16
from ccassets.analysis import nearest_images, zero_shot
from ccassets.analysis.scores import local_features, patch_cosines
from ccassets.analysis.vector_search import _LENGTHS, nearest_images_of_each
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.layout import IMAGE_FEATURES
from ccassets.database.reader import Database, open_database
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.progress import available_cores

HITS = 10
BLOCK = 16_384


def search(folder: Path, size: Size) -> Contest:
    return _search(folder, size, size.search[0], Target(of_limit=0.5))


def search_large(folder: Path, size: Size) -> Contest:
    return _search(folder, size, size.search[1], Target(of_limit=0.5))


def search_once(folder: Path, size: Size) -> Contest:
    """The first search of a process, which has to take the rows' lengths, too."""
    contest = _search(folder, size, size.search[1], Target(of_limit=0.4))
    return replace(contest, work=f"{contest.work}, the first time", usual=None, reset=_LENGTHS.clear)


def search_many(folder: Path, size: Size) -> Contest:
    """Sixteen queries in one pass."""
    rows = size.search[1]
    database = open_vectors(folder, rows, size.dim)
    vectors = _unit_vectors(16, size.dim)
    return Contest(
        work=f"the {HITS} nearest of {rows:,} images for each of {len(vectors)} vectors, exactly",
        ours=lambda: nearest_images_of_each(database, vectors, HITS),
        limit=Contestant("reading the same bytes once, warm", lambda: _read(database.image_features)),
        target=Target(of_limit=0.2),
    )


def patch_cosines_of_all(folder: Path, size: Size) -> Contest:
    """Every patch of every image compared with four texts."""
    database = material(folder, size).open()
    vectors = _unit_vectors(4, size.dim)
    tokens = database.image_token_features
    assert tokens is not None

    def ours() -> None:
        for _, block in iter_blocks(tokens):
            patch_cosines(np.asarray(block), vectors)

    return Contest(
        work=f"the cosines of {size.rows} images' {size.tokens} patches with {len(vectors)} texts",
        ours=ours,
        limit=Contestant("reading the same bytes once, warm", lambda: _read(tokens)),
        target=Target(of_limit=0.45),
    )


def patch_cosines_of_one(folder: Path, size: Size) -> Contest:
    """The patches of one image compared with four texts: a heat map."""
    database = material(folder, size).open()
    vectors = _unit_vectors(4, size.dim)
    tokens = np.asarray(database.image_token_features[:1])  # type: ignore[index]
    return Contest(
        work=f"the cosines of one image's {size.tokens} patches with {len(vectors)} texts",
        ours=lambda: patch_cosines(tokens, vectors),
        limit=Contestant("reading the same bytes once, warm", lambda: _read(tokens)),
        target=Target(of_limit=0.4),
    )


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


def _search(folder: Path, size: Size, rows: int, target: Target) -> Contest:
    database = open_vectors(folder, rows, size.dim)
    vector = _unit_vectors(1, size.dim)[0]
    return Contest(
        work=f"the {HITS} nearest of {rows:,} images, exactly",
        ours=lambda: [hit.row for hit in nearest_images(database, vector, HITS)],
        limit=Contestant("reading the same bytes once, warm", lambda: _read(database.image_features)),
        usual=Contestant(
            "load, convert, normalise, multiply and sort, by h5py and numpy", lambda: _usual(database.path, vector)
        ),
        target=target,
    )


def _read(values: Any) -> None:
    """Add up every word of some numbers with all cores: they are read once, and nothing else is done."""
    words = np.asarray(values).reshape(-1).view(np.uint64)
    cores = available_cores()
    bounds = np.linspace(0, len(words), cores + 1).astype(int)
    with ThreadPoolExecutor(cores) as threads:
        list(threads.map(lambda bound: words[bound[0] : bound[1]].sum(), pairwise(bounds)))


def open_vectors(folder: Path, rows: int, dim: int) -> Database:
    """A database of that many image features alone, made where it is not there."""
    path = folder / "search" / f"{rows}.h5"
    if not path.is_file():
        _write(path, rows, dim)
    return open_database(path)


def _unit_vectors(count: int, dim: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(2).standard_normal((count, dim), np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


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
