"""What rows work on: a study whose encoder costs nothing, built for real, and its numbers as raw bytes and in LZF."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import yaml
from PIL import Image

from benchmarks import original, stand_in
from benchmarks.sizes import Size
from ccassets.database import writer
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database, open_database
from ccassets.extraction import assemble_database, extract_images, extract_text, identify_encoder
from ccassets.progress import available_cores
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store

READ_BLOCK = 1 << 20
CLASSES = ("basophil", "eosinophil", "lymphocyte", "platelet")
VOCABULARY: dict[str, Any] = {
    "labels": {"words": list(CLASSES), "templates": ["a photo of a {} cell"]},
    "concepts": {
        "words": ["Segmented nucleus", "Round nucleus", "Eosinophilic granules", "Pale cytoplasm"],
        "templates": ["a cell with {}", "a cell photo with sign of {}"],
    },
}


@dataclass(frozen=True)
class Material:
    """A built study, and what its database holds in two other forms."""

    study: Study
    store: Store
    raw: Path
    """The token features alone, row by row, as bytes."""
    lzf: Path
    """Features, token features and labels in the original layout."""

    def open(self) -> Database:
        return open_database(self.store.database)

    def map_raw(self, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
        return np.memmap(self.raw, np.float16, "r", shape=shape)


def material(folder: Path, size: Size) -> Material:
    """The material of a size, made when it is not there."""
    root = folder / "material"
    study = write_study(root / "studies" / "cells", stand_in_encoder(size.dim, size.tokens), root / "pictures")
    made = Material(study, Store.of(study, root / "storage"), root / "raw.bin", root / "lzf.h5")
    if not made.store.database.is_file():
        save_images(root / "pictures", {"train": size.rows}, stand_in.SIDE)
        build(study, made.store)
    return made


def raw_and_lzf(made: Material) -> None:
    """Write the database's numbers as raw bytes and in the original layout, unless they are there."""
    if made.lzf.is_file():
        return
    with made.open() as database, made.raw.open("wb") as raw:
        file = original.create(made.lzf, database.dim, database.token_count)
        for first, tokens in iter_blocks(database.image_token_features):
            raw.write(tokens.tobytes())
            rows = slice(first, first + len(tokens))
            original.append(file, database.image_features[rows], tokens, database.labels[rows])
        file.close()


def warm(*paths: Path) -> None:
    """Bring files into the page cache anew, in order: how pages came there decides how fast they are read again."""
    for path in paths:
        original.sync(path)
        fd = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        read(path)


def read(path: Path, use: Callable[[memoryview], object] = len) -> None:
    """Read a file in one thread, in order, and `use` every block of it."""
    _read_range(path, range(path.stat().st_size), use)


def read_on_all_cores(path: Path, reader: Callable[[], Callable[[memoryview], object]] = lambda: len) -> None:
    """Read a file once, an equal range in each of as many threads as there are cores; each makes a `reader` to use."""
    bounds = [path.stat().st_size * number // available_cores() for number in range(available_cores() + 1)]
    with ThreadPoolExecutor(available_cores()) as threads:
        list(threads.map(lambda bound: _read_range(path, range(*bound), reader()), pairwise(bounds)))


def _read_range(path: Path, positions: range, use: Callable[[memoryview], object]) -> None:
    buffer = memoryview(bytearray(READ_BLOCK))
    fd = os.open(path, os.O_RDONLY)
    for first in range(positions.start, positions.stop, READ_BLOCK):
        block = buffer[: min(READ_BLOCK, positions.stop - first)]
        os.preadv(fd, [block], first)
        use(block)
    os.close(fd)


def build(study: Study, store: Store) -> None:
    """Build a study with the library alone."""
    identify_encoder(study, store=store)
    extract_text(study, store=store)
    extract_images(study, study.splits, store=store)
    assemble_database(study, store=store)


def write_study(folder: Path, encoder: dict[str, Any], image_folder: Path, **changes: Any) -> Study:
    """Write a study of pictures in a folder, and load it."""
    attributes = {
        "dataset": {"kind": "folder", "root": str(image_folder), "splits": ["train"]},
        "encoder": encoder,
        "vocabulary": VOCABULARY,
        "extraction": {"batch_size": 64, "rows_per_shard": 128},
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    # Where a study says `stand_in`, it means the file beside it.
    shutil.copy(stand_in.__file__, folder / "stand_in.py")
    (folder / "defs.yaml").write_text(yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": attributes}))
    return load_study(folder / "defs.yaml")


def stand_in_encoder(dim: int, tokens: int) -> dict[str, Any]:
    return {"kind": "python", "target": "stand_in:StandIn", "options": {"dim": dim, "tokens": tokens}}


def save_images(root: Path, splits: dict[str, int], side: int) -> None:
    """Pictures of noise, all different, as `<root>/<split>/<class>/<number>.png`."""
    noise = np.random.default_rng(0)
    for split, rows in splits.items():
        for label in CLASSES:
            (root / split / label).mkdir(parents=True, exist_ok=True)
        for row in range(rows):
            picture = Image.fromarray(noise.integers(0, 256, (side, side, 3), np.uint8))
            picture.save(root / split / CLASSES[row % len(CLASSES)] / f"{row:06d}.png", compress_level=1)


@contextmanager
def sparse_files() -> Iterator[None]:
    """Files that are written meanwhile take the disk for what is written alone; what is not is a hole."""
    with mock.patch.object(writer, "_reserve"):
        yield


def copy_through_h5py(source: Path, target: Path) -> None:
    """A new file with every data set and attribute of another, through HDF5."""
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        for name in old:
            old.copy(name, new)
        for name, value in old.attrs.items():
            new.attrs[name] = value
    original.sync(target)


def copy_file(source: Path, target: Path) -> None:
    """What `cp` makes of a file, on the disk."""
    subprocess.run(["cp", "--reflink=auto", source, target], check=True)
    original.sync(target)


class Output:
    """A folder for what a run writes. What was written and removed before is settled with the disk first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def empty(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        os.sync()


def megabytes(count: int) -> str:
    return f"{count / 1e6:.0f} MB"
