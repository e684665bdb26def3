"""Proof of what adopted features show: a sample is encoded, and the nearest stored features must be its own."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import FindingCollector, count, listed, rows_text
from ccassets.database.validation.legacy_traces import COPY_TOLERANCE
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest, read_image
from ccassets.encoders.encoder_contract import Encoder, TextFeatures
from ccassets.extraction.adoption.adopted_parts import take_rows
from ccassets.extraction.adoption.row_matching import Bools, Images, Ints
from ccassets.extraction.adoption.template_matching import MatchedTemplate

MOST_SAMPLED = 64
"""Images of one split, and prompts of one template, that are encoded at most."""

BY_DIGEST: Mapping[str, Any] = {"verified_by": "image digest"}
"""The record of rows and templates whose stored digests identify what they show."""

UNVERIFIED: Mapping[str, Any] = {"verified_by": None}
"""The record of rows and templates whose order was not verified."""

_VALUES_PER_READ = 1 << 20

_REARRANGED = 4.0
"""How many times as far as from the nearest ones, in squares, tokens of another order lie from their own ones.

Noise of a precision is about orthogonal to differences of tokens, so for tokens in order both are much the same.
"""

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of a split that are encoded (increasing), `drawn` of them at random, one from each of equal stretches."""

    rows: Ints
    drawn: int


