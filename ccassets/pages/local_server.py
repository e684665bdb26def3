"""A local web server: the socket that it listens on, and uvicorn as our servers run it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import uvicorn

from ccassets.errors import UiServerError
from ccassets.pages.web_guard import App

_GRACE_SECONDS = 5


@contextmanager
def bound_socket(address: str, port: int) -> Iterator[socket.socket]:
    """Bind a socket that does not listen yet, so that no request is answered before everything runs.

    Args:
        address: The IPv4 address.
        port: The TCP port; 0 takes a free one.

    Raises:
        UiServerError: The port cannot be used.
    """
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as error:
            raise UiServerError(
                f"Port {port} of {address} cannot be used ({error.strerror}); choose another with --port."
            ) from error
        yield listener


def make_server(app: App) -> uvicorn.Server:
    """Make a server for a guarded application; it does not log requests."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # It would show a token.
        lifespan="off",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)
