"""Exact search for the images or patches nearest to a text, a concept, an image or a mixture, and near-duplicates."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ccassets.analysis.concept_models import encoder_identity
from ccassets.analysis.float16_kernel import MOST_VECTORS, kernel_cosines, largest_error, suits_kernel
from ccassets.analysis.row_files import save_images, write_csv
from ccassets.analysis.samples import is_labelled, label_number
from ccassets.analysis.scores import (
    FloatArray,
    cosines,
    local_features,
    normalise,
    patch_cosines,
    pooled_tokens,
    span_positions,
)
from ccassets.database.hdf5 import Array, iter_blocks, take_rows
from ccassets.database.reader import Database, as_list
from ccassets.errors import AnalysisError

if TYPE_CHECKING:
    from PIL import Image

    from ccassets.encoders.encoder_contract import Encoder

_PAIR_ROWS = 2048
"""Rows of each side of a block of pairs."""
_BLOCK_BYTES = 256 << 20
"""Rows that are scored at a time."""
_GATHERED = 0.25
"""Where less than this share of a block's rows may be hits, they are copied out; else all are scored."""
_GROUP_ROWS = 256
"""Rows of which only the best one is compared to find how good hits are at least."""
_EXACT_BYTES = 1 << 26
"""Float64 numbers that are held at once while candidates are ordered."""
_LENGTHS: WeakKeyDictionary[Database, FloatArray] = WeakKeyDictionary()
"""The lengths of the image features of open databases, four bytes a row: a second search reads the rows alone."""


@dataclass(frozen=True)
class Hit:
    """A row that a search returns; `key`, `label` and `group` are None where the file knows none.

    Attributes:
        row: Number of the row in the file.
        key: Where the image came from.
        split: Its split.
        label: Number of its class; in a multi-label set of its first one, -1 without any.
        group: Its patient or slide.
        score: Cosine with the query; for a mixture, with the sum of its vectors.
        patch: Number of the best patch, row by row from the top left; None for a search of whole images.
    """

    row: int
    key: str | None
    split: str
    label: int | None
    group: str | None
    score: float
    patch: int | None = None


@dataclass(frozen=True)
class ImagePair:
    """Two similar rows of different splits; `key` and `label` are None where the file knows none.

    Attributes:
        similarity: Cosine of their image features.
        row: Number of the first row in the file.
        key: Where its image came from.
        split: Its split.
        label: Number of its class.
        other_row: Number of the second row.
        other_key: Where its image came from.
        other_split: Its split.
        other_label: Number of its class.
    """

    similarity: float
    row: int
    key: str | None
    split: str
    label: int | None
    other_row: int
    other_key: str | None
    other_split: str
    other_label: int | None


@dataclass(frozen=True)
class NearDuplicates:
    """Similar images of different splits.

    Attributes:
        pairs: The most similar pairs, most similar first.
        count: Number of all pairs that reach the similarity, including those that were not kept.
    """

    pairs: tuple[ImagePair, ...]
    count: int


@dataclass(frozen=True)
class RowFilter:
    """The rows that a search may return: those that meet every condition.

    Attributes:
        split: Rows of this split.
        label: Rows of this class, by number or name; -1 or "none" in a multi-label set: rows without any label.
        group: Rows of this patient or slide.
    """

    split: str | None = None
    label: int | str | None = None
    group: str | None = None

    def mask(self, database: Database) -> npt.NDArray[np.bool_]:
        """Select the rows that match.

        Args:
            database: The database whose rows are selected.

        Returns:
            (N,) bool.

        Raises:
            DatabaseError: There is no such split.
            AnalysisError: There is no such label or group.
        """
        allowed = np.ones(len(database), np.bool_)
        if self.split is not None:
            allowed[:] = False
            allowed[database.select(self.split).rows] = True
        if self.label is not None:
            label = label_number(database, self.label) if isinstance(self.label, str) else self.label
            matrix = database.label_matrix
            known = np.unique(database.labels) if matrix is None else np.arange(-1, matrix.shape[1])
            if label not in known:
                raise AnalysisError(f"{database.path.name} has no label {label}; it has {known.tolist()}.")
            if matrix is None:
                allowed &= database.labels == label
            else:
                allowed &= matrix[:, label] > 0 if label >= 0 else ~matrix.any(axis=1)
        if self.group is not None:
            if database.groups is None or self.group not in database.groups:
                known_groups = "no groups at all" if database.groups is None else "others"
                raise AnalysisError(f"{database.path.name} has no group {self.group!r}; it has {known_groups}.")
            allowed &= np.asarray(database.groups == self.group, np.bool_)
        return allowed


