"""Rows of a numeric data set, read block by block into one buffer, so that memory stays flat."""

from __future__ import annotations

import h5py
import numpy as np

from ccassets.database.hdf5 import Array, file_descriptor, read_into


class StoredRows:
    """Rows of a data set by number; contiguous ones are read without HDF5, which would copy them once more.

    Reading, not mapping: mapped pages count as memory of the process until the kernel takes them back.
    """

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset
        self._offset = None if dataset.chunks is not None else dataset.id.get_offset()
        self._fd = file_descriptor(dataset.file) if self._offset is not None else -1
        self._buffer: Array = np.empty((0, *dataset.shape[1:]), dataset.dtype)
        self.name: str = dataset.name
        self.width: int = int(dataset.shape[-1])
        self.row_bytes: int = int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def read(self, first: int, rows: int) -> Array:
        """Rows `first` to `first + rows - 1`, fewer at the end; valid until the next call."""
        rows = max(0, min(rows, len(self) - first))
        if self._offset is None:
            values: Array = self._dataset[first : first + rows]
            return values
        if len(self._buffer) < rows:
            self._buffer = np.empty((rows, *self._dataset.shape[1:]), self._dataset.dtype)
        block = self._buffer[:rows]
        read_into(block, self._fd, self._offset + first * self.row_bytes)
        return block

    def step(self, block_bytes: int, most_rows: int | None = None) -> int:
        """Rows of one block: about `block_bytes`, at most `most_rows`; whole chunks, so that each is unpacked once."""
        rows: int = max(1, block_bytes // max(1, self.row_bytes))
        rows = rows if most_rows is None else min(rows, most_rows)
        if self._dataset.chunks is None:
            return rows
        chunk: int = self._dataset.chunks[0]
        return max(1, rows // chunk) * chunk
