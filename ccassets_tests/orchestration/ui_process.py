"""`ccassets ui` as a process of a test: started, spoken to over HTTP, watched, and gone at the end."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADDRESS = re.compile(r"The UI will answer at http://127\.0\.0\.1:(\d+)(\S*)")
SECONDS = 240


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


class UiProcess:
    """`ccassets ui` on a free port of its own; every process that it starts is known by the home in its environment."""

    def __init__(self, home: Path, log: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.log = log
        self.process = subprocess.Popen(
            [*ignoring_interrupts(), sys.executable, "-m", "ccassets.cli", "ui", "--port", "0", *arguments],
            env={**os.environ, "CCASSETS_HOME": str(home), **(environment or {})},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Whoever started the tests may ignore it, as `nohup` does; what they start would inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        self.port, self.query = self._read_address()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        wait_until(lambda: self._is_answering(), "the UI does not answer", self)

    def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str | None = None
    ) -> Answer:
        """Send a request with these headers; `Host` is the UI's own unless it is one of them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Host": self.host, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read().decode(errors="replace"))
        finally:
            connection.close()

    def ask(self, query: str, headers: Mapping[str, str] | None = None) -> Any:
        """What a page of the UI gets for a query or a mutation."""
        own = {"Content-Type": "application/json", "Origin": f"http://{self.host}", "Sec-Fetch-Site": "same-origin"}
        answer = self.request("POST", "/graphql", {**own, **(headers or {})}, json.dumps({"query": query}))
        assert answer.status == 200, answer
        content = json.loads(answer.text)
        assert "errors" not in content, content
        return content["data"]

    def processes(self) -> dict[int, str]:
        """Process ids and command lines of the UI and of all that it started, directly or not."""
        return {pid: command for pid, command, environment in running() if str(self.home) in environment}

    def end(self, number: int) -> int:
        """Send a signal to the UI itself, and give its exit code once nothing of it is left."""
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        wait_until(lambda: not self.processes(), "processes are left", self)
        return code

    def kill_all(self) -> None:
        self.process.kill()
        self.process.wait()
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)

    def _read_address(self) -> tuple[int, str]:
        wait_until(lambda: ADDRESS.search(self.log.read_text()) or self.process.poll() is not None, "no address", self)
        address = ADDRESS.search(self.log.read_text())
        assert address is not None, self.log.read_text()
        return int(address[1]), address[2]

    def _is_answering(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.request("GET", "/server_info").status in (200, 401)
        except ConnectionError:
            return False


@contextmanager
def running_ui(
    home: Path, log: Path, *arguments: str, environment: Mapping[str, str] | None = None
) -> Iterator[UiProcess]:
    """The UI of a home, ready, as long as the block lasts."""
    ui = UiProcess(home, log, *arguments, environment=environment)
    try:
        ui.wait_until_ready()
        yield ui
    finally:
        ui.kill_all()


def ignoring_interrupts() -> Sequence[str]:
    """The start of a command whose process ignores SIGINT as one that a script started with `&`."""
    return ("sh", "-c", "trap '' INT; exec \"$@\"", "sh")


def running() -> Iterator[tuple[int, str, str]]:
    """Process id, command line and environment of every process of ours that has not ended."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((path / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue  # It has ended, or is somebody else's.
        if command:  # A process that has ended and is not waited for yet has none.
            yield int(path.name), command.replace(b"\0", b" ").decode(), environment.decode(errors="replace")


def wait_until(happened: Any, otherwise: str, ui: UiProcess) -> None:
    deadline = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < deadline, f"{otherwise}: {ui.processes()}\n{ui.log.read_text()}"
        time.sleep(0.1)
