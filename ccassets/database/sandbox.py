"""Files of unknown origin: a child process opens them, so that what brings HDF5 down brings down the child alone.

The child works under limits of memory and processor time. `python -m ccassets.database.sandbox` is that child: it takes
a request as JSON and answers in JSON. Files that we wrote ourselves are opened without this detour.
"""

from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.validation import validate_database
from ccassets.errors import CcassetsError, DatabaseError
from ccassets.findings import Finding
from ccassets.study.schema import Study

_MEMORY = 1 << 30
_SECONDS = 4
_BYTES_PER_SECOND = 10 << 20
"""The child may allocate 1 GiB and the size of the file, and compute for 4 s and the time that 10 MiB/s take."""


class _ChildDiedError(Exception):
    """The child ended without an answer; the text says how."""


def validate_foreign(path: str | os.PathLike[str], study: Study | None = None, deep: bool = False) -> list[Finding]:
    """`validate_database` in a child process: a file that ends the process is a finding (`unreadable`).

    Raises `DatabaseError` as `validate_database` does.
    """
    request = {"deep": deep, "study": None if study is None else study.model_dump(mode="json")}
    try:
        findings = _ask("validate", path, request)
    except _ChildDiedError as died:
        return [Finding("unreadable", "error", f"a file that can be read was expected; {died}", "/")]
    return [Finding(**finding) for finding in findings]


def summarize_foreign(path: str | os.PathLike[str]) -> dict[str, Any]:
    """`summarize` in a child process; raises `DatabaseError` where the file does not allow it or ends the process."""
    try:
        facts: dict[str, Any] = _ask("summarize", path, {})
    except _ChildDiedError as died:
        raise DatabaseError(f"{path} cannot be read: {died}.") from died
    return facts


def require_survivable(path: str | os.PathLike[str]) -> None:
    """Have a child process read all of a file first; `DatabaseError` when it does not survive that."""
    try:
        _ask("validate", path, {"deep": True, "study": None})
    except _ChildDiedError as died:
        raise DatabaseError(f"{path} cannot be read: {died}.") from died


def _ask(task: str, path: str | os.PathLike[str], request: dict[str, Any]) -> Any:
    """What the child answers; its `DatabaseError` is raised here."""
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps({"task": task, "path": os.fspath(Path(path).absolute()), **request}),
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
        raise _ChildDiedError(_end_of(child.returncode, child.stderr))
    answer = json.loads(child.stdout)
    if "error" in answer:
        raise DatabaseError(answer["error"])
    return answer["answer"]


def _end_of(code: int, stderr: str) -> str:
    """How the child ended, in words."""
    if code == -signal.SIGXCPU:
        return "reading it takes longer than a file of this size can"
    if code == -signal.SIGKILL:
        return "the process that read it was killed, most likely for want of memory"
    if code < 0:
        return f"it ended the process that read it ({signal.Signals(-code).name}): its structure is broken"
    lines = stderr.strip().splitlines()
    return f"reading it failed ({lines[-1] if lines else f'exit status {code}'})"


# --- the child ----------------------------------------------------------------------------------------


def _answer(request: dict[str, Any]) -> Any:
    path = Path(request["path"])
    if request["task"] == "summarize":
        with open_database(path) as database:
            return summarize(database)
    study = Study.model_validate(request["study"]) if request["study"] else None
    return [finding.as_dict() for finding in validate_database(path, study=study, deep=request["deep"])]


def _limit(path: Path) -> None:
    """Set the limits for reading a file; memory that is mapped from it does not count."""
    size = path.stat().st_size if path.is_file() else 0
    seconds = math.ceil(time.process_time()) + _SECONDS + size // _BYTES_PER_SECOND
    for what, most in (
        (resource.RLIMIT_DATA, _MEMORY + size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _main() -> None:
    request = json.load(sys.stdin)
    _limit(Path(request["path"]))
    try:
        answer = {"answer": _answer(request)}
    except CcassetsError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout, default=str)  # An attribute may be of any type.


if __name__ == "__main__":
    _main()
