"""The one writer of published files: image parts, template parts and databases.

A file is made as a temporary sibling: structure, strings and small arrays through h5py, then the rows as plain
bytes at the offsets HDF5 allocated for them; it is synced and renamed. A file that exists is complete.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import plain_value, write_attribute
from ccassets.database.feature_digests import TEMPLATE_ARRAYS, attribute_digest, rows_digest, template_digest
from ccassets.database.hdf5 import bytes_of
from ccassets.database.layout import (
    ALIGNMENT,
    IMAGE_FEATURES,
    IMAGE_TOKEN_FEATURES,
    SMALL_ALIGNMENT,
    STORED_IMAGE_DTYPE,
    VERSION,
    Profile,
)
from ccassets.errors import DatabaseError
from ccassets.files import replacing, storage_errors
from ccassets.study.prompt_hash import texts_hash

_BLOCK = 32 << 20
"""Bytes that are written at a time, large enough for the disk and small enough to keep it busy meanwhile."""
_TEMPLATE_DTYPES = {"input_ids": "<i4", "attention_mask": "u1", "subject_span": "<i4"}


@dataclass(frozen=True)
class TemplateContent:
    """A template as it is written: texts (K,), features (K, D) float32 and what else the encoder gives."""

    texts: Sequence[str]
    text_features: npt.NDArray[np.float32]
    text_token_features: npt.NDArray[np.float32] | None = None
    input_ids: npt.NDArray[np.int32] | None = None
    attention_mask: npt.NDArray[np.uint8] | None = None
    subject_span: npt.NDArray[np.int32] | None = None


@dataclass(frozen=True)
class RowContent:
    """All data of the rows besides their features; each of length N, in the order of the file.

    `image_digest` is None if only tensors of a loader were seen, not the stored images.
    """

    split: Sequence[str]
    labels: npt.NDArray[np.int64]
    keys: Sequence[str]
    image_digest: npt.NDArray[np.uint8] | None
    feature_digest: npt.NDArray[np.uint8]
    groups: Sequence[str] | None = None
    label_matrix: npt.NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.split)


@dataclass(frozen=True)
class FileContent:
    """Everything of a file but the bytes of its image features, which are written afterwards.

    `token_count` is T_img, 0 without tokens. `attributes` go to the root: numbers and strings as they are,
    everything else, and what `JSON_ATTRIBUTES` names, as JSON; those that the format itself asks for (`profile`,
    `created_at`, …) are set by the writer.
    """

    profile: Profile
    dim: int
    token_count: int
    rows: RowContent | None = None
    templates: Mapping[str, TemplateContent] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)


class RowBytes:
    """The bulk data sets of an unpublished file, written row by row from values or from ranges of another file."""

    def __init__(self, fd: int, ranges: Mapping[str, tuple[int, int]]) -> None:
        self._fd = fd
        self._ranges = ranges

    def write(self, name: str, first: int, values: npt.NDArray[Any]) -> None:
        """Write `values` as the rows from `first` on."""
        offset, row_bytes = self._ranges[name]
        data = bytes_of(np.asarray(values, STORED_IMAGE_DTYPE))
        position = offset + first * row_bytes
        _reserve(self._fd, position, len(data))
        while len(data):
            written = os.pwrite(self._fd, data[:_BLOCK], position)
            _start_writing(self._fd, position, written)
            data, position = data[written:], position + written

    def copy(self, name: str, first: int, source_fd: int, source_offset: int, count: int) -> None:
        """Copy `count` rows from a byte range of another file; blocks are shared where the file system can."""
        offset, row_bytes = self._ranges[name]
        _copy_range(source_fd, source_offset, self._fd, offset + first * row_bytes, count * row_bytes)


@contextmanager
def new_file(path: Path, content: FileContent) -> Iterator[RowBytes]:
    """Make the file at `path`: the caller writes the rows, then it is synced and renamed into place.

    Until then, `path` is unchanged. Raises `StorageError` when the disk refuses.
    """
    with storage_errors(path), replacing(path) as temporary:
        ranges = _create(temporary, content)
        fd = os.open(temporary, os.O_RDWR)
        try:
            yield RowBytes(fd, ranges)
        finally:
            os.close(fd)


def _create(path: Path, content: FileContent) -> dict[str, tuple[int, int]]:
    """Create a file with everything but its rows; where each bulk data set starts, and the bytes of its rows."""
    ranges = {}
    with _open_aligned(path, "w", ALIGNMENT) as file:
        if content.rows is not None:
            ranges = _allocate_rows(file, content, len(content.rows))
    with _open_aligned(path, "r+", SMALL_ALIGNMENT) as file:
        _write_root_attributes(file, content)
        if content.rows is not None:
            _write_rows(file, content.rows)
        if content.profile != "image-part":
            file.create_group("templates")
            for template_id, template in content.templates.items():
                write_template_group(file["templates"].create_group(template_id), template)
        digests = {name: attribute_digest(plain_value(value)) for name, value in file.attrs.items()}
        write_attribute(file, "attribute_digests", digests)
    return ranges


@contextmanager
def _open_aligned(path: Path, mode: str, alignment: int) -> Iterator[h5py.File]:
    # HDF5 aligns every object or none: rows and small arrays are therefore made in one opening each.
    with (
        _DeferredErrorFile(path) as steady,
        h5py.File(
            steady, mode, libver=("earliest", "v110"), alignment_threshold=1, alignment_interval=alignment
        ) as file,
    ):
        yield file


class _DeferredErrorFile(FileIO):
    """A file that accepts every write of HDF5; the first error of the disk is raised when it is closed.

    HDF5 cannot close a file that it cannot write, and takes the process down with it. So from the first refusal on
    everything is kept in memory, where HDF5 finds it again.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "r+")
        self._error: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []

    def write(self, data: Any) -> int:
        view = memoryview(data)
        start = self.tell()
        with self._deferred_error():
            while (written := self.tell() - start) < len(view):
                super().write(view[written:])
        if self._error is not None:
            self._kept.append((start, bytes(view)))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        start = self.tell()
        super().readinto(view)
        for offset, data in self._kept:
            first, last = max(start, offset), min(start + len(view), offset + len(data))
            if first < last:
                view[first - start : last - start] = data[first - offset : last - offset]
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        with self._deferred_error():
            super().truncate(size)
        return size or 0

    def close(self) -> None:
        super().close()
        error, self._error = self._error, None
        if error is not None:
            raise error

    @contextmanager
    def _deferred_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._error = self._error or error


