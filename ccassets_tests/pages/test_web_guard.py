"""The guard in front of a real server: what pages of other servers send is refused, what its own pages send is not."""

from __future__ import annotations

import http.client
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ccassets.errors import TokenError
from ccassets.pages.web_guard import WebGuard, loopback_hosts

MUTATION = "/graphql?query=mutation%7BdeletePipelineRun(runId%3A%221%22)%7B__typename%7D%7D"
EVIL = "http://evil.example"
TOKEN = "a-token-of-this-test"


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Server:
    """A guarded application that counts what it was made to run."""

    port: int = 0
    runs: list[str] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def request(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: str = "") -> Answer:
        """Send exactly these headers; a `Host` of None is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in {"Host": self.host, **(headers or {})}.items():
            if value is not None:
                connection.putheader(name, value)
        if body:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body.encode() or None)
        response = connection.getresponse()
        answer = Answer(response.status, dict(response.getheaders()), response.read().decode())
        connection.close()
        return answer

    def raw(self, request: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(request)
            return connection.recv(65536)

    def echo(self, **options: object) -> str | bytes:
        """Open the websocket, say hello and give the answer."""
        with connect(f"ws://{self.host}/graphql", **options) as websocket:  # type: ignore[arg-type]
            websocket.send("hello")
            return websocket.recv(timeout=30)


def application(runs: list[str]) -> Starlette:
    """Like Dagster's: GET and POST of /graphql run the query of the address or of the body."""

    async def graphql(request: Request) -> Response:
        query = request.query_params.get("query")
        if request.method == "POST" and query is None:
            query = (await request.json())["query"]
        if query is None:
            return HTMLResponse("<p>playground</p>")
        runs.append(query)
        return JSONResponse({"data": query})

    async def report(request: Request) -> Response:
        runs.append(request.url.path)
        return Response(status_code=200)

    async def page(request: Request) -> Response:
        headers = {"Content-Security-Policy": "object-src 'none'", "X-Frame-Options": "ALLOWALL"}
        return HTMLResponse(f"<p>{request.url.path} {request.url.query}</p>", headers=headers)

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    return Starlette(
        routes=[
            Route("/graphql", graphql, methods=["GET", "POST"]),
            WebSocketRoute("/graphql", echo),
            Route("/report/{path:path}", report, methods=["POST", "PUT", "DELETE"]),
            Route("/{path:path}", page),
        ]
    )


@contextmanager
def serving(token: str | None = None) -> Iterator[Server]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = Server(listener.getsockname()[1])
        hosts = [*loopback_hosts(server.port), "ui.example.org"]
        guard = WebGuard(application(server.runs), hosts, post_only=["/graphql"], token=token)
        running = uvicorn.Server(uvicorn.Config(guard, log_level="warning", lifespan="on"))
        listener.listen()
        thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield server
        finally:
            running.should_exit = True
            thread.join(30)


@pytest.fixture(scope="module")
def shared_server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    shared_server.runs.clear()
    return shared_server


JSON = {"Content-Type": "application/json"}
QUERY = json.dumps({"query": "mutation{wipeAssets}"})
CROSS = {"Sec-Fetch-Site": "cross-site"}

