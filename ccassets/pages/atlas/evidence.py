"""The evidence of the atlas, where concepts are annotated: whether scores find them, and whether maps locate them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import numpy as np

from ccassets.analysis.intervention import ConceptAuroc, concept_auroc
from ccassets.analysis.localisation import Localisation, exchange_maps, measure_localisation, patch_mask
from ccassets.analysis.retrieval import Retrieval, measure_retrieval
from ccassets.analysis.samples import Samples
from ccassets.analysis.scores import patch_scores
from ccassets.datasets.phantom import PhantomDataset
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.pages.atlas.atlas_view import AtlasView, evenly_spaced
from ccassets.study.schema import PhantomDatasetConfig, Study

PARTS = {"nucleus": "nucleus", "granules": "cytoplasm", "cytoplasm": "cytoplasm", "surroundings": "surroundings"}
"""The part of a phantom that the concepts of a group are about."""

MOST_LOCATED_IMAGES = 400
"""Most images, evenly spaced, whose maps are compared with their parts."""

ConceptEvidence = Mapping[str, tuple[Retrieval, ConceptAuroc]]
"""By concept, how well its score finds the images that show it; {} without annotations."""

MapEvidence = Mapping[str, tuple[Localisation, Localisation]]
"""By part of a phantom, how well maps keep to it, and those of other parts' concepts; {} for other images."""


def measure_concepts(view: AtlasView) -> ConceptEvidence:
    """Measure how well the score of every concept finds the images that show it."""
    if view.annotations is None:
        return {}
    database = view.database
    samples = Samples(
        features=view.scores,
        columns=tuple(view.words),
        labels=view.labels,
        split=database.split,
        classes=view.classes,
        ids=database.ids,
        groups=database.groups,
    )
    retrievals = measure_retrieval(view.scores, view.annotations, view.words)
    aurocs = concept_auroc(samples, view.annotations)
    return {one.concept: (one, other) for one, other in zip(retrievals, aurocs, strict=True)}


def measure_maps(study: Study, view: AtlasView) -> MapEvidence:
    """Measure how well the maps of concepts keep to the parts of phantoms that they are about."""
    config, database = study.dataset, view.database
    if not isinstance(config, PhantomDatasetConfig) or view.annotations is None or database.keys is None:
        return {}
    rows = evenly_spaced(np.arange(len(database)), MOST_LOCATED_IMAGES)
    try:
        maps = patch_scores(database, rows)
    except DatabaseError:
        return {}
    dataset = PhantomDataset(config)
    drawn = [dataset.annotations(database.split[row], int(database.keys[row].rpartition("/")[2])) for row in rows]
    present = view.annotations[rows] > 0.5
    parts = [PARTS.get(concept.group or "", "") for concept in view.concepts]
    side = isqrt(database.token_count)
    evidence = {}
    for part in ("nucleus", "cytoplasm"):
        mask = np.stack([patch_mask(getattr(phantom, part), side) for phantom in drawn])
        try:
            evidence[part] = (
                measure_localisation(maps, present, parts, part, mask),
                measure_localisation(exchange_maps(maps, parts), present, parts, part, mask),
            )
        except AnalysisError:
            continue  # None of a few images shows the part.
    return evidence
