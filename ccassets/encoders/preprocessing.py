"""ConceptCLIP's image preprocessing: an RGB image becomes normalised pixels, with Pillow and NumPy alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from ccassets.encoders.encoder_contract import FloatArray
from ccassets.errors import EncoderError

MEAN = STD = 0.5

PREPROCESSING: dict[str, Any] = {
    "resize": "squash",
    "resample": "bicubic",
    "antialias": True,
    "backend": "pillow",
    "mean": [MEAN] * 3,
    "std": [STD] * 3,
}
"""The preprocessing, as the encoder's identity holds it."""


def require_rgb(image: Image.Image) -> Image.Image:
    """The image as 8-bit RGB: grey becomes three equal channels, every other mode is refused.

    The data set decides what a transparent or a 16-bit pixel becomes; an encoder must not guess.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "L":
        return image.convert("RGB")
    raise EncoderError(f"Expected an image of mode RGB, found {image.mode}. Convert it before.")


def require_pixels(pixels: FloatArray, size: int) -> None:
    """Raise `EncoderError` unless pixels are (B, 3, size, size) float32; a tower would accept other sizes."""
    if pixels.ndim != 4 or pixels.shape[1:] != (3, size, size) or pixels.dtype != np.float32:
        raise EncoderError(f"Expected pixels (B, 3, {size}, {size}) float32, found {pixels.shape} {pixels.dtype}.")


def squash(image: Image.Image, size: int) -> FloatArray:
    """An image resized to size × size whatever its shape, as (3, size, size) float32 in -1…1."""
    resized = require_rgb(image).resize((size, size), Image.Resampling.BICUBIC)
    planes = np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))  # While a value is one byte, not four.
    pixels = planes.astype(np.float32)
    pixels /= np.float32(255)
    pixels -= np.float32(MEAN)
    pixels /= np.float32(STD)
    return pixels
