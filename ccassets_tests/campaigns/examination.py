"""A file read and validated in a fork of this process: what came of it, how long it took, and how much memory."""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import select
import signal
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.validation import validate_database
from ccassets.errors import CcassetsError

MEMORY = 1 << 30
SECONDS = 8
"""Of processor time: twice what the child process for foreign files has for a small file, for a busy machine."""

_LIBRARY_PAGES = 64 << 20
"""Room in `MEMORY` for pages of libraries that are read for the first time, which no limit of the system counts."""

_DIGITS = 20
"""Of the number that a fork says first: the bytes it was born with."""

_PATIENCE = 300.0
"""Seconds of waiting: nothing that is read sleeps, so this is only for a machine that is busy with other things."""

_ENDED = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True)
class Outcome:
    """How the fork ended.

    `findings` and `refused` are what we promise. `died` and `stuck` are HDF5 crashing or going round for ever, which
    the process that opens foreign files is there for. `traceback`, `hung` and `memory` are defects of ours.
    """

    end: Literal["findings", "refused", "died", "stuck", "traceback", "hung", "memory"]
    text: str
    seconds: float
    peak_bytes: int
    """The most memory the fork held beyond what it was born with."""


def examine(path: Path) -> Outcome:
    """Summarize and validate a file, deeply, in a fork with a gigabyte of memory and `SECONDS` of processor time.

    Memory is counted from what the fork holds when it is born: that is nothing the file asked for.
    """
    started = time.monotonic()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(path, writing)
    os.close(writing)
    resident = int(os.read(reading, _DIGITS))
    text = _read_until(reading, started + _PATIENCE)
    if text is None:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    took, peak = usage.ru_utime + usage.ru_stime, max(0, (usage.ru_maxrss << 10) - resident)
    if text is None:
        return Outcome("hung", f"no answer after {_PATIENCE:g} s", took, peak)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return Outcome("stuck", "reading it takes longer than a file of this size can", took, peak)
    if os.WIFSIGNALED(status):
        return Outcome("died", f"it ended the process that read it ({_signal(os.WTERMSIG(status))})", took, peak)
    end, text = json.loads(text)
    return Outcome("memory" if peak > MEMORY else end, text, took, peak)


def _signal(number: int) -> str:
    assert number in _ENDED, f"signal {number} is nobody's crash"
    return signal.Signals(number).name


def _read_until(fd: int, deadline: float) -> str | None:
    """All that is written to a pipe until its end; None when that is not before the deadline."""
    blocks = []
    with os.fdopen(fd, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            block = pipe.read(1 << 20)
            if not block:
                return b"".join(blocks).decode()
            blocks.append(block)


def _held_bytes() -> tuple[int, int]:
    """Bytes this process has in memory, and those that `RLIMIT_DATA` counts (proc_pid_statm(5))."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return int(pages[1]) * resource.getpagesize(), int(pages[5]) * resource.getpagesize()


def _work(path: Path, fd: int) -> NoReturn:
    try:
        resident, data = _held_bytes()
        os.write(fd, b"%0*d" % (_DIGITS, resident))
        data_limit = data + MEMORY - _LIBRARY_PAGES
        faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit))
        # Our own code would get the first signal; a loop in C is ended by the second.
        signal.signal(signal.SIGXCPU, _too_slow)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(json.dumps(_examined(path)).encode())
    finally:
        os._exit(0)


class _TooSlowError(BaseException):
    pass


def _too_slow(number: int, frame: object) -> NoReturn:
    raise _TooSlowError


def _examined(path: Path) -> tuple[str, str]:
    try:
        return "findings", _summary(path) + "\n".join(
            f"{finding.check}: {finding.message} [{finding.where}]" for finding in validate_database(path, deep=True)
        )
    except CcassetsError as error:
        return "refused", str(error)
    except _TooSlowError:
        return "hung", traceback.format_exc()
    except Exception:
        return "traceback", traceback.format_exc()


def _summary(path: Path) -> str:
    """What `info` says, or why it says nothing; both are right answers about a broken file."""
    try:
        with open_database(path) as database:
            facts: dict[str, Any] = summarize(database)
    except CcassetsError as error:
        return f"info: {error}\n"
    return f"info: {json.dumps(facts, default=str)}\n"
