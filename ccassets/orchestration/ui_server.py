"""`ccassets ui`: Dagster's webserver inside our guard, with the code server and the daemon that belong to it."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from pathlib import Path

import yaml

from ccassets.errors import UiServerError
from ccassets.orchestration.dagster_internals import rename_location, webserver_app
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import CODE_LOCATION
from ccassets.orchestration.supervised_process import SupervisedProcess
from ccassets.pages.local_server import bound_socket, make_server
from ccassets.pages.web_guard import App, WebGuard, check_token, loopback_hosts
from ccassets.study.loading import own_studies_folder
from ccassets.study.storage import home, storage_root

TOKEN_VARIABLE = "CCASSETS_UI_TOKEN"

_FORMER_CODE_LOCATION = "ccassets.definitions"
LOOPBACK = "127.0.0.1"
_POLL_SECONDS = 0.2
_SENSOR_SECONDS = "3600"
"""The time for one look at all source files, on a network file system; Dagster's own default is a minute."""


def serve_ui(
    port: int,
    *,
    address: str = LOOPBACK,
    allowed_hosts: Sequence[str] = (),
    with_token: bool = False,
    workspace: Path | None = None,
) -> None:
    """Serve the Dagster UI of the home, with code server and daemon, until SIGINT or SIGTERM.

    All processes end with this one, however it ends. None of the others listens on a TCP port.

    Args:
        port: The TCP port.
        address: The IPv4 address to listen on; on any but that of loopback, every browser is asked for a token.
        allowed_hosts: More `Host` headers that are answered: those of a proxy or a tunnel.
        with_token: Ask every browser for a new token. If `CCASSETS_UI_TOKEN` is set, its token is asked for in any
            case.
        workspace: A workspace.yaml of code servers that run elsewhere, beside a daemon; neither is started then.

    Raises:
        UiServerError: The port cannot be used, or the code server or the daemon ended.
        StorageError: The home cannot be written or used.
        StudyError: `CCASSETS_STUDIES` names no folder.
        TokenError: The token is too short, or has characters that a cookie cannot carry.
    """
    # SIGINT is ignored where a script started us with `&`; both signals have to reach the end of the blocks below.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    token, query = _choose_token(with_token or address != LOOPBACK)
    services: AbstractContextManager[tuple[Path, list[SupervisedProcess]]] = (
        nullcontext((workspace, [])) if workspace else _services(own_studies_folder())
    )
    with suppress(KeyboardInterrupt), dagster_instance() as instance, bound_socket(address, port) as listener:
        port = listener.getsockname()[1]
        for name in rename_location(instance, _FORMER_CODE_LOCATION, CODE_LOCATION):
            _print(f"{name} is on, as it was when the code location was called {_FORMER_CODE_LOCATION}.")
        _print(f"The UI will answer at http://{address}:{port}{query} (Ctrl-C stops it).")
        with services as (served, processes), webserver_app(instance, served) as app:
            hosts = [*loopback_hosts(port), *allowed_hosts]
            _serve(WebGuard(app, hosts, post_only=["/graphql"], token=token), listener, processes)


def _choose_token(with_token: bool) -> tuple[str | None, str]:
    """The token, or None if none is asked for, and the query of the printed address."""
    # Taken out of the environment: no other process gets to know it.
    token = os.environ.pop(TOKEN_VARIABLE, None)
    if token is not None:
        check_token(token)
        return token, f"/?token=${TOKEN_VARIABLE}"
    if with_token:
        token = secrets.token_urlsafe(32)
        return token, f"/?token={token}"
    return None, ""


@contextmanager
def _services(studies: Path | None) -> Iterator[tuple[Path, list[SupervisedProcess]]]:
    """Start the code server and the daemon for the shipped studies and those in a folder; give their workspace.yaml."""
    # A folder that nobody else may enter: who reaches the code server's socket can make it run anything.
    with tempfile.TemporaryDirectory(prefix="ccassets-ui-") as name:
        folder = Path(name)
        environment = {
            "DAGSTER_SENSOR_GRPC_TIMEOUT_SECONDS": _SENSOR_SECONDS,
            **os.environ,
            "DAGSTER_HOME": str(home()),
            "CCASSETS_STORAGE": str(storage_root()),
        }
        if studies is not None:
            environment["CCASSETS_STUDIES"] = str(studies)
        code_socket, workspace = folder / "code-server", folder / "workspace.yaml"
        server = {"grpc_server": {"socket": str(code_socket), "location_name": CODE_LOCATION}}
        workspace.write_text(yaml.safe_dump({"load_from": [server]}))
        processes: list[SupervisedProcess] = []
        try:
            code_server = SupervisedProcess(
                *("dagster", "code-server", "start", "--socket", str(code_socket), "--location-name", CODE_LOCATION),
                *("--module-name", "ccassets.definitions", "--inject-env-vars-from-instance", "--log-level", "warning"),
                environment=environment,
                temporary_folder=folder,
            )
            processes.append(code_server)
            _wait_for_socket(code_socket, code_server)
            processes.append(
                SupervisedProcess("dagster-daemon", "run", "--workspace", str(workspace), environment=environment)
            )
            yield workspace, processes
        finally:
            for process in processes:
                process.stop()
            for process in processes:
                process.wait()


def _wait_for_socket(path: Path, server: SupervisedProcess) -> None:
    """Wait until the server listens, which it does once it has loaded the definitions or knows why it cannot."""
    while True:
        _require_running([server])
        with closing(socket.socket(socket.AF_UNIX)) as client, suppress(OSError):
            client.connect(str(path))
            return
        time.sleep(_POLL_SECONDS)


def _require_running(processes: Sequence[SupervisedProcess]) -> None:
    for process in processes:
        if process.exit_code is not None:
            raise UiServerError(
                f"`{process.command}` ended with exit code {process.exit_code}, and the UI with it; its messages stand "
                "above. Start the UI again."
            )


def _serve(app: App, listener: socket.socket, processes: Sequence[SupervisedProcess]) -> None:
    """Serve the application until a signal arrives or one of the processes ends."""
    server = make_server(app)

    def watch() -> None:
        while not server.should_exit:
            if any(process.exit_code is not None for process in processes):
                server.should_exit = True
            time.sleep(_POLL_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
    server.run(sockets=[listener])
    _require_running(processes)


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
