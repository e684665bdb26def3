"""Files that are read over a network, through fsspec: metadata in blocks that are kept, rows as exact ranges."""

from __future__ import annotations

import base64
import errno
import gc
import json
import os
import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeGuard
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5_heap_guard import HEAP_HEADER, HEAP_SIGNATURE, find_endless_among, heap_offsets, heap_size
from ccassets.database.positioned_file import PositionedFile
from ccassets.errors import DatabaseError, StorageError

Range = tuple[int, int]
"""An offset and a size in bytes."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

_BLOCK = 64 << 10
_SMALL = 16 << 10
_READ_AHEAD = 64
"""The most blocks that are read at a time where metadata is read in order, as texts are."""
_CACHE_BYTES = 64 << 20
_LARGEST_RANGE = 32 << 20
_PARALLEL = 8
_SECONDS = 30
"""How long a server may send nothing."""


def is_url(path: str | os.PathLike[str]) -> TypeGuard[str]:
    """Whether a path is the address of a remote file."""
    return isinstance(path, str) and _URL.match(path) is not None


def shown_url(url: str) -> str:
    """An address as it may be shown: without user, password and query, in which a signature may stand."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def references_url(url: str) -> str:
    """Where the references of a database lie, if there are any: beside it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.removesuffix('.h5')}.refs.json"))


class RemoteFile(PositionedFile):
    """A file at an address: what h5py reads its metadata from, and exact ranges of it.

    Metadata is read in blocks, of which a bounded number is kept; with references beside the file, their copy is used
    and the server is not asked. Requests name the version of the file that was opened, if the server sends versions,
    and an answer of another length is an error. Credentials are those of fsspec and its libraries; none are kept here.

    Args:
        url: The address.

    Raises:
        DatabaseError: There is no such file, its scheme needs a package that is missing, or its texts are damaged.
        StorageError: The server refuses or does not answer.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = shown_url(url)
        self.requests = 0
        """Number of ranges that were asked for."""
        self._lock = Lock()
        self._next_block, self._ahead = -1, 1
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._stored: list[tuple[int, bytes]] = []
        with self._errors():
            self._fetch, self.size = _open(url)
            references = _references(url)
        if references is not None:
            self._use(references)

    # --- the interface that h5py reads through --------------------------------------------------------

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), max(0, self.size - self._position))
        with _collection_paused():
            buffer[:size] = self._read(self._position, size)
        self._position += size
        return size

    # --- ranges ---------------------------------------------------------------------------------------

    def read_ranges(self, ranges: Sequence[Range]) -> list[bytes]:
        """Read ranges of bytes, each with one request of exactly its size, several at a time.

        Raises:
            DatabaseError: The file at the address was replaced, or ends before a range.
            StorageError: The server refuses, does not answer, or answers with another number of bytes.
        """
        if len(ranges) < 2:
            return [self._read_range(one) for one in ranges]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return list(pool.map(self._read_range, ranges))

    def _read_range(self, one: Range) -> bytes:
        offset, size = one
        if not size:
            return b""
        if offset + size > self.size:
            raise DatabaseError(
                f"{self.name}: expected {offset + size} bytes or more, found {self.size}: it is cut off."
            )
        self.requests += 1
        with self._errors():
            data: bytes = self._fetch(offset, offset + size)
        if len(data) != size:
            raise StorageError(
                f"{self.name}: expected {size} bytes at {offset}, received {len(data)}. The connection was cut, or the "
                "server does not answer ranges of bytes. Try again.",
                transient=True,
            )
        return data

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what fsspec and its libraries raise as a sentence that names the file and no credentials."""
        try:
            yield
        except (DatabaseError, StorageError):
            raise
        except FileNotFoundError:
            raise DatabaseError(f"{self.name}: there is no such file.") from None
        except ImportError as error:
            raise DatabaseError(
                f"{self.name}: its scheme needs the package {error.name or error}: pip install 'ccassets[remote]'."
            ) from None
        except Exception as error:
            status = getattr(error, "status", None)
            if status == 412 or type(error).__name__ == "FileExpired":
                raise DatabaseError(f"{self.name} was replaced since it was opened: open it again.") from None
            if isinstance(error, PermissionError) or status in (401, 403):
                raise StorageError(
                    f"{self.name}: the server refuses access. Give fsspec the credentials of this address."
                ) from None
            kind = "it did not answer in time" if "imeout" in type(error).__name__ else type(error).__name__
            raise StorageError(
                f"{self.name} cannot be read: {kind}{f' (status {status})' if status else ''}. Check the network and "
                "the server, then try again.",
                transient=True,
            ) from None

    # --- metadata -------------------------------------------------------------------------------------

    def _read(self, offset: int, size: int) -> bytes:
        for start, data in self._stored:  # Few: one between two arrays.
            if start <= offset and offset + size <= start + len(data):
                return data[offset - start : offset - start + size]
        if size > _SMALL and offset // _BLOCK not in self._blocks:  # An array, such as a template's: exactly its bytes.
            data = self._read_range((offset, size))
            return data if HEAP_SIGNATURE not in data else self._with_whole_heaps(offset, size)
        with self._lock:
            first, last = offset // _BLOCK, (offset + max(size, 1) - 1) // _BLOCK
            data = b"".join(self._block(number) for number in range(first, last + 1))
        return data[offset - first * _BLOCK :][:size]

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            self._ahead = min(2 * self._ahead, _READ_AHEAD) if number == self._next_block else 1
            start = number * _BLOCK
            data = self._with_whole_heaps(start, self._ahead * _BLOCK)
            for offset in range(0, len(data), _BLOCK):
                self._blocks[number + offset // _BLOCK] = data[offset : offset + _BLOCK]
            self._next_block = number + -(-len(data) // _BLOCK)
        self._blocks.move_to_end(number)
        block = self._blocks[number]
        while len(self._blocks) * _BLOCK > _CACHE_BYTES:
            self._blocks.popitem(last=False)
        return block

    def _with_whole_heaps(self, start: int, size: int) -> bytes:
        """Read blocks from a start, and check that each heap of texts that begins in them has an end.

        The first block is always included; later ones are left out from the first heap that continues beyond them.
        """
        data = self._read_range((start, min(size + HEAP_HEADER, self.size - start)))
        for offset in heap_offsets(data, 0, len(data)):
            if offset >= size:
                break
            end = offset + heap_size(data, offset)
            if offset + HEAP_HEADER > len(data) or end > len(data):
                if offset >= _BLOCK:
                    size = offset // _BLOCK * _BLOCK
                    break
                end = min(end, self.size - start)
                data += self._read_range((start + len(data), max(0, min(end, _CACHE_BYTES) - len(data))))
            self._require_end(data[offset:end], start + offset)
        return data[:size]

    def _use(self, references: dict[str, Any]) -> None:
        """Take the metadata that references hold instead of asking for it."""
        if references["size"] != self.size:
            raise DatabaseError(
                f"{shown_url(references_url(self.url))}: expected references to a file of {self.size} bytes, found "
                f"{references['size']}. Export them again, or remove them."
            )
        self._stored = [(int(start), _decompressed(text)) for start, text in references["ranges"]]
        for start, data in self._stored:
            for offset in heap_offsets(data, 0, len(data)):
                size = heap_size(data, offset)
                self._require_end(data[offset : offset + size], start + offset)

    def _require_end(self, heap: bytes, offset: int) -> None:
        """Refuse texts that HDF5 would read for ever, before it sees them."""
        if len(heap) < HEAP_HEADER or find_endless_among(heap, [0]) is not None:
            raise DatabaseError(
                f"{self.name} cannot be read: its texts at byte {offset} are damaged, and HDF5 would read for ever."
            )


class RemoteRows:
    """A contiguous array of a remote file: indexed as one of numpy, each range of rows read with one request.

    Attributes:
        shape: The shape.
        dtype: The dtype.
    """

    def __init__(self, file: RemoteFile, offset: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype
        self._file, self._offset = file, offset

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Number of bytes."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self.take_rows(np.arange(len(self))), dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        keys = key if isinstance(key, tuple) else (key,)
        if keys[0] is Ellipsis or keys[0] is None:
            return np.asarray(np.asarray(self)[key])
        if len(keys) > 1 and all(isinstance(index, (int, np.integer)) for index in keys[:2]):
            row, item = (range(size)[index] for size, index in zip(self.shape, keys[:2], strict=False))
            shape = self.shape[2:]
            size = int(np.prod(shape)) * self.dtype.itemsize
            (data,) = self._file.read_ranges([(self._offset + (row * self.shape[1] + item) * size, size)])
            return np.asarray(np.frombuffer(bytearray(data), self.dtype).reshape(shape)[keys[2:]])
        rows = np.arange(len(self))[keys[0]]
        values: npt.NDArray[Any] = self.take_rows(rows)
        return np.asarray(values[(slice(None),) * np.ndim(rows) + keys[1:]])

    def take_rows(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """A copy of rows counted from 0, in any order and with repeats; rows that stand together are one request."""
        numbers, positions = np.unique(rows, return_inverse=True)
        row_bytes = int(np.prod(self.shape[1:])) * self.dtype.itemsize
        step = max(1, _LARGEST_RANGE // max(1, row_bytes))
        runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
        parts = [run[first : first + step] for run in runs for first in range(0, len(run), step)]
        ranges = [(self._offset + int(part[0]) * row_bytes, len(part) * row_bytes) for part in parts]
        data = bytearray().join(self._file.read_ranges(ranges))
        values: npt.NDArray[Any] = np.frombuffer(data, self.dtype).reshape(len(numbers), *self.shape[1:])
        if values.shape[0] == np.size(rows) and np.all(np.diff(np.ravel(rows)) > 0):
            return values.reshape(*np.shape(rows), *self.shape[1:])
        return np.asarray(values[positions].reshape(*np.shape(rows), *self.shape[1:]))


def _open(url: str) -> tuple[Callable[[int, int], bytes], int]:
    """A function that reads bytes from a start to an end, and the size of the file."""
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    options: dict[str, Any] = {}
    if url.startswith(("http://", "https://")):
        import aiohttp

        facts = system.info(path, timeout=_SECONDS)
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
        options["size"] = facts.get("size")
        version = facts.get("ETag", "")
        if version and not version.startswith("W/"):
            options["headers"] = {"If-Match": version}
        if not options["size"]:
            raise OSError(errno.EIO, "the server does not tell the size of the file")
    file = system.open(path, "rb", block_size=_BLOCK, cache_type="none", **options)
    if hasattr(file, "_fetch_range"):  # What every buffered file of fsspec reads with; it keeps the version.
        return file._fetch_range, int(file.size)
    return lambda start, end: system.cat_file(path, start=start, end=end), int(system.size(path))


def _references(url: str) -> dict[str, Any] | None:
    """The metadata in the references beside a file; None without any, or without metadata."""
    import fsspec

    system, path = fsspec.core.url_to_fs(references_url(url))
    try:
        content = json.loads(system.cat_file(path))
        metadata = content["hdf5"]
    except (FileNotFoundError, PermissionError, KeyError, TypeError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) and {"size", "ranges"} <= set(metadata) else None


def _decompressed(text: str) -> bytes:
    data = zlib.decompressobj().decompress(base64.b64decode(text), _CACHE_BYTES + 1)
    if len(data) > _CACHE_BYTES:
        raise DatabaseError(f"References hold more than {_CACHE_BYTES} bytes of metadata.")
    return data


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Keep Python from collecting garbage.

    h5py holds its lock while it reads through us. A fetching thread that collects an object of h5py would wait for that
    lock while we wait for the thread: a deadlock.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
