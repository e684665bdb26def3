"""`ccassets explore`: the explorer's server on loopback, behind the guard of web servers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from ccassets.database.reader import Database
from ccassets.pages.explorer.explorer_routes import explorer_app
from ccassets.pages.explorer.explorer_state import Explorer
from ccassets.pages.local_server import bound_socket, make_server
from ccassets.pages.web_guard import WebGuard, loopback_hosts
from ccassets.study.schema import Study

_LOOPBACK = "127.0.0.1"


def serve_explorer(database: Database, study: Study | None, *, port: int, announce: Callable[[str], None]) -> None:
    """Serve the explorer of an open database until SIGINT or SIGTERM.

    Args:
        database: The database.
        study: The study that it was built from; None for a file alone.
        port: The TCP port; 0 takes a free one.
        announce: Called with the address before requests are answered; connections made earlier wait.

    Raises:
        UiServerError: The port cannot be used.
    """
    with suppress(KeyboardInterrupt), bound_socket(_LOOPBACK, port) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        explorer = Explorer(database, study)
        server = make_server(WebGuard(explorer_app(explorer), loopback_hosts(port)))
        threading.Thread(target=explorer.prepare, daemon=True).start()
        announce(f"http://{_LOOPBACK}:{port}/")
        server.run(sockets=[listener])
