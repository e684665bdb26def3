"""Files: fingerprints and digests, locks, free space, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from threading import Timer
from typing import Any, Literal

import yaml

from ccassets.errors import CcassetsError, StorageError
from ccassets.progress import Progress, silent

_log = logging.getLogger(__name__)

YAML_LOADER: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's loader in C, where it is installed, takes a tenth of the time; every command reads YAML when it starts."""

DIGEST_CACHE = "encoder-file-digests.json"
"""The file in a cache folder where `digest_files` keeps digests."""

_BLOCK_BYTES = 1 << 20
_NOTICE_SECONDS = 1.0
_TEMPORARY_NAMES = f".*.{'[0-9a-f]' * 8}.partial"
_LOCK = ".lock"
_NUMBER_IN_TEXT = re.compile(r"errno = (\d+)|\(os error (\d+)\)|\[[Ee]rrno (\d+)\]")
"""The number of a system error in the texts of HDF5, Rust and Arrow, where a library raises a type of its own."""


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
    checked = {key: digest for key, entry in known.items() if (digest := _checked_digest(key, entry))}
    total = sum(path.stat().st_size for path in paths)
    digests, done = [], 0
    for path in paths:
        key = _cache_key(path)
        if key not in checked:
            checked[key] = _sha256(path, done, total, progress)
            known[key] = _cache_entry(key, checked[key])
            if cache_file is not None:
                write_text(cache_file, json.dumps(known))
        digests.append(checked[key])
        done += path.stat().st_size
        progress(done, total)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()


def drop_unchecked_digests(cache: Path) -> bool:
    """Remove cached digests that older code stored without a checksum; return whether there were any."""
    known = _read_cache(cache / DIGEST_CACHE)
    kept = {key: entry for key, entry in known.items() if _checked_digest(key, entry) and not _is_unchecked(entry)}
    if len(kept) == len(known):
        return False
    write_text(cache / DIGEST_CACHE, json.dumps(kept))
    return True


