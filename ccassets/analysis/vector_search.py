"""Search: which rows or patches are nearest to a text, a concept, an image, or a mixture of them. Exact, in blocks."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.concept_models import encoder_identity
from ccassets.analysis.samples import label_number
from ccassets.analysis.scores import (
    FloatArray,
    cosines,
    local_features,
    normalise,
    patch_cosines,
    pooled_tokens,
    span_positions,
)
from ccassets.database.hdf5 import Array, iter_blocks
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.files import storage_errors, write_text

if TYPE_CHECKING:
    from PIL import Image

    from ccassets.encoders.encoder_contract import Encoder

_PAIR_ROWS = 2048
"""Rows of each side of a block of pairs."""


@dataclass(frozen=True)
class Hit:
    """A row that was found. `score` is a cosine, or for a mixture the cosine with its vector; `patch` the best patch.

    Patches count row-major from the top left. `key`, `label` and `group` are None where the file knows none.
    """

    row: int
    key: str | None
    split: str
    label: int | None
    group: str | None
    score: float
    patch: int | None = None


@dataclass(frozen=True)
class Pair:
    """Two rows of different splits that look alike; `similarity` is the cosine of their image features."""

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
    """The most similar pairs, best first, and how many there are above the similarity in all."""

    pairs: tuple[Pair, ...]
    found: int


@dataclass(frozen=True)
class RowFilter:
    """The rows to search: those of a split, a label (number or name) and a group, each optional."""

    split: str | None = None
    label: int | str | None = None
    group: str | None = None

    def mask(self, database: Database) -> npt.NDArray[np.bool_]:
        """(N,) bool. Raises `DatabaseError` for a split, and `AnalysisError` for a label or group that is not there."""
        allowed = np.ones(len(database), np.bool_)
        if self.split is not None:
            allowed[:] = False
            allowed[database.select(self.split).rows] = True
        if self.label is not None:
            label = label_number(database, self.label) if isinstance(self.label, str) else self.label
            matrix = database.label_matrix
            known = np.unique(database.labels) if matrix is None else np.arange(matrix.shape[1])
            if label not in known:
                raise AnalysisError(f"{database.path.name} has no label {label}; it has {known.tolist()}.")
            allowed &= database.labels == label if matrix is None else matrix[:, label] > 0
        if self.group is not None:
            if database.groups is None or self.group not in database.groups:
                known_groups = "no groups at all" if database.groups is None else "others"
                raise AnalysisError(f"{database.path.name} has no group {self.group!r}; it has {known_groups}.")
            allowed &= np.asarray(database.groups == self.group, np.bool_)
        return allowed


EVERYWHERE = RowFilter()


def search(
    database: Database,
    *,
    texts: Sequence[str] = (),
    concepts: Sequence[str] = (),
    rows: Sequence[int] = (),
    minus: Sequence[str] = (),
    encoder: Encoder | None = None,
    patches: bool = False,
    k: int = 10,
    where: RowFilter = EVERYWHERE,
) -> list[Hit]:
    """The k rows whose image is nearest to what is named, best first; the rows named are not among them.

    One text, stored concept or row is compared by cosine. Several are a mixture: the sum of their unit vectors, minus
    those of the texts in `minus`. Texts are compared as they are written and need the `encoder` that made the file.
    With `patches`, texts and concepts are compared with every patch instead, by the mean of their own token features,
    and each hit tells its best patch. Raises `DatabaseError` or `AnalysisError` for what the file does not have.
    """
    if patches and rows:
        raise AnalysisError("Rows are compared as whole images: search patches by a text or a concept.")
    named = database.select(rows=np.array(rows, np.int64))
    plus = [normalise(named.image_features)] if rows else []
    if concepts:
        plus.append(local_features(database, concepts) if patches else database.concept_features(concepts))
    if texts:
        plus.append(text_vectors(database, encoder, texts, patches=patches))
    if not plus:
        raise AnalysisError("Nothing to search for was named: give a text, a concept or a row.")
    vector = np.concatenate(plus).sum(axis=0)
    if minus:
        vector -= text_vectors(database, encoder, minus, patches=patches).sum(axis=0)
    if np.linalg.norm(vector) < 1e-3:
        raise AnalysisError("What was named and what is to be taken away are the same: nothing is left to search for.")
    allowed = where.mask(database)
    allowed[named.rows] = False
    nearest = nearest_patches if patches else nearest_images
    return nearest(database, normalise(vector), k, allowed)


def nearest_images(
    database: Database, vector: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None
) -> list[Hit]:
    """The k images with the highest cosine to a unit vector (D,), of the `allowed` rows (N,); equals by row number."""
    best = _Best(k)
    for rows, features in _blocks(database, database.image_features, allowed):
        best.add(rows, cosines(features, vector[None])[:, 0])
    return _hits(database, best)


def nearest_patches(
    database: Database, vector: FloatArray, k: int, allowed: npt.NDArray[np.bool_] | None = None
) -> list[Hit]:
    """The k images whose best patch has the highest cosine to a unit vector (D,), and which patch that is."""
    tokens = database.image_token_features
    if tokens is None:
        raise AnalysisError(f"{database.path.name} was stored without token features: it has no patches to search.")
    best = _Best(k)
    for rows, block in _blocks(database, tokens, allowed):
        scores = patch_cosines(block, vector[None])[:, :, 0]
        patches = scores.argmax(axis=1)
        best.add(rows, scores[np.arange(len(rows)), patches], patches)
    return _hits(database, best)


def text_vectors(
    database: Database, encoder: Encoder | None, texts: Sequence[str], *, patches: bool = False
) -> FloatArray:
    """Texts as unit vectors (len(texts), D), for whole images or for patches, by the encoder that made the file.

    Raises `AnalysisError` when there is no encoder, or another one: its vectors would mean something else.
    """
    if encoder is None:
        raise AnalysisError("A new text needs the encoder that made the file: name the study it was built from.")
    made_by = encoder_identity(database)
    if encoder.card.identity != made_by:
        raise AnalysisError(
            f"{database.path.name} was made by the encoder {made_by}, the study's is {encoder.card.identity}. "
            "Their features cannot be compared: name the study that the file was built from."
        )
    encoded = encoder.encode_texts(list(texts))
    if not patches:
        return normalise(encoded.features)
    if encoded.tokens is None:
        raise AnalysisError(
            "This encoder gives no token features of texts, which patches are compared with: search whole images."
        )
    from ccassets.encoders.spans import token_spans

    spans = token_spans(encoded.offsets, encoded.attention_mask, [(0, len(text)) for text in texts])
    return normalise(pooled_tokens(encoded.tokens, span_positions(spans)))


def near_duplicates(database: Database, similarity: float, most: int = 1000) -> NearDuplicates:
    """Pairs of rows of different splits with a cosine of at least `similarity`: images that a test may have seen.

    Every pair is compared, in blocks; the `most` similar ones are kept, the others counted.
    """
    _, split = np.unique(database.split.astype(str), return_inverse=True)
    first, second, values = np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32)
    found = 0
    for left, right, products in _block_pairs(database, split):
        a, b = np.nonzero(products >= similarity)
        a, b = a + left, b + right
        apart = (split[a] != split[b]) & (a < b)
        found += int(apart.sum())
        first, second = np.append(first, a[apart]), np.append(second, b[apart])
        values = np.append(values, products[a[apart] - left, b[apart] - right])
        order = np.lexsort((second, first, -values))[:most]
        first, second, values = first[order], second[order], values[order]
    places = _places(database)
    pairs = []
    for a, b, value in zip(first.tolist(), second.tolist(), values.tolist(), strict=True):
        one, other = places(a), places(b)
        pairs.append(
            Pair(value, a, one["key"], one["split"], one["label"], b, other["key"], other["split"], other["label"])
        )
    return NearDuplicates(tuple(pairs), found)


# --- what to do with hits ----------------------------------------------------------------------------


def write_csv(found: Sequence[Hit] | Sequence[Pair], path: Path, kind: type[Hit] | type[Pair] = Hit) -> None:
    """Hits, or pairs with `kind=Pair`, as a CSV file with a header. Raises `StorageError` when it cannot be written."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(kind)])
    writer.writerows(astuple(one) for one in found)
    with storage_errors(path):
        write_text(path, text.getvalue())


