"""Retrieval: whether the images that score highest on a concept are those that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.scores import FloatArray

FIRST = 20


@dataclass(frozen=True)
class Retrieval:
    """How well a concept's score finds the images that show it, among the `images` whose truth is known.

    `precision` is the share of them among the 20 highest scores (all, where there are fewer), `average_precision` the
    mean of the precision at each of them; a score that knows nothing has `base_rate` for both. nan without any image.
    """

    concept: str
    images: int
    base_rate: float
    precision: float
    average_precision: float


def retrieval(scores: FloatArray, truth: ConceptAnnotations, concepts: Sequence[str]) -> list[Retrieval]:
    """Every concept's, from scores and truth (N, K)."""
    from sklearn.metrics import average_precision_score

    found = []
    for column, concept in enumerate(concepts):
        known = ~np.isnan(truth[:, column])
        values, there = scores[known, column], truth[known, column] > 0.5
        first = there[np.argsort(-values, kind="stable")[:FIRST]]
        found.append(
            Retrieval(
                concept=concept,
                images=len(there),
                base_rate=float(there.mean()) if len(there) else np.nan,
                precision=float(first.mean()) if len(first) else np.nan,
                average_precision=float(average_precision_score(there, values)) if there.any() else np.nan,
            )
        )
    return found
