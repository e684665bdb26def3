"""Log of held-out accesses: every evaluation on a split that nothing was fitted on. Lines are added, never changed."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from ccassets.errors import StorageError
from ccassets.files import make_folder


@dataclass(frozen=True)
class HoldoutAccess:
    """One evaluation on a held-out split, as it stands in the log.

    Attributes:
        at: Time of the access, UTC, ISO 8601.
        what: What was computed.
        model: Digest of the classifier (`classifier_digest`).
        split: The split.
        rows: Number of rows of the split.
    """

    at: str
    what: str
    model: str
    split: str
    rows: int


class HoldoutLog:
    """Accesses to held-out splits, in a JSON Lines file or in memory.

    A result on `test` means less with every access before it, so each is recorded. Several processes may write to
    the same file.

    Args:
        path: The file, made with its folder by the first access; None keeps the log in memory.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._in_memory: list[HoldoutAccess] = []

    def record(self, what: str, *, model: str, split: str, rows: int) -> HoldoutAccess:
        """Record an access before its result is known.

        Args:
            what: What is computed.
            model: Digest of the classifier.
            split: The split.
            rows: Number of rows of the split.

        Returns:
            The access, as recorded.

        Raises:
            StorageError: The file cannot be written.
        """
        access = HoldoutAccess(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), what, model, split, rows)
        if self._path is None:
            self._in_memory.append(access)
            return access
        line = json.dumps(asdict(access), ensure_ascii=False) + "\n"
        try:
            make_folder(self._path.parent)
            # One write to a file opened for appending: lines of two processes never mix.
            fd = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                size = os.fstat(fd).st_size
                torn = size and os.pread(fd, 1, size - 1) != b"\n"
                os.write(fd, b"\n" * bool(torn) + line.encode("utf-8"))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise StorageError(f"{self._path}: the access to {split!r} cannot be recorded: {error}") from error
        return access

    def accesses(self) -> list[HoldoutAccess]:
        """Return every access so far, the oldest first.

        A line that a crash left incomplete is ignored: its result was never shown.

        Returns:
            The accesses.
        """
        if self._path is None:
            return list(self._in_memory)
        if not self._path.exists():
            return []
        accesses = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, TypeError):
                accesses.append(HoldoutAccess(**json.loads(line)))
        return accesses
