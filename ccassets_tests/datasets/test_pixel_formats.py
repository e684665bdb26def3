"""The table of pixel formats in docs/data.md, cell by cell: what a file says of its pixels is honoured or refused."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from ccassets.datasets import image_decoding
from ccassets.datasets.image_decoding import decode_image
from ccassets.errors import DatasetError

PAGE = Path(__file__).parents[2] / "docs/data.md"
COLUMNS = (
    "photometric interpretation",
    "signed values",
    "palette",
    "ICC profile",
    "orientation",
    "transparency",
    "16-bit grey",
)
DEEP = np.array([[0, 65535], [32768, 257]], np.uint16)
PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
PALETTE.putpalette([10, 20, 30, 200, 100, 50])
CLEAR = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
LOSSLESS = {"WebP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"}}
NAMES = {"JPEG 2000": "JPEG2000", "PPM, PGM": "PPM"}


def table() -> dict[tuple[str, str], str]:
    """By format and property, what the page says is done."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| format |"))
    header = [cell.strip() for cell in lines[start].strip("|").split("|")]
    assert tuple(header[1:]) == COLUMNS
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return {(row[0], column): cell for row in rows for column, cell in zip(COLUMNS, row[1:], strict=True)}


def save(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, NAMES.get(form, form), **{**LOSSLESS.get(form, {}), **options})
    file.seek(0)
    return file


def save_jpeg2000(image: Image.Image, *boxes: tuple[bytes, bytes]) -> io.BytesIO:
    """A JP2 file whose header has other boxes in the place of its colour specification; Pillow writes none of them."""
    content, start, kept = save(image, "JPEG 2000").getvalue(), 0, []
    while start < len(content):
        length, kind = struct.unpack(">I4s", content[start : start + 8])
        payload = content[start + 8 : start + length]
        if kind == b"jp2h":  # The first box in it has the size of the image.
            payload = payload[:22] + b"".join(map(_box, boxes))
        kept.append(_box((kind, payload)))
        start += length
    return io.BytesIO(b"".join(kept))


def _box(kind_and_payload: tuple[bytes, bytes]) -> bytes:
    kind, payload = kind_and_payload
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def photometric(form: str) -> bool:
    red = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)).getpixel((0, 0))
    return isinstance(red, tuple) and red[0] > 250 and red[1] < 5


def signed(form: str) -> bool:
    if form == "JPEG 2000":
        content = bytearray(save(Image.fromarray(np.array([[0, 128, 255]], np.uint8)), form, no_jp2=True).getvalue())
        content[42] |= 0x80  # Its values are -128, 0 and 127 then.
        return np.asarray(decode_image(io.BytesIO(content)))[0, :, 0].tolist() == [0, 128, 255]
    decode_image(save(Image.fromarray(np.array([[-5, 5]], np.int32)), form))
    return True


def palette(form: str) -> bool:
    file = save(PALETTE, form) if form != "JPEG 2000" else _jpeg2000_palette()
    colours = np.asarray(decode_image(file))[0]
    return bool((colours == [[10, 20, 30], [200, 100, 50]]).all())


def _jpeg2000_palette() -> io.BytesIO:
    colours = struct.pack(">HB9B", 2, 3, 7, 7, 7, *(PALETTE.getpalette() or ())[:6])
    channels = struct.pack(">HBBHBBHBB", 0, 1, 0, 0, 1, 1, 0, 1, 2)
    rgb = (b"colr", struct.pack(">BBBI", 1, 0, 0, 16))
    return save_jpeg2000(Image.fromarray(np.asarray(PALETTE)), rgb, (b"pclr", colours), (b"cmap", channels))


def profile(form: str) -> bool:
    """Whether the values are those that are stored, whatever the profile says."""
    image = Image.new("RGB", (4, 4), (200, 30, 60))
    plain = np.asarray(decode_image(save(image, form)))
    if form == "JPEG 2000":
        file = save_jpeg2000(image, (b"colr", b"\2\0\0" + PROFILE))
        assert PROFILE in file.getvalue()
    else:
        file = save(image, form, icc_profile=PROFILE)
    tagged = np.asarray(decode_image(file))
    return bool((plain == tagged).all())


def orientation(form: str) -> bool:
    exif = Image.Exif()
    exif[274] = 6
    return decode_image(save(Image.new("RGB", (16, 8)), form, exif=exif)).size == (8, 16)


def transparency(form: str) -> bool:
    return bool(np.asarray(decode_image(save(CLEAR, form))).min() > 250)


def deep(form: str) -> bool:
    return np.asarray(decode_image(save(Image.fromarray(DEEP), form)))[..., 0].tolist() == [[0, 255], [128, 1]]


CHECKS: dict[str, Callable[[str], bool]] = dict(
    zip(COLUMNS, (photometric, signed, palette, profile, orientation, transparency, deep), strict=True)
)
CELLS = [(form, column, done) for (form, column), done in table().items() if form != "DICOM"]


@pytest.mark.parametrize(("form", "column", "done"), [cell for cell in CELLS if cell[2] != "–"])
def test_what_a_file_says_of_its_pixels_is_treated_as_the_page_says(form: str, column: str, done: str) -> None:
    if done == "refused":
        with pytest.raises(DatasetError):
            CHECKS[column](form)
        return
    assert done == ("as stored" if column == "ICC profile" else "honoured")
    assert CHECKS[column](form)


def test_the_page_has_every_format_that_is_read() -> None:
    names = {NAMES.get(form, form).upper() for form, _, _ in CELLS}
    assert names | {"DIB"} == set(image_decoding._FORMATS)
    assert ("DICOM", "signed values") in table()
