"""The hub of models and data sets, as a small server on this machine plays it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ccassets_tests.http_server import answering

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_notarealtokenbutsecret"


class Hub(ThreadingHTTPServer):
    """A hub with one open repository (`lab/tiny`), a gated one, a private one, and one that is broken."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.folder = folder
        self.requested_paths: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None: ...

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requested_paths.append(path)
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if "lab/gated" in path:
            self._send(403 if authorized else 401, {"X-Error-Code": "GatedRepo"})
        elif "lab/private" in path and not authorized:
            self._send(401, {"X-Error-Code": "RepoNotFound"})
        elif "lab/broken" in path:
            self._send(500)
        elif "lab/tiny" in path or "lab/private" in path:
            self._repository(path)
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"})

    def _repository(self, path: str) -> None:
        names = sorted(file.name for file in self.server.folder.iterdir())
        if path.endswith("/auth-check"):
            self._send(200)
        elif "/revision/" in path:
            if path.rpartition("/")[2] not in {"main", COMMIT}:
                self._send(404, {"X-Error-Code": "RevisionNotFound"})
                return
            siblings = [{"rfilename": name} for name in names]
            self._send(200, body=json.dumps({"id": "lab/tiny", "sha": COMMIT, "siblings": siblings}).encode())
        elif "/tree/" in path:
            self._send(200, body=json.dumps([self._entry(name) for name in names]).encode())
        elif "/resolve/" in path and path.rpartition("/")[2] in names:
            content = (self.server.folder / path.rpartition("/")[2]).read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, content)
        else:
            self._send(404, {"X-Error-Code": "EntryNotFound"})

    def _entry(self, name: str) -> dict[str, Any]:
        content = (self.server.folder / name).read_bytes()
        return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def _send(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@contextmanager
def hub_of(folder: Path) -> Iterator[Hub]:
    """A hub whose repositories all hold the files of a folder."""
    server = Hub(folder)
    with answering(server):
        yield server
