"""Rows as arrays: AnnData, and NumPy files that are mapped into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.samples import database_concepts
from ccassets.database.hdf5 import bytes_of
from ccassets.errors import AnalysisError
from ccassets.exports.exported_rows import ExportedRows
from ccassets.files import sync, write_text
from ccassets.progress import Progress

_STORED_AS = {"encoding-type": "array", "encoding-version": "0.2.0"}
"""How AnnData marks a dense array."""


def write_anndata(rows: ExportedRows, path: Path, progress: Progress) -> None:
    """Write rows as AnnData: image features as `X` (float32), other vectors in `obsm`, concepts in `uns`.

    The library writes what is known of rows; vectors follow block by block, so that they are never whole in memory.
    """
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

    known = rows.facts(rows.rows) | {name: values[rows.rows] for name, values in rows.predictions.items()}
    facts = {name: values for name, values in known.items() if values.ndim == 1}
    observations = data_frame(facts, list(map(str, facts["id"])))
    variables = data_frame({}, [f"f{number}" for number in range(rows.database.dim)])
    words = database_concepts(rows.database) if rows.concepts else ()
    about = {
        "group": np.array([concept.group or "" for concept in words], object),
        "code": np.array([concept.code or "" for concept in words], object),
        "level": np.array([np.nan if concept.level is None else concept.level for concept in words], np.float64),
    }
    concepts = data_frame(about, list(rows.concepts))
    names = {name: "X" if name == "image_features" else f"obsm/{name}" for name, v in rows.empty.items() if v.ndim > 1}
    with h5py.File(path, "w", locking=False) as file:  # We hold the lock of an unfinished file.
        table = anndata.AnnData(obs=observations, var=variables, uns={"concepts": concepts})
        anndata.io.write_elem(file, "/", table)
        for name, target in names.items():
            values = rows.empty[name]
            dtype = np.dtype(np.float32) if values.dtype == np.float16 and target == "X" else values.dtype
            if target in file:
                del file[target]
            file.create_dataset(target, (len(rows), *values.shape[1:]), dtype).attrs.update(_STORED_AS)
        done = 0
        for columns in rows.blocks(progress):
            last = done + len(columns["image_features"])
            for name, target in names.items():
                file[target][done:last] = columns[name]
            done = last


def write_numpy(rows: ExportedRows, folder: Path, progress: Progress) -> None:
    """Fill a folder with a `.npy` file for every column of numbers, and `rows.json` with the texts and the shapes."""
    shapes = {n: (len(rows), *v.shape[1:]) for n, v in rows.empty.items() if v.dtype != object}
    files = {name: (folder / f"{name}.npy").open("wb") for name in shapes}
    try:
        for name, file in files.items():
            header = {"descr": rows.empty[name].dtype.str, "fortran_order": False, "shape": shapes[name]}
            np.lib.format.write_array_header_1_0(file, header)
        texts: dict[str, list[str]] = {name: [] for name in rows.empty if name not in shapes}
        for columns in rows.blocks(progress):
            for name, file in files.items():
                file.write(bytes_of(columns[name]))
            for name, values in texts.items():
                values.extend(columns[name].tolist())
    finally:
        for file in files.values():
            file.close()
    for name in files:
        sync(folder / f"{name}.npy")
    arrays = {
        name: {"file": f"{name}.npy", "dtype": rows.empty[name].dtype.str, "shape": shape}
        for name, shape in shapes.items()
    }
    content = {"rows": len(rows), "arrays": arrays, "texts": texts, "concepts": list(rows.concepts)}
    if codes := {word: code for word, code in rows.concepts.items() if code}:
        content["concept_codes"] = codes
    write_text(folder / "rows.json", json.dumps(content, indent=1) + "\n")
