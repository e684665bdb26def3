"""A feature database that grows batch by batch: opened, described, and appended to.

Its five row data sets are those of the original scripts, chunked and unfiltered; `finalize` publishes it. One writer
at a time may have it, and every append happens whole or not at all.
"""

from __future__ import annotations

import json
import os
import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import read_json_attribute, write_text_attribute
from ccassets.database.float16 import not_finite_rows
from ccassets.database.hdf5 import read_texts, safe_dataset, safe_group
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
from ccassets.h5.journal import JournaledFile

Array = npt.NDArray[Any]

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
    """An `h5py.File` over a journaled file: what it writes happens at once at every flush, and at closing."""

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
        """Make everything written since the last flush happen; `StorageError`, and the file closed, if it cannot."""
        super().flush()
        if self._journaled.error is not None:
            self.close()

    def discard(self) -> None:
        """Close the file as it was at the last flush."""
        self._journaled.discard()
        self._finish()

    def close(self) -> None:
        """Write what is still to be written, close the file, and let go of its lock."""
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
    """Create the growing file at `path`, or open the one that is there; give it back open for writing.

    `d` is D and `t_img` T_img: for a new file 1152 and 729 unless given, `t_img=0` for a store without token
    features. `metadata` goes to root attributes, JSON-encoded. Use it in a `with` statement: the file is locked for
    this one writer until it is closed.

    Unlike the original: an existing file must have the `d` and `t_img` that are given; metadata that differs from
    what it holds is refused, not written over; data sets that an existing file lacks are added with the right ids
    and with label 0, and never with token features that are all zero; rows that a killed writer left in some data
    sets only are cut off, with a warning; doubled and torn rows are refused, since every further row would make
    them worse. A file that was published is never opened for writing.

    Raises `DatabaseError` for a file that is not what was expected, `StorageError` when it is open elsewhere.
    """
    if (d is not None and d < 1) or (t_img is not None and t_img < 0):
        raise ArgumentError(f"d of 1 or more and t_img of 0 or more were expected; found {d} and {t_img}.")
    described = {name: _encode(name, value) for name, value in (metadata or {}).items()}
    file = GrowingFile(Path(path))
    try:
        if len(file) or len(file.attrs):
            _continue(file, d, t_img)
        else:
            _create(file, DEFAULT_DIM if d is None else d, DEFAULT_TOKEN_COUNT if t_img is None else t_img)
        _describe(file, described)
        file.flush()
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


def _continue(file: h5py.File, dim: int | None, token_count: int | None) -> None:
    """Check an existing file, and complete what it lacks."""
    features = safe_dataset(file, IMAGE_FEATURES)
    if features is None:
        raise DatabaseError(
            f"{file.filename} holds no /{IMAGE_FEATURES} (version {file.attrs.get('version')!r}): a feature database "
            "was expected. A file of templates alone takes no images: give a new path."
        )
    if features.ndim != 2 or features.maxshape[0] is not None:
        raise DatabaseError(
            f"{file.filename} is a finished file: its data is contiguous and cannot grow, and nobody writes into it. "
            "Give a new path, or build its study again: images that were encoded are not encoded twice."
        )
    tokens = safe_dataset(file, IMAGE_TOKEN_FEATURES)
    found = int(features.shape[1]), int(tokens.shape[1]) if tokens is not None else 0
    wanted = found[0] if dim is None else dim, found[1] if token_count is None else token_count
    if found != wanted:
        raise ArgumentError(
            f"{file.filename} holds D = {found[0]} and T_img = {found[1]}; {wanted[0]} and {wanted[1]} were asked for. "
            "Features of another encoder need a file of their own."
        )
    if tokens is None and int(file.attrs.get("T_img", -1)) > 0:
        raise DatabaseError(f"{file.filename} has lost /{IMAGE_TOKEN_FEATURES}; its rows cannot be completed.")
    cut = _cut_to_shortest(file)
    _add_missing(file, len(file[IMAGE_FEATURES]))
    if cut:
        set_split_counts(file, count_splits(file))
    _require_counts(file)
    if safe_group(file, "templates") is None:
        file.create_group("templates")


