"""Thumbnails: small pictures and heat maps as pages carry them, written into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

SIDE = 128
"""The longer side of a picture on a page; smaller pictures stay as they are."""

HEAT = (0, 214, 143)
MOST_HEAT = 0.7
"""How much of the picture the strongest heat covers."""


def data_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """The picture as a WebP in a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=78, method=6, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(picture: Image.Image, side: int = SIDE) -> Image.Image:
    """The picture, its longer side at most `side` pixels."""
    small = picture.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def heat_layer(heat: npt.NDArray[np.floating[np.typing.NBitBase]]) -> Image.Image:
    """Heat (T,) between 0 and 1, row by row from the top left, as a picture to lay over another: a patch a pixel."""
    side = int(np.sqrt(len(heat)))
    layer = np.empty((side, side, 4), np.uint8)
    layer[..., :3] = HEAT
    layer[..., 3] = (np.clip(heat, 0, 1) * MOST_HEAT * 255).reshape(side, side)
    return Image.fromarray(layer)


def overlaid(picture: Image.Image, layer: Image.Image) -> Image.Image:
    """The layer, blown up, over the picture."""
    large = layer.resize(picture.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(picture.convert("RGBA"), large).convert("RGB")


def strip(pictures: Sequence[Image.Image], side: int, gap: int = 4) -> Image.Image:
    """Pictures in a row, each in a square of `side` pixels."""
    sheet = Image.new("RGB", (len(pictures) * (side + gap) - gap, side), "white")
    for place, picture in enumerate(pictures):
        small = thumbnail(picture, side)
        sheet.paste(small, (place * (side + gap) + (side - small.width) // 2, (side - small.height) // 2))
    return sheet


@dataclass(frozen=True)
class Sprite:
    """Many thumbnails in one picture: number i stands in column i mod `columns`, `side` pixels square each."""

    source: str
    side: int
    columns: int


def sprite(pictures: Sequence[Image.Image], side: int) -> Sprite:
    columns = int(np.ceil(np.sqrt(max(1, len(pictures)))))
    rows = int(np.ceil(len(pictures) / columns))
    sheet = Image.new("RGB", (columns * side, max(1, rows) * side))
    for place, picture in enumerate(pictures):
        sheet.paste(picture.resize((side, side)), (place % columns * side, place // columns * side))
    return Sprite(data_uri(sheet), side, columns)