EVERY_ROW = RowFilter()


def search(
    database: Database,
    *,
    texts: str | Sequence[str] = (),
    concepts: str | Sequence[str] = (),
    rows: Sequence[int] = (),
    minus: str | Sequence[str] = (),
    encoder: Encoder | None = None,
    patches: bool = False,
    k: int = 10,
    where: RowFilter = EVERY_ROW,
) -> list[Hit]:
    """Find the k rows whose image is nearest to a query.

    A query of several texts, concepts and rows is a mixture: the sum of their unit vectors, minus those of the texts
    in `minus`.

    Args:
        database: The database.
        texts: Texts, compared as they are written.
        concepts: Concepts of the file, each the mean over its templates and synonyms.
        rows: Numbers of rows; they are not among the hits.
        minus: Texts whose vectors are subtracted.
        encoder: The encoder that made the file; needed to encode texts.
        patches: Compare texts and concepts with every patch, by the mean of their own token features.
        k: Number of hits.
        where: Rows that may be hits.

    Returns:
        The hits, best first; among equals the first row of the file.

    Raises:
        DatabaseError: The file lacks a concept, a row, a split or token features.
        AnalysisError: The query is empty or cannot be compared, or no row has the label or group.
    """
    if patches and rows:
        raise AnalysisError("Rows are compared as whole images: search patches by a text or a concept.")
    selection = database.select(rows=np.array(rows, np.int64))
    vectors = [normalise(selection.image_features)] if rows else []
    if concepts:
        vectors.append(local_features(database, concepts) if patches else database.concept_features(concepts))
    if texts:
        vectors.append(text_vectors(database, encoder, texts, patches=patches))
    if not vectors:
        raise AnalysisError("Nothing to search for: give a text, a concept or a row.")
    vector = np.concatenate(vectors).sum(axis=0)
    if minus:
        vector -= text_vectors(database, encoder, minus, patches=patches).sum(axis=0)
    if np.linalg.norm(vector) < 1e-3:
        raise AnalysisError("The query and what is subtracted from it are the same: nothing is left to search for.")
    allowed = where.mask(database)
    allowed[selection.rows] = False
    nearest = nearest_patches if patches else nearest_images
    return nearest(database, normalise(vector), k, allowed)


def nearest_images(
    database: Database, vector: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None
) -> list[Hit]:
    """Find the k images with the highest cosine to a vector.

    A fast pass proposes candidates, which are then ordered in float64, so that the hits depend neither on the processor
    nor on its threads.

    Args:
        database: The database.
        vector: (D,), unit length.
        k: Number of hits.
        allowed: (N,), the rows that may be hits; by default all.

    Returns:
        The hits, best first; among equals the first row of the file.

    Raises:
        AnalysisError: `k` is less than 1.
    """
    return nearest_images_of_each(database, vector[None], k, allowed)[0]