def _write_root_attributes(file: h5py.File, content: FileContent) -> None:
    file.attrs["D"] = np.int64(content.dim)
    file.attrs["T_img"] = np.int64(content.token_count or -1)
    file.attrs["created_at"] = now()
    file.attrs["version"] = VERSION
    file.attrs["profile"] = content.profile
    for name, value in content.attributes.items():
        write_attribute(file, name, value)


def now() -> str:
    """Local time as the format writes it."""
    return datetime.now().strftime("%Y-%m-%d %H:%M:%S")


def _allocate_rows(file: h5py.File, content: FileContent, rows: int) -> dict[str, tuple[int, int]]:
    shapes: dict[str, tuple[int, ...]] = {IMAGE_FEATURES: (rows, content.dim)}
    if content.token_count:
        shapes[IMAGE_TOKEN_FEATURES] = (rows, content.token_count, content.dim)
    ranges = {}
    for name, shape in shapes.items():
        dataset = _contiguous(file, name, shape, STORED_IMAGE_DTYPE)
        offset = dataset.id.get_offset()
        if offset is None and rows:
            raise DatabaseError(f"{name}: expected a contiguous data set, found one that HDF5 gave no space")
        ranges[name] = (offset or 0, int(np.prod(shape[1:])) * STORED_IMAGE_DTYPE.itemsize)
    return ranges


