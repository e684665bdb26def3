"""Selections as files: keys, CSV, Parquet, a zip with a new study of the chosen rows."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.row_files import csv_text
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.exports.exported_rows import ExportedRows
from ccassets.exports.study_of_rows import key_lines, stored_keys, study_of_rows
from ccassets.exports.tables import record_batch
from ccassets.study.schema import Study

Rows = npt.NDArray[np.int64]

_HIDDEN = ("image_features", "concept_scores", "probabilities", "label_matrix", "image_digest", "feature_digest")
"""Columns that a spreadsheet has no use for."""


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
    keys = stored_keys(exported.database)
    return key_lines(keys[row] for row in rows.tolist())


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


def study_zip(
    study: Study, database: Database, rows: Rows, name: str, labels: Mapping[int, str] | None = None
) -> bytes:
    """Pack a study of chosen rows (`study_of_rows`) as a zip with the folder `<name>`, for one's folder of studies."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, content in study_of_rows(study, database, rows.tolist(), name, labels).items():
            archive.writestr(f"{name}/{file}", content)
    return buffer.getvalue()
