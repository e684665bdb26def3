"""Scores: how well images and patches fit words, each by a formula with its source, from arrays or from a database.

Every feature is made unit length where it is used, so that a product is a cosine; float16 rows lose it in the fourth
digit. What the authors do is from their downstream evaluation (JerrryNie/ConceptCLIP at d2987d2).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5 import iter_blocks
from ccassets.database.reader import Database, RowIndex, Template
from ccassets.errors import DatabaseError
from ccassets.progress import Progress, silent

FloatArray = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating[Any]]
Positions = Sequence[npt.NDArray[np.integer[Any]]]
"""For every prompt, the positions of the tokens that stand for its word, counted with `[CLS]`; repeats count twice."""

Rule = Literal["span", "authors"]
"""Which tokens of a prompt stand for its word: `span_positions` or `authors_positions`."""
Kind = Literal["label", "concept"]

TOP_PATCHES = 128
"""How many patches the authors' zero-shot score averages; all of them where an image has fewer."""

_CHUNK = 1 << 22
"""Numbers that are converted at a time: few enough to stay near the processor, enough for its threads to pay."""


# --- words as vectors --------------------------------------------------------------------------------


def span_positions(spans: npt.NDArray[np.integer[Any]]) -> Positions:
    """The positions of half-open token spans (K, 2): what a reader takes for the word, and our default."""
    return [np.arange(start, end) for start, end in spans.tolist()]


def authors_positions(input_ids: npt.NDArray[np.integer[Any]], pieces: Sequence[Sequence[int]]) -> Positions:
    """The positions that the authors average: for each piece of a word, in order, its first place in the prompt.

    `input_ids` (K, T) are prompts, `pieces` the token ids of each one's word alone. A piece that the word repeats
    counts its first place twice; one that stands earlier in the template is taken from there; one that is not found
    is dropped. Source: `medical_image_diagnosis/utils.py`.
    """
    positions = []
    for ids, word in zip(input_ids, pieces, strict=True):
        first = {piece: place for place, piece in reversed(list(enumerate(ids.tolist())))}
        positions.append(np.array([first[piece] for piece in word if piece in first], np.int64))
    return positions


def pooled_tokens(token_features: Values, positions: Positions) -> npt.NDArray[np.float64]:
    """The mean of every prompt's token features (K, T, D) at its positions: (K, D), not normalised; nan without any."""
    pooled = np.full((len(token_features), token_features.shape[2]), np.nan)
    for row, places in enumerate(positions):
        if len(places):
            pooled[row] = token_features[row, places].mean(axis=0, dtype=np.float64)
    return pooled


def normalise(vectors: Values) -> FloatArray:
    """Vectors (…, D) of any float dtype divided by their length, float32."""
    wide = vectors.astype(np.float32) if vectors.dtype == np.float16 else vectors
    lengths = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / lengths, np.float32)


def ensemble(vectors: Values) -> FloatArray:
    """The mean over the first axis, (M, …, D) to (…, D), of unit length: prompt ensembling as in CLIP.

    The authors normalise global text features before this and pooled tokens only here.
    """
    return normalise(vectors.mean(axis=0, dtype=np.float64))


def local_features(
    database: Database,
    words: Sequence[str] | None = None,
    *,
    kind: Kind = "concept",
    templates: Sequence[str] | None = None,
    rule: Rule = "span",
) -> FloatArray:
    """One vector for the patches per word, (len(words), D), unit length: the mean over templates of its pooled tokens.

    `words` are concepts, each with its synonyms, or label words; by default all. `templates` defaults to all of that
    kind. Raises `DatabaseError` where the file lacks a word, a template, or the token features of one.
    """
    texts = list(database.attributes.get(f"{kind}_texts") or [])
    groups = dict(database.concepts) if kind == "concept" else {word: (word,) for word in texts}
    wanted = list(groups) if words is None else list(words)
    unknown = [word for word in wanted if word not in groups]
    if unknown:
        raise DatabaseError(f"{database.path.name} has no {kind} words {unknown}; it has {list(groups)}.")
    pooled = np.stack(
        [_pooled_template(database, name, texts, rule) for name in _template_ids(database, kind, templates)]
    )
    row_of = {text: row for row, text in enumerate(texts)}
    return np.stack(
        [ensemble(pooled[:, [row_of[text] for text in groups[word]]].reshape(-1, database.dim)) for word in wanted]
    )