def _stat_facts(path: Path) -> tuple[int, int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


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


def _cache_entry(key: str, digest: str) -> str:
    """A cached digest with a checksum over it and its file, so that a damaged cache is noticed."""
    return f"{digest} {hashlib.sha256(f'{key} {digest}'.encode()).hexdigest()[:16]}"


def _checked_digest(key: str, entry: object) -> str | None:
    """The digest in an entry of the cache; None for a damaged one. Older code wrote the digest alone."""
    if not isinstance(entry, str):
        return None
    digest = entry.partition(" ")[0]
    return digest if _is_unchecked(entry) or entry == _cache_entry(key, digest) else None


def _is_unchecked(entry: object) -> bool:
    return isinstance(entry, str) and re.fullmatch("[0-9a-f]{64}", entry) is not None


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


def _numbers(*names: str) -> frozenset[int]:
    """The numbers of system errors; not every system has each of them."""
    return frozenset(getattr(errno, name) for name in names if hasattr(errno, name))


_FULL = _numbers("ENOSPC", "EDQUOT")
_FORBIDDEN = _numbers("EROFS", "EACCES", "EPERM")
_MANY_FILES = _numbers("EMFILE", "ENFILE")
_OPEN_ELSEWHERE = _numbers("EAGAIN")
_NO_LOCKS = _numbers("ENOSYS", "EOPNOTSUPP", "ENOTSUP", "ENOLCK")
_TRANSIENT = _numbers(
    "EAGAIN", "EBUSY", "EDEADLK", "EINTR", "ENOBUFS", "ENOLCK", "ENOMEM", "ETXTBSY",
    "EIO", "EREMOTEIO", "ESTALE", "ETIMEDOUT", "ECOMM", "ENOLINK", "ENONET", "EPROTO", "EREMCHG",
    "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN", "ESHUTDOWN",
    "EHOSTDOWN", "EHOSTUNREACH",
)  # fmt: skip
"""A busy system, or a disk or network file system that fails and may recover."""
_OF_THE_FILE = _numbers(
    "ENOENT", "ENOTDIR", "EISDIR", "ELOOP", "ENAMETOOLONG", "EEXIST", "EINVAL", "EOVERFLOW", "ESPIPE", "EFAULT"
)
"""The path names no file, or the offsets and sizes written in the file lead nowhere."""


def system_error_kind(error: BaseException) -> Literal["transient", "permanent"] | None:
    """Classify an error by its cause: the disk, the system or the file. Only this function decides it.

    Args:
        error: An error that was raised while a file was read or written.

    Returns:
        `transient` where the system refused and may not refuse later, `permanent` where it will refuse again;
        None where the file or its path is at fault, or no system error is behind it.
    """
    number = _system_number(error)
    if number is None or number in _OF_THE_FILE:
        return None
    return "transient" if number in _TRANSIENT else "permanent"


def storage_error(error: OSError, path: Path) -> StorageError:
    """A refusal of the disk to write, as a sentence with the path and what to do."""
    return StorageError(_writing_refused(error, path), transient=system_error_kind(error) == "transient")


def reading_refused(error: BaseException, what: str) -> StorageError | None:
    """An error for a read that the system refused; None if the error is about the file itself."""
    kind = system_error_kind(error)
    if kind is None:
        return None
    number = _system_number(error) or 0
    if number in _OPEN_ELSEWHERE:
        return StorageError(
            f"{what} is open for writing in another program: close it there (a notebook counts), then try again. "
            "Where no program has it open, its file system keeps a lock: set HDF5_USE_FILE_LOCKING=FALSE.",
            transient=True,
        )
    if number in _NO_LOCKS:
        reason = f"{what} cannot be locked for reading ({os.strerror(number)}). {_LOCK_ADVICE}"
        return StorageError(f"{reason} Or set HDF5_USE_FILE_LOCKING=FALSE.", transient=kind == "transient")
    if number in _MANY_FILES:
        advice = "Raise the limit (`ulimit -n`), then go on."
    elif number in _FORBIDDEN:
        advice = "Nothing was changed. Check its owner and mode."
    else:
        advice = "Nothing was changed. Try again; if it stays so, check the disk and how it is mounted."
    return StorageError(f"{what} cannot be read: {os.strerror(number)}. {advice}", transient=kind == "transient")


def own_error(error: Exception) -> CcassetsError | None:
    """The error if it is ours, or a sentence on a refusal of the system that no other code explained; else None."""
    if isinstance(error, CcassetsError):
        return error
    if not isinstance(error, OSError) or (kind := system_error_kind(error)) is None:
        return None
    where = f"{error.filename}: " if error.filename else ""
    return StorageError(
        f"{where}{error.strerror or error}. The system refused it; nothing of what is finished is lost. "
        "Check the disk, how it is mounted, and the network, then try again.",
        transient=kind == "transient",
    )


_SPECIAL_FILES: dict[int, str] = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def unreadable_reason(path: Path, max_bytes: int | None = None) -> str | None:
    """Why a file of unknown origin must not be opened: it is a pipe or a device, or too large; None if it may be.

    Opening a pipe waits forever, and a device has no end. A path that does not exist is left to the code that opens it.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    special = _SPECIAL_FILES.get(stat.S_IFMT(status.st_mode))
    if special is not None:
        return f"it is {special}, not a file"
    if max_bytes is not None and status.st_size > max_bytes:
        return f"it has {status.st_size:,} bytes, more than the {max_bytes:,} that are allowed"
    return None


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Raise what the disk refuses inside the block as a `StorageError` that names the path and says what to do."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, path) from error


@contextmanager
def reading_errors(path: Path) -> Iterator[None]:
    """Raise what the system refuses to read inside the block as a `StorageError`; errors of the file itself pass."""
    try:
        yield
    except CcassetsError:
        raise
    except Exception as error:  # A library may have a type of its own.
        if refusal := reading_refused(error, str(path)):
            raise refusal from error
        raise


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Find files of a folder by a pattern of names; a folder that cannot be listed is not taken for an empty one.

    Args:
        folder: The folder; it need not exist.
        pattern: The pattern of `fnmatch`, such as `*.h5`.

    Returns:
        Their paths, in the order of their names.

    Raises:
        StorageError: The system refuses to list the folder.
    """
    with reading_errors(folder):
        try:
            names = sorted(path.name for path in folder.iterdir() if fnmatch.fnmatchcase(path.name, pattern))
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [folder / name for name in names]


_LOCK_ADVICE = (
    "Its file system does not lock files: have it mounted with locks (Lustre: `-o flock`; NFS: version 4), or use "
    "another disk."
)


def _writing_refused(error: OSError, path: Path) -> str:
    if error.errno in _FULL:
        return f"No space left to write {path}: free some, then build again; finished parts are kept."
    if error.errno in _FORBIDDEN:
        return f"{path} may not be written ({error.strerror}): check the folder's owner and mode."
    if error.errno in _MANY_FILES:
        return f"{path} could not be written: {error.strerror}. Raise the limit (`ulimit -n`), then go on."
    return f"{path} could not be written: {error.strerror or error}."


def _system_number(error: BaseException) -> int | None:
    """The number of the system error behind an error; None where there is none."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    match = _NUMBER_IN_TEXT.search(str(error))
    return (int(match[match.lastindex or 0]) or None) if match else None


# --- whole files -------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary sibling to write to, which is synced and renamed to `path` at the end, or removed if that fails.

    It is locked meanwhile: an unlocked temporary file was left by a process that died. Raises `StorageError` when the
    disk is full or may not be written.
    """
    try:
        make_folder(path.parent)
        temporary = _temporary_sibling(path)
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            lock_file(fd, temporary, shared=True)
            yield temporary
            os.fsync(fd)
            temporary.replace(path)
            sync(path.parent)
        finally:
            os.close(fd)
            temporary.unlink(missing_ok=True)
    except OSError as error:
        if not error.errno:
            raise  # A library's own complaint, not the system's.
        raise storage_error(error, path) from error


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary sibling folder to fill, which is renamed to `path` at the end, or removed if that fails.

    A lock inside is held meanwhile, and those of dead processes beside it are removed. The block syncs what it writes.
    Raises `StorageError` where `path` exists and is not empty.
    """
    require_new_folder(path)
    make_folder(path.parent)
    for folder in path.parent.glob(_TEMPORARY_NAMES):
        lock = folder / _LOCK
        if not folder.is_symlink() and lock.is_file() and not is_locked(lock):
            shutil.rmtree(folder, ignore_errors=True)
    temporary = _temporary_sibling(path)
    try:
        with exclusive(temporary):
            yield temporary
            (temporary / _LOCK).unlink()
            temporary.replace(path)
            sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_new_folder(path: Path) -> None:
    """Raise `StorageError` when there is something at a path that is not an empty folder."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise StorageError(f"{path} exists and is not empty; name a new folder.")


def _temporary_sibling(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def leftovers(folder: Path) -> Iterator[Path]:
    """Yield our temporary files of a folder whose writers have ended, each locked until the next one is asked for."""
    for leftover in files_in(folder, _TEMPORARY_NAMES):
        if leftover.is_symlink() or not leftover.is_file():
            continue  # A folder is a bundle's; a pipe would be waited for.
        try:
            fd = os.open(leftover, os.O_RDWR)
        except (FileNotFoundError, PermissionError):
            continue
        try:
            if lock_file(fd, leftover):
                yield leftover
        finally:
            os.close(fd)


def remove_leftovers(folder: Path) -> None:
    """Remove our temporary files from a folder when their writer is gone; those of other programs stay."""
    with storage_errors(folder):
        for leftover in leftovers(folder):
            leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file; until it is whole, `path` holds what was there before. Raises `StorageError`."""
    remove_leftovers(path.parent)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Write what the system still buffers of a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_package_yaml(package: str, name: str) -> Any:
    """The contents of a YAML file that ships with a package."""
    return yaml.load(resources.files(package).joinpath(name).read_text(encoding="utf-8"), YAML_LOADER)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and sync their names: otherwise a power cut loses what is inside."""
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


def lock_file(fd: int, path: Path, *, shared: bool = False, wait: bool = False) -> bool:
    """Lock an open file; False when another process holds it and `wait` is not set.

    Several processes may hold a `shared` lock. The lock ends when the file is closed, at the latest with the process.
    Raises `StorageError`, which names `path`, where the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise locking_error(error, path) from error
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock of a file; `StorageError` where that cannot be said."""
    try:
        fd = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        return not lock_file(fd, path)
    finally:
        os.close(fd)


def locking_error(error: OSError, path: Path) -> StorageError:
    """A refusal to lock a file, as a sentence with the path and what to do."""
    advice = _LOCK_ADVICE if error.errno in _NO_LOCKS else "Try again."
    transient = system_error_kind(error) == "transient"
    return StorageError(f"{path} cannot be locked ({error.strerror or error}). {advice}", transient=transient)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Allow one writer at a time in a folder; a second one logs that it waits. The lock ends with its process."""
    with _locked(folder, shared=False):
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Allow several writers that divide a folder among themselves; `exclusive` waits for all of them."""
    with _locked(folder, shared=True):
        yield


@contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    with storage_errors(folder):
        make_folder(folder)
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with storage_errors(folder):
            if not lock_file(fd, folder, shared=shared):
                notice = Timer(_NOTICE_SECONDS, _log.warning, ["Another process writes to %s; waiting for it.", folder])
                notice.start()
                try:
                    lock_file(fd, folder, shared=shared, wait=True)
                finally:
                    notice.cancel()
        yield
    finally:
        os.close(fd)
