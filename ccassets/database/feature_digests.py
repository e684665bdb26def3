"""Digests of features: rows, splits, templates, databases. Dates and provenance are in none of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from ccassets.database.hdf5 import BLOCK_BYTES, Array, bytes_of, iter_blocks


class TemplateLike(Protocol):
    """The content that a template's digest covers, of a stored template or of one to be written."""

    @property
    def texts(self) -> Sequence[str]: ...
    @property
    def text_features(self) -> Array: ...
    @property
    def text_token_features(self) -> Array | None: ...
    @property
    def input_ids(self) -> Array | None: ...
    @property
    def attention_mask(self) -> Array | None: ...
    @property
    def subject_span(self) -> Array | None: ...


TEMPLATE_ARRAYS = ("text_features", "text_token_features", "input_ids", "attention_mask", "subject_span")


def row_hasher() -> Any:
    """The digest of a row to come: it is updated with the bytes of `image_features`, then `image_token_features`."""
    return xxhash.xxh3_128()


def feature_digests(features: Array, tokens: Array | None) -> npt.NDArray[np.uint8]:
    """XXH3-128 of every row's stored bytes, `image_features` then `image_token_features`: (n, 16) uint8."""
    digests = np.empty((len(features), 16), np.uint8)
    for row in range(len(features)):
        hasher = row_hasher()
        hasher.update(bytes_of(features[row]))
        if tokens is not None:
            hasher.update(bytes_of(tokens[row]))
        digests[row] = np.frombuffer(hasher.digest(), np.uint8)
    return digests


def iter_feature_digests(
    features: Array, tokens: Array | None, rows: slice | None = None, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """`feature_digests` of the rows of a file in blocks, in file order, each with the number of its first row."""
    for first, block in iter_blocks(features if tokens is None else tokens, block_bytes, rows):
        if tokens is None:
            yield first, feature_digests(block, None)
        else:
            yield first, feature_digests(np.asarray(features[first : first + len(block)]), block)


def hexadecimal(digests: npt.NDArray[np.uint8]) -> list[str]:
    """Digests of rows, (N, bytes), as texts."""
    return [digest.tobytes().hex() for digest in digests]


def rows_digest(image_digest: Array, feature_digest: Array) -> str:
    """XXH3-128 (hex) over a file's image digests and feature digests: which features belong to which image."""
    hasher = xxhash.xxh3_128(bytes_of(image_digest))
    hasher.update(bytes_of(feature_digest))
    return hasher.hexdigest()


def template_digest(template: TemplateLike) -> str:
    """XXH3-128 (hex) over name, dtype, shape and bytes of a template's arrays and over its texts."""
    hasher = xxhash.xxh3_128()
    for name in TEMPLATE_ARRAYS:
        array = getattr(template, name)
        if array is not None:
            little_endian = array.astype(array.dtype.newbyteorder("<"), copy=False)
            hasher.update(f"{name}|{little_endian.dtype.str}|{little_endian.shape}|".encode())
            hasher.update(bytes_of(little_endian))
    _update_texts(hasher, "texts", template.texts)
    return hasher.hexdigest()


def attribute_digest(value: Any) -> str:
    """XXH3-128 (hex) over a text's UTF-8 bytes, or over a number as JSON writes it."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogateescape"))


def split_digest(
    feature_digest: Array,
    *,
    keys: Sequence[str],
    labels: Array,
    groups: Sequence[str] | None,
    label_matrix: Array | None,
) -> str:
    """SHA-256 (hex) over a split's feature digests in order, and its keys, labels, groups and label matrix."""
    hasher = hashlib.sha256()
    hasher.update(f"rows {len(feature_digest)}|".encode())
    hasher.update(bytes_of(feature_digest))
    hasher.update(bytes_of(labels.astype("<i8", copy=False)))
    _update_texts(hasher, "keys", keys)
    if groups is not None:
        _update_texts(hasher, "groups", groups)
    if label_matrix is not None:
        hasher.update(f"label_matrix {label_matrix.shape}|".encode())
        hasher.update(bytes_of(label_matrix))
    return hasher.hexdigest()


def database_digest(
    splits: Mapping[str, str], templates: Mapping[str, str], vocabulary: Mapping[str, Sequence[str]]
) -> str:
    """SHA-256 (hex) over splits in order, templates by id, and the four word and template lists."""
    content = {
        "splits": list(splits.items()),
        "templates": sorted(templates.items()),
        "vocabulary": {name: list(words) for name, words in vocabulary.items()},
    }
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _update_texts(hasher: Any, name: str, texts: Iterable[str]) -> None:
    # Length first, so that no two lists of strings give the same bytes.
    hasher.update(f"{name}|".encode())
    for text in texts:
        data = text.encode("utf-8", "surrogateescape")
        hasher.update(len(data).to_bytes(8, "little") + data)
