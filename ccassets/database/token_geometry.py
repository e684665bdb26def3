"""Token geometry: the rectangle of a picture that an encoder's tokens cover, and whether words have maps in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any, Literal

from ccassets.database.attributes import section

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture; it may reach beyond the picture."""

SIZED_IMAGES = 64
"""Images whose sizes say how much of a picture a cropping encoder never sees."""

_TRAINED_FOR_WORDS = ("conceptclip", "phantom")
"""Kinds whose tokens were trained to be compared with words, and cover the whole picture, where a file says nothing."""


@dataclass(frozen=True)
class TokenGeometry:
    """How pictures become the square that the token grid covers.

    Args:
        rule: `squash`: the whole picture, whatever its shape; `crop`: its shorter side becomes `shortest_edge` pixels,
            and the middle square of `crop` pixels is taken; `pad`: the middle of a square of its longer side.
        shortest_edge: The length of the shorter side before the crop, in pixels.
        crop: The side of the square that is taken, in pixels.
    """

    rule: Literal["squash", "crop", "pad"]
    shortest_edge: int = 1
    crop: int = 1

    def rectangle(self, width: int, height: int) -> Rectangle:
        """Compute which rectangle of a picture the tokens cover."""
        if self.rule == "squash":
            return (0, 0, width, height)
        side = max(width, height) if self.rule == "pad" else min(width, height) * self.crop / self.shortest_edge
        return ((width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2)

    def unseen_share(self, width: int, height: int) -> float:
        """The share of a picture of that size, 0 to 1, that the encoder never sees."""
        left, top, right, bottom = self.rectangle(width, height)
        return 1 - min(right - left, width) * min(bottom - top, height) / (width * height)


def mean_unseen_share(geometry: TokenGeometry | None, sizes: Callable[[], Iterable[tuple[int, int]]]) -> float:
    """The mean share of pictures that the encoder never sees; 0 where it is not known.

    Args:
        geometry: The encoder's geometry.
        sizes: Gives the sizes (width, height) of some pictures; it is called for an encoder that crops alone.
    """
    shares = [geometry.unseen_share(*size) for size in sizes()] if geometry and geometry.rule == "crop" else []
    return sum(shares) / len(shares) if shares else 0.0


def cropping_warning(share: float) -> str | None:
    """A sentence on the share of pictures that an encoder never sees; None where it is less than a hundredth."""
    return f"the encoder crops: it never sees {share:.0%} of an average picture" if share >= 0.01 else None


def token_geometry(encoder: Mapping[str, Any]) -> TokenGeometry | None:
    """The geometry of an encoder, from its card or a file's provenance; None where it is not known."""
    recorded = section(encoder, "recorded")
    declared = recorded.get("geometry", {"rule": "squash"} if encoder.get("kind") in _TRAINED_FOR_WORDS else None)
    try:
        return None if declared is None else TokenGeometry(**declared)
    except TypeError:
        return None


def no_map_reason(encoder: Mapping[str, Any], token_count: int) -> str | None:
    """Why no map of a word can be laid over a picture; None where one can."""
    kind, recorded = encoder.get("kind"), section(encoder, "recorded")
    if not recorded.get("tokens_for_words", kind in _TRAINED_FOR_WORDS):
        return (
            f"The patches of this encoder ({kind or 'of an unknown kind'}) were not trained to be compared with words: "
            "a map would look like an answer and mean nothing."
        )
    if token_geometry(encoder) is None:
        return "The encoder does not say which rectangle of a picture its patches cover."
    if isqrt(token_count) ** 2 != token_count:
        return f"{token_count} patches are not a square: there is no way to lay them over a picture."
    return None