def _cut_to_shortest(file: h5py.File) -> bool:
    """Give all row data sets one length: a killed writer may have lengthened some of them only. Whether it had to."""
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
        _create_rows(file, "split", np.array([UNSPECIFIED_SPLIT] * rows, object), _TEXT)
    if "labels" not in file:
        _create_rows(file, "labels", np.zeros(rows, np.int64), _SMALL_DTYPES["labels"])
        counts = count_splits(file)
        set_provenance(file, _labelled(file, counts, labelled=False), counts)


def _resize(file: h5py.File, rows: int) -> None:
    for name in ROW_DATASETS:
        if name in file:
            file[name].resize(rows, axis=0)


def cut_rows(file: h5py.File, rows: int) -> None:
    """Keep the first `rows` rows, and count them anew."""
    _resize(file, rows)
    set_split_counts(file, count_splits(file))


def set_split_counts(file: h5py.File, counts: Mapping[str, int]) -> None:
    """Store the rows of every split, in file order."""
    write_text_attribute(file, "split_counts", json.dumps(counts, ensure_ascii=False))


def _require_counts(file: h5py.File) -> None:
    counted = count_splits(file)
    stored = read_json_attribute(file, "split_counts")
    if stored is None:
        return
    if not isinstance(stored, dict) or {name: rows for name, rows in stored.items() if rows} != counted:
        raise DatabaseError(
            f"{file.filename}: split_counts says {stored}, the rows are {counted}. Rows were written twice or lost; "
            "`ccassets validate` tells which, `ccassets adopt --repair` keeps the right ones."
        )


def split_counts(file: h5py.File) -> dict[str, int]:
    """Rows of every split in file order; of files stopped by the original scripts, which lack the count, too."""
    stored = read_json_attribute(file, "split_counts")
    return dict(stored) if isinstance(stored, dict) else count_splits(file)


def count_splits(file: h5py.File) -> dict[str, int]:
    """Rows of every split on disk, in file order; refuses doubled and torn rows."""
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


def _encode(name: str, value: object) -> str:
    if name in _OWN_ATTRIBUTES:
        raise ArgumentError(f"metadata[{name!r}]: this attribute belongs to the format and is set by its functions.")
    return json.dumps(value, ensure_ascii=False, default=lambda other: getattr(other, "tolist", other.__str__)())


def _describe(file: h5py.File, described: Mapping[str, str]) -> None:
    free = () if len(file["templates"]) else WORD_LISTS
    for name, text in described.items():
        if name in file.attrs and name not in free and read_json_attribute(file, name) != json.loads(text):
            raise ArgumentError(
                f"{file.filename} says {name} = {_shortened(read_json_attribute(file, name))}; "
                f"{_shortened(json.loads(text))} was given. Word and template lists may change once "
                "`clear_all_templates(path, confirm=True)` has removed what was made from the old ones; for anything "
                "else give a new path."
            )
    for name, text in described.items():
        if name not in file.attrs or name in free:
            write_text_attribute(file, name, text)


