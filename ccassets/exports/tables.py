"""Scores and features as files that other tools read: CSV, Parquet and AnnData, written block by block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.samples import class_names, database_concepts
from ccassets.analysis.scores import normalise
from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.files import remove_leftovers, replacing, storage_errors
from ccassets.progress import Progress, silent

if TYPE_CHECKING:
    import pyarrow as pa

What = Literal["scores", "features"]

_BLOCK_BYTES = 16 << 20


def export(database: Database, path: Path, what: What = "scores", progress: Progress = silent) -> None:
    """Write every row's concept scores, or its image features, to `path`, whose ending says how.

    `.csv` and `.parquet`: what is known of the row (id, key, split, label, class, group), then a column for every
    concept, or `f0` … for the features, float32. `.h5ad`: the same as an AnnData object, the numbers as `X`, the rows
    as `obs`, concepts with group and level as `var`; it needs the extra `export`. The file is whole, or what was there
    before. Raises `AnalysisError` for another ending or when two columns would have one name.
    """
    writers = {".csv": _write_csv, ".parquet": _write_parquet, ".h5ad": _write_anndata}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise AnalysisError(f"{path.name}: the ending says how to write; one of {', '.join(writers)} was expected.")
    content = _Content(database, what)
    with _replaced(path) as temporary:
        writer(content, temporary, progress)


class _Content:
    """What is exported: the rows' facts, the columns' names, and the numbers in blocks."""

    def __init__(self, database: Database, what: What) -> None:
        self._database = database
        self._vectors = database.concept_features() if what == "scores" else None
        self.what = what
        self.facts = _facts(database)
        self.names = list(database.concepts) if what == "scores" else [f"f{number}" for number in range(database.dim)]
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
        if self.what == "features":
            return {}
        concepts = database_concepts(self._database)
        return {
            "group": np.array([concept.group or "" for concept in concepts], object),
            "level": np.array([np.nan if concept.level is None else concept.level for concept in concepts]),
        }


def _facts(database: Database) -> dict[str, npt.NDArray[Any]]:
    classes = class_names(database)
    named = [str(classes[label]) if 0 <= label < len(classes) else "" for label in database.labels.tolist()]
    facts = {
        "id": database.ids,
        "key": database.keys,
        "split": database.split,
        "label": database.labels,
        "class": np.array(named, object),
        "group": database.groups,
    }
    return {name: values for name, values in facts.items() if values is not None}


@contextmanager
def _replaced(path: Path) -> Iterator[Path]:
    """A temporary sibling that takes the path's place when all went well."""
    with storage_errors(path):
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            yield temporary


# --- CSV and Parquet ---------------------------------------------------------------------------------


def _write_csv(content: _Content, path: Path, progress: Progress) -> None:
    import pyarrow.csv as pa_csv

    with pa_csv.CSVWriter(path, _schema(content)) as writer:
        for batch in _batches(content, progress):
            writer.write_batch(batch)


def _write_parquet(content: _Content, path: Path, progress: Progress) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, _schema(content)) as writer:
        for batch in _batches(content, progress):
            writer.write_batch(batch)


def _schema(content: _Content) -> pa.Schema:
    import pyarrow as pa

    facts = [(name, pa.string() if values.dtype == object else pa.int64()) for name, values in content.facts.items()]
    return pa.schema([*facts, *((name, pa.float32()) for name in content.names)])


def _batches(content: _Content, progress: Progress) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    schema = _schema(content)
    for first, block in content.blocks():
        last = first + len(block)
        facts = [values[first:last] for values in content.facts.values()]
        arrays = [pa.array(values, field.type) for values, field in zip([*facts, *block.T], schema, strict=True)]
        yield pa.record_batch(arrays, schema=schema)
        progress(last, len(content))


# --- AnnData -----------------------------------------------------------------------------------------


def _write_anndata(content: _Content, path: Path, progress: Progress) -> None:
    """Rows and columns by the library; then `X` is added as its format says, without ever being whole in memory."""
    try:
        import anndata
        import pandas as pd
    except ImportError as error:
        raise AnalysisError("AnnData files need the package anndata: pip install 'ccassets[export]'.") from error
    import h5py

    # Texts as plain objects: the string arrays of newer pandas are not what every version of anndata can read.
    def table(columns: dict[str, npt.NDArray[Any]], names: list[str]) -> Any:
        index = pd.Index(names, dtype=object)
        return pd.DataFrame({name: pd.Series(values, index, values.dtype) for name, values in columns.items()}, index)

    rows = table(content.facts, list(map(str, content.facts["id"])))
    columns = table(content.columns(), content.names)
    with h5py.File(path, "w", locking=False) as file:  # We hold the lock of a file that is not finished.
        anndata.io.write_elem(file, "/", anndata.AnnData(obs=rows, var=columns))
        if "X" in file:
            del file["X"]
        numbers = file.create_dataset("X", (len(content), len(content.names)), "f4")
        numbers.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for first, block in content.blocks():
            numbers[first : first + len(block)] = block
            progress(first + len(block), len(content))
