"""Image decoding: the conversion of any image file to 8-bit RGB, the same for all data sets, and its digest.

The pixels are taken as they are stored: colour profiles and gamma are not applied, as in the usual training
pipelines of image encoders. `docs/data.md` has the policy as a table.
"""

from __future__ import annotations

import hashlib
import struct
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import PIL
from PIL import Image, ImageOps

from ccassets.errors import DatasetError
from ccassets.files import reading_refused, unreadable_reason

POLICY_VERSION: Final = 1
"""Raised on purpose whenever the conversion below gives other pixels than before."""

DECODER: Final = f"policy {POLICY_VERSION}, Pillow {PIL.__version__}"
"""The decoder's version: a digest made with another one is made again."""

MAX_PIXELS: Final = 89_478_485
"""Pillow's own limit against decompression bombs: a quarter of a GiB as RGB. Here it refuses, not only warns."""

_FORMATS: Final = ("PNG", "JPEG", "TIFF", "BMP", "DIB", "GIF", "WEBP", "AVIF", "JPEG2000", "PPM")
"""The formats that are read, whatever a file is called. Pillow knows more, and runs Ghostscript for one of them."""

SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""How the names of files in these formats end."""

_BITS_PER_SAMPLE: Final = 258  # the TIFF tag


def decode_image(source: Path | BinaryIO) -> Image.Image:
    """Decode an image file as 8-bit RGB, upright.

    Args:
        source: The path of the file, or its bytes as an open file.

    Returns:
        The decoded image.

    Raises:
        DatasetError: The file is not an image that can be read here. The message is only the reason, without the key.
        StorageError: The operating system refuses to read the file now: that says nothing of the image.
    """
    if isinstance(source, Path) and (reason := unreadable_reason(source)):
        raise DatasetError(reason)
    try:
        with Image.open(source, formats=_formats()) as image:
            refuse_large(*image.size)
            _refuse_further_frames(image)
            image.load()
            return to_rgb(image)
    except (DatasetError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DatasetError("there is no such file") from error
    except PIL.UnidentifiedImageError as error:
        if isinstance(source, Path) and source.stat().st_size == 0:
            raise DatasetError("the file is empty") from error
        raise DatasetError("this is not an image of a format that can be read here; docs/data.md names them") from error
    except Image.DecompressionBombError as error:
        raise DatasetError(f"it has more than the {MAX_PIXELS} pixels that are allowed; cut or shrink it") from error
    except OSError as error:  # the reason is stored: the system's own text, without the path
        if refusal := reading_refused(error, str(source)):  # It says nothing of the image.
            raise refusal from error
        raise DatasetError(f"it cannot be decoded ({error.strerror or error})") from error
    except Exception as error:  # decoders of broken files raise nearly everything, struct.error and KeyError included
        raise DatasetError(f"it cannot be decoded ({str(error) or type(error).__name__})") from error


@cache
def _formats() -> tuple[str, ...]:
    """The formats of `_FORMATS` that this Pillow reads."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a loaded image of any mode to 8-bit RGB.

    Transparency is laid over white, the background of a bright-field slide. 16-bit grey is scaled by the full range
    of the file (65535 becomes 255), never clipped and never stretched to the values that occur.
    """
    if 0 in image.size:
        raise DatasetError(f"it has no pixels (width {image.width}, height {image.height})")
    bits = _grey_bits(image)
    image = ImageOps.exif_transpose(image)
    if bits:
        image = _scale_grey(image, bits)
    elif image.mode in {"I", "F"}:
        kind = "floating-point" if image.mode == "F" else "32-bit or signed integer"
        raise DatasetError(f"it holds {kind} values, which have no agreed range; save it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def image_digest(image: Image.Image) -> bytes:
    """SHA-256 of height, width and 3 channels as little-endian uint32, then the RGB bytes, row by row."""
    if image.mode != "RGB":
        raise ValueError(f"a digest is taken of an RGB image, not of mode {image.mode}")
    digest = hashlib.sha256(struct.pack("<3I", image.height, image.width, 3))
    digest.update(image.tobytes())
    return digest.digest()


def blank_image() -> Image.Image:
    """The stand-in for an unreadable image: 64 × 64 pixels of mid-grey (128, 128, 128)."""
    return Image.new("RGB", (64, 64), (128, 128, 128))


def _grey_bits(image: Image.Image) -> int | None:
    """Bits of a grey value, where the file has more than 8."""
    if image.mode in {"I;16", "I;16L", "I;16B", "I;16N"}:
        # A TIFF may declare fewer (12 is common in microscopy); every other format's range is all 16.
        bits: int = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        return bits
    # Pillow reads 16-bit PNG (before 11) and PGM as 32-bit integers.
    return 16 if image.mode == "I" and image.format in {"PNG", "PPM"} else None


def _scale_grey(image: Image.Image, bits: int) -> Image.Image:
    full = (1 << bits) - 1
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values * 255 + full // 2) // full).astype(np.uint8))


def refuse_large(width: int, height: int) -> None:
    """Raise `DatasetError` for an image of more pixels than are read."""
    if width * height > MAX_PIXELS:
        raise DatasetError(
            f"it has {width} × {height} pixels, more than the {MAX_PIXELS} that are allowed; cut or shrink it"
        )


def _refuse_further_frames(image: Image.Image) -> None:
    # An MPO is a camera's JPEG: its further frames are previews and gain maps of the first.
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise DatasetError(f"it holds {frames} frames; one image per file is expected, so save each as its own file")
