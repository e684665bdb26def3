"""Scores and features as tables for other tools: CSV, Parquet and AnnData, written block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.samples import database_concepts, row_classes
from ccassets.analysis.scores import normalise
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database
from ccassets.database.sandbox import require_readable_rows
from ccassets.errors import AnalysisError
from ccassets.files import remove_leftovers, replacing, storage_errors
from ccassets.progress import Progress, silent

if TYPE_CHECKING:
    import pyarrow as pa

Content = Literal["scores", "features"]

_BLOCK_BYTES = 16 << 20


def export(
    database: Database, path: str | os.PathLike[str], content: Content = "scores", progress: Progress = silent
) -> None:
    """Write every row's concept scores, or its image features, as a table whose format the suffix names.

    `.csv` and `.parquet` have columns of facts (id, key, split, label, class, group), then one for every concept, or
    `f0` … for the features, float32. `.h5ad` is the same as an AnnData object, the numbers as `X`, the rows as `obs`,
    concepts with group and level as `var`; it needs the extra `export`. Until the new file is complete, `path` holds
    what was there before.

    Args:
        database: The database.
        path: The file: `.csv`, `.parquet` or `.h5ad`.
        content: What to write of every row.
        progress: Counts rows.

    Raises:
        AnalysisError: The suffix is another one, two columns have the same name, or AnnData is not installed.
        DatabaseError: Reading the database takes more memory or time than a file of its size can.
        StorageError: The file cannot be written.
    """
    require_readable_rows(database.path)
    export_checked(database, Path(path), content, progress)


def export_checked(database: Database, path: Path, content: Content, progress: Progress) -> None:
    """Export a database whose reading needs no proof: a build wrote and checked it."""
    writers = {".csv": _write_csv, ".parquet": _write_parquet, ".h5ad": _write_anndata}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise AnalysisError(f"{path.name}: expected one of the suffixes {', '.join(writers)}, which name the format.")
    table = _Table(database, content)
    with storage_errors(path):
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            writer(table, temporary, progress)


class _Table:
    """What is exported: facts of the rows, names of the columns, and the numbers in blocks."""

    def __init__(self, database: Database, content: Content) -> None:
        self._database = database
        self._vectors = database.concept_features() if content == "scores" else None
        self.content = content
        self.facts = _facts(database)
        self.names = (
            list(database.concepts) if content == "scores" else [f"f{number}" for number in range(database.dim)]
        )
        clash = sorted(set(self.names) & set(self.facts))
        if clash:
            raise AnalysisError(f"The concepts {clash} have the names of columns that describe the rows. Rename them.")

    def __len__(self) -> int:
        return len(self._database)

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Blocks of rows (n, columns) float32 in the order of the file, each with its first row."""
        for first, block in iter_blocks(self._database.image_features, _BLOCK_BYTES):
            values = block.astype(np.float32)
            yield first, values if self._vectors is None else normalise(values) @ self._vectors.T

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """What is known of the columns: a concept's group ("" without) and level (nan without)."""
        if self.content == "features":
            return {}
        concepts = database_concepts(self._database)
        return {
            "group": np.array([concept.group or "" for concept in concepts], object),
            "level": np.array([np.nan if concept.level is None else concept.level for concept in concepts]),
        }


def _facts(database: Database) -> dict[str, npt.NDArray[Any]]:
    facts = {
        "id": database.ids,
        "key": database.keys,
        "split": database.split,
        "label": database.shown_labels,
        "class": np.array(row_classes(database), object),
        "group": database.groups,
    }
    return {name: values for name, values in facts.items() if values is not None}


# --- CSV and Parquet ---------------------------------------------------------------------------------


def _write_csv(table: _Table, path: Path, progress: Progress) -> None:
    import pyarrow.csv as pa_csv

    with pa_csv.CSVWriter(path, _schema(table)) as writer:
        for batch in _batches(table, progress):
            writer.write_batch(batch)


def _write_parquet(table: _Table, path: Path, progress: Progress) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema(table)) as writer:
        for batch in _batches(table, progress):
            writer.write_batch(batch)


def _schema(table: _Table) -> pa.Schema:
    import pyarrow as pa

    facts = [(name, pa.string() if values.dtype == object else pa.int64()) for name, values in table.facts.items()]
    return pa.schema([*facts, *((name, pa.float32()) for name in table.names)])


def _batches(table: _Table, progress: Progress) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = _schema(table)
    for first, block in table.blocks():
        last = first + len(block)
        facts = [values[first:last] for values in table.facts.values()]
        arrays = [pa.array(values, field.type) for values, field in zip([*facts, *block.T], schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)
        progress(last, len(table))


# --- AnnData -----------------------------------------------------------------------------------------


def _write_anndata(table: _Table, path: Path, progress: Progress) -> None:
    """Write rows and columns with the library, then `X` block by block, so that it is never whole in memory."""
    try:
        import anndata
        import pandas as pd
    except ImportError as error:
        raise AnalysisError("AnnData files need the package anndata: pip install 'ccassets[export]'.") from error
    import h5py

    # Texts as plain objects: the string arrays of newer pandas are not what every version of anndata can read.
    def data_frame(columns: dict[str, npt.NDArray[Any]], names: list[str]) -> Any:
        index = pd.Index(names, dtype=object)
        return pd.DataFrame({name: pd.Series(values, index, values.dtype) for name, values in columns.items()}, index)

    rows = data_frame(table.facts, list(map(str, table.facts["id"])))
    columns = data_frame(table.columns(), table.names)
    with h5py.File(path, "w", locking=False) as file:  # We hold the lock of an unfinished file.
        anndata.io.write_elem(file, "/", anndata.AnnData(obs=rows, var=columns))
        if "X" in file:
            del file["X"]
        numbers = file.create_dataset("X", (len(table), len(table.names)), "f4")
        numbers.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for first, block in table.blocks():
            numbers[first : first + len(block)] = block
            progress(first + len(block), len(table))
