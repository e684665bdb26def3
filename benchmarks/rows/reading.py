"""Rows about reading token features at random: a row, a batch of rows, one token, and epochs of a shuffled loader."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from benchmarks import original
from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import Material, material, raw_and_lzf, warm
from benchmarks.sizes import Size

if TYPE_CHECKING:
    from torch.utils.data import Dataset

Halves = npt.NDArray[np.float16]

T = TypeVar("T")

BATCH = 16
READS = 256
BATCHES = 4


def token_rows(folder: Path, size: Size) -> Contest:
    files = _Files(folder, size)
    rows = files.random_rows()
    tokens = files.database.image_token_features
    assert tokens is not None
    return Contest(
        work=f"{len(rows)} random rows of {files.row_bytes / 1e6:.2f} MB, each as a new array, warm",
        ours=lambda: _last(lambda row: np.array(tokens[row]), rows),
        limit=Contestant("`preadv` of a raw file", lambda: _last(files.pread, rows)),
        usual=Contestant("h5py on chunked LZF", lambda: _last(lambda row: files.lzf_tokens[row], rows)),
        target=Target(of_limit=0.9, of_usual=6),
    )


def samples(folder: Path, size: Size) -> Contest:
    files = _Files(folder, size)
    database, rows = files.database, files.random_rows()
    tokens = database.image_token_features
    assert tokens is not None

    def sample(row: int) -> tuple[Any, ...]:
        return np.array(database.image_features[row]), np.array(tokens[row]), int(database.labels[row])

    return Contest(
        work=f"{len(rows)} random samples: features, token features and label, each as a new array, warm",
        ours=lambda: _last(sample, rows),
        limit=Contestant("`preadv` of the token features alone", lambda: _last(files.pread, rows)),
        usual=Contestant(
            "a file of chunked LZF opened for each",
            lambda: _last(lambda row: original.sample(files.made.lzf, row), rows),
        ),
    )


def token_batches(folder: Path, size: Size) -> Contest:
    files = _Files(folder, size)
    rows = files.random_rows()
    batches = [rows[first : first + BATCH] for first in range(0, min(BATCHES * BATCH, len(rows)), BATCH)]
    raw = files.made.map_raw(files.shape)
    return Contest(
        work=f"{len(batches)} batches of up to {BATCH} random rows, each as a new array, warm",
        ours=lambda: _last(lambda batch: files.database.select(rows=batch).image_token_features, batches),
        limit=Contestant("a fancy index into a raw memory map", lambda: _last(lambda batch: raw[batch], batches)),
        usual=Contestant(
            "h5py's fancy index on chunked LZF",
            lambda: _last(lambda batch: original.rows(files.lzf_tokens, batch), batches),
        ),
    )


def one_token(folder: Path, size: Size) -> Contest:
    files = _Files(folder, size)
    rows = files.random_rows()
    tokens = files.database.image_token_features
    assert tokens is not None
    patch = size.tokens // 2
    return Contest(
        work=f"one patch of {len(rows)} random rows, each as a new array, warm",
        ours=lambda: _last(lambda row: np.array(tokens[row, patch]), rows),
        limit=Contestant("`preadv` of a raw file", lambda: _last(lambda row: files.pread(row, patch), rows)),
        usual=Contestant("h5py on chunked LZF", lambda: _last(lambda row: files.lzf_tokens[row, patch], rows)),
    )


def loader(folder: Path, size: Size) -> Contest:
    return _loader(folder, size, workers=0)


def loader_workers(folder: Path, size: Size) -> Contest:
    return _loader(folder, size, workers=2)


def _loader(folder: Path, size: Size, workers: int) -> Contest:
    import torch
    from torch.utils.data import DataLoader, Subset

    files = _Files(folder, size)

    def epochs(rows: Any) -> DataLoader[Any]:
        chosen = Subset(rows, files.random_rows())
        # Workers that stay: starting them costs every data set the same.
        return DataLoader(chosen, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0)

    def epoch_of(rows: Dataset[Any]) -> Any:
        made: list[DataLoader[Any]] = []

        def epoch() -> float:
            if not made:
                made.append(epochs(rows))
            seen = torch.zeros(())
            for features, _tokens, _labels in made[0]:
                seen += features[0, 0]
            return float(seen)

        return epoch

    ours: Any = files.database.torch_dataset(tokens=True)
    raw: Any = _RawRows(files)
    usual: Any = original.Rows(files.made.lzf, size.rows)
    return Contest(
        work=f"an epoch of {min(READS, size.rows)} shuffled rows, batches of {BATCH}, {workers or 'no'} workers, warm",
        ours=epoch_of(ours),
        limit=Contestant("the same loader over raw memory maps", epoch_of(raw)),
        usual=Contestant("the same loader over chunked LZF, a row at a time", epoch_of(usual)),
        target=Target(of_limit=0.85),
    )


class _Files:
    """The database, the raw file and the LZF file, open."""

    def __init__(self, folder: Path, size: Size) -> None:
        self.made: Material = material(folder, size)
        raw_and_lzf(self.made)
        warm(self.made.store.database, self.made.raw, self.made.lzf)
        self.database = self.made.open()
        self.raw_fd = os.open(self.made.raw, os.O_RDONLY)
        self.lzf_tokens = h5py.File(self.made.lzf, "r")["image_token_features"]
        self.shape = (size.rows, size.tokens, size.dim)
        self.row_bytes = 2 * size.tokens * size.dim

    def pread(self, row: int, patch: int | None = None) -> Halves:
        """A row of the raw file, or one patch of it."""
        values = np.empty(self.shape[1:] if patch is None else self.shape[2:], np.float16)
        os.preadv(self.raw_fd, [values], row * self.row_bytes + (patch or 0) * values.nbytes)
        return values

    def random_rows(self) -> list[int]:
        rows: list[int] = np.random.default_rng(1).permutation(self.shape[0])[:READS].tolist()
        return rows


def _last(read: Callable[[T], object], rows: Sequence[T]) -> object:
    """Read everything and keep the last: memory is used again, as in a loop over a data set."""
    last: object = None
    for row in rows:
        last = read(row)
    return last


class _RawRows:
    """The least that a data set over memory maps can be."""

    def __init__(self, files: _Files) -> None:
        self._features = np.array(files.database.image_features)
        self._labels = np.array(files.database.labels)
        self._tokens = files.made.map_raw(files.shape)

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: int) -> tuple[Any, ...]:
        return self._features[row], np.array(self._tokens[row]), int(self._labels[row])
