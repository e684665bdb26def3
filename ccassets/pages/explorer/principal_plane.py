"""The principal plane: the two directions in which features differ most, as the map's first projection."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ccassets.analysis.scores import cosines, normalise
from ccassets.database.hdf5 import Array, iter_blocks, take_rows
from ccassets.datasets.manifest import evenly_spaced_positions

MOST_FITTED = 20_000
"""Rows, evenly spaced, that the plane is fitted on; all rows are projected."""


def principal_plane(features: Array) -> npt.NDArray[np.float32]:
    """Project features onto their first two principal components, the same for every call.

    Args:
        features: (N, D) of any float dtype and length; compared at unit length.

    Returns:
        (N, 2); zeros for components that do not exist.
    """
    points = np.zeros((len(features), 2), np.float32)
    if not len(features):
        return points
    fitted = normalise(take_rows(features, evenly_spaced_positions(len(features), MOST_FITTED)))
    fitted = np.nan_to_num(fitted)
    mean = fitted.mean(axis=0)
    fitted -= mean
    _, components = np.linalg.eigh((fitted.T @ fitted).astype(np.float64))
    axes = components[:, ::-1][:, :2]
    # An eigenvector may point either way: its largest number shall be positive.
    axes = axes * np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0))
    directions = np.ascontiguousarray(axes.T, np.float32)
    for first, block in iter_blocks(features):
        projected = np.nan_to_num(cosines(block, directions)) - directions @ mean
        points[first : first + len(block), : len(directions)] = projected
    return points
