"""The numbers behind the charts of the atlas; the page draws them where it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.scores import normalise
from ccassets.pages.atlas.view import Rows, View, spread
from ccassets.pages.thumbnails import Sprite, sprite

POINTS = 2000
"""At most so many images, evenly spaced, are points of the map and stand for their class in distributions."""

HOVERED = 400
"""At most so many of the points have a picture."""

HOVERED_SIDE = 40

COLOURS = (
    *("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f"),
    *("#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#8a8f98"),
)


def chart_data(view: View, zero: Mapping[str, Any], fitted: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers for the charts; they are drawn where the page is read."""
    database = view.database
    rows = spread(np.arange(len(database)), POINTS)
    where = _map(view, rows)
    sheet, numbers = _hovered(view, rows)
    return {
        "classes": view.classes,
        "colours": [COLOURS[number % len(COLOURS)] for number in range(len(view.classes))],
        "concepts": view.words,
        "standard": view.standard,
        "points": {
            "x": _rounded(where[:, 0], 3),
            "y": _rounded(where[:, 1], 3),
            "label": view.labels[rows].tolist(),
            "split": database.split[rows].tolist(),
            "key": [f"row {row}" for row in rows] if database.keys is None else database.keys[rows].tolist(),
            "picture": numbers,
        },
        "scores": [_rounded(column, 2) for column in view.scores[rows].T],
        "correlation": [_rounded(row, 2) for row in _correlation(view)],
        "sprite": None if sheet is None else asdict(sheet),
        "zero": zero.get("splits"),
        "fitted": {name: fitted.get(name) for name in ("splits", "sparse", "levels", "truth", "controls")},
    }


def _map(view: View, rows: Rows) -> npt.NDArray[np.float64]:
    """(n, 2): the first two principal components of the rows' image features."""
    from sklearn.decomposition import PCA

    features = normalise(np.asarray(view.database.image_features[rows]))
    where = np.zeros((len(features), 2))
    components = min(2, *features.shape)
    where[:, :components] = PCA(components, svd_solver="full").fit_transform(features)
    return where


def _correlation(view: View) -> npt.NDArray[np.float64]:
    """(K, K): Pearson's, of concept scores over all images; 0 with a concept whose scores are all equal."""
    centred = view.scores - view.scores.mean(axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=0)
    return np.asarray(centred.T @ centred / np.maximum(np.outer(lengths, lengths), np.finfo(np.float32).tiny))


def _hovered(view: View, rows: Rows) -> tuple[Sprite | None, list[int]]:
    """The pictures of some of the rows as one, and by row the number of its picture, -1 without one."""
    numbers = np.full(len(rows), -1)
    if view.picture is None:
        return None, numbers.tolist()
    chosen = spread(np.arange(len(rows)), HOVERED)
    numbers[chosen] = np.arange(len(chosen))
    return sprite([view.picture(row) for row in rows[chosen].tolist()], HOVERED_SIDE), numbers.tolist()


def _rounded(values: npt.NDArray[np.floating[Any]], digits: int) -> list[float]:
    return [round(value, digits) for value in values.astype(np.float64).tolist()]