def nearest_images_of_each(
    database: Database, vectors: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None
) -> list[list[Hit]]:
    """Find the k nearest images of each of many vectors in one pass over the file.

    Args:
        database: The database.
        vectors: (Q, D), unit length.
        k: Number of hits of each vector.
        allowed: (N,), the rows that may be hits; by default all.

    Returns:
        For every vector what `nearest_images` returns.

    Raises:
        AnalysisError: `k` is less than 1.
    """
    features, mask = database.image_features, _require_hits(database, k, allowed)
    if database not in _LENGTHS:
        _LENGTHS[database] = np.full(len(database), np.nan, np.float32)
    rough = np.empty((len(vectors), len(database)), np.float32)
    for first, block in _blocks(features, mask):
        rows = slice(first, first + len(block))
        if np.count_nonzero(mask[rows]) < _GATHERED * len(block):
            chosen = np.flatnonzero(mask[rows])
            rough[:, first + chosen] = _rough_cosines(block[chosen], vectors).T
        else:
            rough[:, rows] = _rough_cosines(block, vectors, _LENGTHS[database][rows]).T
    error = largest_error(vectors)
    return [
        _hits(database, features, vector, _Rough(scores, mask, error), k)
        for vector, scores in zip(vectors, rough, strict=True)
    ]


def nearest_patches(
    database: Database, vector: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None
) -> list[Hit]:
    """Find the k images whose best patch has the highest cosine to a vector.

    Args:
        database: A database with token features.
        vector: (D,), unit length.
        k: Number of hits.
        allowed: (N,), the rows that may be hits; by default all.

    Returns:
        The hits with their best patch, best first; among equals the first row of the file.

    Raises:
        AnalysisError: `k` is less than 1, or the file has no token features.
    """
    tokens = database.image_token_features
    if tokens is None:
        raise AnalysisError(f"{database.path.name} was stored without token features: it has no patches to search.")
    mask = _require_hits(database, k, allowed)
    rough = np.empty(len(database), np.float32)
    for first, block in _blocks(tokens, mask):
        chosen = np.flatnonzero(mask[first : first + len(block)])
        images = block if len(chosen) == len(block) else block[chosen]
        rough[first + chosen] = patch_cosines(images, vector[None]).max(axis=(1, 2))
    return _hits(database, tokens, vector, _Rough(rough, mask, largest_error(vector[None])), k)


def text_vectors(
    database: Database, encoder: Encoder | None, texts: str | Sequence[str], *, patches: bool = False
) -> FloatArray:
    """Encode texts as unit vectors (len(texts), D), for whole images or for patches, by the encoder of the file.

    Raises `AnalysisError` when there is no encoder, or another one: its vectors would mean something else.
    """
    if encoder is None:
        raise AnalysisError("A new text needs the encoder that made the file: name the study it was built from.")
    _require_encoder_of(database, encoder)
    texts = as_list(texts)
    encoded = encoder.encode_texts(texts)
    if not patches:
        return normalise(encoded.features)
    if encoded.tokens is None:
        raise AnalysisError(
            "This encoder gives no token features of texts, which patches are compared with: search whole images."
        )
    from ccassets.encoders.spans import token_spans

    spans = token_spans(encoded.offsets, encoded.attention_mask, [(0, len(text)) for text in texts])
    return normalise(pooled_tokens(encoded.tokens, span_positions(spans)))


def image_vectors(database: Database, encoder: Encoder, images: Sequence[Image.Image]) -> FloatArray:
    """Encode images as unit vectors (len(images), D); raise `AnalysisError` if the encoder is not that of the file."""
    _require_encoder_of(database, encoder)
    return normalise(encoder.encode_images(list(images)).features)


def _require_encoder_of(database: Database, encoder: Encoder) -> None:
    identity = encoder_identity(database)
    if encoder.card.identity != identity:
        raise AnalysisError(
            f"{database.path.name} was made by the encoder {identity}, the study's is {encoder.card.identity}. "
            "Their features cannot be compared: name the study that the file was built from."
        )