def choose_sample(labels: npt.NDArray[np.integer[Any]], seed: Sequence[int]) -> Sample:
    """Choose at most `MOST_SAMPLED` of a split's rows: both ends, every class (while they fit), and random ones.

    The random rows are drawn in the order of the classes, one from each of equal stretches, so that a class has as
    large a share of the sample as of the split.
    """
    rows = len(labels)
    if rows <= MOST_SAMPLED:
        return Sample(np.arange(rows), rows)
    random = np.random.default_rng(seed)
    classes = np.unique(labels)
    reserved = min(2 + len(classes), MOST_SAMPLED // 2)
    drawn = MOST_SAMPLED - reserved
    by_class = np.argsort(labels, kind="stable")
    edges = np.linspace(0, rows, drawn + 1).astype(np.int64)
    draws = by_class[random.integers(edges[:-1], edges[1:])]
    missing = random.permutation(np.setdiff1d(classes, labels[draws]))[: reserved - 2]
    of_classes = [int(random.choice(np.flatnonzero(labels == label))) for label in missing]
    return Sample(np.union1d(draws, [0, rows - 1, *of_classes]), drawn)


def missed_probability(rows: int, drawn: int, wrong: int) -> float:
    """The probability, at most, that a sample holds none of `wrong` rows of a split.

    One row is drawn from each of s stretches of at most m = ceil(n / s) rows. Where a stretch has w_b wrong rows it is
    missed with 1 - w_b / m_b, and the product over all stretches is at most (1 - w / (s m)) ** s, by the inequality of
    arithmetic and geometric means.
    """
    if drawn >= rows:
        return 0.0
    stretch = -(-rows // drawn)
    return float((1 - min(1.0, wrong / (drawn * stretch))) ** drawn)


def verify_order(
    encoder: Encoder,
    contents: Contents,
    images: Images,
    manifest: Manifest,
    dataset: Dataset,
    row_of_image: Ints,
    rows: Ints,
    seed: Sequence[int],
    batch_size: int,
    findings: FindingCollector,
) -> Mapping[str, Any] | None:
    """Encode a sample of a split's rows and look for each in the file.

    Precisions and devices change features a little, but not which row is the nearest. If another row
    has equal features, that is not an error where the fresh encodings of the two images are equal, too. Token features
    are tested in the same way, against the sample and as many further rows, and their patches must be in order.

    Args:
        encoder: The study's encoder.
        contents: The file.
        images: The study's distinct images.
        manifest: The split.
        dataset: The study's data set.
        row_of_image: The row of the file that is matched with each image, -1 without (G,).
        rows: The rows of the manifest that are to be verified, increasing.
        seed: Chooses the sample.
        batch_size: Images encoded at a time.
        findings: Where a wrong order is reported.

    Returns:
        The record of the sample for the provenance; None where the order is wrong.
    """
    sample = choose_sample(manifest.labels[rows], seed)
    sampled = rows[sample.rows]
    own_rows = row_of_image[images.numbers[manifest.split][sampled]]
    fresh, fresh_tokens = _encode(encoder, dataset, manifest, sampled, batch_size)
    matched = np.unique(row_of_image[row_of_image >= 0])
    own_numbers = np.arange(len(sampled))
    where, stored = IMAGE_FEATURES, contents.datasets[IMAGE_FEATURES]
    own = _read(stored, own_rows, np.float64)
    is_wrong = _has_nearer_row(_blocks(stored, matched, np.float64), own, fresh)
    is_wrong |= _has_nearer_encoding(own, fresh, own_numbers)
    lowest = {"lowest_cosine": _lowest_cosine(own, fresh)}
    if fresh_tokens is not None and not is_wrong.any():
        where, stored = IMAGE_TOKEN_FEATURES, contents.datasets[IMAGE_TOKEN_FEATURES]
        own = _read(stored, own_rows, np.float32)
        further = np.random.default_rng(seed).choice(matched, min(MOST_SAMPLED, len(matched)), replace=False)
        is_wrong = _has_nearer_row(_blocks(stored, np.union1d(own_rows, further), np.float32), own, fresh_tokens)
        is_wrong |= _has_nearer_encoding(own, fresh_tokens, own_numbers)
        shape = (len(sampled), *stored.shape[1:])
        is_wrong |= list(map(_is_rearranged, own.reshape(shape), fresh_tokens.reshape(shape)))
        lowest["lowest_token_cosine"] = _lowest_cosine(own, fresh_tokens)
    if is_wrong.any():
        keys = [repr(manifest.keys[row]) for row in sampled[is_wrong].tolist()]
        findings.add(
            "row_order",
            f"/{where} {rows_text(np.sort(own_rows[is_wrong]))}",
            f"expected the row of each image of {manifest.split!r} and its fresh encoding to be each other's nearest, "
            f"found a nearer one for {int(is_wrong.sum())} of {count(len(sampled), 'sampled image')} ({listed(keys)}): "
            "the rows or their patches stand in another order, or another encoder made them",
        )
        return None
    tenth = -(-len(rows) // 10)
    return {
        "verified_by": "sample",
        "rows": len(rows),
        "sampled": len(sampled),
        "drawn": sample.drawn,
        **lowest,
        "missed": {
            "two_rows": missed_probability(len(rows), sample.drawn, 2),
            "a_tenth": missed_probability(len(rows), sample.drawn, tenth),
        },
    }


def verify_templates(
    encoder: Encoder,
    templates: Mapping[str, MatchedTemplate],
    prompts: Mapping[str, Sequence[str]],
    seed: Sequence[int],
    batch_size: int,
    findings: FindingCollector,
) -> dict[str, Mapping[str, Any]]:
    """Encode prompts of the study and look for the features of each in the templates of a file, as for rows.

    Args:
        encoder: The study's encoder.
        templates: The templates of the file that are to be verified, by the study's ids.
        prompts: The prompts of all templates of the study, by id: features may be those of another template.
        seed: Chooses the sample of a template with many prompts.
        batch_size: Prompts encoded at a time.
        findings: Where a template with features of other prompts is reported.

    Returns:
        The record of the sample, for the provenance, of every template whose features are not refuted.
    """
    samples = {name: choose_sample(np.zeros(len(texts), np.int64), seed).rows for name, texts in prompts.items()}
    pool = list(dict.fromkeys(prompts[name][row] for name, rows in samples.items() for row in rows.tolist()))
    number_of = {prompt: number for number, prompt in enumerate(pool)}
    batches = [encoder.encode_texts(pool[first : first + batch_size]) for first in range(0, len(pool), batch_size)]
    fresh = np.concatenate([np.asarray(batch.features, np.float64) for batch in batches])
    fresh_tokens, mask = _prompt_tokens(batches)
    orders: dict[str, Mapping[str, Any]] = {}
    for name, template in templates.items():
        rows, content = samples[name], template.content
        numbers = np.array([number_of[prompts[name][row]] for row in rows.tolist()])
        stored = np.asarray(content.text_features, np.float64)
        own = stored[rows]
        is_wrong = _has_nearer_row([stored], own, fresh[numbers]) | _has_nearer_encoding(own, fresh, numbers)
        tokens, where = content.text_token_features, "text_features"
        is_comparable = tokens is None or (fresh_tokens is not None and not mask[numbers, tokens.shape[1] :].any())
        if tokens is not None and fresh_tokens is not None and is_comparable and not is_wrong.any():
            where = "text_token_features"
            is_wrong = _has_wrong_tokens(np.asarray(tokens[rows], np.float32), fresh_tokens, mask, numbers)
        if is_wrong.any():
            wrong = [repr(prompts[name][row]) for row in rows[is_wrong].tolist()]
            findings.add(
                "prompt_order",
                f"{template.where}/{where}",
                f"expected the features of each prompt and its fresh encoding to be each other's nearest, found nearer "
                f"ones for {len(wrong)} of {count(len(rows), 'prompt')} ({listed(wrong)}): the features are those of "
                "other prompts, or of another encoder",
            )
        elif not is_comparable:
            orders[name] = UNVERIFIED  # The encoder gives no token features of texts, or more of them.
        else:
            cosine = _lowest_cosine(own, fresh[numbers])
            orders[name] = {
                "verified_by": "sample",
                "rows": len(stored),
                "sampled": len(rows),
                "lowest_cosine": cosine,
            }
    return orders


def _prompt_tokens(batches: Sequence[TextFeatures]) -> tuple[Floats | None, Bools]:
    """Token features (P, T, D) of all batches, and the mask (P, T) of those that are tokens of a prompt."""
    width = max(batch.attention_mask.shape[1] for batch in batches)
    mask = np.concatenate([_widened(batch.attention_mask, width) for batch in batches]).astype(np.bool_)
    tokens = [_widened(batch.tokens, width) for batch in batches if batch.tokens is not None]
    return np.concatenate(tokens) if tokens else None, mask


def _widened(values: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    return np.pad(values, [(0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2)])


def _has_wrong_tokens(own: Floats, fresh: Floats, mask: Bools, numbers: Ints) -> Bools:
    """Whether stored token features (S, T, D) are not those of the prompts with these numbers; padding is ignored."""
    width = min(own.shape[1], fresh.shape[1])
    own, fresh, mask = own[:, :width], fresh[:, :width], mask[:, :width]
    is_wrong = [_is_rearranged(own[row][mask[n]], fresh[n][mask[n]]) for row, n in enumerate(numbers.tolist())]
    own, fresh = own * mask[numbers, :, None], fresh * mask[:, :, None]
    own, fresh = own.reshape(len(own), -1), fresh.reshape(len(fresh), -1)
    return np.asarray(np.array(is_wrong) | _has_nearer_encoding(own, fresh, numbers))


def _encode(
    encoder: Encoder, dataset: Dataset, manifest: Manifest, rows: Ints, batch_size: int
) -> tuple[Floats, Floats | None]:
    """Features (S, D) in float64, and tokens (S, T_img * D) in float32 where the encoder gives any."""
    batches = [
        encoder.encode_images([read_image(dataset, manifest, row) for row in rows[first : first + batch_size].tolist()])
        for first in range(0, len(rows), batch_size)
    ]
    features = np.concatenate([np.asarray(batch.features, np.float64) for batch in batches])
    tokens = [np.asarray(batch.tokens, np.float32) for batch in batches if batch.tokens is not None]
    return features, np.concatenate(tokens).reshape(len(rows), -1) if tokens else None


def _read(dataset: h5py.Dataset, rows: Ints, dtype: npt.DTypeLike) -> Floats:
    """Rows of a data set in the given order, each as one vector."""
    order = np.argsort(rows)
    vectors = np.empty((len(rows), math.prod(dataset.shape[1:])), dtype)
    vectors[order] = take_rows(dataset, rows[order]).reshape(vectors.shape)
    return vectors


def _blocks(dataset: h5py.Dataset, rows: Ints, dtype: npt.DTypeLike) -> Iterator[Floats]:
    step = max(1, _VALUES_PER_READ // math.prod(dataset.shape[1:]))
    return (_read(dataset, rows[first : first + step], dtype) for first in range(0, len(rows), step))


def _has_nearer_row(blocks: Iterable[Floats], own: Floats, fresh: Floats) -> Bools:
    """Whether another row, not a copy, is nearer to each fresh encoding (S, n) than its own row."""
    similarity = _cosines(own, fresh)[:, None] + _rounding(own)
    unit = _unit(fresh)
    is_beaten = np.zeros(len(own), np.bool_)
    for block in blocks:
        is_nearer = unit @ _unit(block).T > similarity
        for number in np.flatnonzero(is_nearer.any(axis=1) & ~is_beaten).tolist():
            is_beaten[number] = not _are_copies(own[number], block[is_nearer[number]]).all()
    return is_beaten


def _are_copies(own: Floats, others: Floats) -> Bools:
    norms = np.maximum(np.linalg.norm(own), np.linalg.norm(others, axis=1))
    return np.asarray(np.linalg.norm(others - own, axis=1) <= COPY_TOLERANCE * norms)


def _has_nearer_encoding(own: Floats, fresh: Floats, numbers: Ints) -> Bools:
    """Whether another fresh encoding (P, n), not a copy, is nearer to each row (S, n) than its own."""
    unit, rounding = _unit(fresh), _rounding(fresh)
    similarity = _unit(own) @ unit.T
    own_similarity = similarity[np.arange(len(own)), numbers][:, None]
    is_copy = unit[numbers] @ unit.T >= 1 - COPY_TOLERANCE**2 / 2 - rounding  # The cosine of unit vectors at it.
    return np.asarray(((similarity > own_similarity + rounding) & ~is_copy).any(axis=1))


def _is_rearranged(own: Floats, fresh: Floats) -> bool:
    """Whether stored tokens (T, D) are much farther from the fresh ones at their positions than from the nearest."""
    cosines = _cosines(own, fresh)
    nearest = np.maximum((_unit(own) @ _unit(fresh).T).max(axis=1), cosines)
    # The squared distance of unit vectors is 2 - 2 cos.
    return bool((2 - 2 * cosines).sum() > _REARRANGED * (2 - 2 * nearest + COPY_TOLERANCE**2).sum())


def _rounding(vectors: Floats) -> float:
    """The largest rounding error of cosines of these vectors."""
    return 8 * float(np.finfo(vectors.dtype).eps)


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(norms > 0, norms, 1))


def _cosines(first: Floats, second: Floats) -> Floats:
    return np.asarray((_unit(first) * _unit(second)).sum(axis=1))


def _lowest_cosine(first: Floats, second: Floats) -> float:
    return round(float(_cosines(first, second).min()), 6)
