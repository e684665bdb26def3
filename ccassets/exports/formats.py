"""The formats of an export, by the suffix of its path or by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ccassets.database.reader import Database
from ccassets.database.sandbox import require_readable_rows
from ccassets.errors import AnalysisError
from ccassets.exports.arrays import write_anndata, write_numpy
from ccassets.exports.exported_rows import ExportedRows
from ccassets.exports.tables import write_csv, write_huggingface, write_parquet
from ccassets.exports.zarr_references import write_parquet_references, write_references
from ccassets.files import remove_leftovers, replacing, replacing_folder, storage_errors
from ccassets.progress import Progress, silent

_Writer = Callable[[ExportedRows, Path, Progress], None]

_FILES: dict[str, _Writer] = {"csv": write_csv, "parquet": write_parquet, "h5ad": write_anndata}
_FOLDERS: dict[str, _Writer] = {"huggingface": write_huggingface, "npy": write_numpy}

FORMATS = (*_FILES, *_FOLDERS, "refs")
"""The formats: files with the format as suffix, folders, and references (`.refs.json`, or a folder `.refs.parquet`)."""


def export(
    database: Database,
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    split: str | None = None,
    tokens: bool = False,
    url: str | None = None,
    progress: Progress = silent,
) -> None:
    """Write the rows of a database in a format that other tools read.

    Every row has its facts (id, key, split, label, class, group, digests), its image features, its scores on concepts,
    and the prediction of the study's classifier where `analysis/model.json` beside the file holds one. Rows are
    streamed. References (`refs`) copy no row: with them the file itself is a Zarr store, of all rows and tokens. Until
    the export is complete, `path` holds what was there before.

    Args:
        database: The database.
        path: The file, or the folder, new or empty, of the formats `huggingface` and `npy` and of `.refs.parquet`.
        format: One of `FORMATS`; by default the suffix of `path`.
        split: Export the rows of this split alone.
        tokens: Export token features, too.
        url: For `refs`: where the database will lie, by default where it lies; a folder when it ends with `/`.
        progress: Counts rows.

    Raises:
        AnalysisError: The format is not known or cannot hold the rows, two columns have the same name, a library is
            not installed, or the file has no token features.
        DatabaseError: There is no such split, or reading takes more memory or time than a file of its size can.
        StorageError: The export cannot be written, or its folder is not empty.
    """
    require_readable_rows(database.source)
    export_checked(database, Path(path), format=format, split=split, tokens=tokens, url=url, progress=progress)


def export_checked(
    database: Database,
    path: Path,
    *,
    format: str | None = None,
    split: str | None = None,
    tokens: bool = False,
    url: str | None = None,
    progress: Progress = silent,
) -> None:
    """Export a database that is known to be readable, such as one that was just validated."""
    name = format or ("refs" if ".refs" in path.suffixes[-2:-1] else path.suffix.lower().removeprefix("."))
    if name not in FORMATS:
        suffixes = ", ".join(f".{suffix}" for suffix in (*_FILES, "refs.json", "refs.parquet"))
        raise AnalysisError(
            f"{path.name}: expected one of the suffixes {suffixes}, which name the format, or `--format` with one of "
            f"{', '.join(FORMATS)}; found {name or 'neither'!r}."
        )
    is_folder = name in _FOLDERS or (name == "refs" and path.suffix == ".parquet")
    writer = (
        _reference_writer(database, url, split, is_folder)
        if name == "refs"
        else _row_writer(database, split, tokens, progress, {**_FILES, **_FOLDERS}[name])
    )
    with storage_errors(path):
        if is_folder:
            with replacing_folder(path) as folder:
                writer(folder)
        else:
            remove_leftovers(path.parent)
            with replacing(path) as temporary:
                writer(temporary)


def _row_writer(
    database: Database, split: str | None, tokens: bool, progress: Progress, write: _Writer
) -> Callable[[Path], None]:
    rows = ExportedRows(database, split, tokens)
    return lambda path: write(rows, path, progress)


def _reference_writer(
    database: Database, url: str | None, split: str | None, is_folder: bool
) -> Callable[[Path], None]:
    if database.is_remote:
        raise AnalysisError(f"{database.path.name}: make the references where the file lies, or of a copy of it.")
    if split is not None:
        raise AnalysisError("References are of a whole file: leave `--split` out, and select rows when you read.")
    write = write_parquet_references if is_folder else write_references
    return lambda path: write(database, path, url)
