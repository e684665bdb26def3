"""A feature database that grows batch by batch: creating, opening, checking and describing it.

Its five row data sets are those of the original scripts, chunked and unfiltered; `finalize` publishes it. One writer
at a time may have it open.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ccassets.database.attributes import read_json_attribute, write_text_attribute
from ccassets.database.hdf5 import Array, read_texts, safe_dataset, safe_group
from ccassets.database.layout import (
    IMAGE_FEATURES,
    IMAGE_TOKEN_FEATURES,
    LOGIT_PARAMETERS,
    ROW_DATASETS,
    STORED_IMAGE_DTYPE,
    UNSPECIFIED_SPLIT,
    VERSION,
    WORD_LISTS,
)
from ccassets.database.writer import now
from ccassets.errors import DatabaseError
from ccassets.files import storage_error
from ccassets.h5.exceptions import ArgumentError
from ccassets.h5.growing_provenance import read_provenance, record_labels, write_provenance
from ccassets.h5.journal import JournaledFile

DEFAULT_DIM = 1152
DEFAULT_TOKEN_COUNT = 729
DEFAULT_PATH = "./conceptclip_features.h5"

_TEXT = h5py.string_dtype("utf-8")
_SMALL_DTYPES: Mapping[str, Any] = {"ids": np.dtype("<i8"), "labels": np.dtype("<i8"), "split": _TEXT}
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 1024
_OWN_ATTRIBUTES = (
    "D", "T_img", "created_at", "version", "profile", "split_counts", "provenance", "logit_scale_space",
    *LOGIT_PARAMETERS,
)  # fmt: skip


class GrowingFile(h5py.File):  # type: ignore[misc]  # h5py has no types
    """An `h5py.File` over a journaled file: its changes appear all at once, at every flush and at closing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._journaled = journaled = JournaledFile(path.absolute())
        try:
            mode = "r+" if path.stat().st_size else "w"
            super().__init__(journaled, mode, libver=("earliest", "v110"))
        except OSError as error:
            journaled.discard()
            journaled.close()
            raise DatabaseError(
                f"{path} cannot be opened as HDF5 ({error}): it is another kind of file, or cut off."
            ) from error
        # Also when the program ends with the file open: HDF5 itself would then write to it when Python is gone.
        self._finish = weakref.finalize(self, _finish, self.id, journaled)

    @property
    def filename(self) -> str:
        return str(self._path)

    def flush(self) -> None:
        """Store everything written since the last flush; where the disk refuses, close the file with `StorageError`."""
        super().flush()
        if self._journaled.error is not None:
            self.close()

    def discard(self) -> None:
        """Close the file as it was at the last flush."""
        self._journaled.discard()
        self._finish()

    def close(self) -> None:
        """Store unwritten changes, close the file, and release its lock."""
        self._finish()


def _finish(file_id: h5py.h5f.FileID, journaled: JournaledFile) -> None:
    if file_id.valid:
        h5py.File(file_id).close()
    journaled.close()
    if journaled.error is not None:
        raise storage_error(journaled.error, Path(repr(journaled))) from journaled.error


# --- opening ------------------------------------------------------------------------------------------


