"""Reading files of unknown origin in a child process: a file that crashes HDF5 ends the child, not the caller.

The child is `sandbox_worker`; it works under limits of memory and processor time. Files that ccassets wrote are read
without it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from ccassets.database.reader import Database, open_database
from ccassets.database.remote_file import is_url, shown_url
from ccassets.errors import DatabaseError, StorageError

_WORKER = "ccassets.database.sandbox_worker"

_Task = Literal["summarize", "validate", "read"]


class SandboxError(Exception):
    """The child process ended without an answer; the text says how."""


def run_in_sandbox(task: _Task, path: str | os.PathLike[str], **options: Any) -> Any:
    """The JSON answer of a child process about a file.

    Args:
        task: The task of the worker.
        path: The file.
        **options: Further parameters of the task, as JSON values.

    Raises:
        DatabaseError: The task raised it.
        StorageError: The system does not let the file be read.
        SandboxError: The child ended without an answer.
    """
    child = subprocess.run(
        [sys.executable, "-m", _WORKER],
        input=json.dumps({"task": task, "path": path if is_url(path) else os.fspath(Path(path).absolute()), **options}),
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        # One thread, so that the memory limit is not spent on thread stacks; the files we read need no more.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )
    if os.environ.get("CCASSETS_DEBUG"):
        sys.stderr.write(child.stderr)
    if child.returncode:
        raise SandboxError(_exit_text(child.returncode, child.stderr))
    answer = json.loads(child.stdout)
    if "error" in answer:
        if answer["refused"]:
            raise StorageError(answer["error"], transient=answer["transient"])
        raise DatabaseError(answer["error"])
    return answer["answer"]


def summarize_in_sandbox(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`summarize` in a child process.

    Raises:
        DatabaseError: The file cannot be read, or reading it ends the child.
    """
    facts: dict[str, Any] = _read_in_sandbox("summarize", path)
    return facts


def require_readable(path: str | os.PathLike[str]) -> None:
    """Have a child process read all of a file.

    Raises:
        DatabaseError: The file cannot be opened, or reading it ends the child.
    """
    _read_in_sandbox("validate", path, deep=True, study=None, only=None)


def require_readable_rows(path: str | os.PathLike[str]) -> None:
    """Have a child process read what analyses and exports read of a file.

    Raises:
        DatabaseError: The file cannot be opened, or reading it ends the child.
    """
    _read_in_sandbox("read", path)


def open_unknown_database(path: str | os.PathLike[str]) -> Database:
    """Open a file of unknown origin once `require_readable_rows` accepts it."""
    require_readable_rows(path)
    return open_database(path)


def _read_in_sandbox(task: _Task, path: str | os.PathLike[str], **options: Any) -> Any:
    """`run_in_sandbox` where a child without an answer is a file that cannot be read."""
    try:
        return run_in_sandbox(task, path, **options)
    except SandboxError as error:
        raise DatabaseError(f"{shown_url(path) if is_url(path) else path} cannot be read: {error}.") from error


def _exit_text(code: int, stderr: str) -> str:
    """How the child ended, in words."""
    if code == -signal.SIGXCPU:
        return "reading it takes longer than a file of this size can"
    if code == -signal.SIGKILL:
        return "the process that read it was killed, most likely for want of memory"
    if code < 0:
        return f"it ended the process that read it ({signal.Signals(-code).name}): its structure is broken"
    lines = stderr.strip().splitlines()
    return f"reading it failed ({lines[-1] if lines else f'exit status {code}'})"
