"""Safe low-level access to HDF5 files: opening, checked links, mapping, texts, and rows in blocks or by number."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary, finalize

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5_heap_guard import find_endless_heap
from ccassets.database.remote_file import RemoteFile, RemoteRows
from ccassets.errors import DatabaseError
from ccassets.files import reading_refused

Array = npt.NDArray[Any]

READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, AttributeError)
"""What h5py and numpy raise for bytes they cannot make sense of."""

BLOCK_BYTES = 64 << 20
"""What is read of a large array at a time."""
_MADVISE = getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
_MADV_POPULATE_READ = 22
"""The advice of Linux 5.14 to map pages ahead; the number is that of asm-generic/mman-common.h."""


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file read-only; `DatabaseError` when there is none, or when reading it would never end."""
    if not path.is_file():
        raise DatabaseError(f"{path} is not a file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise reading_refused(error, str(path)) or DatabaseError(
            f"{path} cannot be opened as HDF5 ({error}): it is another kind of file, or cut off."
        ) from error
    with read_errors_at(str(path)):
        offset = find_endless_heap(file, file_descriptor(file))
    if offset is not None:
        file.close()
        raise DatabaseError(
            f"{path} cannot be read: its texts at byte {offset} are damaged, and HDF5 would read for ever."
        )
    return file


def open_remote_hdf5(remote: RemoteFile) -> h5py.File:
    """Open a remote HDF5 file read-only; `DatabaseError` when it is none."""
    try:
        return h5py.File(remote, "r")
    except OSError as error:
        raise DatabaseError(
            f"{remote.name} cannot be opened as HDF5 ({error}): it is another kind of file, or cut off."
        ) from error


@contextmanager
def read_errors_at(location: str) -> Iterator[None]:
    """Raise what h5py raises for a damaged file as a `DatabaseError` that names the location.

    Raises `StorageError` instead where the system refused to read.
    """
    try:
        yield
    except READ_ERRORS as error:
        raise reading_refused(error, location) or DatabaseError(
            f"{location} cannot be read ({error or type(error).__name__}): the file is damaged"
        ) from error


def file_descriptor(file: h5py.File) -> int:
    """The operating system's descriptor of an open file."""
    return int(file.id.get_vfd_handle())


# --- names and links ----------------------------------------------------------------------------------


def member_path(group: h5py.Group, name: str) -> str:
    """The HDF5 path of a name in a group."""
    return f"{group.name.rstrip('/')}/{name}"


