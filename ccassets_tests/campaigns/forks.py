"""Work in a fork of this process: several at once, or one that may die."""

from __future__ import annotations

import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ccassets.errors import CcassetsError

_PATIENCE = 180


class Fork:
    """A function at work in a process of its own, which is killed after three minutes."""

    def __init__(self, work: Callable[[], Mapping[str, Any]]) -> None:
        self._pipe, writing = os.pipe()
        self._child = os.fork()
        if not self._child:
            # A Dagster run in this process leaves another handler behind, which a new process would not have.
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            _answer(work, writing)
        os.close(writing)
        self._ending = threading.Timer(_PATIENCE, os.kill, (self._child, signal.SIGKILL))

    def end(self) -> tuple[int, Any]:
        """0 and what the function gave; 1 and the `sentence` of our own error; another code, and a `traceback`."""
        self._ending.start()
        with os.fdopen(self._pipe, encoding="utf-8") as pipe:
            text = pipe.read()
        _, status = os.waitpid(self._child, 0)
        self._ending.cancel()
        self._ending.join()
        return os.waitstatus_to_exitcode(status), json.loads(text) if text else {}


def _answer(work: Callable[[], Mapping[str, Any]], pipe: int) -> NoReturn:
    code, answer = 2, {}
    try:
        code, answer = 0, dict(work())
    except CcassetsError as error:
        code, answer = 1, {"sentence": str(error)}
    except BaseException:
        answer = {"traceback": traceback.format_exc()}
    finally:
        os.write(pipe, json.dumps(answer).encode())
        os._exit(code)
