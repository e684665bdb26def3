"""References that make a database a Zarr store without a copy: the format of kerchunk, version 1, JSON or Parquet."""

from __future__ import annotations

import base64
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ccassets.database.hdf5 import (
    decode_text,
    file_descriptor,
    listed_group,
    read_texts,
    safe_dataset,
    safe_group,
    safe_member,
    sorted_names,
)
from ccassets.database.hdf5_heap_guard import contiguous_ranges, gaps
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.files import make_folder, sync, write_text

Reference = str | tuple[str, int, int]
"""What a key of the store stands for: a text, `base64:` and bytes, or a range (URL, offset, size)."""

_MAX_METADATA = 64 << 20
"""More bytes between the arrays of a file are not metadata."""
_RECORD = 10_000
"""References of an array in one file of the Parquet form: what a reader loads for one of them."""
_MAX_BLOCKS = {"image_features": 64, "image_token_features": 1}
"""The most rows in a reference of an array: tokens of a row are one request of exactly their bytes."""
_DIMENSIONS = {
    "image_features": ("row", "feature"),
    "image_token_features": ("row", "patch", "feature"),
    "text_features": ("prompt", "feature"),
    "text_token_features": ("prompt", "text_token", "feature"),
}
"""Names of the axes, for xarray; those of other arrays are made of the array's name."""


def write_references(database: Database, path: Path, url: str | None = None) -> None:
    """Write references as JSON: small arrays and texts are in it, rows are ranges of the file.

    Args:
        database: The database.
        path: The file.
        url: Where the database will lie; by default where it lies.

    Raises:
        AnalysisError: An array is stored in compressed chunks, which Zarr does not read.
    """
    location = _location(database, url)
    references = {
        key: value if isinstance(value, str) else ["{{u}}", *value[1:]]
        for key, value in _references(database, location)
    }
    content = {"version": 1, "templates": {"u": location}, "refs": references, "hdf5": _metadata(database.file)}
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")


