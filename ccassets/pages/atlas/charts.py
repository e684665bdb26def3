"""The numbers behind the charts of the atlas; a script in the page draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.scores import normalise
from ccassets.database.label_names import NO_LABEL
from ccassets.pages.atlas.atlas_view import AtlasView, Rows, evenly_spaced
from ccassets.pages.thumbnails import Sprite, make_sprite

MOST_POINTS = 2000
"""Most images, evenly spaced, that are points of the map and represent their class in distributions."""

MOST_HOVER_IMAGES = 400
"""Most points that show their image under the pointer."""

HOVER_SIDE = 40

FEWEST_FOR_SHAPE = 20
"""With fewer images a distribution has no shape: each is drawn as a point."""

COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8a8f98"),
)
NO_LABEL_COLOUR = "#c9ccd1"


def chart_data(view: AtlasView, zero_shot: Mapping[str, Any], bottleneck: Mapping[str, Any]) -> dict[str, Any]:
    """Collect the numbers of every chart, as JSON types."""
    database = view.database
    rows = evenly_spaced(np.arange(len(database)), MOST_POINTS)
    points = _principal_components(view, rows)
    sheet, numbers = _hover_images(view, rows)
    return {
        "classes": view.classes,
        "colours": [
            NO_LABEL_COLOUR if name == NO_LABEL else COLOURS[number % len(COLOURS)]
            for number, name in enumerate(view.classes)
        ],
        "splits": [(name, COLOURS[number % len(COLOURS)]) for number, name in enumerate(database.splits)],
        "concepts": view.words,
        "standard": view.reference,
        "fewest": FEWEST_FOR_SHAPE,
        "points": {
            "x": _rounded(points[:, 0], 3),
            "y": _rounded(points[:, 1], 3),
            "label": view.labels[rows].tolist(),
            "split": database.split[rows].tolist(),
            "key": [f"row {row}" for row in rows] if database.keys is None else database.keys[rows].tolist(),
            "picture": numbers,
        },
        "scores": [_rounded(column, 2) for column in view.scores[rows].T],
        "correlation": [_rounded(row, 2) for row in _correlation(view)],
        "sprite": None if sheet is None else asdict(sheet),
        "zero": zero_shot.get("splits"),
        "fitted": {name: bottleneck.get(name) for name in ("splits", "sparse", "levels", "truth", "controls")},
    }


def _principal_components(view: AtlasView, rows: Rows) -> npt.NDArray[np.float64]:
    """(n, 2): the first two principal components of the rows' image features."""
    from sklearn.decomposition import PCA

    features = normalise(np.asarray(view.database.image_features[rows]))
    points = np.zeros((len(features), 2))
    components = min(2, *features.shape)
    points[:, :components] = PCA(components, svd_solver="full").fit_transform(features)
    return points


def _correlation(view: AtlasView) -> npt.NDArray[np.float64]:
    """(K, K): Pearson correlation of concept scores over all images; 0 with a concept whose scores are all equal."""
    centred = view.scores - view.scores.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=0)
    return np.asarray(centred.T @ centred / np.maximum(np.outer(lengths, lengths), np.finfo(np.float32).tiny))


def _hover_images(view: AtlasView, rows: Rows) -> tuple[Sprite | None, list[int]]:
    """The images of some of the rows as one sprite, and by row the number of its image, -1 without one."""
    numbers = np.full(len(rows), -1)
    if view.read_thumbnail is None:
        return None, numbers.tolist()
    chosen = evenly_spaced(np.arange(len(rows)), MOST_HOVER_IMAGES)
    numbers[chosen] = np.arange(len(chosen))
    images = [view.read_thumbnail(row) for row in rows[chosen].tolist()]
    return make_sprite(images, HOVER_SIDE), numbers.tolist()


def _rounded(values: npt.NDArray[np.floating[Any]], digits: int) -> list[float]:
    return [round(value, digits) for value in values.astype(np.float64).tolist()]
