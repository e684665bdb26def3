"""Thumbnails, heat layers, strips and sprites: images as a page carries them in itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.database.token_geometry import Rectangle

THUMBNAIL_SIDE = 128
"""Pixels of the longer side of an image on a page; smaller images keep their size."""

HEAT_COLOUR = (0, 214, 143)
HEAT_OPACITY = 0.7
"""Share of the image that the strongest heat covers."""


def data_uri(image: Image.Image, *, lossless: bool = False) -> str:
    """Encode an image as WebP in a `data:` address."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=78, method=6, lossless=lossless)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def thumbnail(image: Image.Image, side: int = THUMBNAIL_SIDE) -> Image.Image:
    """Copy an image with its longer side at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    return small


def heat_layer(heat: npt.NDArray[np.float32]) -> Image.Image:
    """Draw heat (T,) from 0 to 1, row by row from the top left, as a transparent image: one pixel a patch."""
    side = int(np.sqrt(len(heat)))
    layer = np.empty((side, side, 4), np.uint8)
    layer[..., :3] = HEAT_COLOUR
    layer[..., 3] = (np.clip(heat, 0, 1) * HEAT_OPACITY * 255).reshape(side, side)
    return Image.fromarray(layer)


def fit_layer(layer: Image.Image, size: tuple[int, int], rectangle: Rectangle) -> Image.Image:
    """Fit a heat layer to an image of that size, (width, height): it covers `rectangle` of it, and nothing beside."""
    if rectangle == (0, 0, *size):
        return layer
    left, top, right, bottom = (round(edge) for edge in rectangle)
    fitted = Image.new("RGBA", size)
    fitted.paste(layer.resize((right - left, bottom - top), Image.Resampling.BICUBIC), (left, top))
    return fitted


def overlay(image: Image.Image, layer: Image.Image) -> Image.Image:
    """Lay a heat layer, enlarged to the size of the image, over the image."""
    enlarged = layer.resize(image.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(image.convert("RGBA"), enlarged).convert("RGB")


def image_strip(images: Sequence[Image.Image], side: int, gap: int = 4) -> Image.Image:
    """Put images side by side, each centred in a square of `side` pixels."""
    sheet = Image.new("RGB", (len(images) * (side + gap) - gap, side), "white")
    for column, image in enumerate(images):
        small = thumbnail(image, side)
        sheet.paste(small, (column * (side + gap) + (side - small.width) // 2, (side - small.height) // 2))
    return sheet


@dataclass(frozen=True)
class Sprite:
    """Many thumbnails in one image: number i is in column i mod `columns`, each a square of `side` pixels."""

    source: str
    side: int
    columns: int


def make_sprite(images: Sequence[Image.Image], side: int) -> Sprite:
    """Put images into one sprite, row by row, each scaled to a square of `side` pixels."""
    columns = int(np.ceil(np.sqrt(max(1, len(images)))))
    rows = int(np.ceil(len(images) / columns))
    sheet = Image.new("RGB", (columns * side, max(1, rows) * side))
    for number, image in enumerate(images):
        sheet.paste(image.resize((side, side)), (number % columns * side, number // columns * side))
    return Sprite(data_uri(sheet), side, columns)