def _shortened(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 300 else f"{text[:300]}…"


def provenance(file: h5py.File) -> dict[str, Any]:
    """What a growing file says of its origin, in the sections of the format; `planned` rows are those of a loader."""
    stored = read_json_attribute(file, "provenance")
    sections: dict[str, Any] = {
        # Rows that are there without a word about them are somebody else's.
        "origin": "adopted" if len(file["split"]) else "extracted",
        "encoder": {},
        "dataset": {},
        "extraction": {"writer": "ccassets.h5"},
        "libraries": {},
        "created": {},
        "digests": {},
    }
    found = {**sections, **stored} if isinstance(stored, dict) else sections
    found["dataset"].setdefault("splits", {})
    return found


def set_provenance(file: h5py.File, found: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Store what `provenance` gave, once changed, with the rows of every split that are there or planned."""
    splits = found["dataset"]["splits"]
    for split in counts:
        splits.setdefault(split, {})
    for split, entry in splits.items():
        entry["rows"] = max(counts.get(split, 0), entry.get("planned", 0))
    kinds = {entry["labels"] for entry in splits.values() if "labels" in entry}
    if kinds:
        found["dataset"]["labels"] = kinds.pop() if len(kinds) == 1 else "some"
    write_text_attribute(file, "provenance", json.dumps(found, ensure_ascii=False))


# --- rows ---------------------------------------------------------------------------------------------


def append_batch(
    f: h5py.File,
    image_feats: Any,
    image_token_feats: Any,
    ids: Any,
    split_names: Sequence[str] | str | None = None,
    labels: Any = None,
) -> None:
    """Append B rows: features (B, D), token features (B, T_img, D), ids (B,), and of each its split and label.

    Tensors and arrays of any float dtype are stored as float16. `ids` must go on from the rows that are there
    (None numbers them), `split_names` may be one name for all rows, by default "unspecified". `labels` (B,) or
    (B, 1); None is for a data set without labels: 0 is stored, and the file says that its split has none.

    Unlike the original: everything is checked before anything is written, so that a refused batch leaves no torn
    rows; the rows of a split must stand together; missing labels are 0 and recorded, not -1; values that are not
    finite in float16 are refused; `split_counts` changes in the same flush, so that a process killed at any moment
    leaves neither half a batch nor a wrong count.

    Raises `ArgumentError` (a `DatabaseError` and a `ValueError`); `StorageError` when the disk refuses, and then the
    file is closed as it was before the batch.
    """
    first, dim = f[IMAGE_FEATURES].shape
    features = _rows("image_feats", image_feats, (dim,))
    count = len(features)
    values: dict[str, Array] = {IMAGE_FEATURES: features}
    values |= _token_rows(f, image_token_feats, count, dim)
    values["ids"] = _ids(ids, first, count)
    values["labels"] = _labels(f, labels, count)
    names = _split_names(split_names, count)
    values["split"] = np.array(names, object)
    counts = _grown(f, names, first)
    record = _labelled(f, dict.fromkeys(names), labelled=labels is not None)

    before = {name: f.attrs.get(name) for name in ("split_counts", "provenance")}
    try:
        for name, rows in values.items():
            f[name].resize(first + count, axis=0)
            f[name][first:] = rows
        set_split_counts(f, counts)
        set_provenance(f, record, counts)
        f.flush()
    except BaseException:
        # An interrupted batch (Ctrl-C) must not be written when the file is closed; a refused one has closed it.
        if f:
            for name in values:
                f[name].resize(first, axis=0)
            for name, text in before.items():
                f.attrs.pop(name, None) if text is None else write_text_attribute(f, name, text)
        raise


def to_array(values: Any) -> Array:
    """A tensor of any device and dtype, or what numpy takes, as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # numpy has none
            values = values.float()
    return np.asarray(values)


def _rows(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    array = to_array(values)
    if array.shape[1:] != shape or not array.ndim or array.dtype.kind not in "fiu":
        raise ArgumentError(
            f"{name}: numbers of shape (B, {', '.join(map(str, shape))}) were expected, as the file holds them; "
            f"found {array.dtype} {array.shape}. Nothing was written."
        )
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, STORED_IMAGE_DTYPE)
    broken = not_finite_rows(stored)
    if len(broken):
        raise ArgumentError(
            f"{name}: row {broken[0]} of the batch holds values that are not finite in float16 "
            f"({len(broken)} such rows). Nothing was written; encode in float32."
        )
    return stored


def _token_rows(file: h5py.File, values: Any, count: int, dim: int) -> dict[str, Array]:
    if IMAGE_TOKEN_FEATURES not in file:
        if values is not None:
            raise ArgumentError(
                "image_token_feats: this file stores no token features (T_img = -1); None was expected."
            )
        return {}
    tokens = _rows("image_token_feats", values, (int(file[IMAGE_TOKEN_FEATURES].shape[1]), dim))
    if len(tokens) != count:
        raise ArgumentError(
            f"image_token_feats: {count} rows were expected, as in image_feats; found {len(tokens)}. "
            "Nothing was written."
        )
    return {IMAGE_TOKEN_FEATURES: tokens}


def _ids(ids: Any, first: int, count: int) -> Array:
    wanted = np.arange(first, first + count, dtype=np.int64)
    if ids is not None and not np.array_equal(to_array(ids).reshape(-1), wanted):
        raise ArgumentError(
            f"ids: every row's own number, {first} to {first + count - 1}, was expected; found "
            f"{to_array(ids).reshape(-1)[:5].tolist()}…. Nothing was written."
        )
    return wanted


def _labels(file: h5py.File, labels: Any, count: int) -> Array:
    if labels is None:
        return np.zeros(count, np.int64)
    array = to_array(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (count,):
        raise ArgumentError(
            f"labels: one for each of {count} rows was expected; found {array.shape}. Nothing was written. "
            "Multi-label data sets are built from a study, which stores their label matrix."
        )
    if array.dtype.kind not in "iub" and not (array.dtype.kind == "f" and np.array_equal(array, np.round(array))):
        raise ArgumentError(f"labels: whole numbers were expected; found {array.dtype}. Nothing was written.")
    words = read_json_attribute(file, "label_texts")
    known = len(words) if isinstance(words, list) and words else None
    wrong = (array < 0) if known is None else ((array < 0) | (array >= known))
    if wrong.any():
        raise ArgumentError(
            f"labels: {'0 or more' if known is None else f'0 to {known - 1} (label_texts)'} was expected; found "
            f"{array[wrong][0]}. Nothing was written. For a data set without labels pass None."
        )
    return array.astype(np.int64)


def _split_names(names: Sequence[str] | str | None, count: int) -> list[str]:
    if names is None:
        names = UNSPECIFIED_SPLIT
    listed = [names] * count if isinstance(names, str) else [to_text(name) for name in names]
    if len(listed) != count:
        raise ArgumentError(
            f"split_names: one for each of {count} rows was expected; found {len(listed)}. Nothing was written."
        )
    for name in dict.fromkeys(listed):
        if not name.strip() or not name.isprintable():
            raise ArgumentError(f"split_names: {name!r} is no name for a split. Nothing was written.")
    return listed


def to_text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def _grown(file: h5py.File, names: Sequence[str], first: int) -> dict[str, int]:
    """The counts once these rows are there; refuses rows that would not stand with the others of their split."""
    counts = split_counts(file)
    last = to_text(file["split"][first - 1]) if first else None
    for name in names:
        if name != last and counts.get(name):
            raise ArgumentError(
                f"split_names: {name!r} has {counts[name]} rows already, and rows of {last!r} follow them; the rows "
                "of a split stand together. Nothing was written. Were these rows appended before? "
                "`encode_and_store_image_features(…, resume=False)` starts its splits anew."
            )
        counts[name] = counts.get(name, 0) + 1
        last = name
    return counts


def _labelled(file: h5py.File, splits: Iterable[str], labelled: bool) -> dict[str, Any]:
    """The provenance once these splits say whether they have labels."""
    found = provenance(file)
    stated = "present" if labelled else "none"
    for split in splits:
        entry = found["dataset"]["splits"].setdefault(split, {})
        if entry.setdefault("labels", stated) != stated:
            raise ArgumentError(
                f"labels: those of {split!r} are {entry['labels']} so far, and {stated} in this batch; a stored 0 "
                "would mean two things. Nothing was written."
            )
    return found
