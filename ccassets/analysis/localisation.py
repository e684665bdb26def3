"""Localisation of concepts: whether their maps are high where the concepts are, for images with known parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.analysis.scores import FloatArray
from ccassets.errors import AnalysisError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Localisation:
    """How well the maps of one part's concepts keep to that part.

    Attributes:
        images: Images that show the part.
        compared: Those of them that show concepts of the part and of other parts.
        maps: Maps of the part's concepts in `images`.
        inside: Share of `compared` whose maps have, within the part, a higher mean for its concepts than for others.
        outside: Share of `compared` whose maps have, outside the part, a lower mean for its concepts than for others.
        both: Share of `compared` that meet both conditions.
        pointing: Share of `maps` whose highest patch is in the part (the pointing game).
        mass: Mean share of the part in what a map has above its own mean.
        area: What `pointing` and `mass` would be by chance.
    """

    images: int
    compared: int
    maps: int
    inside: float
    outside: float
    both: float
    pointing: float
    mass: float
    area: float


def measure_localisation(maps: FloatArray, present: Mask, parts: Sequence[str], part: str, mask: Mask) -> Localisation:
    """Measure maps of concepts against the patches of a part.

    A map that is high anywhere in the foreground would pass a test of inside against outside; it does not pass a
    comparison with the concepts of another part.

    Args:
        maps: (n, K, T), the map of every concept.
        present: (n, K), whether the image shows the concept.
        parts: (K,), the part of the image that each concept is about; "" for none.
        part: The part to measure.
        mask: (n, T), the patches of that part.

    Returns:
        The measures; nan where there is nothing to compare.

    Raises:
        AnalysisError: No image shows a concept of the part.
    """
    own = np.array([name == part for name in parts])
    other = np.array([name not in ("", part) for name in parts])
    leads, pointing, mass, area = [], [], [], []
    shown = np.flatnonzero(mask.any(axis=1) & (present & own).any(axis=1))
    for scores, concepts, inner in zip(maps[shown], present[shown], mask[shown], strict=True):
        own_maps, other_maps = scores[concepts & own], scores[concepts & other]
        if len(other_maps) and not inner.all():
            lead = own_maps.mean(axis=0) - other_maps.mean(axis=0)
            leads.append((lead[inner].mean() > 0, lead[~inner].mean() < 0))
        above = np.maximum(own_maps - own_maps.mean(axis=1, keepdims=True), 0)
        pointing += inner[own_maps.argmax(axis=1)].tolist()
        mass += (above[:, inner].sum(axis=1) / np.maximum(above.sum(axis=1), np.finfo(np.float32).tiny)).tolist()
        area += [inner.mean()] * len(own_maps)
    if not len(shown):
        raise AnalysisError(f"No image shows a concept of the part {part!r}.")
    return Localisation(
        images=len(shown),
        compared=len(leads),
        maps=len(pointing),
        inside=_mean([inside for inside, _ in leads]),
        outside=_mean([outside for _, outside in leads]),
        both=_mean([inside and outside for inside, outside in leads]),
        pointing=_mean(pointing),
        mass=_mean(mass),
        area=_mean(area),
    )


def patch_mask(mask: Mask, side: int, share: float = 0.5) -> Mask:
    """Find the patches that a mask covers.

    Args:
        mask: (H, W), the pixels of a part.
        side: Patches of a row and of a column.
        share: The part of a patch that has to be covered at least.

    Returns:
        (side²,), row by row from the top left.
    """
    covered = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(covered) > share).reshape(-1)


def exchange_maps(maps: FloatArray, parts: Sequence[str]) -> FloatArray:
    """Exchange maps between parts: a control, on which `measure_localisation` has to fail.

    Args:
        maps: (n, K, T), the map of every concept.
        parts: (K,), the part that each concept is about; "" for none.

    Returns:
        (n, K, T), each concept with the map of a concept of another part.
    """
    known = [column for column in np.argsort(parts, kind="stable").tolist() if parts[column]]
    shift = max(Counter(part for part in parts if part).values(), default=0)
    order = np.arange(len(parts))
    order[known] = np.roll(known, -shift)
    return maps[:, order]


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