def copy_images(hits: Sequence[Hit], read_image: Callable[[int], Image.Image], folder: Path) -> list[Path]:
    """Save the pictures of hits as `<rank>_row<row>_<score>.png`; `read_image` gives that of a row (`image_reader`).

    Raises `StorageError` when the folder cannot be written.
    """
    saved = []
    for rank, hit in enumerate(hits, start=1):
        path = folder / f"{rank:04d}_row{hit.row}_{hit.score:.4f}.png"
        picture = read_image(hit.row)
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(path)
        saved.append(path)
    return saved


# --- inside ------------------------------------------------------------------------------------------


class _Best:
    """The k best rows so far, with their scores and patches; among equals the first row of the file."""

    def __init__(self, k: int) -> None:
        if k < 1:
            raise AnalysisError(f"At least one hit has to be asked for; {k} were.")
        self._k = k
        self.rows = np.empty(0, np.int64)
        self.scores = np.empty(0, np.float32)
        self.patches: npt.NDArray[np.int64] | None = None

    def add(
        self, rows: npt.NDArray[np.int64], scores: FloatArray, patches: npt.NDArray[np.int64] | None = None
    ) -> None:
        all_rows, all_scores = np.append(self.rows, rows), np.append(self.scores, scores)
        order = np.lexsort((all_rows, -all_scores))[: self._k]
        if patches is not None:
            before = np.empty(0, np.int64) if self.patches is None else self.patches
            self.patches = np.append(before, patches)[order]
        self.rows, self.scores = all_rows[order], all_scores[order]


