"""The explorer served for tests: a small study of phantoms with its classifier, and a client for its routes."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.analysis import concept_samples, fit_logistic, make_concept_model, save_model
from ccassets.database.reader import Database, open_database
from ccassets.pages.explorer.explorer_routes import explorer_app
from ccassets.pages.explorer.explorer_state import Explorer
from ccassets.pages.local_server import bound_socket, make_server
from ccassets.pages.web_guard import WebGuard, loopback_hosts
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study

ROWS = {"train": 40, "val": 12, "test": 12}


@dataclass(frozen=True)
class BuiltStudy:
    """A study with its database and its concept classifier."""

    study: Study
    store: Store


def build_study(folder: Path) -> BuiltStudy:
    study = phantom_study(folder / "cells", lambda attributes: attributes["dataset"].update(rows=ROWS))
    return with_classifier(study, folder / "storage")


def with_classifier(study: Study, root: Path) -> BuiltStudy:
    """A study built under a storage root, by the library's steps, with its concept classifier."""
    store = extracted(study, root)
    with open_database(store.database) as database:
        classifier = fit_logistic(concept_samples(database))
        store.analysis.mkdir(parents=True, exist_ok=True)
        save_model(make_concept_model(classifier, database), store.analysis / "model.json")
    return BuiltStudy(study, store)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Client:
    """Requests to a server on this port, as its own page sends them."""

    port: int
    explorer: Explorer

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            own = {"Origin": self.address} if method == "POST" else {}
            connection.request(method, path, body, {**own, **(headers or {})})
            response = connection.getresponse()
            headers: dict[str, str] = {}
            for name, value in response.getheaders():
                headers[name.lower()] = ", ".join(filter(None, [headers.get(name.lower()), value]))
            return Answer(response.status, headers, response.read())
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        """The JSON of a route that has to answer."""
        answer = self.request("GET", path)
        assert answer.status == 200, (path, answer)
        return answer.json

    def post(self, path: str, content: Any) -> Answer:
        return self.request("POST", path, json.dumps(content).encode())

    def refusal(self, path: str) -> str:
        """The sentence of a route that has to refuse."""
        answer = self.request("GET", path)
        assert answer.status == 422, (path, answer)
        return str(answer.json["error"])


@contextmanager
def served(database: Database, study: Study | None) -> Iterator[Client]:
    """The explorer of an open database behind its guard, as long as the block lasts."""
    explorer = Explorer(database, study)
    with bound_socket("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        server = make_server(WebGuard(explorer_app(explorer), loopback_hosts(port)))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Client(port, explorer)
        finally:
            server.should_exit = True
            thread.join()


def unpacked(content: bytes) -> dict[str, tuple[Any, list[str] | None]]:
    """By name: the values of every column of a binary answer, and its categories."""
    length = int.from_bytes(content[:4], "little")
    header = json.loads(content[4 : 4 + length])
    columns = {}
    for column in header["columns"]:
        assert column["offset"] % 8 == 0
        dtype = np.dtype(column["type"]).newbyteorder("<")
        values = np.frombuffer(content, dtype, column["length"], column["offset"])
        columns[column["name"]] = values, column["categories"]
    return columns