# --- zero-shot ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Probabilities:
    """The two halves of a probability, float32: from whole images, and from their patches where these were used."""

    global_scores: FloatArray
    local_scores: FloatArray | None

    @property
    def scores(self) -> FloatArray:
        """The mean of the halves; the first alone where there is no second."""
        if self.local_scores is None:
            return self.global_scores
        return np.asarray((self.global_scores + self.local_scores) / 2, np.float32)


@dataclass(frozen=True)
class ZeroShot(Probabilities):
    """Zero-shot probabilities (n, C) of the rows of a split or a file, with how they came to be.

    `rule` says which tokens stood for a word, `top` how many patches were averaged; both are None without patches.
    """

    words: tuple[str, ...]
    templates: tuple[str, ...]
    multilabel: bool
    rule: Rule | None
    top: int | None


def zero_shot_scores(
    image_features: Values,
    image_tokens: Values,
    global_words: FloatArray,
    local_words: FloatArray,
    *,
    scale: float,
    concept_scale: float,
    top: int = TOP_PATCHES,
    multilabel: bool = False,
) -> Probabilities:
    """The authors' zero-shot score, (n, C), of images (n, D) with patches (n, T, D) for C words.

    `global_words` and `local_words` (C, D) are of unit length (`ensemble`, `local_features`).

    The score is 0.5 · softmax(S · image · word) + 0.5 · softmax(mean of the `top` patches of C · patch · word), the
    patches chosen for each word; with `multilabel` a sigmoid for both. S and C are `scale` and `concept_scale`, the
    exponentials of the stored parameters; no bias. Source: `medical_image_diagnosis/utils.py`.
    """
    whole = _probabilities(scale * cosines(image_features, global_words), multilabel)
    local = _probabilities(concept_scale * top_mean(patch_cosines(image_tokens, local_words), top), multilabel)
    return Probabilities(whole, local)


def zero_shot(
    database: Database,
    *,
    split: str | None = None,
    rule: Rule | None = "span",
    words: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    top: int = TOP_PATCHES,
    multilabel: bool | None = None,
    progress: Progress = silent,
) -> ZeroShot:
    """The authors' zero-shot score for the rows of a split, or of the file, in one pass over their patches.

    `rule="authors"` reproduces their positions, and `None` leaves the patches out: the score is then the first half
    alone, which is all that an encoder without token features allows (see `has_local_scores`). `words` are label
    words, `templates` label templates, by default all. `multilabel` is by default what the file is. Raises
    `DatabaseError` where the file lacks what is needed.
    """
    rows = _row_range(database, split)
    names = tuple(_template_ids(database, "label", templates))
    chosen = tuple(database.attributes.get("label_texts") or ()) if words is None else tuple(words)
    sigmoid = database.label_matrix is not None if multilabel is None else multilabel
    scale = _multiplier(database, "logit")
    global_words = database.label_features(chosen, names)
    shape = (rows.stop - rows.start, len(chosen))
    whole = np.empty(shape, np.float32)
    if rule is None:
        for first, block in iter_blocks(database.image_features, rows=rows):
            place = slice(first - rows.start, first - rows.start + len(block))
            whole[place] = _probabilities(scale * cosines(block, global_words), sigmoid)
            progress(place.stop, shape[0])
        return ZeroShot(whole, None, chosen, names, sigmoid, None, None)
    tokens = _require_tokens(database)
    local_words = local_features(database, chosen, kind="label", templates=names, rule=rule)
    concept_scale = _multiplier(database, "concept_logit")
    local = np.empty(shape, np.float32)
    for first, block in iter_blocks(tokens, rows=rows):
        place = slice(first - rows.start, first - rows.start + len(block))
        part = zero_shot_scores(
            np.asarray(database.image_features[first : first + len(block)]),
            block,
            global_words,
            local_words,
            scale=scale,
            concept_scale=concept_scale,
            top=top,
            multilabel=sigmoid,
        )
        assert part.local_scores is not None
        whole[place], local[place] = part.global_scores, part.local_scores
        progress(place.stop, shape[0])
    return ZeroShot(whole, local, chosen, names, sigmoid, rule, min(top, database.token_count))


