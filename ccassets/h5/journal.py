"""A journaled file below a growing HDF5 file: one writer, and changes that appear all at once.

HDF5 changes its own structure in place, in several writes; a process killed between two of them leaves a file that
may not open. Here, the stored bytes of the file stay unchanged until a flush. A flush writes the new bytes and the
old ones to a journal beside the file, then the new over the old. The next opening completes a journaled flush or,
where the journal is incomplete or of another file, removes it: either all of a flush is in the file, or nothing.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from ccassets.database.positioned_file import PositionedFile
from ccassets.errors import StorageError
from ccassets.files import lock_file, storage_error, storage_errors, sync

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

_PAGE = 4096
_MAGIC = b"ccaJrnl1"
_HEADER = struct.Struct("<8sQQ")  # magic, new size of the file, number of pages
_RECORD = struct.Struct(f"<Q{_PAGE}s{_PAGE}s")  # page, stored bytes, new bytes
_DIGEST_BYTES = 16


class JournaledFile(PositionedFile):
    """A file locked for one writer; `flush` stores everything written since the last flush at once.

    Bytes after the end of the stored file are written directly, so that only changed pages of the stored file are
    held in memory and written twice. Raises `StorageError` when another writer or reader has the file.

    Errors of the disk are not raised here, where HDF5 would lose them: the first one is kept in `error`, and nothing
    is written afterwards.
    """

    def __init__(self, path: Path) -> None:
        self.error: OSError | None = None
        self._path = path
        self._fd = _open_locked(path, os.O_RDWR | os.O_CREAT, shared=False)
        self._journal_fd = -1
        try:
            _recover(self._fd, path)
        except OSError as error:
            os.close(self._fd)
            raise storage_error(error, path) from error
        self._committed = self.size = os.fstat(self._fd).st_size
        self._pages: dict[int, _Page] = {}
        self._discarded = False
        _open_files.add(self)

    def __repr__(self) -> str:
        # h5py uses this as the file's name.
        return str(self._path)

    def writable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")[: max(0, self.size - self._position)]
        data = os.pread(self._fd, len(view), self._position)
        view[: len(data)] = data
        view[len(data) :] = bytes(len(view) - len(data))
        for start, page, inside in _pieces(self._position, len(view)):
            if page in self._pages:
                view[start : start + inside.stop - inside.start] = self._pages[page].new[inside]
        self._position += len(view)
        return len(view)

    def write(self, buffer: ReadableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        # Whole pages are held, the last one too. A new file is held entirely: it must not be half there either.
        end = -(-self._committed // _PAGE) * _PAGE
        held = max(0, end - self._position) if end and not self._discarded else len(view)
        self._hold(self._position, view[:held])
        try:
            _write_at(self._fd, view[held:], self._position + len(view[:held]))
        except OSError as error:
            self._fail(error)
            self._hold(self._position + len(view[:held]), view[held:])
        self._position += len(view)
        self.size = max(self.size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def flush(self) -> None:
        if self._discarded or self.closed:
            return
        try:
            self._commit()
        except OSError as error:
            self._fail(error)

    def _commit(self) -> None:
        pages = {number: page for number, page in sorted(self._pages.items()) if number * _PAGE < self.size}
        if pages:
            # What the pages refer to must be on the disk before them, and they before what replaces the old ones.
            os.fsync(self._fd)
            self._write_journal(pages)
            _apply(self._fd, pages, self.size)
            os.pwrite(self._journal_fd, bytes(_HEADER.size), 0)
        elif self.size != os.fstat(self._fd).st_size:
            os.ftruncate(self._fd, self.size)
        self._pages.clear()
        self._committed = self.size

    def _fail(self, error: OSError) -> None:
        self.error = self.error or error
        self._discarded = True

    def discard(self) -> None:
        """Leave the file as it was at the last flush; later writes can be read back until it is closed."""
        self._discarded = True

    def release_in_child(self) -> None:
        """Let a forked process go on reading without the lock, which would outlive a killed writer."""
        self._discarded = True
        own = os.open(self._path, os.O_RDONLY)
        os.dup2(own, self._fd)
        os.close(own)

    def close(self) -> None:
        if self.closed:
            return
        try:
            super().close()  # flushes
            if not self._discarded:
                _journal(self._path).unlink(missing_ok=True)
        finally:
            os.close(self._fd)
            if self._journal_fd >= 0:
                os.close(self._journal_fd)

    def _hold(self, start: int, view: memoryview) -> None:
        for first, number, inside in _pieces(start, len(view)):
            if number not in self._pages:
                old = _read_page(self._fd, number)
                self._pages[number] = _Page(old, bytearray(old))
            self._pages[number].new[inside] = view[first : first + inside.stop - inside.start]

    def _write_journal(self, pages: Mapping[int, _Page]) -> None:
        if self._journal_fd < 0:
            self._journal_fd = os.open(_journal(self._path), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            sync(self._path.parent)
        records = [_RECORD.pack(number, page.old, page.new) for number, page in pages.items()]
        content = b"".join([_HEADER.pack(_MAGIC, self.size, len(pages)), *records])
        _write_at(self._journal_fd, memoryview(content + xxhash.xxh3_128_digest(content)), 0)
        os.fsync(self._journal_fd)


@dataclass(frozen=True)
class _Page:
    """The stored and the new bytes of a page."""

    old: bytes
    new: bytearray


@contextmanager
def exclude_writers(path: Path) -> Iterator[None]:
    """Keep writers away while a file is read, after completing the flush of a killed one.

    Raises `StorageError` when a writer has the file open.
    """
    if _journal(path).exists():
        JournaledFile(path).close()
    fd = _open_locked(path, os.O_RDONLY, shared=True)
    try:
        yield
    finally:
        os.close(fd)


_open_files: weakref.WeakSet[JournaledFile] = weakref.WeakSet()


def _release_all_in_child() -> None:
    # A data loader's worker processes are forked from the one that writes.
    for file in list(_open_files):
        if not file.closed:
            file.release_in_child()


os.register_at_fork(after_in_child=_release_all_in_child)


def _open_locked(path: Path, flags: int, *, shared: bool) -> int:
    with storage_errors(path):
        fd = os.open(path, flags, 0o666)
    try:
        with storage_errors(path):
            if not lock_file(fd, path, shared=shared):
                raise StorageError(
                    f"{path} is open elsewhere, in this process or another one, and one writer at a time may have it. "
                    "Close it there (`f.close()`), or wait until that run has ended."
                )
            if os.fstat(fd).st_ino != path.stat().st_ino:
                raise StorageError(f"{path} was replaced while it was being opened: open it again.")
    except StorageError:
        os.close(fd)
        raise
    return fd


def _pieces(start: int, length: int) -> Iterator[tuple[int, int, slice]]:
    """The pages under a range of bytes: where each piece starts in the range, its page, and its slice of the page."""
    done = 0
    while done < length:
        page, first = divmod(start + done, _PAGE)
        last = min(_PAGE, first + length - done)
        yield done, page, slice(first, last)
        done += last - first


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _read_page(fd: int, number: int) -> bytes:
    return os.pread(fd, _PAGE, number * _PAGE).ljust(_PAGE, b"\0")


def _apply(fd: int, pages: Mapping[int, _Page], size: int) -> None:
    for number, page in pages.items():
        _write_at(fd, memoryview(page.new), number * _PAGE)
    if os.fstat(fd).st_size != size:
        os.ftruncate(fd, size)
    os.fsync(fd)


def _recover(fd: int, path: Path) -> None:
    """Complete the interrupted flush if the journal is complete and belongs to this file; then remove the journal."""
    journal = _journal(path)
    try:
        content = journal.read_bytes()
    except FileNotFoundError:
        return
    magic, size, count = _HEADER.unpack(content[: _HEADER.size].ljust(_HEADER.size, b"\0"))
    body = content[: _HEADER.size + count * _RECORD.size]
    complete = xxhash.xxh3_128_digest(body) == content[len(body) : len(body) + _DIGEST_BYTES]
    if magic == _MAGIC and complete:
        pages = {number: _Page(old, bytearray(new)) for number, old, new in _RECORD.iter_unpack(body[_HEADER.size :])}
        # An empty file was begun anew since then.
        if os.fstat(fd).st_size and all(_is_between(_read_page(fd, number), page) for number, page in pages.items()):
            _apply(fd, pages, size)
    journal.unlink()


def _is_between(stored: bytes, page: _Page) -> bool:
    """Whether every byte is the page's old or new one; a different file of the same name has others."""
    old, new, data = (np.frombuffer(content, np.uint8) for content in (page.old, page.new, stored))
    return bool(((data == old) | (data == new)).all())


def _journal(path: Path) -> Path:
    return path.with_name(f".{path.name}.journal")
