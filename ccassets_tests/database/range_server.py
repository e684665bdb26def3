"""A local HTTP server of ranges that counts requests and bytes, and can be slow, cut off, wrong or changing."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ccassets_tests.http_server import answering


@dataclass
class RangeServer:
    """The files of a folder; `fault` names what the next ranges suffer from.

    `cut` closes the connection halfway, `short` sends fewer bytes, `whole` ignores the range, `slow` waits until
    `released`, `refused` answers 403. `before_answer` is called before every answer.
    """

    folder: Path
    url: str = ""
    fault: str = ""
    requests: list[tuple[str, str, int]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    before_answer: Callable[[], object] = lambda: None

    def count(self) -> tuple[int, int]:
        """Requests and bytes sent since the last call."""
        requests, self.requests[:] = list(self.requests), []
        return len(requests), sum(size for _, _, size in requests)


@contextmanager
def serve(folder: Path) -> Iterator[RangeServer]:
    """Serve a folder on this machine."""
    server = RangeServer(folder)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, with_body: bool) -> None:
            server.before_answer()
            path = server.folder / self.path.partition("?")[0].lstrip("/")
            if not path.is_file():
                server.requests.append((self.command, self.path, 0))
                self._head(404, 0)
                return
            version = f'"{path.stat().st_mtime_ns}"'
            if self.headers.get("If-Match", version) != version:
                self._head(412, 0)
                return
            size = path.stat().st_size
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            fault = server.fault if match else ""
            if fault == "refused":
                self._head(403, 0)
                return
            if fault == "slow":
                server.released.wait()
            first, last = (int(match[1]), min(int(match[2]), size - 1)) if match and fault != "whole" else (0, size - 1)
            length = last - first + 1 - (fault == "short")
            server.requests.append((self.command, self.path, length if with_body else 0))
            self._head(206 if match and fault != "whole" else 200, length, ETag=version, Range=f"{first}-{last}/{size}")
            if with_body:
                with path.open("rb") as file:
                    file.seek(first)
                    data = file.read(length)
                self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)
                self.close_connection = fault == "cut"

        def _head(self, status: int, length: int, **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(length))
            self.send_header("Accept-Ranges", "bytes")
            for name, value in headers.items():
                self.send_header(
                    "Content-Range" if name == "Range" else name, f"bytes {value}" if name == "Range" else value
                )
            self.end_headers()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A client that goes away is no news."""

    httpd = Server(("127.0.0.1", 0), Handler)
    with answering(httpd) as server.url:
        try:
            yield server
        finally:
            server.released.set()
