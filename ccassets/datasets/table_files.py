"""Table files: chosen columns of a CSV or Parquet file, whatever delimiter and encoding it has."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ccassets.datasets.image_files import MAX_TABLE_BYTES
from ccassets.errors import AbsentDataError, DatasetError
from ccassets.files import reading_refused, unreadable_reason

CSV_SUFFIXES: Final = frozenset({".csv", ".tsv"})
_DELIMITERS: Final = ",;\t"
"""The delimiters that spreadsheets write; the one that divides the header into the most columns is taken."""


def read_columns(file: Path, choose: Callable[[Sequence[str]], Sequence[str]], *, encoding: str = "utf-8") -> Any:
    """Read columns of a table file: those of a CSV as text, so that a path `007` stays `007`.

    Args:
        file: A `.csv`, `.tsv` or `.parquet` file.
        choose: Given the names of the columns, those to read; it may raise.
        encoding: The encoding of a CSV file.

    Returns:
        A pyarrow table with the chosen columns, in that order.

    Raises:
        DatasetError: The file is missing, is not a table, or has another encoding.
        StorageError: The operating system refuses to read it now.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if reason := unreadable_reason(file, MAX_TABLE_BYTES):
        raise DatasetError(f"{file} is not read as a table: {reason}.")
    suffix = file.suffix.lower()
    if suffix != ".parquet" and suffix not in CSV_SUFFIXES:
        raise DatasetError(f"{file}: a table is a .csv, .tsv or .parquet file.")
    try:
        if suffix in CSV_SUFFIXES:
            return _read_csv(file, choose, encoding)
        with pq.ParquetFile(file) as parquet:
            return parquet.read(columns=list(choose(parquet.schema_arrow.names)))
    except FileNotFoundError as error:
        raise AbsentDataError(f"The table {file} does not exist; dataset.file names it.") from error
    except (OSError, UnicodeError, csv.Error, pa.ArrowException) as error:
        advice = ""
        if isinstance(error, UnicodeError) or "UTF8" in str(error):
            advice = (
                f". Its text is not {encoding}: name its encoding under dataset.encoding, for example cp1252 or utf-16 "
                "(both by Excel) or gb18030, or save it as UTF-8."
            )
        raise reading_refused(error, str(file)) or DatasetError(
            f"{file} cannot be read as a table: {error}{advice}"
        ) from error


def _read_csv(file: Path, choose: Callable[[Sequence[str]], Sequence[str]], encoding: str) -> Any:
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    headers = {delimiter: _header(file, delimiter, encoding) for delimiter in _DELIMITERS}
    delimiter, header = max(headers.items(), key=lambda item: len(item[1]))
    if not header:
        raise DatasetError(f"{file} cannot be read as a table: it is empty.")
    names = [name.strip() for name in header]
    chosen = list(choose(names))
    columns = [header[names.index(name)] for name in chosen]
    table = pa_csv.read_csv(
        file,
        read_options=pa_csv.ReadOptions(encoding=encoding),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            include_columns=columns, column_types=dict.fromkeys(columns, pa.string())
        ),
    )
    return table.rename_columns(chosen)


def _header(file: Path, delimiter: str, encoding: str) -> list[str]:
    # The mark that some programs write before UTF-8 does not belong to the first name.
    with file.open(encoding="utf-8-sig" if encoding.lower() == "utf-8" else encoding, newline="") as text:
        return next(csv.reader(text, delimiter=delimiter), [])
