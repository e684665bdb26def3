"""The record of looks at held-out splits: who looked, at what, when. Lines are added, never changed or removed."""

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
class Look:
    """One look: `what` was computed on the `rows` rows of `split`, by the model with the digest `model`."""

    at: str
    what: str
    model: str
    split: str
    rows: int


class LookLog:
    """Looks at held-out splits, in a JSON Lines file where a path is given, else in memory.

    A result on `test` means less with every look that went before it, so each is on record. Two processes may
    write to the same file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: list[Look] = []

    def add(self, what: str, *, model: str, split: str, rows: int) -> Look:
        """Record a look, before its result is known to anyone."""
        look = Look(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), what, model, split, rows)
        if self._path is None:
            self._kept.append(look)
            return look
        line = json.dumps(asdict(look), ensure_ascii=False) + "\n"
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
            raise StorageError(f"The look at {split!r} cannot be recorded in {self._path}: {error}") from error
        return look

    def looks(self) -> list[Look]:
        """Every look so far, the oldest first. A line that a crash tore is left out: that look, nobody had."""
        if self._path is None:
            return list(self._kept)
        if not self._path.exists():
            return []
        found = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, TypeError):
                found.append(Look(**json.loads(line)))
        return found
