"""Localisation: whether the maps of concepts are high where the concepts are, for images whose parts are known."""

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
    """How well the maps of one part's concepts keep to that part, over `images` images that show the part.

    `inside` is the share of images in whose part the concepts of the part have a higher mean than those of other
    parts, `outside` the share of images in the rest of which they have a lower one, `both` the share in which both is
    so; over the `compared` images that show concepts of both. Over `maps` maps: `pointing` is how often the highest
    patch lies in the part, `mass` the part's share of what a map has above its own mean, and `area` what these two
    would be by chance.
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


def localisation(maps: FloatArray, there: Mask, parts: Sequence[str], part: str, mask: Mask) -> Localisation:
    """Measure the maps (n, K, T) of the concepts that are `there` (n, K) against the patches `mask` (n, T) of a part.

    `parts` (K,) names the part of the picture that each concept is about; "" belongs to none. A map that is high
    anywhere in the foreground passes a mere inside-against-outside test; it does not pass against another part's
    concepts. Raises `AnalysisError` when no image shows a concept of the part.
    """
    own = np.array([name == part for name in parts])
    other = np.array([name not in ("", part) for name in parts])
    keeps, pointing, mass, area = [], [], [], []
    shown = np.flatnonzero(mask.any(axis=1) & (there & own).any(axis=1))
    for scores, present, inner in zip(maps[shown], there[shown], mask[shown], strict=True):
        ours, theirs = scores[present & own], scores[present & other]
        if len(theirs) and not inner.all():
            lead = ours.mean(axis=0) - theirs.mean(axis=0)
            keeps.append((lead[inner].mean() > 0, lead[~inner].mean() < 0))
        above = np.maximum(ours - ours.mean(axis=1, keepdims=True), 0)
        pointing += inner[ours.argmax(axis=1)].tolist()
        mass += (above[:, inner].sum(axis=1) / np.maximum(above.sum(axis=1), np.finfo(np.float32).tiny)).tolist()
        area += [inner.mean()] * len(ours)
    if not len(shown):
        raise AnalysisError(f"No image shows a concept of the part {part!r}.")
    return Localisation(
        images=len(shown),
        compared=len(keeps),
        maps=len(pointing),
        inside=_mean([inside for inside, _ in keeps]),
        outside=_mean([outside for _, outside in keeps]),
        both=_mean([inside and outside for inside, outside in keeps]),
        pointing=_mean(pointing),
        mass=_mean(mass),
        area=_mean(area),
    )


def patch_mask(mask: Mask, side: int, share: float = 0.5) -> Mask:
    """The patches (side²,) of which more than `share` is covered by a mask (H, W), row by row from the top left."""
    covered = Image.fromarray(mask.astype(np.float32)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(np.asarray(covered) > share).reshape(-1)


def permuted(maps: FloatArray, parts: Sequence[str]) -> FloatArray:
    """The same maps, each taken for a concept of another part: what must fail where localisation is no accident."""
    known = [place for place in np.argsort(parts, kind="stable").tolist() if parts[place]]
    shift = max(Counter(part for part in parts if part).values(), default=0)
    order = np.arange(len(parts))
    order[known] = np.roll(known, -shift)
    return maps[:, order]


def _mean(values: Sequence[Any]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
