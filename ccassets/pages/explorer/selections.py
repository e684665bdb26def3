"""Selections as files: keys, CSV, Parquet, a new study of the chosen rows, corrected labels."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from ccassets.analysis.row_files import csv_text
from ccassets.analysis.samples import class_names
from ccassets.database.reader import Database
from ccassets.datasets.revised_rows import distinct_names
from ccassets.errors import AnalysisError
from ccassets.exports.exported_rows import ExportedRows
from ccassets.exports.tables import record_batch
from ccassets.study.loading import STUDY_FILE
from ccassets.study.schema import Study

SUBSET_FILE = "subset.txt"

Rows = npt.NDArray[np.int64]

_HIDDEN = ("image_features", "concept_scores", "probabilities", "label_matrix", "image_digest", "feature_digest")
"""Columns that a spreadsheet has no use for."""
_PATH_KEYS = {
    "dataset": ("root", "file", "path", "subset", "labels_override"),
    "encoder": ("weights", "tokenizer", "study"),
}
"""Keys of a study file whose value may be a path from the study's folder."""


def selected_rows(database: Database, rows: Sequence[Any]) -> Rows:
    """The numbers of chosen rows, each once, in the order given.

    Raises:
        AnalysisError: There are none, or some are no rows of the file.
    """
    numbers = [row for row in dict.fromkeys(rows) if type(row) is int and 0 <= row < len(database)]
    if not rows or len(numbers) < len(dict.fromkeys(rows)):
        raise AnalysisError(f"Expected numbers of rows from 0 to {len(database) - 1}.")
    return np.array(numbers, np.int64)


def keys_text(exported: ExportedRows, rows: Rows) -> bytes:
    """The keys of rows, one a line.

    Raises:
        AnalysisError: The file has no keys, or one has a line break.
    """
    return _lines(_keys(exported.database, rows))


def _lines(keys: Sequence[str]) -> bytes:
    if any("\n" in key or "\r" in key for key in keys):
        raise AnalysisError("A key has a line break: a list of one key a line cannot hold it.")
    return "".join(f"{key}\n" for key in keys).encode("utf-8", "surrogateescape")


def rows_csv(exported: ExportedRows, rows: Rows) -> bytes:
    """Facts and concept scores of rows as CSV."""
    columns = exported.take(rows)
    facts = {"row": rows, **{name: values for name, values in columns.items() if name not in _HIDDEN}}
    facts |= zip(exported.concepts, columns["concept_scores"].T, strict=True) if exported.concepts else ()
    lists = [values.tolist() for values in facts.values()]
    return csv_text(list(facts), zip(*lists, strict=True)).encode("utf-8", "backslashreplace")


def rows_parquet(exported: ExportedRows, rows: Rows) -> bytes:
    """All columns of rows as Parquet, as `ccassets export` writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_batches([record_batch(exported.take(rows), exported.concepts)]), buffer)
    return buffer.getvalue()


FORMATS: Mapping[str, tuple[Callable[[ExportedRows, Rows], bytes], str]] = {
    "keys": (keys_text, "text/plain; charset=utf-8"),
    "csv": (rows_csv, "text/csv; charset=utf-8"),
    "parquet": (rows_parquet, "application/vnd.apache.parquet"),
}
"""What a selection is written as, and the media type of each."""


def new_study(study: Study, exported: ExportedRows, rows: Rows, name: str) -> bytes:
    """Write a study of chosen rows: a zip with `<name>/defs.yaml` and its subset, to be unpacked among one's studies.

    Args:
        study: The study that the rows are of; the new one is its copy, with `dataset.subset`.
        exported: The rows of its database.
        rows: Numbers of the chosen rows.
        name: Name of the new study: letters, digits and `_`.

    Raises:
        AnalysisError: The name cannot be a study's, or the file has no keys.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]{1,80}", name):
        raise AnalysisError(f"{name!r} cannot name a study: expected letters, digits and _.")
    content = yaml.safe_load((study.folder / STUDY_FILE).read_text(encoding="utf-8"))
    for section, keys in _PATH_KEYS.items():
        values = content["attributes"][section]
        values.update({key: _absolute(study, values[key]) for key in keys if isinstance(values.get(key), str)})
    content["attributes"]["dataset"]["subset"] = SUBSET_FILE
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
        archive.writestr(f"{name}/{STUDY_FILE}", text)
        archive.writestr(f"{name}/{SUBSET_FILE}", _lines(_names(exported.database, rows)))
    return buffer.getvalue()


def corrected_labels(database: Database, labels: Mapping[int, str]) -> bytes:
    """Corrected labels as CSV, `key,label`, for `dataset.labels_override` of a study.

    Args:
        database: The database.
        labels: The class of every corrected row, by row number.

    Raises:
        AnalysisError: A row or class is not one of the file's.
    """
    unknown = sorted(set(labels.values()) - set(class_names(database)))
    if unknown:
        raise AnalysisError(f"There are no classes {unknown}; there are {list(class_names(database))}.")
    rows = selected_rows(database, list(labels))
    # Keys are file names as they are: an apostrophe before them would make them other names.
    names = _names(database, rows)
    return csv_text(["key", "label"], zip(names, labels.values(), strict=True)).encode("utf-8", "surrogateescape")


def _keys(database: Database, rows: Rows) -> list[str]:
    if database.keys is None:
        raise AnalysisError(f"{database.path.name} does not say where its rows came from: they have no keys.")
    keys: list[str] = database.keys[rows].tolist()
    return keys


def _names(database: Database, rows: Rows) -> list[str]:
    """The keys of rows as a study names them: `split/key` where another row of the file has the same key."""
    names = distinct_names(_keys(database, np.arange(len(database))), database.split.tolist())
    return [names[row] for row in rows.tolist()]


def _absolute(study: Study, value: str) -> str:
    """A path of a study file as an absolute one; other values, such as the id of a hub, as they are."""
    path: Path = study.resolve(value)
    return str(path.absolute()) if path.exists() else value