def near_duplicates(database: Database, similarity: float, most: int = 1000) -> NearDuplicates:
    """Find similar images of different splits, which leak from training into a test. Every pair is compared, in blocks.

    Args:
        database: The database.
        similarity: Lowest cosine of a pair.
        most: Number of pairs to keep, the most similar ones.

    Returns:
        The pairs that are kept, and the number of all.

    Raises:
        DatabaseError: The features cannot be read.
    """
    _, split = np.unique(database.split.astype(str), return_inverse=True)
    first, second, values = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    count = 0
    for left, right, products in _block_pairs(database, split):
        a, b = np.nonzero(products >= similarity)
        a, b = a + left, b + right
        apart = (split[a] != split[b]) & (a < b)
        count += int(apart.sum())
        first, second = np.append(first, a[apart]), np.append(second, b[apart])
        values = np.append(values, products[a[apart] - left, b[apart] - right])
        order = np.lexsort((second, first, -values))[:most]
        first, second, values = first[order], second[order], values[order]
    facts_of = _row_facts(database)
    pairs = []
    for a, b, value in zip(first.tolist(), second.tolist(), values.tolist(), strict=True):
        one, other = facts_of(a), facts_of(b)
        pairs.append(
            ImagePair(value, a, one["key"], one["split"], one["label"], b, other["key"], other["split"], other["label"])
        )
    return NearDuplicates(tuple(pairs), count)


# --- hits as files -----------------------------------------------------------------------------------


def write_hits(hits: Sequence[Hit], path: str | os.PathLike[str]) -> None:
    """Write hits as CSV, a column for each of their attributes.

    Args:
        hits: The hits, best first.
        path: The file.

    Raises:
        StorageError: The file cannot be written.
    """
    write_csv(path, [field.name for field in fields(Hit)], map(astuple, hits))


def write_pairs(pairs: Sequence[ImagePair], path: str | os.PathLike[str]) -> None:
    """Write pairs as CSV, a column for each of their attributes.

    Args:
        pairs: The pairs, most similar first.
        path: The file.

    Raises:
        StorageError: The file cannot be written.
    """
    write_csv(path, [field.name for field in fields(ImagePair)], map(astuple, pairs))


def save_hit_images(
    hits: Sequence[Hit], read_image: Callable[[int], Image.Image], folder: str | os.PathLike[str]
) -> list[Path]:
    """Save the image of every hit as `<rank>_row<row>_<score>.png`.

    Args:
        hits: The hits, best first.
        read_image: Returns the image of a row (`image_reader`).
        folder: The folder, made where it is missing.

    Returns:
        The files.

    Raises:
        StorageError: A file cannot be written.
        DatasetError: An image cannot be read.
    """
    return save_images(((f"row{hit.row}_{hit.score:.4f}", read_image(hit.row)) for hit in hits), folder)


# --- blocks and rows ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rough:
    """The scores (N,) of the rows that may be hits (N,), each at most `error` from its true value."""

    scores: FloatArray
    allowed: npt.NDArray[np.bool_]
    error: float

    def candidates(self, k: int) -> npt.NDArray[np.int64]:
        """Every row that may be among the k best; rows without a number only where there are too few others."""
        scores = np.where(self.allowed, self.scores, np.float32(np.nan))
        likely = np.flatnonzero(scores >= _reached_by(k, scores) - 2 * self.error)
        if len(likely) <= k:
            unknown = np.flatnonzero(self.allowed & np.isnan(self.scores))
            return np.concatenate([likely, unknown[: k - len(likely)]])
        least = np.partition(scores[likely], len(likely) - k)[len(likely) - k]
        chosen: npt.NDArray[np.int64] = likely[scores[likely] >= least - 2 * self.error]
        return chosen


def _reached_by(k: int, scores: FloatArray) -> float:
    """A score that k rows reach: the k-th of the best of groups of rows, which is quicker to find than that of all."""
    whole = len(scores) // _GROUP_ROWS * _GROUP_ROWS
    best = np.fmax.reduce(scores[:whole].reshape(_GROUP_ROWS, -1), axis=0)
    best = best[~np.isnan(best)]
    return float(np.partition(best, len(best) - k)[len(best) - k]) if len(best) >= k else -np.inf


