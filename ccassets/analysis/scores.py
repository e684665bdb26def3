"""Cosine scores of images and patches with words, from arrays or from a database.

Every feature is normalised where it is used, so that a product is a cosine; float16 rows lose unit length in the
fourth digit. "Authors" are JerrryNie/ConceptCLIP at commit d2987d2, folder `downstream_evaluation`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.float16_kernel import PRECISE_VECTORS, kernel_cosines, suits_kernel
from ccassets.database.hdf5 import iter_blocks, loaded
from ccassets.database.reader import Database, Kind, RowIndex, Template, as_list, template_ids
from ccassets.errors import DatabaseError

FloatArray = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating[Any]]
Positions = Sequence[npt.NDArray[np.integer[Any]]]
"""For every prompt, the positions of the tokens of its word, counted from `[CLS]`; repeats count twice."""

Rule = Literal["span", "authors"]
"""Which tokens of a prompt belong to its word: `span_positions` or `authors_positions`."""

_CHUNK = 1 << 22
"""Numbers converted at a time: few enough to stay in the processor's cache, enough for its threads to pay off."""


# --- words as vectors --------------------------------------------------------------------------------


def span_positions(spans: npt.NDArray[np.integer[Any]]) -> Positions:
    """List the positions of half-open token spans (K, 2): the tokens of the inserted word."""
    return [np.arange(start, end) for start, end in spans.tolist()]


def authors_positions(input_ids: npt.NDArray[np.integer[Any]], pieces: Sequence[Sequence[int]]) -> Positions:
    """List the positions that the authors average: for each piece of a word, its first position in the prompt.

    `input_ids` (K, T) are prompts, `pieces` the token ids of each one's word alone. A piece that the word repeats
    counts its first position twice; one that occurs earlier in the template is taken from there; one that does not
    occur is dropped. Source: `medical_image_diagnosis/utils.py`.
    """
    positions = []
    for ids, word in zip(input_ids, pieces, strict=True):
        first = {piece: position for position, piece in reversed(list(enumerate(ids.tolist())))}
        positions.append(np.array([first[piece] for piece in word if piece in first], np.int64))
    return positions


def pooled_tokens(token_features: Values, positions: Positions) -> npt.NDArray[np.float64]:
    """Average every prompt's token features (K, T, D) over its positions: (K, D), not normalised; nan without any."""
    pooled = np.full((len(token_features), token_features.shape[2]), np.nan)
    for row, row_positions in enumerate(positions):
        if len(row_positions):
            pooled[row] = token_features[row, row_positions].mean(axis=0, dtype=np.float64)
    return pooled


def normalise(vectors: Values) -> FloatArray:
    """Divide vectors (…, D) of any float dtype by their length: float32."""
    wide = vectors.astype(np.float32) if vectors.dtype == np.float16 else vectors
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / lengths, np.float32)


def ensemble(vectors: Values) -> FloatArray:
    """Average over the first axis, (M, …, D) to (…, D), and normalise: prompt ensembling as in CLIP.

    The authors normalise global text features before this, and pooled tokens only here.
    """
    return normalise(vectors.mean(axis=0, dtype=np.float64))


def local_features(
    database: Database,
    words: str | Sequence[str] | None = None,
    *,
    kind: Kind = "concept",
    templates: str | Sequence[str] | None = None,
    rule: Rule = "span",
) -> FloatArray:
    """Make the vectors that patches are compared with: each word's pooled tokens, averaged over templates.

    Args:
        database: A database with token features of texts.
        words: Concepts, each with its synonyms, or label words; by default all.
        kind: Whether `words` are concepts or label words.
        templates: Ids of templates of that kind; by default all.
        rule: Which tokens belong to a word.

    Returns:
        (len(words), D) float32, unit length.

    Raises:
        DatabaseError: The file lacks a word, a template, or the token features of one.
    """
    texts = list(database.attributes.get(f"{kind}_texts") or [])
    synonyms = dict(database.concepts) if kind == "concept" else {word: (word,) for word in texts}
    chosen = list(synonyms) if words is None else as_list(words)
    unknown = [word for word in chosen if word not in synonyms]
    if unknown:
        raise DatabaseError(f"{database.path.name} has no {kind} words {unknown}; it has {list(synonyms)}.")
    pooled = np.stack(
        [_pooled_template(database, name, texts, rule) for name in template_ids(database, kind, templates)]
    )
    row_of = {text: row for row, text in enumerate(texts)}
    return np.stack(
        [ensemble(pooled[:, [row_of[text] for text in synonyms[word]]].reshape(-1, database.dim)) for word in chosen]
    )


# --- cosines -----------------------------------------------------------------------------------------


def concept_scores(
    database: Database,
    words: str | Sequence[str] | None = None,
    *,
    templates: str | Sequence[str] | None = None,
    split: str | None = None,
) -> FloatArray:
    """Score images on concepts: the cosine with each concept, ensembled over templates and synonyms.

    Args:
        database: The database.
        words: Concepts; by default `database.concepts` in their order.
        templates: Ids of concept templates; by default all.
        split: Score the rows of this split alone.

    Returns:
        (N, K) float32.

    Raises:
        DatabaseError: The file has no such word, template or split.
    """
    return image_cosines(database, database.concept_features(words, templates), split=split)