def init_file(
    path: str | os.PathLike[str],
    d: int | None = None,
    t_img: int | None = None,
    metadata: Mapping[str, object] | None = None,
) -> h5py.File:
    """Create a growing file, or open an existing one for writing.

    Use it in a `with` statement: the file is locked for this one writer until it is closed.

    Unlike the original: an existing file must have the `d` and `t_img` that are given; metadata that differs from
    what it holds is refused, not written over; data sets that an existing file lacks are added with the right ids
    and with label 0, and never with token features that are all zero; rows that a killed writer left in some data
    sets only are cut off, with a warning; doubled and torn rows are refused, since every further row would make
    them worse. A published file is never opened for writing.

    Args:
        path: The HDF5 file.
        d: D, the width of every feature; for a new file 1152 unless given.
        t_img: T_img, the number of patches of an image; for a new file 729 unless given, 0 for a store without token
            features.
        metadata: Root attributes, stored as JSON.

    Returns:
        The open file.

    Raises:
        ArgumentError: `d`, `t_img` or `metadata` do not fit the file.
        DatabaseError: The file is not a growing file, or its rows were doubled or torn.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    file = open_growing(path, d, t_img, metadata)
    file.flush()
    return file


init_feature_store = init_file


def open_growing(
    path: str | os.PathLike[str], d: int | None, t_img: int | None, metadata: Mapping[str, object] | None
) -> GrowingFile:
    """Open a file as `init_file` does; nothing is stored before its first flush."""
    if (d is not None and d < 1) or (t_img is not None and t_img < 0):
        raise ArgumentError(f"expected d of 1 or more and t_img of 0 or more, found {d} and {t_img}.")
    attributes = {name: _encode_metadata(name, value) for name, value in (metadata or {}).items()}
    file = GrowingFile(Path(path))
    try:
        if len(file) or len(file.attrs):
            _require_growing(file, d, t_img)
            _complete(file)
        else:
            _create(file, DEFAULT_DIM if d is None else d, DEFAULT_TOKEN_COUNT if t_img is None else t_img)
        _write_metadata(file, attributes)
    except BaseException:
        file.discard()
        raise
    return file


def _create(file: h5py.File, dim: int, token_count: int) -> None:
    create_row_datasets(file, dim, token_count)
    file.create_group("templates")
    file.attrs["created_at"] = now()
    file.attrs["version"] = VERSION


def create_row_datasets(file: h5py.File, dim: int, token_count: int) -> None:
    """Empty row data sets of these sizes, in place of empty ones of other sizes."""
    for name in ROW_DATASETS:
        if name in file:
            del file[name]
    shapes: dict[str, tuple[int, ...]] = {IMAGE_FEATURES: (dim,)}
    if token_count:
        shapes[IMAGE_TOKEN_FEATURES] = (token_count, dim)
    for name, shape in shapes.items():
        _create_rows(file, name, np.empty((0, *shape), STORED_IMAGE_DTYPE), STORED_IMAGE_DTYPE)
    for name, dtype in _SMALL_DTYPES.items():
        _create_rows(file, name, np.empty(0, np.int64), dtype)
    file.attrs["D"] = np.int64(dim)
    file.attrs["T_img"] = np.int64(token_count or -1)


def _create_rows(file: h5py.File, name: str, values: Array, dtype: Any) -> None:
    row_bytes = int(np.prod(values.shape[1:])) * (dtype.itemsize if dtype is not _TEXT else 16)
    rows = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    file.create_dataset(
        name,
        shape=values.shape,
        maxshape=(None, *values.shape[1:]),
        chunks=(rows, *values.shape[1:]),
        dtype=dtype,
        data=values if len(values) else None,
    )


def _require_growing(file: h5py.File, dim: int | None, token_count: int | None) -> None:
    """Refuse a file that cannot grow, or whose D and T_img are not those given."""
    features = safe_dataset(file, IMAGE_FEATURES)
    if features is None:
        raise DatabaseError(
            f"{file.filename}: expected a feature database, found no /{IMAGE_FEATURES} "
            f"(version {file.attrs.get('version')!r}). A file of templates alone takes no images: give a new path."
        )
    if features.ndim != 2 or features.maxshape[0] is not None:
        raise DatabaseError(
            f"{file.filename} is a finished file: its data is contiguous and cannot grow. "
            "Give a new path, or build its study again: images that were encoded are not encoded twice."
        )
    tokens = safe_dataset(file, IMAGE_TOKEN_FEATURES)
    stored = int(features.shape[1]), int(tokens.shape[1]) if tokens is not None else 0
    expected = stored[0] if dim is None else dim, stored[1] if token_count is None else token_count
    if stored != expected:
        raise ArgumentError(
            f"{file.filename} holds D = {stored[0]} and T_img = {stored[1]}; expected {expected[0]} and {expected[1]}. "
            "Features of another encoder need a file of their own."
        )
    if tokens is None and int(file.attrs.get("T_img", -1)) > 0:
        raise DatabaseError(f"{file.filename} has lost /{IMAGE_TOKEN_FEATURES}; its rows cannot be completed.")


def _complete(file: h5py.File) -> None:
    """Cut incomplete rows off, add missing data sets, and check the counts."""
    was_torn = _cut_to_shortest(file)
    _add_missing(file, len(file[IMAGE_FEATURES]))
    if was_torn:
        write_split_counts(file, count_splits(file))
    _require_matching_counts(file)
    if safe_group(file, "templates") is None:
        file.create_group("templates")


def _cut_to_shortest(file: h5py.File) -> bool:
    """Cut all row data sets to one length and return whether they differed: a killed writer extends only some."""
    lengths = {name: len(file[name]) for name in ROW_DATASETS if safe_dataset(file, name) is not None}
    rows = min(lengths.values())
    if max(lengths.values()) == rows:
        return False
    warnings.warn(
        f"{file.filename}: a batch was only half written ({lengths}); cut to {rows} whole rows.", stacklevel=4
    )
    _resize(file, rows)
    return True


def _add_missing(file: h5py.File, rows: int) -> None:
    if "ids" not in file:
        _create_rows(file, "ids", np.arange(rows), _SMALL_DTYPES["ids"])
    if "split" not in file:
        _create_rows(file, "split", _splits_by_counts(file, rows), _TEXT)
    if "labels" not in file:
        counts = count_splits(file)
        labelled = [
            name
            for name, entry in read_provenance(file)["dataset"]["splits"].items()
            if entry.get("labels") == "present"
        ]
        if labelled:
            raise ArgumentError(f"{file.filename} has lost /labels, those of {labelled}; its rows cannot be completed.")
        _create_rows(file, "labels", np.zeros(rows, np.int64), _SMALL_DTYPES["labels"])
        write_provenance(file, record_labels(file, counts, labelled=False), counts)


def _splits_by_counts(file: h5py.File, rows: int) -> Array:
    """The split of every row by the stored counts; "unspecified" in a file without counts."""
    counts = read_json_attribute(file, "split_counts")
    if not isinstance(counts, dict):
        counts = {UNSPECIFIED_SPLIT: rows}
    if sum(counts.values()) != rows:
        raise ArgumentError(
            f"{file.filename} has lost /split, and split_counts does not tell it: the file holds {rows} rows, the "
            f"counts {counts} are of {sum(counts.values())}. `ccassets adopt --repair` keeps the right rows."
        )
    return np.repeat(np.array(list(counts), object), list(counts.values()))


def _resize(file: h5py.File, rows: int) -> None:
    for name in ROW_DATASETS:
        if name in file:
            file[name].resize(rows, axis=0)


def cut_rows(file: h5py.File, rows: int) -> None:
    """Keep the first `rows` rows, and update the counts."""
    _resize(file, rows)
    write_split_counts(file, count_splits(file))


def write_split_counts(file: h5py.File, counts: Mapping[str, int]) -> None:
    """Store the rows of every split, in file order."""
    write_text_attribute(file, "split_counts", json.dumps(counts, ensure_ascii=False))


def _require_matching_counts(file: h5py.File) -> None:
    counted = count_splits(file)
    stored = read_json_attribute(file, "split_counts")
    if stored is None:
        return
    if not isinstance(stored, dict) or {name: rows for name, rows in stored.items() if rows} != counted:
        raise DatabaseError(
            f"{file.filename}: split_counts says {stored}, the rows are {counted}. Rows were written twice or lost; "
            "`ccassets validate` tells which, `ccassets adopt --repair` keeps the right ones."
        )


def read_split_counts(file: h5py.File) -> dict[str, int]:
    """Rows of every split in file order, counted where the original scripts were stopped and stored no counts."""
    stored = read_json_attribute(file, "split_counts")
    return dict(stored) if isinstance(stored, dict) else count_splits(file)


def count_splits(file: h5py.File) -> dict[str, int]:
    """Count the rows of every split in the file, in file order; refuse repeated and incomplete rows."""
    names = read_texts(file["split"])
    if not len(names):
        return {}
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    counts: dict[str, int] = {}
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(names)], strict=True):
        name = names[start]
        if name in counts or not name:
            problem = "have no split, as a refused batch leaves them" if not name else f"are {name!r} once more"
            raise DatabaseError(
                f"{file.filename}: rows {start} to {end - 1} {problem}. `ccassets validate` tells what happened, "
                "`ccassets adopt --repair` keeps the right rows."
            )
        counts[name] = end - start
    return counts


# --- attributes ---------------------------------------------------------------------------------------


def _encode_metadata(name: str, value: object) -> str:
    if name in _OWN_ATTRIBUTES:
        raise ArgumentError(f"metadata[{name!r}]: this attribute belongs to the format and is set by its functions.")
    return json.dumps(value, ensure_ascii=False, default=lambda other: getattr(other, "tolist", other.__str__)())


def _write_metadata(file: h5py.File, attributes: Mapping[str, str]) -> None:
    replaceable = () if len(file["templates"]) else WORD_LISTS
    for name, text in attributes.items():
        if name in file.attrs and name not in replaceable and read_json_attribute(file, name) != json.loads(text):
            raise ArgumentError(
                f"{file.filename} says {name} = {_shortened(read_json_attribute(file, name))}; "
                f"{_shortened(json.loads(text))} was given. Word and template lists may change once "
                "`clear_all_templates(path, confirm=True)` has removed what was made from the old ones; for anything "
                "else give a new path."
            )
    for name, text in attributes.items():
        if name not in file.attrs or name in replaceable:
            write_text_attribute(file, name, text)


def _shortened(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}…"
