"""Which files of a folder the kernel saw being opened, whoever opened them."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_IN_OPEN = 0x20
_EVENT = struct.Struct("iIII")


@contextmanager
def opened_in(folder: Path) -> Iterator[list[str]]:
    """The names of the files of a folder that are opened in the block; filled when it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    opened: list[str] = []
    try:
        assert libc.inotify_add_watch(fd, os.fsencode(folder), _IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        yield opened
        opened += _names(fd)
    finally:
        os.close(fd)


def _names(fd: int) -> Iterator[str]:
    try:
        events = os.read(fd, 1 << 16)
    except BlockingIOError:
        return
    offset = 0
    while offset < len(events):
        *_, length = _EVENT.unpack_from(events, offset)
        offset += _EVENT.size
        yield events[offset : offset + length].rstrip(b"\0").decode()
        offset += length
