"""Have the kernel refuse what a process asks of the disk, from a chosen moment until it ends. Linux only.

A seccomp filter answers chosen system calls with an error of our choice: whatever library makes them, in any thread, as
a full or broken disk would. Standard output and error stay writable. It cannot be taken back, so it is a matter for
a fork.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_NUMBERS = {
    "x86_64": {
        "write": 1, "pwrite64": 18, "writev": 20, "pwritev": 296, "copy_file_range": 326, "sendfile": 40,
        "fallocate": 285, "fsync": 74, "fdatasync": 75, "rename": 82, "renameat": 264, "renameat2": 316,
        "openat": 257, "mkdir": 83, "mkdirat": 258, "unlink": 87, "unlinkat": 263, "flock": 73,
        "pread64": 17, "preadv": 295, "preadv2": 327, "madvise": 28,
    },
    "aarch64": {
        "write": 64, "pwrite64": 68, "writev": 66, "pwritev": 70, "copy_file_range": 285, "sendfile": 71,
        "fallocate": 47, "fsync": 82, "fdatasync": 83, "renameat": 38, "renameat2": 276,
        "openat": 56, "mkdirat": 34, "unlinkat": 35, "flock": 32, "pread64": 67, "preadv": 69,
        "preadv2": 286, "madvise": 233,
    },
}  # fmt: skip

AVAILABLE = sys.platform == "linux" and platform.machine() in _NUMBERS

_WRITES = ("write", "pwrite64", "writev", "pwritev", "copy_file_range", "sendfile", "fallocate")
_SYNCS = ("fsync", "fdatasync")
_RENAMES = ("rename", "renameat", "renameat2")
_ENTRIES = (*_RENAMES, "mkdir", "mkdirat", "unlink", "unlinkat")

# struct sock_filter: code, jump if true, jump if false, value; the codes are those of linux/bpf_common.h.
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
_NUMBER_AT, _ARGUMENT_AT = 0, 16  # Offsets in struct seccomp_data; eight bytes for each argument.
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_SET_NO_NEW_PRIVILEGES = 38
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_FILTER_MODE, _ALL_THREADS = 1, 1


@dataclass(frozen=True)
class Fault:
    """A named way in which the disk refuses from now on; `start` begins it in this process."""

    name: str
    start: Callable[[], None]


def _refuse(error: int, calls: tuple[str, ...], *, opening: bool = False) -> Callable[[], None]:
    return lambda: _install([*_program(error, calls), *(_openings(error) if opening else ()), (_RETURN, 0, 0, _ALLOW)])


def _program(error: int, calls: tuple[str, ...]) -> list[tuple[int, int, int, int]]:
    """Refuse the calls; those that take a descriptor first, only above standard error."""
    program: list[tuple[int, int, int, int]] = [(_LOAD, 0, 0, _NUMBER_AT)]
    for call in calls:
        number = _NUMBERS[platform.machine()].get(call)
        if number is None:
            continue
        if call in _WRITES or call in _SYNCS:
            refused = [
                (_LOAD, 0, 0, _ARGUMENT_AT),
                (_GREATER, 0, 1, 2),
                (_RETURN, 0, 0, _ERRNO | error),
                (_LOAD, 0, 0, _NUMBER_AT),
            ]
        else:
            refused = [(_RETURN, 0, 0, _ERRNO | error)]
        program += [(_EQUAL, 0, len(refused), number), *refused]
    return program


def _openings(error: int) -> list[tuple[int, int, int, int]]:
    """Refuse to open anything for writing."""
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return [
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 0, 3, _NUMBERS[platform.machine()]["openat"]),
        (_LOAD, 0, 0, _ARGUMENT_AT + 2 * 8),
        (_ANY_BIT, 0, 1, writing),
        (_RETURN, 0, 0, _ERRNO | error),
    ]


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("if_true", ctypes.c_ubyte),
        ("if_false", ctypes.c_ubyte),
        ("value", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.POINTER(_Instruction)))


def _install(instructions: list[tuple[int, int, int, int]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    array = (_Instruction * len(instructions))(*instructions)
    program = _Program(len(array), array)
    if libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(
        _SECCOMP[platform.machine()], _FILTER_MODE, _ALL_THREADS, ctypes.byref(program)
    ):
        raise OSError(ctypes.get_errno(), "the kernel does not take the filter")


def _few_more_files(left: int) -> Callable[[], None]:
    def start() -> None:
        held = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        with suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for fd in taken[:left]:
            os.close(fd)

    return start


def _no_larger_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


READ_FAULTS = (
    Fault("EIO while HDF5 reads", _refuse(errno.EIO, ("pread64",))),
    Fault("EIO while rows are read", _refuse(errno.EIO, ("preadv", "preadv2", "madvise"))),
)
"""A disk that fails in the middle of an open file; modules can still be imported."""

NO_ADVICE = Fault("no advice about pages", _refuse(errno.EINVAL, ("madvise",)))
"""A system that knows none."""

FAULTS = (
    Fault("ENOSPC while writing", _refuse(errno.ENOSPC, _WRITES)),
    Fault("EDQUOT while writing", _refuse(errno.EDQUOT, _WRITES)),
    Fault("EIO while writing", _refuse(errno.EIO, _WRITES)),
    Fault("EIO while syncing", _refuse(errno.EIO, _SYNCS)),
    Fault("ENOSPC while syncing", _refuse(errno.ENOSPC, _SYNCS)),
    Fault("EIO while renaming", _refuse(errno.EIO, _RENAMES)),
    Fault("ENOSPC while renaming", _refuse(errno.ENOSPC, _RENAMES)),
    Fault("ENOSYS while locking", _refuse(errno.ENOSYS, ("flock",))),
    Fault("EOPNOTSUPP while locking", _refuse(errno.EOPNOTSUPP, ("flock",))),
    Fault("ENOLCK while locking", _refuse(errno.ENOLCK, ("flock",))),
    Fault("EROFS: read-only from now on", _refuse(errno.EROFS, _ENTRIES, opening=True)),
    Fault("EACCES: no right to write", _refuse(errno.EACCES, _ENTRIES, opening=True)),
    *(Fault(f"EMFILE: {left} more open files", _few_more_files(left)) for left in range(4)),
    Fault("EFBIG: no file above 20 kB", _no_larger_files),
)
