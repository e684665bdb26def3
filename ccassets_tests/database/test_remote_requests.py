"""What a remote database of BloodMNIST's shape costs, counted by the server: no more than docs/remote.md says.

`python -m ccassets_tests.database.test_remote_requests` prints what is counted.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ccassets import open_database
from ccassets.database.reader import Database
from ccassets.exports.formats import export_checked
from ccassets_tests.database.made_files import write_bloodmnist_shape
from ccassets_tests.database.range_server import RangeServer, serve

PAGE = Path(__file__).parents[2] / "docs" / "remote.md"
_UNITS = {"MB": 1.01e6, "bytes": 1}
RANDOM_ROWS = np.random.default_rng(0).permutation(17_092)[:64]

READ: dict[str, Callable[[Database], object]] = {
    "open": lambda _: None,
    "keys": lambda database: database.keys,
    "labels and splits": lambda database: (database.labels, database.splits),
    "list of templates": lambda database: list(database.templates),
    "features of one template (31 prompts)": lambda database: database.templates["concept_prompts_t01"].text_features,
    "one row of image features": lambda database: database.image_features[8000],
    "one row of tokens": lambda database: database.image_token_features[8000],
    "one token": lambda database: database.image_token_features[8000, 300],
    "64 random rows": lambda database: database.select(rows=RANDOM_ROWS).image_features,
    "image features of train (11,959 rows)": lambda database: database.select("train").image_features,
}
PREPARED: dict[str, Callable[[Database], object]] = {
    "features of one template (31 prompts)": lambda database: list(database.templates),
    **dict.fromkeys(
        list(READ)[5:], lambda database: (database.splits, database.image_features, database.image_token_features)
    ),
}
"""What is read before, and not counted."""


@contextmanager
def served(references: bool) -> Iterator[RangeServer]:
    with tempfile.TemporaryDirectory() as name, serve(Path(name)) as server:
        with open_database(write_bloodmnist_shape(Path(name) / "a.h5")) as database:
            if references:
                export_checked(database, Path(name) / "a.refs.json", url=f"{server.url}/")
        yield server


def count(server: RangeServer, what: str) -> tuple[int, int]:
    """Requests and bytes of one thing, read of a database that was just opened."""
    server.count()
    with open_database(f"{server.url}/a.h5") as database:
        if what != "open":
            PREPARED.get(what, lambda _: None)(database)
            server.count()
        READ[what](database)
        return server.count()


def bounds() -> dict[str, list[tuple[float, float]]]:
    """The most requests and bytes that the page allows, without and with references.

    What HDF5 reads of its metadata differs from release to release: a tenth more of it is allowed. Rows are exact.
    """
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return {what: [parsed(alone), parsed(alone if beside == "the same" else beside)] for what, alone, beside in rows}


def parsed(cell: str) -> tuple[float, float]:
    if cell == "none":
        return 0, 0
    match = re.match(r"(?:at most )?(\d+) requests?, ([\d.,]+) (MB|bytes)", cell)
    assert match, cell
    requests, size = int(match[1]), float(match[2].replace(",", ""))
    return (1.1 * requests, 1.1e6 * size) if match[3] == "MB" and requests > 1 else (requests, size * _UNITS[match[3]])


@pytest.mark.parametrize("references", [False, True], ids=["alone", "references"])
def test_requests_and_bytes_are_within_the_bounds_of_the_page(references: bool) -> None:
    expected = bounds()
    assert expected.keys() == READ.keys()
    with served(references) as server:
        for what in READ:
            requests, size = count(server, what)
            most_requests, most_bytes = expected[what][references]
            assert requests <= most_requests, what
            assert size <= most_bytes, what


if __name__ == "__main__":
    for with_references in (False, True):
        with served(with_references) as running:
            for thing in READ:
                print(with_references, thing, *count(running, thing))
