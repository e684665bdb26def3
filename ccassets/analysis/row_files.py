"""CSV files and image folders of rows that an analysis lists: search hits, pairs, label errors."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ccassets.files import storage_errors, write_text

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Rows as CSV with a header, in which a spreadsheet finds no formula.

    A text that would be one, such as a file name `=1+1.png`, gets an apostrophe before it.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(plain_cell, columns))
    writer.writerows(map(plain_cell, row) for row in rows)
    return text.getvalue()


def write_csv(path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as `csv_text`; raises `StorageError` when the file cannot be written."""
    write_text(Path(path), csv_text(columns, rows))


def plain_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


def save_images(images: Iterable[tuple[str, Image.Image]], folder: str | os.PathLike[str]) -> list[Path]:
    """Save named images as PNG, each name with its rank before it; raises `StorageError` when one cannot be written."""
    folder, saved = Path(folder), []
    for rank, (name, image) in enumerate(images, start=1):
        path = folder / f"{rank:04d}_{name}.png"
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            image.save(path)
        saved.append(path)
    return saved
