"""Retrieval of concepts: whether the images that score highest on a concept are those that show it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.scores import FloatArray

TOP_IMAGES = 20


@dataclass(frozen=True)
class Retrieval:
    """How well the score of a concept retrieves the images that show it; a random score has `base_rate` for both.

    Attributes:
        concept: The concept.
        images: Images whose annotation is known.
        base_rate: Share of these that show the concept; nan without any.
        precision: Share of the 20 highest scores that show it; nan without any.
        average_precision: Mean of the precision at each image that shows it; nan where none does.
    """

    concept: str
    images: int
    base_rate: float
    precision: float
    average_precision: float


def measure_retrieval(scores: FloatArray, annotations: ConceptAnnotations, concepts: Sequence[str]) -> list[Retrieval]:
    """Measure how well scores retrieve the images that show each concept.

    Args:
        scores: (N, K).
        annotations: (N, K): 1, 0, or nan where nothing is known.
        concepts: The K concepts.

    Returns:
        One measure for each concept.
    """
    from sklearn.metrics import average_precision_score

    retrievals = []
    for column, concept in enumerate(concepts):
        known = ~np.isnan(annotations[:, column])
        values, present = scores[known, column], annotations[known, column] > 0.5
        top = present[np.argsort(-values, kind="stable")[:TOP_IMAGES]]
        retrievals.append(
            Retrieval(
                concept=concept,
                images=len(present),
                base_rate=float(present.mean()) if len(present) else np.nan,
                precision=float(top.mean()) if len(top) else np.nan,
                average_precision=float(average_precision_score(present, values)) if present.any() else np.nan,
            )
        )
    return retrievals
