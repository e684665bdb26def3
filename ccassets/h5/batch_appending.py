"""Appending a batch of rows to a growing file: whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import h5py
import numpy as np

from ccassets.database.attributes import read_json_attribute, write_text_attribute
from ccassets.database.float16 import not_finite_rows
from ccassets.database.hdf5 import Array
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, STORED_IMAGE_DTYPE, UNSPECIFIED_SPLIT
from ccassets.h5.exceptions import ArgumentError
from ccassets.h5.growing_file import read_split_counts, write_split_counts
from ccassets.h5.growing_provenance import record_labels, write_provenance
from ccassets.h5.input_values import to_array, to_text


def append_batch(
    f: h5py.File,
    image_feats: Any,
    image_token_feats: Any,
    ids: Any,
    split_names: Sequence[str] | str | None = None,
    labels: Any = None,
) -> None:
    """Append a batch of B rows.

    Unlike the original: everything is checked before anything is written, so that a refused batch leaves no torn
    rows; the rows of a split must stand together; missing labels are 0 and recorded, not -1; values that are not
    finite in float16 are refused; `split_counts` changes in the same flush, so that a process killed at any moment
    leaves neither half a batch nor a wrong count.

    Args:
        f: A growing file, as `init_file` opens it.
        image_feats: (B, D), a tensor or an array of any float dtype, stored as float16.
        image_token_feats: (B, T_img, D); None for a store without token features.
        ids: (B,) numbers that continue those of the file; None numbers the rows.
        split_names: The split of every row, or one name for all; by default "unspecified".
        labels: (B,) or (B, 1) whole numbers. None for a data set without labels: 0 is stored, and the file records
            that the split has none.

    Raises:
        ArgumentError: An argument does not fit the file (a `DatabaseError` and a `ValueError`); nothing was written.
        StorageError: The disk refuses; the file is closed as it was before the batch.
    """
    first, dim = f[IMAGE_FEATURES].shape
    features = _feature_rows("image_feats", image_feats, (dim,))
    count = len(features)
    values: dict[str, Array] = {IMAGE_FEATURES: features}
    values |= _token_feature_rows(f, image_token_feats, count, dim)
    values["ids"] = _ids(ids, first, count)
    values["labels"] = _labels(f, labels, count)
    names = _split_names(split_names, count)
    values["split"] = np.array(names, object)
    counts = _counts_afterwards(f, names, first)
    provenance = record_labels(f, dict.fromkeys(names), labelled=labels is not None)

    old_attributes = {name: f.attrs.get(name) for name in ("split_counts", "provenance")}
    try:
        for name, rows in values.items():
            f[name].resize(first + count, axis=0)
            f[name][first:] = rows
        write_split_counts(f, counts)
        write_provenance(f, provenance, counts)
        f.flush()
    except BaseException:
        # An interrupted batch (Ctrl-C) must not be written when the file is closed; a refused one has closed it.
        if f:
            for name in values:
                f[name].resize(first, axis=0)
            for name, text in old_attributes.items():
                f.attrs.pop(name, None) if text is None else write_text_attribute(f, name, text)
        raise


def _feature_rows(name: str, values: Any, shape: tuple[int, ...]) -> Array:
    array = to_array(values)
    if array.shape[1:] != shape or not array.ndim or array.dtype.kind not in "fiu":
        raise ArgumentError(
            f"{name}: expected numbers of shape (B, {', '.join(map(str, shape))}), as the file holds them; "
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


def _token_feature_rows(file: h5py.File, values: Any, count: int, dim: int) -> dict[str, Array]:
    if IMAGE_TOKEN_FEATURES not in file:
        if values is not None:
            raise ArgumentError(
                "image_token_feats: expected None, since this file stores no token features (T_img = -1)."
            )
        return {}
    tokens = _feature_rows("image_token_feats", values, (int(file[IMAGE_TOKEN_FEATURES].shape[1]), dim))
    if len(tokens) != count:
        raise ArgumentError(
            f"image_token_feats: expected {count} rows, as in image_feats, found {len(tokens)}. Nothing was written."
        )
    return {IMAGE_TOKEN_FEATURES: tokens}


def _ids(ids: Any, first: int, count: int) -> Array:
    expected = np.arange(first, first + count, dtype=np.int64)
    if ids is not None and not np.array_equal(to_array(ids).reshape(-1), expected):
        raise ArgumentError(
            f"ids: expected every row's own number, {first} to {first + count - 1}, found "
            f"{to_array(ids).reshape(-1)[:5].tolist()}…. Nothing was written."
        )
    return expected


def _labels(file: h5py.File, labels: Any, count: int) -> Array:
    if labels is None:
        return np.zeros(count, np.int64)
    array = to_array(labels)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.shape != (count,):
        raise ArgumentError(
            f"labels: expected one for each of {count} rows, found {array.shape}. Nothing was written. "
            "Multi-label data sets are built from a study, which stores their label matrix."
        )
    if array.dtype.kind not in "iub" and not (array.dtype.kind == "f" and np.array_equal(array, np.round(array))):
        raise ArgumentError(f"labels: expected whole numbers, found {array.dtype}. Nothing was written.")
    words = read_json_attribute(file, "label_texts")
    known = len(words) if isinstance(words, list) and words else None
    wrong = (array < 0) if known is None else ((array < 0) | (array >= known))
    if wrong.any():
        raise ArgumentError(
            f"labels: expected {'0 or more' if known is None else f'0 to {known - 1} (label_texts)'}, found "
            f"{array[wrong][0]}. Nothing was written. For a data set without labels pass None."
        )
    return array.astype(np.int64)


def _split_names(names: Sequence[str] | str | None, count: int) -> list[str]:
    if names is None:
        names = UNSPECIFIED_SPLIT
    given = [names] * count if isinstance(names, str) else [to_text(name) for name in names]
    if len(given) != count:
        raise ArgumentError(
            f"split_names: expected one for each of {count} rows, found {len(given)}. Nothing was written."
        )
    for name in dict.fromkeys(given):
        if not name.strip() or not name.isprintable():
            raise ArgumentError(f"split_names: {name!r} is not a name for a split. Nothing was written.")
    return given


def _counts_afterwards(file: h5py.File, names: Sequence[str], first: int) -> dict[str, int]:
    """Count the rows of every split after the batch; refuse rows that would not follow the others of their split."""
    counts = read_split_counts(file)
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
