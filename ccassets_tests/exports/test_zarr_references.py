"""References: zarr, xarray and dask read a database, or a growing file, as the store that references make of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from fsspec.implementations.reference import LazyReferenceMapper

from ccassets import open_database
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.exports.formats import export_checked
from ccassets_tests.database.made_files import write_database
from ccassets_tests.exports.test_formats import legacy

zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")

SPLITS = {"train": 7, "val": 3, "test": 3}
"""13 rows: no block of several rows divides them."""


def chunked(path: Path) -> Path:
    """The same rows in chunks of four, as a growing file has them."""
    write_database(path, SPLITS)
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features"):
            values = file[name][...]
            del file[name]
            file.create_dataset(name, data=values, chunks=(4, *values.shape[1:]))
    return path


FILES = {
    "ours": lambda path: write_database(path, SPLITS),
    "no tokens": lambda path: write_database(path, SPLITS, tokens=0),
    "several labels": lambda path: write_database(path, SPLITS, matrix=True),
    "chunked": chunked,
}


@pytest.fixture(params=FILES)
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    with open_database(FILES[request.param](tmp_path / "features.h5")) as opened:
        yield opened


def options(database: Database, form: str) -> dict[str, Any]:
    """Where fsspec reads the references of a database, written now."""
    path = database.path.with_name(f"features.refs.{form}")
    export_checked(database, path)
    if form == "json":
        return {"fo": str(path)}
    return {"fo": LazyReferenceMapper(str(path), engine="pyarrow"), "remote_protocol": "file"}


@pytest.mark.parametrize("form", ["json", "parquet"])
def test_zarr_and_xarray_read_every_value_text_and_attribute(database: Database, form: str) -> None:
    storage = options(database, form)
    group = zarr.open_group("reference://", storage_options=storage, mode="r")
    names = set(group.array_keys())
    assert names == {name for name, item in database.file.items() if isinstance(item, h5py.Dataset)}
    for name in names - {"split", "keys", "groups"}:
        assert np.array_equal(group[name][:], database.file[name][...]), name
    for name, texts in {"split": database.split, "keys": database.keys, "groups": database.groups}.items():
        assert list(group[name][:]) == texts.tolist()
    assert dict(group.attrs) == json.loads(json.dumps(dict(database.attributes)))
    for name, template in database.templates.items():
        stored = group[f"templates/{name}"]
        assert list(stored["texts"][:]) == template.texts
        assert np.array_equal(stored["text_features"][:], template.text_features)
        assert np.array_equal(stored["text_token_features"][:], template.text_token_features)
        assert stored.attrs["texts_hash"] == template.attributes["texts_hash"]

    table = xarray.open_zarr("reference://", storage_options=storage)
    assert table.image_features.dims == ("row", "feature")
    assert type(table.image_features.data).__module__.startswith("dask.")
    assert np.array_equal(table.image_features.values, np.asarray(database.image_features))
    assert np.array_equal(table["labels"].values, database.labels)


def test_a_row_is_one_reference_of_exactly_its_bytes_at_the_url(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5", SPLITS)) as database:
        export_checked(database, tmp_path / "a.refs.json", url="s3://bucket/folder/")
        content = json.loads((tmp_path / "a.refs.json").read_text())
        offset, size = database.byte_range("image_token_features")
    assert content["version"] == 1
    assert content["templates"] == {"u": "s3://bucket/folder/a.h5"}
    assert content["refs"]["image_token_features/5.0.0"] == ["{{u}}", offset + 5 * size, size]


def test_compressed_chunks_are_refused(tmp_path: Path) -> None:
    with (
        open_database(legacy(tmp_path / "a.h5")) as database,
        pytest.raises(AnalysisError, match=r"/image_features: .* compressed chunks"),
    ):
        export_checked(database, tmp_path / "a.refs.json")
    assert not (tmp_path / "a.refs.json").exists()


def test_references_are_of_a_whole_file(tmp_path: Path) -> None:
    with (
        open_database(write_database(tmp_path / "a.h5", SPLITS)) as database,
        pytest.raises(AnalysisError, match="`--split`"),
    ):
        export_checked(database, tmp_path / "a.refs.json", split="val")


def test_references_of_as_many_rows_as_bloodmnist_are_small(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 11959, "val": 1712, "test": 3421}, dim=4, tokens=1)
    with open_database(path) as database:
        export_checked(database, tmp_path / "a.refs.json", url="https://example.org/data/")
        export_checked(database, tmp_path / "a.refs.parquet", url="https://example.org/data/")
    assert (tmp_path / "a.refs.json").stat().st_size < 2_000_000
    assert len(list((tmp_path / "a.refs.parquet" / "image_token_features").iterdir())) == 2