def has_local_scores(database: Database) -> bool:
    """Whether the file holds what the local half of a zero-shot score needs: patches, word tokens, and their scale."""
    templates = [template for name, template in database.templates.items() if name.startswith("label_prompts_t")]
    return (
        database.image_token_features is not None
        and database.concept_logit_scale is not None
        and bool(templates)
        and all(t.text_token_features is not None and t.subject_span is not None for t in templates)
    )


# --- concept annotation ------------------------------------------------------------------------------

AUTHORS_ANNOTATION_POSITION = -1
"""The token of a prompt that the authors compare with patches: the last of 77, which is padding in short prompts."""


def annotation_scores(
    image_features: Values,
    image_tokens: Values,
    text_features: Values,
    text_token_features: Values,
    *,
    scale: float,
    concept_scale: float,
    position: int = AUTHORS_ANNOTATION_POSITION,
) -> Probabilities:
    """Concept annotation in the authors' form: negative against positive prompts, (K, n, 2) for K concepts, n images.

    0.5 · softmax(S · image · text) + 0.5 · softmax(mean over all patches of C · patch · token), each over the two
    prompts. `text_features` (K, 2, D) hold the negative prompt first; of `text_token_features` (K, 2, T, D) only the
    token at `position` is read. Images (n, D) have patches (n, T_img, D). Source:
    `medical_concept_annotation/concept_annotation.py`.
    """
    concepts, _, dim = text_features.shape
    tokens = normalise(text_token_features[:, :, position].reshape(-1, dim))
    whole = cosines(image_features, normalise(text_features.reshape(-1, dim)))
    local = patch_cosines(image_tokens, tokens).mean(axis=1)

    def over_prompts(logits: FloatArray) -> FloatArray:
        by_concept = logits.reshape(len(image_features), concepts, 2).transpose(1, 0, 2)
        return _probabilities(by_concept, multilabel=False)

    return Probabilities(over_prompts(scale * whole), over_prompts(concept_scale * local))


# --- cosines -----------------------------------------------------------------------------------------


def concept_scores(
    database: Database,
    words: Sequence[str] | None = None,
    *,
    templates: Sequence[str] | None = None,
    split: str | None = None,
) -> FloatArray:
    """The cosine of every image with every concept, (N, K) float32, concepts ensembled over templates and synonyms.

    Rows are those of a split, or of the file; concepts are `words`, by default `database.concepts` in their order.
    """
    return image_cosines(database, database.concept_features(words, templates), split=split)


def image_cosines(database: Database, vectors: FloatArray, *, split: str | None = None) -> FloatArray:
    """The cosine of every image with unit vectors (K, D): (N, K) float32."""
    rows = _row_range(database, split)
    found = np.empty((rows.stop - rows.start, len(vectors)), np.float32)
    for first, block in iter_blocks(database.image_features, rows=rows):
        place = first - rows.start
        found[place : place + len(block)] = cosines(block, vectors)
    return found


def patch_scores(
    database: Database,
    rows: RowIndex = None,
    words: Sequence[str] | None = None,
    *,
    templates: Sequence[str] | None = None,
    rule: Rule = "span",
) -> FloatArray:
    """Score maps: the cosine of every patch of some rows with concepts, (n, K, T_img) float32, row-major patches.

    A concept is the mean of its word's token features (`local_features`), the vector that ConceptCLIP's patches are
    trained against; for any other vectors there is `patch_cosines`. `rows` are numbers of rows of the file.
    """
    tokens = _require_tokens(database)
    vectors = local_features(database, words, templates=templates, rule=rule)
    chosen = database.select(rows=rows).rows
    maps = np.empty((len(chosen), len(vectors), database.token_count), np.float32)
    for place, row in enumerate(chosen.tolist()):
        maps[place] = patch_cosines(np.asarray(tokens[row : row + 1]), vectors)[0].T
    return maps


def patch_cosines(tokens: Values, vectors: FloatArray) -> FloatArray:
    """The cosine of every patch (n, T, D) with unit vectors (K, D): (n, T, K)."""
    images, count, dim = tokens.shape
    return cosines(tokens.reshape(-1, dim), vectors).reshape(images, count, len(vectors))


