"""The table of pixel formats in docs/data.md, cell by cell: what a file says of its pixels is honoured or refused."""

from __future__ import annotations

import io
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


def photometric(form: str) -> bool:
    red = decode_image(save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), form)).getpixel((0, 0))
    return isinstance(red, tuple) and red[0] > 250 and red[1] < 5


def signed(form: str) -> bool:
    decode_image(save(Image.fromarray(np.array([[-5, 5]], np.int32)), form))
    return True


def palette(form: str) -> bool:
    colours = np.asarray(decode_image(save(PALETTE, form)))[0]
    return bool((colours == [[10, 20, 30], [200, 100, 50]]).all())


def profile(form: str) -> bool:
    """Whether the values are those that are stored, whatever the profile says."""
    image = Image.new("RGB", (4, 4), (200, 30, 60))
    plain, tagged = (np.asarray(decode_image(save(image, form, **icc))) for icc in ({}, {"icc_profile": PROFILE}))
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


@pytest.mark.parametrize(("form", "column", "done"), [cell for cell in CELLS if cell[2] not in {"–", "not tried"}])
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
