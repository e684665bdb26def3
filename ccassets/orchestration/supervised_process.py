"""A console script as a child process that ends with its parent: what starts it, and what the child itself does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path

_GRACE_SECONDS = 20.0


class SupervisedProcess:
    """A console script in a process group of its own, which ends when its parent ends or is killed.

    The child holds the reading end of a pipe whose only writing end is here. When that is closed, by `stop` or because
    this process is gone, the child terminates its group, and kills it when that takes longer than 20 seconds.

    Args:
        script: The name of an installed console script: `dagster-daemon`.
        arguments: What it is called with.
        environment: Its environment variables.
        temporary_folder: A new folder where the script, but none of its own children, makes temporary files; it is
            removed when the script ends.
    """

    def __init__(
        self, script: str, *arguments: str, environment: Mapping[str, str], temporary_folder: Path | None = None
    ) -> None:
        self.command = " ".join([script, *takewhile(lambda argument: not argument.startswith("-"), arguments)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(temporary_folder or ""), script, *arguments],
            stdin=subprocess.PIPE,
            env=environment,
        )

    @property
    def exit_code(self) -> int | None:
        """The code that the script ended with; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Tell the script, and everything that it started, to end; `wait` waits until they have."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the script has ended, and kill what it started and left behind."""
        self._process.wait()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def main() -> None:
    """Run a console script in this process, as `SupervisedProcess` calls it: FOLDER SCRIPT ARGUMENT…."""
    os.setpgid(0, 0)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _, temporary_folder, *sys.argv = sys.argv
    script, *_ = entry_points(group="console_scripts", name=sys.argv[0])
    if temporary_folder:
        tempfile.tempdir = temporary_folder
    try:
        script.load()()
    finally:
        if temporary_folder:
            shutil.rmtree(temporary_folder, ignore_errors=True)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass  # Nothing is written to the pipe: reading ends when its other end is closed.
    os.killpg(0, signal.SIGTERM)  # Dagster treats it as an interrupt, once it can be interrupted.
    time.sleep(_GRACE_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
