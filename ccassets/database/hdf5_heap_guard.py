"""A guard against damaged global heaps, in which HDF5 stores texts: reading some of them would never end."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import suppress

import h5py
import numpy as np

HEAP_SIGNATURE = b"GCOL\x01\0\0\0"
"""The first bytes of a heap."""
HEAP_HEADER = 16
"""Bytes of a heap's own header and of each object's."""
_OBJECT_HEADER = np.dtype([("index", "<u2"), ("unused", "V6"), ("size", "<u8")])
"""Object 0 is free space, and its size includes this header; that of a text is without header and padding."""
_FEW_HEAPS = 32
"""So many are walked one by one; more are walked side by side, which needs many to pay off."""


def find_endless_heap(file: h5py.File, fd: int) -> int | None:
    """The offset of a heap that HDF5 would read for ever, or None.

    The size of free space (object 0) is stored in it; if it is zero, as after a lost page, the reader never advances
    (H5HG, "Global Heap" in the HDF5 file format specification). Contiguous data is not looked into; in a file of any
    size the rest is small. Chunked data may lie anywhere: such files are not searched.
    """
    ranges = contiguous_ranges(file)
    size = os.fstat(fd).st_size
    if ranges is None or not size:
        return None
    with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data:
        offsets = [offset for start, stop in gaps(ranges, size) for offset in heap_offsets(data, start, stop)]
        return find_endless_among(data, offsets)


def contiguous_ranges(file: h5py.File, axes: int = 0) -> list[tuple[int, int]] | None:
    """Where contiguous data of so many axes or more lies, sorted; None for a file with chunked data."""
    ranges: list[tuple[int, int]] = []
    chunked = False

    def add(name: bytes, item: h5py.h5o.ObjInfo) -> None:
        nonlocal chunked
        if item.type == h5py.h5o.TYPE_DATASET:
            dataset = h5py.h5d.open(file.id, name)
            chunked |= dataset.get_create_plist().get_layout() == h5py.h5d.CHUNKED
            offset = dataset.get_offset()
            if offset is not None and len(dataset.shape) >= axes:
                ranges.append((offset, offset + dataset.get_storage_size()))

    with suppress(OSError, RuntimeError, ValueError, TypeError, LookupError):  # The reader reports it.
        # The low-level interface: this runs at every opening, and h5py's objects cost ten times as much.
        h5py.h5o.visit(file.id, add, info=True)
    return None if chunked else sorted(ranges)


def gaps(ranges: list[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    """The ranges between the given ones."""
    start = 0
    for first, stop in ranges:
        if first > start:
            yield start, min(first, size)
        start = max(start, stop)
    if start < size:
        yield start, size


def heap_offsets(data: mmap.mmap | bytes, start: int, stop: int) -> Iterator[int]:
    """Where heaps begin in a range of bytes."""
    offset = data.find(HEAP_SIGNATURE, start, stop)
    while offset >= 0:
        yield offset
        offset = data.find(HEAP_SIGNATURE, offset + 1, stop)


def find_endless_among(data: mmap.mmap | bytes, offsets: list[int]) -> int | None:
    """The offset of one of the heaps at some offsets that HDF5 would read for ever, or None."""
    heaps = np.array(offsets, np.int64)
    at = heaps + HEAP_HEADER
    whole = [min(heap_size(data, offset), len(data) - offset) // 8 * 8 for offset in offsets]
    stop = heaps + np.array(whole, np.int64)
    if len(heaps) > _FEW_HEAPS:
        headers = np.ndarray(len(data) - HEAP_HEADER + 1, _OBJECT_HEADER, data, strides=(1,))
        while len(heaps) > _FEW_HEAPS:
            inside = at + HEAP_HEADER <= stop
            heaps, at, stop = heaps[inside], at[inside], stop[inside]
            free, size = headers["index"][at] == 0, headers["size"][at]
            stuck = free & ((size == 0) | (size % 8 != 0))
            if stuck.any():
                return int(heaps[stuck.argmax()])
            size = np.minimum(size, len(data)).astype(np.int64)
            at += np.where(free, size, HEAP_HEADER + (size + 7) // 8 * 8)
    remaining = zip(heaps.tolist(), at.tolist(), stop.tolist(), strict=True)
    return next((heap for heap, first, end in remaining if _is_endless(data, first, end)), None)


def _is_endless(data: mmap.mmap | bytes, at: int, stop: int) -> bool:
    """Whether the objects of a heap from one position to another do not end."""
    with memoryview(data) as view, view[at : max(at, stop)] as objects, objects.cast("Q") as words:
        at = 0
        while at + HEAP_HEADER // 8 <= len(words):
            # The index is the lowest quarter of the first word, the size the second word.
            is_free, size = words[at] & 0xFFFF == 0, words[at + 1]
            if is_free and (size == 0 or size % 8):
                return True
            at += size // 8 if is_free else HEAP_HEADER // 8 + (size + 7) // 8
    return False


def heap_size(data: mmap.mmap | bytes, offset: int) -> int:
    """The bytes of the heap at an offset, as its header says them."""
    return int.from_bytes(data[offset + 8 : offset + HEAP_HEADER], "little")