def _contiguous(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: Any) -> h5py.Dataset:
    """A contiguous data set whose space is allocated now and filled with nothing."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    type_id = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    return h5py.Dataset(h5py.h5d.create(group.id, name.encode(), type_id, space, properties))


def _write_array(group: h5py.Group, name: str, values: npt.NDArray[Any], dtype: Any) -> None:
    dataset = _contiguous(group, name, values.shape, dtype)
    if values.size:
        dataset[...] = values


def _write_texts(group: h5py.Group, name: str, texts: Sequence[str]) -> None:
    group.create_dataset(
        name, data=np.array(texts, dtype=object), dtype=h5py.string_dtype("utf-8"), shape=(len(texts),)
    )


def _write_rows(file: h5py.File, rows: RowContent) -> None:
    _write_array(file, "ids", np.arange(len(rows)), "<i8")
    _write_array(file, "labels", rows.labels, "<i8")
    _write_array(file, "feature_digest", rows.feature_digest, "u1")
    if rows.image_digest is not None:
        _write_array(file, "image_digest", rows.image_digest, "u1")
        file.attrs["rows_digest"] = rows_digest(rows.image_digest, rows.feature_digest)
    if rows.label_matrix is not None:
        _write_array(file, "label_matrix", rows.label_matrix, "u1")
    _write_texts(file, "split", rows.split)
    _write_texts(file, "keys", rows.keys)
    if rows.groups is not None:
        _write_texts(file, "groups", rows.groups)


def write_template_group(group: h5py.Group, template: TemplateContent) -> None:
    """Fill the empty group of a template: its arrays, texts and attributes."""
    for name in TEMPLATE_ARRAYS:
        values = getattr(template, name)
        if values is not None:
            _write_array(group, name, values, _TEMPLATE_DTYPES.get(name, "<f4"))
    _write_texts(group, "texts", template.texts)
    tokens = template.text_token_features
    group.attrs["K"] = np.int64(len(template.texts))
    group.attrs["D"] = np.int64(template.text_features.shape[1])
    group.attrs["T_txt"] = np.int64(-1 if tokens is None else tokens.shape[1])
    group.attrs["texts_hash"] = texts_hash(template.texts)
    group.attrs["digest"] = template_digest(template)
    group.attrs["created_at"] = now()


def _reserve(fd: int, offset: int, count: int) -> None:
    """Reserve disk space for a large range at once, which makes writing into it faster.

    By the system's own call: where a file system has none, `os.posix_fallocate` would write to every block instead.
    Its errors are ignored here: writing reports them.
    """
    fallocate = getattr(ctypes.CDLL(None), "fallocate64", None) if sys.platform == "linux" else None
    if fallocate and count >= _BLOCK:
        fallocate(fd, 0, ctypes.c_int64(offset), ctypes.c_int64(count))


def _copy_range(source_fd: int, source_offset: int, target_fd: int, target_offset: int, count: int) -> None:
    _reserve(target_fd, target_offset, count)
    while count:
        try:
            copied = os.copy_file_range(source_fd, target_fd, min(count, _BLOCK), source_offset, target_offset)
        except OSError as error:
            # Another file system, or one that cannot: the same bytes go through memory, block by block.
            if error.errno not in {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            block = os.pread(source_fd, min(count, _BLOCK), source_offset)
            copied = os.pwrite(target_fd, block, target_offset)
        if not copied:
            raise DatabaseError("a part ends before its rows do: it was truncated; build again with --fresh")
        _start_writing(target_fd, target_offset, copied)
        source_offset, target_offset, count = source_offset + copied, target_offset + copied, count - copied


def _start_writing(fd: int, offset: int, count: int) -> None:
    """Start writing a block to the disk while the next is made, so that the sync at the end waits less.

    Linux starts writing dirty pages that are declared unneeded, and keeps them until they are written.
    """
    if sys.platform == "linux" and count == _BLOCK:
        os.posix_fadvise(fd, offset, count, os.POSIX_FADV_DONTNEED)
