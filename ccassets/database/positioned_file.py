"""The part of Python's file interface that h5py needs of every source of bytes: a size and a position in it."""

from __future__ import annotations

import io
import os


class PositionedFile(io.RawIOBase):
    """A readable file of known size; subclasses read at `_position` and advance it."""

    size: int
    _position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = origin + offset
        return self._position