def image_cosines(database: Database, vectors: FloatArray, *, split: str | None = None) -> FloatArray:
    """Compare images with any vectors.

    Args:
        database: The database.
        vectors: (K, D), unit length.
        split: Compare the rows of this split alone.

    Returns:
        Cosines, (N, K) float32.

    Raises:
        DatabaseError: There is no such split, or the features cannot be read.
    """
    rows = row_range(database, split)
    scores = np.empty((rows.stop - rows.start, len(vectors)), np.float32)
    for first, block in iter_blocks(database.image_features, rows=rows):
        start = first - rows.start
        scores[start : start + len(block)] = cosines(block, vectors)
    return scores


def patch_scores(
    database: Database,
    rows: RowIndex = None,
    words: str | Sequence[str] | None = None,
    *,
    templates: str | Sequence[str] | None = None,
    rule: Rule = "span",
) -> FloatArray:
    """Score every patch of some rows on concepts: maps of where the encoder sees a concept.

    A concept is the mean of its word's token features, the vector that ConceptCLIP's patches are trained against;
    `patch_cosines` takes any other vectors.

    Args:
        database: A database with token features.
        rows: Numbers of rows of the file; by default all.
        words: Concepts; by default all.
        templates: Ids of concept templates; by default all.
        rule: Which tokens of a prompt belong to its word.

    Returns:
        Cosines, (n, K, T_img) float32, patches row by row from the top left.

    Raises:
        DatabaseError: The file lacks token features, a word or a template.
    """
    tokens = require_tokens(database)
    vectors = local_features(database, words, templates=templates, rule=rule)
    chosen = database.select(rows=rows).rows
    maps = np.empty((len(chosen), len(vectors), database.token_count), np.float32)
    for index, row in enumerate(chosen.tolist()):
        maps[index] = patch_cosines(np.asarray(tokens[row : row + 1]), vectors)[0].T
    return maps


def patch_cosines(tokens: Values, vectors: FloatArray) -> FloatArray:
    """Compare patches with any vectors.

    Args:
        tokens: (n, T, D) of any float dtype and length.
        vectors: (K, D), unit length.

    Returns:
        Cosines, (n, T, K) float32.
    """
    images, count, dim = tokens.shape
    return cosines(tokens.reshape(-1, dim), vectors).reshape(images, count, len(vectors))


def cosines(features: Values, vectors: FloatArray) -> FloatArray:
    """Compare features (n, D), of any float dtype and length, with unit vectors (K, D): (n, K) float32.

    Little besides the result is held: features are converted, multiplied and measured a chunk at a time.
    """
    if len(vectors) <= PRECISE_VECTORS and suits_kernel(features):
        return kernel_cosines(features, vectors)
    dim = features.shape[1]
    columns = np.ascontiguousarray(vectors.T, np.float32)
    result = np.empty((len(features), len(vectors)), np.float32)
    chunk = np.empty((min(max(1, _CHUNK // dim), len(features)), dim), np.float32)
    for first in range(0, len(features), max(1, len(chunk))):
        with loaded(features[first : first + len(chunk)]) as part:
            converted = chunk[: len(part)]
            np.copyto(converted, part, casting="same_kind")
        products = result[first : first + len(converted)]
        np.matmul(converted, columns, out=products)
        products /= np.sqrt(np.einsum("nd,nd->n", converted, converted))[:, None]
    return result


# --- what scores read of a database ------------------------------------------------------------------


def row_range(database: Database, split: str | None) -> slice:
    """The rows of a split as one slice of the file; all rows without a split."""
    rows = database.select(split).rows
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def require_tokens(database: Database) -> Values:
    """The token features of images; raises `DatabaseError` without any."""
    if database.image_token_features is None:
        raise DatabaseError(f"{database.path.name} was stored without token features: patches have no scores in it.")
    return database.image_token_features


def _pooled_template(database: Database, name: str, words: Sequence[str], rule: Rule) -> npt.NDArray[np.float64]:
    template = database.templates[name]
    location = f"{database.path.name}: template {name}"
    if template.text_token_features is None or template.subject_span is None or template.input_ids is None:
        raise DatabaseError(
            f"{location} is stored without token features and the positions of its words, which scores of patches "
            "need. Build the study again with an encoder that gives them; a file of the original scripts has none."
        )
    if len(template.texts) != len(words):
        raise DatabaseError(f"{location} holds {len(template.texts)} prompts for {len(words)} words.")
    if not np.all(template.subject_span[:, 1] > template.subject_span[:, 0]):
        raise DatabaseError(f"{location} has prompts without an inserted word: name templates that have a {{}}.")
    if rule == "span":
        return pooled_tokens(template.text_token_features, span_positions(template.subject_span))
    pieces = list(_word_pieces(template, words, location))
    return pooled_tokens(template.text_token_features, authors_positions(template.input_ids, pieces))


def _word_pieces(template: Template, words: Sequence[str], location: str) -> Iterator[list[int]]:
    """The token ids of every word alone: WordPiece splits a free-standing word in a prompt just as it does alone."""
    assert template.input_ids is not None
    assert template.subject_span is not None
    for word, text, ids, (start, end) in zip(
        words, template.texts, template.input_ids, template.subject_span.tolist(), strict=True
    ):
        if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
            raise DatabaseError(
                f"{location}: {word!r} is not a separate word in {text!r}, so its own tokens, which the authors' rule "
                "needs, are not known. Use the rule 'span'."
            )
        yield ids[start:end].tolist()
