"""The guard of a local web server: ASGI middleware that answers this server's own pages and refuses all others."""

from __future__ import annotations

import hmac
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from ccassets.errors import TokenError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")
_TOKEN_PATTERN = re.compile(r"[A-Za-z0-9_.~-]{16,}")
_CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f]")
_POLICY_VIOLATION = 1008
# A browser keeps every one of several policies, so that the application's own policy stays in force.
_PROTECTIVE_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
_REPLACED_HEADERS = frozenset(name for name, _ in _PROTECTIVE_HEADERS) - {b"content-security-policy"}


@dataclass(frozen=True)
class _Refusal:
    status: HTTPStatus
    reason: str


class WebGuard:
    """ASGI middleware that keeps other web pages, other names and other users away from a local application.

    - The `Host` of every request is one of `hosts`: any other name that resolves to this machine is refused.
    - A request that changes something is a POST of a page of this server, or JSON of a program that is not a browser.
    - A websocket is opened by a page of this server.
    - No other page shows a page of this server in a frame, or loads anything from here.
    - With a token, every request carries it. `?token=…` in an address turns it into a cookie for this server.

    Args:
        app: The ASGI application to guard.
        hosts: Every `Host` that is answered, with its port unless it is 80 or 443: `127.0.0.1:3000`.
        post_only: Paths that run what a request's query says, such as `/graphql`: a GET must not carry a query there.
        token: What every browser has to show once; None where the machine has one user.

    Raises:
        TokenError: The token has fewer than 16 characters, or others than letters, digits, `_`, `.`, `~` and `-`.
    """

    def __init__(
        self, app: App, hosts: Iterable[str], *, post_only: Collection[str] = (), token: str | None = None
    ) -> None:
        if token is not None:
            check_token(token)
        self._app = app
        self._hosts = tuple(host.lower() for host in hosts)
        self._post_only = frozenset(post_only)
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request = _Request(scope)
        refusal = self._refuse_address(request) or self._refuse_sender(request)
        if refusal is None and self._token is not None:
            if request.is_read and self._is_token(request.query.get("token")):
                await _respond(send, HTTPStatus.SEE_OTHER, "", self._cookie_headers(request))
                return
            refusal = self._refuse_stranger(request)
        if refusal is None:
            await self._app(scope, receive, _with_protective_headers(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await _respond(send, refusal.status, f"{refusal.reason}\n")

    def _refuse_address(self, request: _Request) -> _Refusal | None:
        if len(request.all("host")) != 1 or request.host not in self._hosts:
            expected = " or ".join(self._hosts)
            return _Refusal(HTTPStatus.FORBIDDEN, f"Host: expected {expected}, found {request.host or 'none'}.")
        if _CONTROL_CHARACTER.search(request.path):
            # Routers overlook a line break at the end of a path, which makes it another path here.
            return _Refusal(HTTPStatus.BAD_REQUEST, "The path has a control character.")
        if request.is_read and request.plain_path in self._post_only and request.query_string:
            return _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"{request.plain_path} takes queries by POST only.")
        return None

    def _refuse_sender(self, request: _Request) -> _Refusal | None:
        """Refuse requests from pages of other servers, by the two headers that only the browser itself can set."""
        origin, site = request.first("origin"), request.first("sec-fetch-site")
        if origin is not None and origin not in request.own_origins:
            return _Refusal(HTTPStatus.FORBIDDEN, f"Origin: expected a page of {request.host}, found {origin}.")
        if request.is_websocket:
            missing = _Refusal(HTTPStatus.FORBIDDEN, f"Origin: expected a page of {request.host}, found none.")
            return missing if origin is None else None
        if request.is_read:
            if site in ("cross-site", "same-site") and not request.opens_page:
                return _Refusal(HTTPStatus.FORBIDDEN, "Other pages may link to this server, but not load from it.")
            return None
        if request.method != "POST":
            return _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"Expected GET, HEAD or POST, found {request.method}.")
        if site not in (None, "same-origin"):
            return _Refusal(HTTPStatus.FORBIDDEN, f"Sec-Fetch-Site: expected same-origin, found {site}.")
        if origin is None and site is None and not request.is_json:
            # A browser that sends neither header asks before it sends JSON for a foreign page, and is refused then.
            return _Refusal(HTTPStatus.FORBIDDEN, f"Expected an Origin of {request.host}, or JSON; found neither.")
        return None

    def _refuse_stranger(self, request: _Request) -> _Refusal | None:
        scheme, _, bearer = (request.first("authorization") or "").partition(" ")
        if self._is_token(request.cookies.get(_cookie_name(request.host))):
            return None
        if scheme.lower() == "bearer" and self._is_token(bearer.strip()):
            return None
        reason = "This server asks for a token: open the address with ?token=… that it printed when it started."
        return _Refusal(HTTPStatus.UNAUTHORIZED, reason)

    def _is_token(self, given: str | None) -> bool:
        expected = (self._token or "").encode()
        return given is not None and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected)

    def _cookie_headers(self, request: _Request) -> list[tuple[bytes, bytes]]:
        """Headers that keep the token in the browser and out of its address, history and referrers."""
        rest = urlencode([(name, value) for name, value in parse_qsl(request.query_string) if name != "token"])
        # The plain path: one that starts with two slashes would name another server.
        address = quote(request.plain_path) + (f"?{rest}" if rest else "")
        cookie = f"{_cookie_name(request.host)}={self._token}; Path=/; HttpOnly; SameSite=Strict"
        return [(b"location", address.encode()), (b"set-cookie", cookie.encode())]