FOREIGN = {
    "an image": ("GET", MUTATION, {**CROSS, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"}, ""),
    "an image of an old browser": ("GET", MUTATION, {"Referer": EVIL}, ""),
    "a link": ("GET", MUTATION, {**CROSS, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, ""),
    "a typed address": ("GET", MUTATION, {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, ""),
    "an escaped path": ("GET", MUTATION.replace("/graphql", "/%67raphql"), {}, ""),
    "a path with a newline": ("GET", MUTATION.replace("/graphql", "/graphql%0a"), {}, ""),
    "a path with a slash more": ("GET", MUTATION.replace("/graphql", "//graphql"), {}, ""),
    "a path with a slash at its end": ("GET", MUTATION.replace("/graphql", "/graphql/"), {}, ""),
    "a fetch": ("GET", MUTATION, {"Origin": EVIL, **CROSS, "Sec-Fetch-Mode": "cors"}, ""),
    "another host": ("GET", "/", {"Host": "evil.example"}, ""),
    "another host with our port": ("POST", "/graphql", {"Host": "evil.example:3000", **JSON}, QUERY),
    "our host with another port": ("GET", "/", {"Host": "127.0.0.1:1"}, ""),
    "a rebound name": ("POST", "/graphql", {"Host": "evil.example", "Origin": EVIL, **JSON}, QUERY),
    "our name inside another": ("GET", "/", {"Host": "127.0.0.1.evil.example"}, ""),
    "no host": ("GET", "/", {"Host": None}, ""),
    "JSON": ("POST", "/graphql", {"Origin": EVIL, **JSON}, QUERY),
    "JSON as a text": ("POST", "/graphql", {"Origin": EVIL, "Content-Type": "text/plain"}, QUERY),
    "a form": ("POST", MUTATION, {"Origin": EVIL, "Content-Type": "application/x-www-form-urlencoded"}, "a=b"),
    "a form in a sandbox": ("POST", MUTATION, {"Origin": "null", **CROSS, "Content-Type": "text/plain"}, "a=b"),
    "a form of an old browser": ("POST", MUTATION, {"Content-Type": "multipart/form-data; boundary=x"}, "a=b"),
    "a beacon": ("POST", MUTATION, {**CROSS, "Content-Type": "text/plain"}, "a=b"),
    "a neighbour's port": ("POST", "/graphql", {"Origin": "http://127.0.0.1:1", **JSON}, QUERY),
    "a neighbour's port by site": ("POST", "/graphql", {"Sec-Fetch-Site": "same-site", **JSON}, QUERY),
    "another of our names": ("POST", "/graphql", {"Origin": "http://localhost:1", **JSON}, QUERY),
    "a report": ("POST", "/report/cells", {"Origin": EVIL}, ""),
    "a report without an origin": ("POST", "/report/cells", {}, ""),
    "a deletion": ("DELETE", "/report/cells", {}, ""),
    "a replacement": ("PUT", "/report/cells", JSON, QUERY),
    "a preflight": ("OPTIONS", "/graphql", {"Origin": EVIL, "Access-Control-Request-Method": "POST"}, ""),
    "a script": ("GET", "/code.js", {**CROSS, "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "script"}, ""),
    "a neighbour's image": ("GET", "/a.png", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, ""),
    "a frame": ("GET", "/", {**CROSS, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_page_of_another_server_sends_is_refused(server: Server, name: str) -> None:
    method, path, headers, body = FOREIGN[name]
    answer = server.request(method, path, headers, body)
    assert answer.status in (400, 403, 405), answer
    assert not any(header.lower().startswith("access-control") for header in answer.headers)
    assert server.runs == []


def test_two_hosts_are_refused(server: Server) -> None:
    request = f"GET / HTTP/1.1\r\nHost: {server.host}\r\nHost: evil.example\r\n\r\n"
    assert server.raw(request.encode()).split()[1] in (b"400", b"403")


def test_a_refusal_says_what_was_expected_and_found(server: Server) -> None:
    answer = server.request("GET", "/", {"Host": "<b>evil.example"})
    assert answer.text.startswith("Host: expected 127.0.0.1:")
    assert answer.text.endswith("found <b>evil.example.\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "headers", "body"),
    [
        ("GET", "/", {}, ""),
        ("HEAD", "/runs", {}, ""),
        ("GET", "/graphql", {"Accept": "text/html"}, ""),
        ("GET", "/runs?q=x", {**CROSS, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, ""),
        ("GET", "/code.js", {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "no-cors"}, ""),
        ("GET", "/", {"Host": "LOCALHOST:{port}"}, ""),
        ("GET", "/", {"Host": "[::1]:{port}"}, ""),
        ("POST", "/graphql", {"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin", **JSON}, QUERY),
        ("POST", "/graphql", {"Sec-Fetch-Site": "same-origin", **JSON}, QUERY),
        ("POST", "/graphql", {"Host": "localhost:{port}", "Origin": "http://localhost:{port}", **JSON}, QUERY),
        ("POST", "/graphql", {"Host": "ui.example.org", "Origin": "https://ui.example.org", **JSON}, QUERY),
        ("POST", "/graphql", {"Content-Type": "application/json; charset=utf-8"}, QUERY),
        ("POST", "/report/cells", {"Origin": "http://{host}"}, ""),
    ],
)
def test_what_its_own_pages_and_programs_send_is_answered(
    server: Server, method: str, path: str, headers: dict[str, str], body: str
) -> None:
    sent = {name: value.format(host=server.host, port=server.port) for name, value in headers.items()}
    assert server.request(method, path, sent, body).status == 200
    assert len(server.runs) == (method == "POST")


def test_every_answer_forbids_frames_and_guesses_and_keeps_the_policy_of_the_application(server: Server) -> None:
    for path in ("/", "/graphql", MUTATION):
        headers = server.raw(f"GET {path} HTTP/1.1\r\nHost: {server.host}\r\n\r\n".encode()).lower().split(b"\r\n")
        assert b"content-security-policy: frame-ancestors 'none'" in headers
        assert [line for line in headers if line.startswith(b"x-frame-options")] == [b"x-frame-options: deny"]
        assert b"x-content-type-options: nosniff" in headers
        assert b"cross-origin-resource-policy: same-origin" in headers
        assert (b"content-security-policy: object-src 'none'" in headers) == (path == "/")


def test_a_websocket_opens_for_its_own_pages_alone(server: Server) -> None:
    assert server.echo(origin=f"http://{server.host}") == "hello"
    for options in (
        {"origin": EVIL},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {},
        {"origin": EVIL, "additional_headers": {"Host": "evil.example"}},
    ):
        with pytest.raises(InvalidStatus, match="403"):
            server.echo(**options)


def test_a_token_is_asked_of_every_request_and_kept_in_a_cookie_of_this_server() -> None:
    with serving(TOKEN) as server:
        for path in ("/", "/graphql", "/?token=another-token-of-this-test", "/?token="):
            refused = server.request("GET", path)
            assert refused.status == 401
            assert "open the address with ?token=" in refused.text
            assert TOKEN not in str(refused)
        own = {"Origin": f"http://{server.host}", **JSON}
        assert server.request("POST", f"/graphql?token={TOKEN}", own, QUERY).status == 401, "an address is for a person"
        with pytest.raises(InvalidStatus, match=r"401|403"):
            server.echo(origin=own["Origin"])
        assert server.runs == []

        entered = server.request("GET", f"/runs?q=a%20b&token={TOKEN}")
        assert (entered.status, entered.headers["location"]) == (303, "/runs?q=a+b")
        cookie, *attributes = entered.headers["set-cookie"].split("; ")
        assert set(attributes) == {"Path=/", "HttpOnly", "SameSite=Strict"}
        assert str(server.port) in cookie.partition("=")[0], "servers beside each other have cookies of their own"

        with_cookie = {"Cookie": f"theme=dark; {cookie}"}
        assert server.request("GET", "/runs", with_cookie).status == 200
        assert server.request("POST", "/graphql", {**own, **with_cookie}, QUERY).status == 200
        assert server.echo(origin=own["Origin"], additional_headers=with_cookie) == "hello"
        assert server.request("GET", "/", {"Authorization": f"Bearer {TOKEN}"}).status == 200
        for wrong in (
            {"Cookie": cookie[:-1]},
            {"Cookie": f"{cookie}é".encode().decode("latin-1")},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": "Bearer "},
        ):
            assert server.request("GET", "/", wrong).status == 401
        assert server.request("POST", "/graphql", {**JSON, **with_cookie, "Origin": EVIL}, QUERY).status == 403
        assert len(server.runs) == 1


@pytest.mark.parametrize("path", ["//evil.example/", "/%2f%2fevil.example/", "///evil.example/a", "/%5cevil.example/"])
def test_the_address_with_a_token_leads_to_no_other_server(path: str) -> None:
    with serving(TOKEN) as server:
        answer = server.request("GET", f"{path}?token={TOKEN}")
        assert answer.status == 303
        assert re.match(r"/[^/\\]", answer.headers["location"])
        assert server.request("GET", f"/%0d%0aSet-Cookie:%20a=b?token={TOKEN}").status == 400


@pytest.mark.parametrize(
    "token", ["", "short", "sixteen letters!", "a;b=c; Path=/; Domain=evil", "zeichen-für-zeichen"]
)
def test_a_token_that_is_no_secret_or_fits_no_cookie_is_refused(token: str) -> None:
    with pytest.raises(TokenError, match="at least 16 characters"):
        WebGuard(application([]), loopback_hosts(3000), token=token)


def test_the_guard_imports_neither_dagster_nor_anything_heavy() -> None:
    code = "import ccassets.pages.web_guard, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "ccassets" in loaded
    assert not {"dagster", "starlette", "uvicorn", "numpy", "torch", "h5py"} & set(loaded)