def _require_hits(database: Database, k: int, allowed: npt.NDArray[np.bool_] | None) -> npt.NDArray[np.bool_]:
    if k < 1:
        raise AnalysisError(f"Expected a number of hits of at least one, found {k}.")
    return np.ones(len(database), np.bool_) if allowed is None else allowed


def _blocks(values: Array, mask: npt.NDArray[np.bool_]) -> Iterator[tuple[int, Array]]:
    """Blocks of rows that hold at least one of the mask's rows, with the number of their first row."""
    if not mask.any():
        return
    allowed = slice(int(mask.argmax()), len(mask) - int(mask[::-1].argmax()))
    for first, block in iter_blocks(values, _BLOCK_BYTES, allowed):
        if mask[first : first + len(block)].any():
            yield first, block


def _rough_cosines(rows: Array, vectors: FloatArray, lengths: FloatArray | None = None) -> FloatArray:
    if len(vectors) <= MOST_VECTORS and suits_kernel(rows):
        return kernel_cosines(rows, vectors, lengths)
    return cosines(rows, vectors)


def _exact_cosines(values: Array, rows: npt.NDArray[np.int64], vector: FloatArray) -> Iterator[npt.NDArray[np.float64]]:
    """Cosines of these rows in float64, (n, T) a block; equal rows get equal bits wherever they stand."""
    wide = vector.astype(np.float64)
    step = max(1, _EXACT_BYTES // (8 * int(np.prod(values.shape[1:]))))
    for first in range(0, len(rows), step):
        block = take_rows(values, rows[first : first + step])
        features = block.reshape(len(block), -1, len(vector)).astype(np.float64)
        yield (features * wide).sum(axis=2) / np.sqrt((features * features).sum(axis=2))


def _hits(database: Database, values: Array, vector: FloatArray, rough: _Rough, k: int) -> list[Hit]:
    """The k best rows, best first, among equals the first row; a row of many patches counts with its best one."""
    candidates = rough.candidates(k)
    blocks = [(scores.argmax(axis=1), scores) for scores in _exact_cosines(values, candidates, vector)]
    patches = np.concatenate([best for best, _ in blocks]) if blocks else np.empty(0, np.int64)
    scores = np.concatenate([scores[np.arange(len(best)), best] for best, scores in blocks]) if blocks else patches
    facts_of = _row_facts(database)
    return [
        Hit(
            row=int(candidates[i]),
            score=float(np.float32(scores[i])),
            patch=int(patches[i]) if values.ndim == 3 else None,
            **facts_of(int(candidates[i])),
        )
        for i in np.lexsort((candidates, -scores))[:k].tolist()
    ]


def _block_pairs(database: Database, split: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, FloatArray]]:
    """Cosines of blocks of rows with blocks that do not come before them: first row, first column, (rows, columns).

    Pairs of blocks of one and the same split are left out.
    """
    values = database.image_features
    block_bytes = _PAIR_ROWS * values.shape[1] * values.dtype.itemsize
    for left, block in iter_blocks(values, block_bytes):
        rows = normalise(np.asarray(block))
        row_splits = split[left : left + len(rows)]
        for right, other in iter_blocks(values, block_bytes, slice(left, None)):
            other_splits = split[right : right + len(other)]
            if np.any(row_splits != row_splits[0]) or np.any(other_splits != row_splits[0]):
                yield left, right, cosines(other, rows).T


def _row_facts(database: Database) -> Callable[[int], dict[str, Any]]:
    """A function from the number of a row to its key, split, label and group."""
    labelled = is_labelled(database)
    keys, groups, labels = database.keys, database.groups, database.shown_labels
    return lambda row: {
        "key": None if keys is None else keys[row],
        "split": database.split[row],
        "label": int(labels[row]) if labelled else None,
        "group": None if groups is None else groups[row],
    }
