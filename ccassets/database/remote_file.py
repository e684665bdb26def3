"""Files that are read over a network: ranges of bytes through fsspec, and the metadata that saves requests."""

from __future__ import annotations

import base64
import os
import zlib
from typing import Any

import h5py

from ccassets.database.hdf5 import file_descriptor
from ccassets.database.hdf5_heap_guard import contiguous_ranges, gaps

_MAX_METADATA = 64 << 20
"""More bytes between the arrays of a file are not metadata."""


def metadata_ranges(file: h5py.File) -> dict[str, Any] | None:
    """All bytes of a file but those of arrays of two axes or more: what opening it and reading texts takes.

    Args:
        file: The open file.

    Returns:
        Its `size`, and `ranges` of an offset and bytes (zlib, base64); None where they cannot be told from rows.
    """
    descriptor = file_descriptor(file)
    size = os.fstat(descriptor).st_size
    arrays = contiguous_ranges(file, axes=2)
    rest = [] if arrays is None else list(gaps(arrays, size))
    if arrays is None or sum(stop - start for start, stop in rest) > _MAX_METADATA:
        return None
    parts = [(start, os.pread(descriptor, stop - start, start)) for start, stop in rest]
    return {
        "size": size,
        "ranges": [[start, base64.b64encode(zlib.compress(part)).decode("ascii")] for start, part in parts],
    }
