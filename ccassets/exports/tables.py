"""Rows as tables: CSV, Parquet, a Hugging Face dataset folder, and the concept scores of a study."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.row_files import plain_cell
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.exports.exported_rows import Columns, ExportedRows
from ccassets.files import make_folder, remove_leftovers, replacing, storage_errors, sync, write_text
from ccassets.progress import Progress, silent

if TYPE_CHECKING:
    import pyarrow as pa

_SHARD_BYTES = 500 << 20
"""The vectors of one Parquet file of a Hugging Face folder: the size that the hub advises."""
_ROW_GROUP_BYTES = 16 << 20
"""The vectors of a row group. Writing it takes ten times as much memory; many small groups slow readers down."""
_REPEATED = ["split", "label", "class", "group", "predicted"]
"""The columns worth a dictionary: one of vectors costs more time than the rest of a file."""
_TEXT_ROWS = 64
"""Rows that are texts at a time: as objects of Python, numbers take twenty times their bytes."""
_SCORED_FACTS = ("id", "key", "split", "label", "class", "group")
"""The columns beside the concept scores of a study."""


def write_csv(rows: ExportedRows, path: Path, progress: Progress) -> None:
    """Write rows as CSV: a vector is a JSON list, and a spreadsheet finds no formula."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    def cells(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch({name: _cells(batch[name]) for name in batch.schema.names})

    with pa_csv.CSVWriter(path, cells(record_batch(rows.empty, rows.concepts)).schema) as writer:
        for columns in rows.blocks(progress):
            batch = record_batch(columns, rows.concepts)
            for first in range(0, len(batch), _TEXT_ROWS):
                writer.write_batch(cells(batch.slice(first, _TEXT_ROWS)))


def write_parquet(rows: ExportedRows, path: Path, progress: Progress) -> None:
    """Write rows as Parquet: a vector is a list of fixed size, in its stored dtype."""
    blocks = rows.blocks(progress, block_bytes=_ROW_GROUP_BYTES)
    _write_batches(path, rows.empty, rows.concepts, blocks, use_dictionary=_REPEATED)


def write_huggingface(rows: ExportedRows, folder: Path, progress: Progress) -> None:
    """Fill a folder with Parquet files by split, and a `README.md` that names them for `datasets.load_dataset`."""
    files = write_split_files(rows, folder / "data", progress)
    write_text(folder / "README.md", f"---\n{data_files_yaml(files)}---\n")


def write_split_files(rows: ExportedRows, folder: Path, progress: Progress) -> dict[str, list[Path]]:
    """Write the rows of every split as Parquet files of at most half a gigabyte.

    Returns:
        The files of every split that has rows, by the name that `datasets` takes for it.

    Raises:
        AnalysisError: Two splits have the same name once it is one that `datasets` takes.
    """
    make_folder(folder)
    row_bytes = sum(values.dtype.itemsize * int(np.prod(values.shape[1:])) for values in rows.empty.values())
    step = max(1, _SHARD_BYTES // row_bytes)
    files: dict[str, list[Path]] = {}
    for split, part in rows.database.splits.items():
        first, last = max(part.start, rows.rows.start), min(part.stop, rows.rows.stop)
        if first >= last:
            continue
        name = re.sub(r"\W", "_", split)
        if name in files:
            raise AnalysisError(f"Two splits would be called {name!r} in a Hugging Face dataset. Export one of them.")
        starts = range(first, last, step)
        files[name] = []
        for number, start in enumerate(starts):
            path = folder / f"{name}-{number:05d}-of-{len(starts):05d}.parquet"
            blocks = rows.blocks(progress, slice(start, min(start + step, last)), _ROW_GROUP_BYTES)
            _write_batches(path, rows.empty, rows.concepts, blocks, use_dictionary=_REPEATED)
            sync(path)
            files[name].append(path)
    return files


def data_files_yaml(files: Iterable[str]) -> str:
    """The part of a dataset card's header that says which files a split has."""
    lines = ["configs:", "- config_name: default", "  data_files:"]
    for split in files:
        lines += [f"  - split: {split}", f"    path: data/{split}-*.parquet"]
    return "\n".join(lines) + "\n"


def write_concept_scores(database: Database, path: Path, progress: Progress = silent) -> None:
    """Write the concept scores of a database that a build wrote and checked: a Parquet file of one row for each image.

    Args:
        database: The database.
        path: The file; until the new one is complete, it holds what was there before.
        progress: Counts rows.

    Raises:
        AnalysisError: A concept has the name of a column that describes the row.
        StorageError: The file cannot be written.
    """
    rows = ExportedRows(database)
    facts = {name: values for name, values in rows.facts(rows.rows).items() if name in _SCORED_FACTS}

    def blocks() -> Iterator[Columns]:
        for first, features in iter_blocks(database.image_features, 16 << 20):
            last = first + len(features)
            known = {name: values[first:last] for name, values in facts.items()}
            yield {**known, "concept_scores": rows.scores(features)}
            progress(last, len(database))

    with storage_errors(path):
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            empty = {name: values[:0] for name, values in facts.items()}
            empty["concept_scores"] = np.empty((0, len(rows.concepts)), np.float32)
            _write_batches(temporary, empty, rows.concepts, blocks())


def record_batch(columns: Columns, concepts: Mapping[str, str | None]) -> pa.RecordBatch:
    """Columns as Arrow arrays: rows of numbers as lists of fixed size, concept scores as a column for each concept.

    The code of a concept is metadata of its column.

    Raises:
        AnalysisError: A concept has the name of another column.
    """
    import pyarrow as pa

    arrays = {name: _arrow(values) for name, values in columns.items() if name != "concept_scores"}
    clash = sorted(set(arrays) & set(concepts))
    if clash:
        raise AnalysisError(f"The concepts {clash} have the names of columns that describe the rows. Rename them.")
    if "concept_scores" in columns:
        arrays |= {name: pa.array(scores) for name, scores in zip(concepts, columns["concept_scores"].T, strict=True)}
    fields = [
        pa.field(name, array.type, metadata={"code": code} if (code := concepts.get(name)) else None)
        for name, array in arrays.items()
    ]
    return pa.record_batch(list(arrays.values()), schema=pa.schema(fields))


def _write_batches(
    path: Path, empty: Columns, concepts: Mapping[str, str | None], blocks: Iterator[Columns], **options: Any
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = record_batch(empty, concepts).schema
    # The smallest and the largest number of a vector tell a reader nothing, and take longer than writing it.
    flat = [field.name for field in schema if not pa.types.is_fixed_size_list(field.type)]
    with pq.ParquetWriter(path, schema, write_statistics=flat, **options) as writer:
        for columns in blocks:
            writer.write_batch(record_batch(columns, concepts))


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    if values.dtype == object:
        return pa.array([_encodable(text) for text in values], pa.string())
    array = pa.array(np.ascontiguousarray(values).reshape(-1))
    for size in values.shape[:0:-1]:
        array = pa.FixedSizeListArray.from_arrays(array, size)
    return array


def _encodable(text: str) -> str:
    """A text as UTF-8 can hold it: bytes of a file that are none are shown as `\\udc80`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def _cells(array: pa.Array) -> pa.Array:
    import pyarrow as pa

    if pa.types.is_string(array.type):
        return pa.array([plain_cell(text) for text in array.to_pylist()], pa.string())
    if not pa.types.is_fixed_size_list(array.type):
        return array
    shape = [len(array)]
    while pa.types.is_fixed_size_list(array.type):
        shape.append(array.type.list_size)
        array = array.flatten()
    return pa.array([json.dumps(values) for values in array.to_numpy().reshape(shape).tolist()], pa.string())
