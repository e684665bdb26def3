"""Proof of the order of adopted rows: a sample of every split is encoded, and the nearest row must be its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.layout import IMAGE_FEATURES
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import FindingCollector, count, listed, rows_text
from ccassets.database.validation.legacy_traces import COPY_TOLERANCE
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest, read_image
from ccassets.encoders.encoder_contract import Encoder
from ccassets.extraction.adoption.adopted_parts import take_rows
from ccassets.extraction.adoption.row_matching import Images, Ints

MOST_SAMPLED = 64
"""Images of one split that are encoded at most."""

BY_DIGEST: Mapping[str, Any] = {"verified_by": "image digest"}
"""The record of rows whose stored digests say which image they show."""

UNVERIFIED: Mapping[str, Any] = {"verified_by": None}
"""The record of rows whose order nobody verified."""

_ROWS_PER_READ = 1024

Floats = npt.NDArray[np.float64]


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

    Precisions and devices change features a little, but not which row is the nearest. Rows with the features of the
    own one are no mistake where the fresh encodings of their images are equal, too.

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
    fresh = _encode(encoder, dataset, manifest, sampled, batch_size)
    dataset_of_features = contents.datasets[IMAGE_FEATURES]
    own = _own_features(dataset_of_features, own_rows)
    is_wrong = _has_nearer_row(dataset_of_features, np.unique(row_of_image[row_of_image >= 0]), own, fresh)
    is_wrong |= _has_nearer_image(own, fresh)
    if is_wrong.any():
        keys = [repr(manifest.keys[row]) for row in sampled[is_wrong].tolist()]
        findings.add(
            "row_order",
            f"/{IMAGE_FEATURES} {rows_text(np.sort(own_rows[is_wrong]))}",
            f"expected the row of each image of {manifest.split!r} and its fresh encoding to be each other's nearest, "
            f"found a nearer one for {int(is_wrong.sum())} of {count(len(sampled), 'sampled image')} ({listed(keys)}): "
            "the rows stand in another order, or another encoder made them",
        )
        return None
    tenth = -(-len(rows) // 10)
    return {
        "verified_by": "sample",
        "rows": len(rows),
        "sampled": len(sampled),
        "drawn": sample.drawn,
        "lowest_cosine": round(float(_cosines(own, fresh).min()), 6),
        "missed": {
            "two_rows": missed_probability(len(rows), sample.drawn, 2),
            "a_tenth": missed_probability(len(rows), sample.drawn, tenth),
        },
    }


def _encode(encoder: Encoder, dataset: Dataset, manifest: Manifest, rows: Ints, batch_size: int) -> Floats:
    batches = [
        encoder.encode_images([read_image(dataset, manifest, row) for row in rows[first : first + batch_size].tolist()])
        for first in range(0, len(rows), batch_size)
    ]
    return np.concatenate([np.asarray(batch.features, np.float64) for batch in batches])


def _own_features(dataset: h5py.Dataset, rows: Ints) -> Floats:
    order = np.argsort(rows)
    features = np.empty((len(rows), dataset.shape[1]), np.float64)
    features[order] = take_rows(dataset, rows[order])
    return features


def _has_nearer_row(dataset: h5py.Dataset, rows: Ints, own: Floats, fresh: Floats) -> npt.NDArray[np.bool_]:
    """Whether one of the rows is nearer to each fresh encoding (S, D) than its own features, and not a copy of them."""
    similarity = _cosines(own, fresh)
    own_norms = np.linalg.norm(own, axis=1)
    unit_fresh = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
    is_beaten = np.zeros(len(own), np.bool_)
    for first in range(0, len(rows), _ROWS_PER_READ):
        block = take_rows(dataset, rows[first : first + _ROWS_PER_READ]).astype(np.float64)
        norms = np.linalg.norm(block, axis=1)
        # In float64 the difference of squares is exact enough to see features that are equal in float16.
        distance = np.sqrt(np.maximum(0, own_norms[:, None] ** 2 + norms**2 - 2 * own @ block.T))
        is_copy = distance <= COPY_TOLERANCE * np.maximum(own_norms[:, None], norms)
        is_beaten |= ((unit_fresh @ block.T / norms > similarity[:, None]) & ~is_copy).any(axis=1)
    return is_beaten


def _has_nearer_image(own: Floats, fresh: Floats) -> npt.NDArray[np.bool_]:
    """Whether the fresh encoding of another sampled image, and no copy of the own one, is nearer to a stored row."""
    unit = fresh / np.linalg.norm(fresh, axis=1, keepdims=True)
    similarity = own @ unit.T
    is_copy = unit @ unit.T >= 1 - COPY_TOLERANCE**2 / 2  # The cosine of unit vectors at this distance.
    return np.asarray(((similarity > np.diag(similarity)[:, None]) & ~is_copy).any(axis=1))


def _cosines(first: Floats, second: Floats) -> Floats:
    norms = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    return np.asarray((first * second).sum(axis=1) / norms)
