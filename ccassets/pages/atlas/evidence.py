"""The evidence of the atlas, where the truth is known: whether scores find what is there, and maps where it is."""

from __future__ import annotations

from collections.abc import Mapping
from math import isqrt

import numpy as np

from ccassets.analysis.intervention import ConceptAuroc, concept_auroc
from ccassets.analysis.localisation import Localisation, localisation, patch_mask, permuted
from ccassets.analysis.retrieval import Retrieval, retrieval
from ccassets.analysis.samples import Samples
from ccassets.analysis.scores import patch_scores
from ccassets.datasets.phantom import PhantomDataset
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.pages.atlas.view import View, spread
from ccassets.study.schema import PhantomDatasetConfig, Study

PARTS = {"nucleus": "nucleus", "granules": "cytoplasm", "cytoplasm": "cytoplasm", "surroundings": "surroundings"}
"""The part of a phantom that the concepts of a group are about."""

LOCATED = 400
"""At most so many images, evenly spaced, are asked where their parts are."""

Truths = Mapping[str, tuple[Retrieval, ConceptAuroc]]
"""By concept, how well its score finds the images that show it; {} where the truth is not known."""

Located = Mapping[str, tuple[Localisation, Localisation]]
"""By part of a phantom, how well maps keep to it, and how badly those of other concepts do; {} for other images."""


def find_truths(view: View) -> Truths:
    if view.truth is None:
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
    found = zip(retrieval(view.scores, view.truth, view.words), concept_auroc(samples, view.truth), strict=True)
    return {one.concept: (one, other) for one, other in found}


def locate(study: Study, view: View) -> Located:
    config, database = study.dataset, view.database
    if not isinstance(config, PhantomDatasetConfig) or view.truth is None or database.keys is None:
        return {}
    rows = spread(np.arange(len(database)), LOCATED)
    try:
        maps = patch_scores(database, rows)
    except DatabaseError:
        return {}
    dataset = PhantomDataset(config)
    truths = [dataset.annotations(database.split[row], int(database.keys[row].rpartition("/")[2])) for row in rows]
    there = view.truth[rows] > 0.5
    parts = [PARTS.get(concept.group or "", "") for concept in view.concepts]
    side = isqrt(database.token_count)
    located = {}
    for part in ("nucleus", "cytoplasm"):
        mask = np.stack([patch_mask(getattr(truth, part), side) for truth in truths])
        try:
            located[part] = (
                localisation(maps, there, parts, part, mask),
                localisation(permuted(maps, parts), there, parts, part, mask),
            )
        except AnalysisError:
            continue  # No image of a few shows it.
    return located
