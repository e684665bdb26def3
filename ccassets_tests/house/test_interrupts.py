"""What tests start can be interrupted, whoever started the tests."""

from __future__ import annotations

import subprocess
import sys

from ccassets_tests.orchestration.ui_process import ignoring_interrupts

CHILD = "import signal; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"


def test_a_process_of_a_test_hears_ctrl_c_where_sigint_was_ignored() -> None:
    code = f"""
import subprocess, sys
from ccassets_tests.conftest import pytest_configure
child = [sys.executable, "-c", {CHILD!r}]
subprocess.run(child, check=True)
pytest_configure()
subprocess.run(child, check=True)
"""
    command = [*ignoring_interrupts(), sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
