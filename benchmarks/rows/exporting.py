"""Rows about exports: image features as text, image and token features as Parquet."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import original
from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import Output, copy_file, material, megabytes
from benchmarks.rows.searching import open_vectors
from benchmarks.sizes import Size
from ccassets.exports.formats import export_checked


def export_csv(folder: Path, size: Size) -> Contest:
    database = open_vectors(folder, size.vectors, size.dim)
    out = Output(folder / "out")
    path = out.path / "rows.csv"

    def limit() -> None:
        with path.open("w", encoding="utf-8") as file:
            for first in range(0, size.vectors, 64):
                for row in np.asarray(database.image_features[first : first + 64]).tolist():
                    file.write(f"{json.dumps(row)}\n")

    return Contest(
        work=f"the image features of {size.vectors:,} images as CSV",
        ours=lambda: export_checked(database, path),
        limit=Contestant("`json.dumps` of every row, and nothing else of it", limit),
        target=Target(of_limit=0.6),
        reset=out.empty,
    )


def export_parquet(folder: Path, size: Size) -> Contest:
    database = material(folder, size).open()
    out = Output(folder / "out")
    path = out.path / "rows.parquet"
    return Contest(
        work=f"image and token features of {size.rows} images, {megabytes(database.path.stat().st_size)}, as Parquet",
        ours=lambda: export_checked(database, path, tokens=True),
        limit=Contestant("`cp` of the database, and fsync", lambda: copy_file(database.path, path)),
        usual=Contestant(
            "the same columns by pyarrow as it is, 64 rows at a time", lambda: _usual(database.path, path)
        ),
        target=Target(of_limit=0.1),
        reset=out.empty,
    )


def _usual(source: Path, path: Path) -> None:
    with h5py.File(source, "r") as file:
        writer = None
        for first in range(0, len(file["labels"]), 64):
            rows = slice(first, first + 64)
            columns = {}
            for name in ("image_features", "image_token_features"):
                values = file[name][rows]
                array = pa.array(values.reshape(-1))
                for length in values.shape[:0:-1]:
                    array = pa.FixedSizeListArray.from_arrays(array, length)
                columns[name] = array
            table = pa.table(columns)
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()
    original.sync(path)
