"""Locks of shards: every process and host that shares the storage sees them, and they end with their process."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from types import TracebackType

from ccassets.files import locking_error, storage_errors


class ShardLocks:
    """Locks of shards by name, each on one byte of an empty file, so that nothing has to be cleaned up.

    They are POSIX locks, which hold between processes, not inside one, and which NFS carries to other hosts.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ".shards"
        self._held: dict[str, int] = {}

    def __enter__(self) -> ShardLocks:
        with storage_errors(self._path):
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._fd)

    def take(self, name: str, *, held_for: str) -> bool:
        """Lock the shard of that name (32 hex digits first) unless another process holds it; never waits.

        `held_for` names it at its release.
        """
        offset = int(name[:15], 16)  # 60 bits, which any file system takes for an offset.
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
        except OSError as error:
            if error.errno in {errno.EACCES, errno.EAGAIN}:
                return False
            raise locking_error(error, self._path) from error
        self._held[held_for] = offset
        return True

    def release(self, held_for: str) -> None:
        """Unlock a shard."""
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, self._held.pop(held_for))
