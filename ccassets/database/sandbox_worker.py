"""The child process of `sandbox`: reads one request as JSON, and answers in JSON under limits of memory and time."""

from __future__ import annotations

import json
import math
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ccassets.database.hdf5 import iter_blocks, read_errors_at
from ccassets.database.reader import Database, open_database
from ccassets.database.remote_file import is_url
from ccassets.database.summary import summarize
from ccassets.database.validation import validate_database
from ccassets.errors import CcassetsError, DatabaseError, StorageError

if TYPE_CHECKING:
    from ccassets.study.schema import Study

_MEMORY = 1 << 30
_SECONDS = 4
_BYTES_PER_SECOND = 10 << 20
"""The child may allocate 1 GiB and the size of the file, and compute for 4 s and the time that 10 MiB/s take."""
_REMOTE_BYTES = 256 << 20
"""The assumed size of a remote file: no more than this is kept in memory."""


def _answer(request: dict[str, Any]) -> Any:
    path = request["path"]
    if request["task"] == "summarize":
        with open_database(path) as database:
            return summarize(database)
    if request["task"] == "read":
        with open_database(path) as database, read_errors_at(str(path)):
            return _read(database)
    study = _study(request["study"]) if request["study"] else None
    findings = validate_database(path, study=study, deep=request["deep"], only=request["only"])
    return [finding.as_dict() for finding in findings]


def _study(attributes: dict[str, Any]) -> Study:
    from ccassets.study.schema import Study  # A quarter of the start-up time, and most files are read without a study.

    return Study.model_validate(attributes)


def _read(database: Database) -> None:
    """Read what analyses and exports read of a file; mapped features, which are bounded by the file, are left out."""
    rows = len(database)
    for values in (database.image_features, database.image_token_features):
        if values is None or isinstance(values, np.ndarray):
            continue
        for _ in iter_blocks(values):
            pass
    facts = (database.labels, database.label_matrix, database.keys, database.groups, database.image_digest)
    columns = (database.split, *facts)
    lengths = [len(column) for column in columns if column is not None]
    features = database.image_features
    if features.ndim != 2 or len(features) != rows or any(length != rows for length in lengths):
        raise DatabaseError(
            f"{database.path}: expected {rows} rows of every data set, found features of shape {features.shape} and "
            f"columns of {lengths} rows. `ccassets validate` says more."
        )
    for template in database.templates.values():
        _ = template.text_features, template.texts


def _set_limits(path: str) -> None:
    """Set the limits for reading a file; memory that is mapped from it does not count."""
    file = Path(path)
    size = _REMOTE_BYTES if is_url(path) else file.stat().st_size if file.is_file() else 0
    seconds = math.ceil(time.process_time()) + _SECONDS + size // _BYTES_PER_SECOND
    for kind, limit in (
        (resource.RLIMIT_DATA, _MEMORY + size),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(kind)
        resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _main() -> None:
    request = json.load(sys.stdin)
    _set_limits(request["path"])
    try:
        answer = {"answer": _answer(request)}
    except CcassetsError as error:
        refused = isinstance(error, StorageError)
        answer = {"error": str(error), "refused": refused, "transient": error.transient}
    json.dump(answer, sys.stdout, default=str)  # An attribute may be of any type.


if __name__ == "__main__":
    _main()