def check_token(token: str) -> None:
    """Refuse a token that is easy to guess, or that a cookie cannot hold.

    Args:
        token: The token of a server.

    Raises:
        TokenError: It has fewer than 16 characters, or others than letters, digits, `_`, `.`, `~` and `-`.
    """
    if not _TOKEN_PATTERN.fullmatch(token):
        raise TokenError("The token needs at least 16 characters, each a letter, a digit, or one of _ . ~ -")


def loopback_hosts(port: int) -> list[str]:
    """Return the `Host` headers that a server on this machine's loopback may be called by.

    Args:
        port: The port that it listens on.
    """
    return [f"{name}:{port}" for name in _LOOPBACK_NAMES] + (list(_LOOPBACK_NAMES) if port == 80 else [])


class _Request:
    """What the guard reads of a connection's ASGI scope."""

    def __init__(self, scope: Scope) -> None:
        self._headers = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
        self.is_websocket = scope["type"] == "websocket"
        self.method: str = "GET" if self.is_websocket else scope["method"]
        self.path: str = scope["path"]
        self.query_string: str = scope.get("query_string", b"").decode("latin-1")
        self.host = (self.first("host") or "").lower()

    @property
    def plain_path(self) -> str:
        """The path without repeated or final slashes, which some routers ignore."""
        return "/" + "/".join(part for part in self.path.split("/") if part)

    def first(self, name: str) -> str | None:
        return next(iter(self.all(name)), None)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self._headers if key == name]

    @property
    def is_read(self) -> bool:
        return self.method in ("GET", "HEAD") and not self.is_websocket

    @property
    def is_json(self) -> bool:
        return (self.first("content-type") or "").partition(";")[0].strip().lower() == "application/json"

    @property
    def opens_page(self) -> bool:
        """Whether the request opens a page in a window of its own, not in a frame of another page."""
        return self.first("sec-fetch-mode") == "navigate" and self.first("sec-fetch-dest") == "document"

    @property
    def own_origins(self) -> tuple[str, str]:
        return f"http://{self.host}", f"https://{self.host}"

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(self.query_string))

    @property
    def cookies(self) -> dict[str, str]:
        pairs = (pair.partition("=") for value in self.all("cookie") for pair in value.split(";"))
        return {name.strip(): value.strip() for name, _, value in pairs}


def _cookie_name(host: str) -> str:
    # Browsers send a cookie to every port of a host: the name keeps servers beside each other apart.
    return f"ccassets_token_{re.sub('[^a-z0-9]', '_', host)}"


def _with_protective_headers(send: Send) -> Send:
    async def send_protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [pair for pair in message.get("headers", ()) if pair[0].lower() not in _REPLACED_HEADERS]
            message = {**message, "headers": [*kept, *_PROTECTIVE_HEADERS]}
        await send(message)

    return send_protected


async def _respond(send: Send, status: HTTPStatus, text: str, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
    body = text.encode("utf-8", "replace")
    own = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"referrer-policy", b"no-referrer"),
    ]
    protected = _with_protective_headers(send)
    await protected({"type": "http.response.start", "status": int(status), "headers": [*own, *headers]})
    await protected({"type": "http.response.body", "body": body})