def safe_dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A data set whose bytes lie in the file itself; None when there is no such name.

    Links and storage that lead out of the file are refused: a file must never make us open another one.
    """
    dataset = safe_member(group, name)
    if dataset is None:
        return None
    if not isinstance(dataset, h5py.Dataset):
        raise DatabaseError(f"{member_path(group, name)}: expected a data set, found a group")
    if dataset.is_virtual or dataset.external:
        raise DatabaseError(
            f"{member_path(group, name)} keeps its data in other files; the bytes must lie in the file itself"
        )
    return dataset


def safe_group(group: h5py.Group, name: str) -> h5py.Group | None:
    """A group of the file itself; None when there is no such name. Links are refused as for data sets."""
    member = safe_member(group, name)
    if member is not None and not isinstance(member, h5py.Group):
        raise DatabaseError(f"{member_path(group, name)}: expected a group, found a data set")
    return member


def listed_group(group: h5py.Group, name: str) -> h5py.Group:
    """A group whose name is listed by the group above it."""
    member = safe_group(group, name)
    if member is None:
        raise DatabaseError(f"{group.name} lists {name!r} and does not hold it: the file's structure is broken")
    return member


def sorted_names(group: h5py.Group) -> list[str]:
    """The names in a group, sorted."""
    names = list(group)
    broken = [name for name in names if not isinstance(name, str)]
    if broken:
        raise DatabaseError(f"{group.name} holds names that are not UTF-8, such as {broken[0]!r}")
    return sorted(names)


def safe_member(group: h5py.Group, name: str) -> Any:
    """What a name in a group stands for, in the file itself; None when there is no such name."""
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        raise DatabaseError(
            f"{member_path(group, name)} is a soft or external link; expected something in the file itself"
        )
    return group[name]


# --- values -------------------------------------------------------------------------------------------


def map_dataset(dataset: h5py.Dataset) -> Array | None:
    """The values of a contiguous numeric data set, mapped and not copied; None where they are stored otherwise."""
    if not dataset.size:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or offset is None:
        return None
    opened = os.fdopen(_open_again(dataset.file), "rb")
    try:
        values = np.memmap(opened, dataset.dtype, "r", offset, dataset.shape)
    except BaseException:
        opened.close()
        raise
    mapping: Any = values.base
    finalize(mapping, opened.close)
    location = f"{dataset.file.filename}: {dataset.name}"
    _MAPPED_FILES[mapping] = _MappedFile(opened.fileno(), offset - _address(values), location)
    return values


def _open_again(file: h5py.File) -> int:
    """A descriptor of the file that is open, which need not be the one under its path any more.

    It is opened anew where that is possible: a duplicate of HDF5's descriptor would hold its lock beyond its end.
    """
    handle = file_descriptor(file)
    for path in (f"/proc/self/fd/{handle}", file.filename):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            continue
        if os.path.samestat(os.fstat(descriptor), os.fstat(handle)):
            return descriptor
        os.close(descriptor)
    return os.dup(handle)


@dataclass(frozen=True)
class _MappedFile:
    """The open file of a mapping, what to add to an address to get a position in it, and its name for messages."""

    descriptor: int
    shift: int
    location: str


_MAPPED_FILES: WeakKeyDictionary[mmap.mmap, _MappedFile] = WeakKeyDictionary()


@contextmanager
def loaded(values: Array) -> Iterator[Array]:
    """Hold values in memory while they are used, where they are mapped from a data set (`map_dataset`).

    For values that are used once. The system maps all their pages in one step and takes them back at the end: page by
    page is slower, pages that stay count as memory of the process, and one that cannot be read would end the process.

    Args:
        values: Values of any kind.

    Yields:
        The values themselves; a copy of mapped ones where the system cannot map pages ahead (Linux before 5.14).

    Raises:
        DatabaseError: The file is cut off.
        StorageError: The system refuses to read the file.
    """
    file = _whole_file(values)
    if file is None:
        yield values
        return
    start = _address(values)
    end = start + values.nbytes
    if _advise(start - start % mmap.PAGESIZE, end, _MADV_POPULATE_READ):
        try:
            yield values
        finally:
            # Pages at both ends may hold rows that another thread uses.
            _advise(start + -start % mmap.PAGESIZE, end - end % mmap.PAGESIZE, mmap.MADV_DONTNEED)
        return
    copy = np.empty(values.shape, values.dtype)
    with read_errors_at(file.location):
        read_into(copy, file.descriptor, start + file.shift)
    yield copy


def _whole_file(values: Array) -> _MappedFile | None:
    """The file that values in one piece are mapped from; None for others, and for none at all.

    `DatabaseError` where the file was cut off before these values: touching them would end the process.
    """
    base: Any = values
    while isinstance(base, np.ndarray):
        base = base.base
    file = _MAPPED_FILES.get(base) if isinstance(base, mmap.mmap) else None
    if file is None or not values.flags.c_contiguous or not values.size:
        return None
    with read_errors_at(file.location):
        size = os.fstat(file.descriptor).st_size
        if size < _address(values) + values.nbytes + file.shift:
            raise OSError(f"the file ends at byte {size}, before these rows do")
    return file


def _advise(start: int, end: int, advice: int) -> bool:
    """Whether the system takes an advice about its pages from one address to another, the first of them aligned.

    `mmap.madvise` keeps the lock of the interpreter, so that no other thread would run while a disk is read.
    """
    if _MADVISE is None:
        return False
    return start >= end or not _MADVISE(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)


def read_into(values: Array, descriptor: int, position: int) -> None:
    """Fill C-contiguous values with the bytes of an open file from a position on; `OSError` where it ends too soon."""
    data = bytes_of(values)
    while len(data):
        done = os.preadv(descriptor, [data], position)
        if not done:
            raise OSError(f"the file ends at byte {position}, before these rows do")
        data, position = data[done:], position + done


def bytes_of(values: Array) -> memoryview:
    """The bytes of values in C order, also of dtypes that numpy gives no buffer of, such as a swapped long double.

    A view of C-contiguous values, else a copy.
    """
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data


def _address(values: Array) -> int:
    address: int = values.__array_interface__["data"][0]
    return address


def decode_text(value: Any) -> str:
    """A stored text as `str`; bytes that are not UTF-8 are kept as surrogates."""
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)


def read_texts(dataset: h5py.Dataset) -> npt.NDArray[np.object_]:
    """A string data set as an object array of `str`."""
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise DatabaseError(f"{dataset.name}: expected strings, found dtype {dataset.dtype}")
    raw = np.asarray(dataset[...], object)
    texts = np.empty(raw.shape, object)
    texts.reshape(-1)[:] = [decode_text(value) for value in raw.reshape(-1).tolist()]
    return texts


def take_rows(values: Array, rows: npt.NDArray[np.int64]) -> Array:
    """A copy of `values[rows]`: rows counted from 0, in any order and with repeats, each read once."""
    if isinstance(values, np.ndarray):
        _whole_file(values)
        return np.asarray(values)[rows]  # Indexing by an array copies.
    if isinstance(values, RemoteRows):
        return values.take_rows(rows)
    # h5py takes increasing numbers alone, and slowly: neighbouring rows are read as ranges.
    numbers = rows.reshape(-1)
    taken = np.empty((len(numbers), *values.shape[1:]), values.dtype)
    order = np.argsort(numbers, kind="stable")
    step = _rows_per_block(values, BLOCK_BYTES)
    for run in np.split(order, np.flatnonzero(np.diff(numbers[order]) > 1) + 1):
        for positions in (run[first : first + step] for first in range(0, len(run), step)):
            first, last = numbers[positions[0]], numbers[positions[-1]]
            taken[positions] = values[first : last + 1][numbers[positions] - first]
    return taken.reshape(*rows.shape, *values.shape[1:])


def iter_blocks(
    values: Array, block_bytes: int = BLOCK_BYTES, rows: slice | None = None
) -> Iterator[tuple[int, Array]]:
    """Blocks of rows of a large array in file order, each with its first row's number: flat memory, one pass.

    `rows` is a range such as those of `splits`, by default everything. A block is valid until the next is asked for.
    """
    step = _rows_per_block(values, block_bytes)
    start, stop, _ = (rows or slice(None)).indices(len(values))
    mapping = getattr(values, "_mmap", None)
    for first in range(start, stop, step):
        block = np.asarray(values[first : min(first + step, stop)])
        _whole_file(block)
        yield first, block
        if mapping is not None:
            # Pages once read would count as this process's memory until the system wants them back.
            mapping.madvise(mmap.MADV_DONTNEED)


def _rows_per_block(values: Array, block_bytes: int) -> int:
    row_bytes = int(np.prod(values.shape[1:])) * values.dtype.itemsize
    return max(1, block_bytes // max(1, row_bytes))