def write_parquet_references(database: Database, folder: Path, url: str | None = None) -> None:
    """Fill a folder with the same references as Parquet files, which a reader loads ten thousand at a time.

    Args:
        database: The database.
        folder: The folder.
        url: Where the database will lie; by default where it lies.

    Raises:
        AnalysisError: An array is stored in compressed chunks, which Zarr does not read.
    """
    metadata: dict[str, Any] = {}
    records: dict[str, dict[int, Reference]] = {}
    for key, value in _references(database, _location(database, url)):
        array, _, name = key.rpartition("/")
        if name.startswith(".z"):
            metadata[key] = json.loads(str(value))
        else:
            about = metadata[f"{array}/.zarray"]
            grid = [-(-size // chunk) for size, chunk in zip(about["shape"], about["chunks"], strict=True)]
            number = int(np.ravel_multi_index([int(index) for index in name.split(".")], grid))
            records.setdefault(array, {})[number] = value
    metadata.pop(".zmetadata")
    write_text(folder / ".zmetadata", json.dumps({"metadata": metadata, "record_size": _RECORD}))
    for array, references in records.items():
        make_folder(folder / array)
        for number in range(max(references) // _RECORD + 1):
            _write_record(folder / array / f"refs.{number}.parq", references, number * _RECORD)


def _write_record(path: Path, references: Mapping[int, Reference], first: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    chosen = [references.get(number) for number in range(first, min(first + _RECORD, max(references) + 1))]
    ranges = [value if isinstance(value, tuple) else (None, 0, 0) for value in chosen]
    raw = [base64.b64decode(value.removeprefix("base64:")) if isinstance(value, str) else None for value in chosen]
    columns = {
        "path": pa.array([location for location, _, _ in ranges], pa.string()),
        "offset": pa.array([offset for _, offset, _ in ranges], pa.int64()),
        "size": pa.array([size for _, _, size in ranges], pa.int64()),
        "raw": pa.array(raw, pa.binary()),
    }
    pq.write_table(pa.table(columns), path)
    sync(path)


def _location(database: Database, url: str | None) -> str:
    if url is None:
        return database.path.as_uri()
    return f"{url}{database.path.name}" if url.endswith("/") else url


def _references(database: Database, url: str) -> Iterator[tuple[str, Reference]]:
    """Every key of the store; those of Zarr's metadata come before the chunks that they describe."""
    metadata = {".zgroup": {"zarr_format": 2}, ".zattrs": dict(database.attributes)}
    chunks: dict[str, Iterator[tuple[str, Reference]]] = {}
    for group, prefix in _groups(database):
        if prefix:
            metadata[f"{prefix}.zgroup"] = {"zarr_format": 2}
        for name in sorted_names(group):
            dataset = safe_dataset(group, name) if isinstance(safe_member(group, name), h5py.Dataset) else None
            if dataset is None or not (dataset.dtype.kind in "iuf" or h5py.check_string_dtype(dataset.dtype)):
                continue
            about, chunks[f"{prefix}{name}"] = _array(dataset, name, url)
            metadata[f"{prefix}{name}/.zarray"] = about
            axes = [f"{name}_{axis}" if axis else "prompt" if prefix else "row" for axis in range(dataset.ndim)]
            metadata[f"{prefix}{name}/.zattrs"] = {"_ARRAY_DIMENSIONS": _DIMENSIONS.get(name, axes)}
    for name, template in database.templates.items():
        metadata[f"templates/{name}/.zattrs"] = dict(template.attributes)
    consolidated = {"zarr_consolidated_format": 1, "metadata": metadata}
    for key, value in {**metadata, ".zmetadata": consolidated}.items():
        yield key, json.dumps(value, ensure_ascii=False, default=decode_text)
    for array, references in chunks.items():
        for name, reference in references:
            yield f"{array}/{name}", reference


def _groups(database: Database) -> Iterator[tuple[h5py.Group, str]]:
    yield database.file, ""
    templates = safe_group(database.file, "templates")
    if templates is not None:
        yield templates, "templates/"
        for name in sorted_names(templates):
            yield listed_group(templates, name), f"templates/{name}/"


def _array(dataset: h5py.Dataset, name: str, url: str) -> tuple[dict[str, Any], Iterator[tuple[str, Reference]]]:
    """An array's `.zarray`, and its chunks by name."""
    about: dict[str, Any] = {
        "zarr_format": 2,
        "shape": dataset.shape,
        "chunks": [max(1, size) for size in dataset.shape],
        "dtype": dataset.dtype.str,
        "order": "C",
        "compressor": None,
        "filters": None,
        "fill_value": None,
    }
    whole = ".".join("0" for _ in dataset.shape) or "0"
    if h5py.check_string_dtype(dataset.dtype) is not None:
        texts = [text.encode("utf-8", "backslashreplace") for text in read_texts(dataset).reshape(-1)]
        data = struct.pack("<I", len(texts)) + b"".join(struct.pack("<I", len(text)) + text for text in texts)
        about |= {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": {"id": "zlib", "level": 6}}
        return about, iter([(whole, _inline(data))])
    if dataset.ndim < 2:
        about["compressor"] = {"id": "zlib", "level": 6}
        return about, iter([(whole, _inline(np.ascontiguousarray(dataset[...]).tobytes()))])
    if dataset.chunks is not None:
        if dataset.id.get_create_plist().get_nfilters():
            raise AnalysisError(
                f"{dataset.name}: expected rows as they are, found compressed chunks, which Zarr does not read. "
                "Adopt the file, or copy it and give the copy to `ccassets.h5.finalize`: both write it contiguous."
            )
        about["chunks"] = dataset.chunks
        return about, _stored_chunks(dataset, url)
    offset = dataset.id.get_offset()
    if offset is None:
        return about, iter(())
    size = dataset.dtype.itemsize * int(np.prod(dataset.shape))
    if name not in _MAX_BLOCKS:
        return about, iter([(whole, (url, offset, size))])
    # A block that the rows do not fill would end behind the data, and at the end of the file not be readable.
    block = max(rows for rows in range(1, _MAX_BLOCKS[name] + 1) if len(dataset) % rows == 0)
    about["chunks"][0] = block
    step, rest = size // len(dataset) * block, ".0" * (dataset.ndim - 1)
    return about, ((f"{part}{rest}", (url, offset + part * step, step)) for part in range(len(dataset) // block))


def _stored_chunks(dataset: h5py.Dataset, url: str) -> Iterator[tuple[str, Reference]]:
    for number in range(dataset.id.get_num_chunks()):
        chunk = dataset.id.get_chunk_info(number)
        name = ".".join(str(start // size) for start, size in zip(chunk.chunk_offset, dataset.chunks, strict=True))
        yield name, (url, chunk.byte_offset, chunk.size)


def _inline(data: bytes) -> str:
    return "base64:" + base64.b64encode(zlib.compress(data)).decode("ascii")


def _metadata(file: h5py.File) -> dict[str, Any] | None:
    """All bytes of a file but those of arrays of two axes or more, with which a remote reader opens it without asking.

    The `size` of the file, and `ranges` of an offset and bytes (zlib, base64); None for a chunked file.
    """
    descriptor = file_descriptor(file)
    size = os.fstat(descriptor).st_size
    arrays = contiguous_ranges(file, axes=2)
    rest = [] if arrays is None else list(gaps(arrays, size))
    if arrays is None or sum(stop - start for start, stop in rest) > _MAX_METADATA:
        return None
    # HDF5 reads the head of an object by 512 bytes, whatever it has: the end of a range is where it may want more.
    parts = ((start, os.pread(descriptor, stop - start + 512, start)) for start, stop in rest)
    return {"size": size, "ranges": [[start, _inline(part).removeprefix("base64:")] for start, part in parts]}
