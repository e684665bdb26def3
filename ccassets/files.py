"""Small facts about files: fingerprints, locks, free space, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from ccassets.errors import StorageError

_log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 1.0
_WAITING = "Another process is at work in %s; this one goes on when it is done."

_TEMPORARY_SUFFIX = ".partial"
_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_BROKEN = {
    errno.EIO, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.ENOLCK, errno.ENOENT, errno.EEXIST,
}  # fmt: skip
"""What disks and file systems refuse with; an error of the network is none of these."""
_MANY_FILES = {errno.EMFILE, errno.ENFILE}
EXHAUSTED = _MANY_FILES | {errno.ENOMEM, errno.ESTALE}
"""What the system says when it has nothing to give: true of any file at that moment."""
_PASSING = {errno.EBUSY, errno.ENOLCK, errno.ENOMEM, errno.ESTALE}
"""What may be over in a while by itself."""


def fingerprint(path: Path) -> str:
    """Size, mtime_ns, ctime_ns and inode: changes whenever the file's bytes may have changed."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def content_digest(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to, synced and renamed to `path` at the end; removed when that fails.

    It is locked meanwhile: a temporary file that nobody holds is the leftover of a process that died.
    Raises `StorageError` when the disk is full or may not be written.
    """
    with _refusals_named(path):
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield temporary
            os.fsync(fd)
            temporary.replace(path)
            sync(path.parent)
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)


def storage_error(error: OSError, path: Path) -> StorageError:
    """What the disk refused, as a sentence with the path and what to do."""
    if error.errno in _FULL:
        return StorageError(f"No space left to write {path}: free some, then build again; finished parts are kept.")
    if error.errno in _FORBIDDEN:
        return StorageError(f"{path} may not be written ({error.strerror}): check the folder's owner and mode.")
    if error.errno in _MANY_FILES:
        return StorageError(
            f"{path} could not be written: {error.strerror}. Raise the limit (`ulimit -n`), then go on."
        )
    return StorageError(f"{path} could not be written: {error.strerror or error}.", transient=error.errno in _PASSING)


def reading_refused(error: BaseException, what: str) -> StorageError | None:
    """What the system refused to let us read, as a sentence; None when the error is about the file itself."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _FORBIDDEN | EXHAUSTED:
        return None
    advice = "Raise the limit (`ulimit -n`), then go on." if number in _MANY_FILES else "Nothing was changed."
    return StorageError(f"{what} cannot be read: {os.strerror(number)}. {advice}", transient=number in _PASSING)


@contextmanager
def _refusals_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL | _FORBIDDEN | _BROKEN:
            raise
        raise storage_error(error, path) from error


def leftovers(folder: Path) -> Iterator[Path]:
    """Our temporary files in a folder whose writer is gone, each held while it is looked at; not other programs'."""
    for leftover in folder.glob(f".*.{'[0-9a-f]' * 8}{_TEMPORARY_SUFFIX}"):
        try:
            fd = os.open(leftover, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield leftover
        except BlockingIOError:
            pass
        finally:
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Remove our temporary files from a folder when their writer is gone; those of other programs stay."""
    with _refusals_named(folder):
        for leftover in leftovers(folder):
            leftover.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and have the disk hold their names: without them, what is inside is lost."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file that is whole, or what was there before."""
    remove_leftovers(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder; the second says so and waits. The lock dies with its process."""
    with _locked(folder, fcntl.LOCK_EX):
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Several writers at a time in a folder who agree among themselves; who wants it `exclusive` waits for them all."""
    with _locked(folder, fcntl.LOCK_SH):
        yield


@contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
    with _refusals_named(folder):
        make_folder(folder)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with _refusals_named(folder):
            try:
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                said = Timer(_PATIENCE_SECONDS, _log.warning, [_WAITING, folder])
                said.start()
                try:
                    fcntl.flock(fd, kind)
                finally:
                    said.cancel()
        yield
    finally:
        os.close(fd)


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `StorageError` when the file system of `folder` has less than `needed` bytes free."""
    with _refusals_named(folder):
        make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{what} needs {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free. "
            "Free some space, or set CCASSETS_STORAGE to a larger disk."
        )