def cosines(features: Values, vectors: FloatArray) -> FloatArray:
    """The cosine of features (n, D), of any float dtype and length, with unit vectors (K, D): (n, K) float32.

    Little besides the result is held: features are converted, multiplied and measured some at a time.
    """
    dim = features.shape[1]
    columns = np.ascontiguousarray(vectors.T, np.float32)
    found = np.empty((len(features), len(vectors)), np.float32)
    chunk = np.empty((min(max(1, _CHUNK // dim), len(features)), dim), np.float32)
    for first in range(0, len(features), max(1, len(chunk))):
        part = features[first : first + len(chunk)]
        converted = chunk[: len(part)]
        np.copyto(converted, part, casting="same_kind")
        products = found[first : first + len(part)]
        np.matmul(converted, columns, out=products)
        products /= np.sqrt(np.einsum("nd,nd->n", converted, converted))[:, None]
    return found


def top_mean(patches: FloatArray, top: int) -> FloatArray:
    """The mean of the `top` highest patches for each word, (n, T, K) to (n, K); of all where there are fewer."""
    count = patches.shape[1]
    if top >= count:
        return np.asarray(patches.mean(axis=1))
    by_word = np.ascontiguousarray(patches.transpose(0, 2, 1))
    by_word.partition(count - top, axis=2)
    return np.asarray(by_word[:, :, count - top :].mean(axis=2))


# --- inside ------------------------------------------------------------------------------------------


def _probabilities(logits: FloatArray, multilabel: bool) -> FloatArray:
    from scipy.special import expit, softmax

    probabilities: FloatArray = expit(logits) if multilabel else softmax(logits, axis=-1)
    return probabilities


def _row_range(database: Database, split: str | None) -> slice:
    rows = database.select(split).rows
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def _multiplier(database: Database, name: Literal["logit", "concept_logit"]) -> float:
    multiplier: float | None = getattr(database, f"{name}_multiplier")
    if multiplier is None:
        raise DatabaseError(
            f"{database.path.name} has no attribute {name}_scale: its encoder has none, so these scores do not exist "
            "for it. Cosine scores do."
        )
    return multiplier


def _require_tokens(database: Database) -> Values:
    if database.image_token_features is None:
        raise DatabaseError(f"{database.path.name} was stored without token features: patches have no scores in it.")
    return database.image_token_features


def _template_ids(database: Database, kind: Kind, templates: Sequence[str] | None) -> list[str]:
    names = [name for name in database.templates if name.startswith(f"{kind}_prompts_t")]
    wanted = names if templates is None else list(templates)
    unknown = [name for name in wanted if name not in database.templates]
    if unknown or not wanted:
        raise DatabaseError(f"{database.path.name} has no templates {unknown or kind}; it has {[*database.templates]}.")
    return wanted


def _pooled_template(database: Database, name: str, words: Sequence[str], rule: Rule) -> npt.NDArray[np.float64]:
    template = database.templates[name]
    where = f"{database.path.name}: template {name}"
    if template.text_token_features is None or template.subject_span is None or template.input_ids is None:
        raise DatabaseError(
            f"{where} is stored without token features and the positions of its words, which scores of patches need. "
            "Build the study again with an encoder that gives them; a file of the original scripts has none."
        )
    if len(template.texts) != len(words):
        raise DatabaseError(f"{where} holds {len(template.texts)} prompts for {len(words)} words.")
    if not np.all(template.subject_span[:, 1] > template.subject_span[:, 0]):
        raise DatabaseError(f"{where} has prompts without an inserted word: name templates that have a {{}}.")
    if rule == "span":
        return pooled_tokens(template.text_token_features, span_positions(template.subject_span))
    pieces = list(_word_pieces(template, words, where))
    return pooled_tokens(template.text_token_features, authors_positions(template.input_ids, pieces))


def _word_pieces(template: Template, words: Sequence[str], where: str) -> Iterator[list[int]]:
    """The token ids of every word alone: WordPiece cuts a word that stands free in its prompt just as it does alone."""
    assert template.input_ids is not None
    assert template.subject_span is not None
    for word, text, ids, (start, end) in zip(
        words, template.texts, template.input_ids, template.subject_span.tolist(), strict=True
    ):
        if not re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text):
            raise DatabaseError(
                f"{where}: {word!r} does not stand free in {text!r}, so its own tokens, which the authors' rule needs, "
                "are not known. Use the rule 'span'."
            )
        yield ids[start:end].tolist()