def _blocks(
    database: Database, values: Array, allowed: npt.NDArray[np.bool_] | None
) -> Iterator[tuple[npt.NDArray[np.int64], Array]]:
    """Blocks of the allowed rows, with their numbers."""
    wanted = np.ones(len(database), np.bool_) if allowed is None else allowed
    places = np.flatnonzero(wanted)
    if not len(places):
        return
    for first, block in iter_blocks(values, rows=slice(int(places[0]), int(places[-1]) + 1)):
        chosen = wanted[first : first + len(block)]
        if chosen.any():
            yield first + np.flatnonzero(chosen), block if chosen.all() else block[chosen]


def _block_pairs(database: Database, split: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, FloatArray]]:
    """Cosines of blocks of rows with blocks that do not come before them: first row, first column, (rows, columns).

    Blocks that both lie in one and the same split are left out.
    """
    values = database.image_features
    block_bytes = _PAIR_ROWS * values.shape[1] * values.dtype.itemsize
    for left, block in iter_blocks(values, block_bytes):
        rows = normalise(np.asarray(block))
        ours = split[left : left + len(rows)]
        for right, other in iter_blocks(values, block_bytes, slice(left, None)):
            theirs = split[right : right + len(other)]
            if np.any(ours != ours[0]) or np.any(theirs != ours[0]):
                yield left, right, cosines(other, rows).T


def _hits(database: Database, best: _Best) -> list[Hit]:
    places = _places(database)
    patches = [None] * len(best.rows) if best.patches is None else best.patches.tolist()
    return [
        Hit(row=row, score=score, patch=patch, **places(row))
        for row, score, patch in zip(best.rows.tolist(), best.scores.tolist(), patches, strict=True)
    ]


def _places(database: Database) -> Callable[[int], dict[str, Any]]:
    """A function from a row to its key, split, label and group."""
    labelled = ((database.provenance or {}).get("dataset") or {}).get("labels") != "none"
    keys, groups = database.keys, database.groups
    return lambda row: {
        "key": None if keys is None else keys[row],
        "split": database.split[row],
        "label": int(database.labels[row]) if labelled else None,
        "group": None if groups is None else groups[row],
    }
