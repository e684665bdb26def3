"""Files: fingerprints and digests, locks, free space, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

from ccassets.errors import StorageError
from ccassets.progress import Progress, silent

_log = logging.getLogger(__name__)

DIGEST_CACHE = "encoder-file-digests.json"
"""The file in a cache folder where `digest_files` keeps digests."""

_BLOCK_BYTES = 1 << 20
_NOTICE_SECONDS = 1.0
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
"""What the system refuses with when it has run out of something: true of any file at that moment."""
_TRANSIENT = {errno.EBUSY, errno.ENOLCK, errno.ENOMEM, errno.ESTALE}


# --- fingerprints and digests ------------------------------------------------------------------------


def fingerprint(path: Path) -> str:
    """Size, mtime_ns, ctime_ns and inode: changes whenever the file's bytes may have changed."""
    return "-".join(map(str, _stat_facts(path)))


def digest_files(
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    cache: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
) -> str:
    """SHA-256 of the bytes of files, computed again only when a file's fingerprint changed.

    Args:
        files: A file, or several in an order that counts; their names do not.
        cache: A folder where digests are kept by fingerprint between calls.
        progress: Called with the bytes read so far and the bytes of all files.

    Returns:
        64 hex digits: of one file the digest of its bytes, of several the digest of their digests.

    Raises:
        StorageError: The system does not let a file be read.
    """
    paths = [Path(files)] if isinstance(files, (str, os.PathLike)) else [Path(file) for file in files]
    cache_file = None if cache is None else Path(cache) / DIGEST_CACHE
    known = _read_cache(cache_file)
    total = sum(path.stat().st_size for path in paths)
    digests, done = [], 0
    for path in paths:
        key = _cache_key(path)
        if key not in known:
            known[key] = _sha256(path, done, total, progress)
            if cache_file is not None:
                write_text(cache_file, json.dumps(known))
        digests.append(known[key])
        done += path.stat().st_size
        progress(done, total)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()


def _stat_facts(path: Path) -> tuple[int, int, int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _cache_key(path: Path) -> str:
    """A file's path and fingerprint, hashed, so that a cache that others may read holds no paths."""
    facts = (os.fspath(path.resolve()), *_stat_facts(path))
    return hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()


def _sha256(path: Path, done: int, total: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                progress(done + file.tell(), total)
    except OSError as error:
        reason = f"{path} cannot be read: {error.strerror or error}."
        raise reading_refused(error, str(path)) or StorageError(reason) from error
    return digest.hexdigest()


def _read_cache(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A cache that is missing or unreadable costs a hash, nothing else.
        return {}
    return known if isinstance(known, dict) else {}


# --- what the system refuses -------------------------------------------------------------------------


def storage_error(error: OSError, path: Path) -> StorageError:
    """A refusal of the disk, as a sentence with the path and what to do."""
    if error.errno in _FULL:
        return StorageError(f"No space left to write {path}: free some, then build again; finished parts are kept.")
    if error.errno in _FORBIDDEN:
        return StorageError(f"{path} may not be written ({error.strerror}): check the folder's owner and mode.")
    if error.errno in _MANY_FILES:
        return StorageError(
            f"{path} could not be written: {error.strerror}. Raise the limit (`ulimit -n`), then go on."
        )
    return StorageError(f"{path} could not be written: {error.strerror or error}.", transient=error.errno in _TRANSIENT)


def reading_refused(error: BaseException, what: str) -> StorageError | None:
    """A refusal of the system to let us read, as a sentence; None when the error is about the file itself."""
    number = error.errno if isinstance(error, OSError) else None
    if number not in _FORBIDDEN | EXHAUSTED:
        return None
    advice = "Raise the limit (`ulimit -n`), then go on." if number in _MANY_FILES else "Nothing was changed."
    return StorageError(f"{what} cannot be read: {os.strerror(number)}. {advice}", transient=number in _TRANSIENT)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise what the disk refuses inside the block as a `StorageError` that names the path and says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


# --- whole files -------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to, synced and renamed to `path` at the end; removed when that fails.

    It is locked meanwhile: a temporary file that nobody holds is the leftover of a process that died.
    Raises `StorageError` when the disk is full or may not be written.
    """
    try:
        make_folder(path.parent)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}")
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            lock_file(fd, shared=True)
            yield temporary
            os.fsync(fd)
            temporary.replace(path)
            sync(path.parent)
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in _FULL | _FORBIDDEN | _BROKEN:
            raise  # The block may download: errors of the network are the caller's.
        raise storage_error(error, path) from error


def leftovers(folder: Path) -> Iterator[Path]:
    """Our temporary files in a folder whose writer is gone, each locked while it is yielded; not other programs'."""
    for leftover in folder.glob(f".*.{'[0-9a-f]' * 8}{_TEMPORARY_SUFFIX}"):
        try:
            fd = os.open(leftover, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            continue
        try:
            if lock_file(fd):
                yield leftover
        finally:
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Remove our temporary files from a folder when their writer is gone; those of other programs stay."""
    with storage_errors(folder):
        for leftover in leftovers(folder):
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file; until it is whole, `path` holds what was there before."""
    remove_leftovers(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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


def require_space(folder: Path, needed: int, what: str) -> None:
    """Raise `StorageError` when the file system of `folder` has less than `needed` bytes free."""
    with storage_errors(folder):
        make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise StorageError(
            f"{what} needs {needed / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free. "
            "Free some space, or set CCASSETS_STORAGE to a larger disk."
        )


# --- locks -------------------------------------------------------------------------------------------


def lock_file(fd: int, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; False when another process holds it and `wait` is not set.

    Several processes may hold a `shared` lock. The lock ends when the file is closed, at the latest with the process.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of a file."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not lock_file(fd)
    finally:
        os.close(fd)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """One writer at a time in a folder; the second says so and waits. The lock dies with its process."""
    with _locked(folder, shared=False):
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Several writers at a time that divide a folder among themselves; `exclusive` waits for all of them."""
    with _locked(folder, shared=True):
        yield


@contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    with storage_errors(folder):
        make_folder(folder)
        fd = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with storage_errors(folder):
            if not lock_file(fd, shared=shared):
                notice = Timer(_NOTICE_SECONDS, _log.warning, ["Another process writes to %s; waiting for it.", folder])
                notice.start()
                try:
                    lock_file(fd, shared=shared, wait=True)
                finally:
                    notice.cancel()
        yield
    finally:
        os.close(fd)
