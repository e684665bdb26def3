"""The HTTP API and the static files of the explorer, as `static/openapi.json` describes them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ccassets.analysis.results import as_json
from ccassets.analysis.vector_search import RowFilter
from ccassets.datasets.image_decoding import decode_image
from ccassets.errors import CcassetsError
from ccassets.exports.study_of_rows import LABELS_FILE, label_overrides
from ccassets.files import own_error
from ccassets.pages.explorer import selections
from ccassets.pages.explorer.explorer_state import MOST_HITS, Explorer, SearchQuery

STATIC = Path(__file__).parent / "static"

MOST_UPLOADED = 32 << 20
"""Bytes of an image file, or of the row numbers of a selection."""

_LARGEST_SIDE = 2048
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
)
_DEFAULT_COLUMNS = "x,y,split,class,group"


def explorer_app(explorer: Explorer) -> ASGIApp:
    """Make the application of an open database; whoever serves it puts the guard before it.

    Args:
        explorer: The database.
    """
    app = Starlette(
        routes=[*api_routes(explorer), Mount("/", StaticFiles(directory=STATIC, html=True))],
        exception_handlers={
            CcassetsError: _refusal(422),
            ClientDisconnect: _refusal(400),
            OSError: _refusal(500),
            HTTPException: _refusal(404),
        },
    )
    return _with_headers(app)


def api_routes(explorer: Explorer) -> list[Route]:
    """The routes that answer questions about an open database."""
    api = _Api(explorer)
    return [
        Route("/api/info", _answer(lambda _: explorer.info())),
        Route("/api/points", api.points),
        Route("/api/scores", api.scores),
        Route("/api/search", _answer(api.search)),
        Route("/api/rows/{row:int}", _answer(lambda request: explorer.row(_row(request)))),
        Route("/api/rows/{row:int}/history", _answer(lambda request: explorer.history(_row(request)))),
        Route("/api/rows/{row:int}/image", api.image),
        Route("/api/heat/{row:int}", _answer(api.heat)),
        Route("/api/errors/confident", _answer(lambda _: explorer.confident_errors())),
        Route("/api/errors/labels", _answer(lambda _: explorer.doubtful_labels())),
        Route("/api/errors/duplicates", _answer(lambda _: explorer.duplicates())),
        Route("/api/errors/left-out", _answer(lambda _: explorer.left_out())),
        Route("/api/images", api.add_image, methods=["POST"]),
        Route("/api/selection", api.selection, methods=["POST"]),
        Route("/api/labels", api.labels, methods=["POST"]),
    ]


class _Api:
    """The routes that answer with bytes or take a body."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    def points(self, request: Request) -> Response:
        names = request.query_params.get("columns", _DEFAULT_COLUMNS).split(",")
        return Response(self._explorer.points(names), media_type="application/octet-stream")

    def scores(self, request: Request) -> Response:
        return Response(self._explorer.scores(_query(request)), media_type="application/octet-stream")

    def search(self, request: Request) -> Any:
        given = request.query_params
        where = RowFilter(given.get("split"), given.get("class"), given.get("group"))
        offset, count = _number(request, "offset", 0, MOST_HITS), _number(request, "k", 20, 1000)
        return self._explorer.search(_query(request), where, offset, max(1, count))

    def heat(self, request: Request) -> Any:
        given = request.query_params
        return self._explorer.heat(_row(request), text=given.get("text"), concept=given.get("concept"))

    def image(self, request: Request) -> Response:
        side = _number(request, "side", 0, _LARGEST_SIDE) or None
        encode = self._explorer.thumbnail if side else self._explorer.encoded_image
        content = encode(_row(request), side)
        headers = {"cache-control": "private, max-age=600"}
        return Response(content, media_type="image/webp" if side else "image/png", headers=headers)

    async def add_image(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        body = await _body(request)

        def add() -> str:
            return self._explorer.queries.add_image(decode_image(io.BytesIO(body)))

        return _json({"image": await run_in_threadpool(add)})

    async def selection(self, request: Request) -> Response:
        from starlette.concurrency import run_in_threadpool

        content = await _json_body(request)
        return await run_in_threadpool(self._write_selection, request, content)

    def _write_selection(self, request: Request, content: Mapping[str, Any]) -> Response:
        explorer = self._explorer
        rows = selections.selected_rows(explorer.database, _expected(content, "rows", list))
        name = request.query_params.get("format", "csv")
        if name == "study":
            if explorer.study is None:
                raise HTTPException(422, "A file alone has no study: start the explorer with the study's name.")
            study = _expected(content, "name", str)
            labels = _labels(content) if "labels" in content else None
            archive = selections.study_zip(explorer.study, explorer.database, rows, study, labels)
            return _download(archive, f"{study}.zip", "application/zip")
        if name not in selections.FORMATS:
            expected = ", ".join([*selections.FORMATS, "study"])
            raise HTTPException(422, f"format: expected one of {expected}; found {name!r}.")
        write, media_type = selections.FORMATS[name]
        suffix = "txt" if name == "keys" else name
        return _download(write(explorer.exported, rows), f"selection.{suffix}", media_type)

    async def labels(self, request: Request) -> Response:
        labels, database = _labels(await _json_body(request)), self._explorer.database
        selections.selected_rows(database, list(labels))  # Refuses other numbers.
        return _download(label_overrides(database, labels), LABELS_FILE, "text/csv; charset=utf-8")


# --- requests ----------------------------------------------------------------------------------------


def _row(request: Request) -> int:
    row: int = request.path_params["row"]
    return row


def _query(request: Request) -> SearchQuery:
    given = request.query_params
    patch = given.get("patch")
    return SearchQuery(
        text=given.get("text"),
        concept=given.get("concept"),
        row=_number(request, "row", None, None) if "row" in given else None,
        image=given.get("image"),
        patch=None if patch is None else _patch(patch),
    )


def _patch(text: str) -> tuple[int, int]:
    row, _, number = text.partition(":")
    if not (row.isdecimal() and number.isdecimal()):
        raise HTTPException(422, f"patch: expected ROW:PATCH, found {text!r}.")
    return int(row), int(number)


def _number(request: Request, name: str, default: int | None, most: int | None) -> Any:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 18 or (most is not None and int(text) > most):
        raise HTTPException(422, f"{name}: expected a number{f' up to {most}' if most else ''}, found {text[:80]!r}.")
    return int(text)


async def _body(request: Request) -> bytes:
    """The body of a request; it is refused once it is larger than `MOST_UPLOADED`."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_UPLOADED:
            raise HTTPException(413, f"Expected at most {MOST_UPLOADED >> 20} MB.")
    return bytes(body)


async def _json_body(request: Request) -> Mapping[str, Any]:
    try:
        content = json.loads(await _body(request))
    except (ValueError, RecursionError) as error:
        raise HTTPException(422, "Expected JSON.") from error
    if not isinstance(content, dict):
        raise HTTPException(422, "Expected a JSON object.")
    return content


def _labels(content: Mapping[str, Any]) -> dict[int, str]:
    """The classes by row number that a request has as `labels`."""
    try:
        return {int(row): str(name) for row, name in _expected(content, "labels", dict).items()}
    except ValueError as error:
        raise HTTPException(422, "labels: expected classes by row number.") from error


def _expected(content: Mapping[str, Any], name: str, kind: type) -> Any:
    if not isinstance(content.get(name), kind):
        raise HTTPException(422, f"{name}: expected a {kind.__name__}, found {type(content.get(name)).__name__}.")
    return content[name]


# --- answers -----------------------------------------------------------------------------------------


def _answer(make: Callable[[Request], Any]) -> Callable[[Request], Response]:
    """A route that answers with JSON; it runs in a thread."""

    def answer(request: Request) -> Response:
        return _json(make(request))

    return answer


def _json(value: Any, status: int = 200) -> Response:
    # ASCII alone: names of files may hold what is no UTF-8.
    return Response(json.dumps(as_json(value), allow_nan=False), status, media_type="application/json")


def _download(content: bytes, name: str, media_type: str) -> Response:
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    return Response(content, media_type=media_type, headers=headers)


def _refusal(status: int) -> Any:
    """A handler that answers an error with its message, without paths or a traceback of this machine."""

    def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            return _json({"error": error.detail}, error.status_code)
        sentence = own_error(error) if isinstance(error, OSError) else error
        return _json({"error": str(sentence or "The file cannot be read now.")}, status)

    return refuse


def _with_headers(app: ASGIApp) -> ASGIApp:
    """The application with a policy that lets its pages load from this server alone."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                if not any(name == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-cache"))
                message = {**message, "headers": [*headers, *_HEADERS]}
            await send(message)

        await app(scope, receive, send_with_headers)

    return answer
