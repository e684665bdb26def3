"""Every kind of picture becomes 8-bit RGB in a way that was decided on, or is refused with a reason."""

import errno
import hashlib
import io
import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ccassets.datasets.image_decoding import MAX_PIXELS, blank_image, decode_image, image_digest
from ccassets.errors import DatasetError, StorageError
from ccassets_tests.datasets.made_datasets import noise

GREY = np.arange(120, dtype=np.uint8).reshape(10, 12)


def encoded(image: Image.Image, form: str, **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def decoded(image: Image.Image, form: str = "PNG", **options: object) -> np.ndarray:
    result = decode_image(encoded(image, form, **options))
    assert result.mode == "RGB"
    return np.asarray(result)


def test_rgb_comes_back_as_it_is(tmp_path: Path):
    noise(1).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(decode_image(tmp_path / "a.png")), np.asarray(noise(1)))


def test_grey_is_repeated_in_three_channels():
    assert np.array_equal(decoded(Image.fromarray(GREY)), np.repeat(GREY[..., None], 3, axis=2))


def test_one_bit_is_black_and_white():
    bits = Image.fromarray(GREY > 60).convert("1")
    assert np.array_equal(decoded(bits)[..., 0], np.where(np.asarray(bits), 255, 0))


def test_a_palette_gives_its_colours():
    image = Image.fromarray(np.array([[0, 1], [1, 2]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert decoded(image).tolist() == [[[10, 20, 30], [40, 50, 60]], [[40, 50, 60], [70, 80, 90]]]


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 255, 128, 0
    assert decoded(Image.fromarray(rgba))[0, :, 0].tolist() == [0, 127, 255]
    assert decoded(Image.fromarray(rgba[..., [0, 3]]))[0, :, 0].tolist() == [0, 127, 255]  # LA


def test_a_transparent_palette_entry_is_white():
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert decoded(image, transparency=0).tolist() == [[[255, 255, 255], [40, 50, 60]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_grey_is_scaled_by_its_full_range(form: str):
    values = np.array([[0, 128, 129, 257], [32768, 65278, 65407, 65535]], np.uint16)
    assert decoded(Image.fromarray(values), form)[..., 0].tolist() == [[0, 0, 1, 1], [128, 254, 255, 255]]


def test_a_12_bit_tiff_is_scaled_by_12_bits():
    # Two 12-bit values packed into three bytes, as the TIFF standard says: 0xFFF and 0x800.
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    pixels = bytes([0xFF, 0xF8, 0x00, 0x00])
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    tiff = struct.pack("<2sHI", b"II", 42, 12) + pixels + struct.pack("<H", len(entries)) + directory + bytes(4)
    assert np.asarray(decode_image(io.BytesIO(tiff)))[..., 0].tolist() == [[255, 128]]


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes) -> io.BytesIO:
    """A PNG written by hand: kinds that Pillow reads and does not write."""
    chunks = {
        b"IHDR": struct.pack(">2I5B", width, height, bits, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks.items()
        )
    )


def test_16_bit_colour_keeps_the_upper_8_bits():
    file = png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 0x12FF, 0x8001, 0xFFFF))
    assert np.asarray(decode_image(file)).tolist() == [[[0x12, 0x80, 0xFF]]]


@pytest.mark.parametrize(
    ("values", "said"),
    [(np.zeros((4, 4), np.float32), "floating-point"), (np.zeros((4, 4), np.int32), "32-bit or signed")],
)
def test_values_without_an_agreed_range_are_refused(values: np.ndarray, said: str):
    with pytest.raises(DatasetError, match=said):
        decoded(Image.fromarray(values), "TIFF")


def test_cmyk_is_converted():
    assert decoded(Image.new("CMYK", (2, 2), (0, 255, 255, 0)), "TIFF")[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    exif = Image.Exif()
    exif[274] = orientation
    stored = np.asarray(noise(2))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: np.rot90(stored, -1),
        7: np.rot90(stored, 2).swapaxes(0, 1),
        8: np.rot90(stored),
    }[orientation]
    assert np.array_equal(decoded(noise(2), exif=exif), upright)


def test_16_bit_grey_is_turned_upright_too():
    exif = Image.Exif()
    exif[274] = 6
    values = np.array([[0, 65535]], np.uint16)
    assert decoded(Image.fromarray(values), exif=exif)[..., 0].tolist() == [[0], [255]]


def test_several_frames_are_refused_and_counted():
    with pytest.raises(DatasetError, match="3 frames"):
        decoded(noise(0), "TIFF", save_all=True, append_images=[noise(1), noise(2)])


def test_the_preview_in_a_camera_file_does_not_count_as_a_frame():
    assert decoded(noise(0), "MPO", save_all=True, append_images=[noise(1)]).shape == (9, 12, 3)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP"])
def test_a_truncated_file_is_refused(form: str):
    whole = encoded(noise(3, (64, 64)), form).getvalue()
    with pytest.raises(DatasetError):
        decode_image(io.BytesIO(whole[: len(whole) // 2]))


@pytest.mark.parametrize("content", [b"", b"no image at all", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_no_image_is_refused(content: bytes):
    with pytest.raises(DatasetError):
        decode_image(io.BytesIO(content))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(DatasetError, match="no such file"):
        decode_image(tmp_path / "a.png")


def test_an_empty_file_is_called_empty(tmp_path: Path):
    (tmp_path / "a.png").touch()
    with pytest.raises(DatasetError, match="the file is empty"):
        decode_image(tmp_path / "a.png")


def test_the_reason_does_not_show_where_the_file_lies(tmp_path: Path):
    # Reasons are stored with the database, which holds no absolute path.
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "circle.png").symlink_to(tmp_path / "circle.png")
    for path in [*tmp_path.iterdir(), tmp_path / "gone.png"]:
        with pytest.raises(DatasetError) as caught:
            decode_image(path)
        assert str(tmp_path) not in str(caught.value)


class Refusing(io.RawIOBase):
    """An open file of a PNG whose system refuses to read on after so many bytes."""

    def __init__(self, number: int, after: int) -> None:
        self._png = encoded(Image.new("RGB", (64, 64)), "PNG")
        self._number, self._left = number, after

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._png.seek(offset, whence)

    def tell(self) -> int:
        return self._png.tell()

    def read(self, size: int = -1) -> bytes:
        if self._left <= 0:
            raise OSError(self._number, os.strerror(self._number))
        block = self._png.read(size)
        self._left -= len(block)
        return block


@pytest.mark.parametrize("after", [0, 16, 60])
@pytest.mark.parametrize(
    ("name", "transient"),
    [
        *((name, True) for name in ("EIO", "ESTALE", "ETIMEDOUT", "EREMOTEIO", "EAGAIN", "ENOMEM", "EHOSTDOWN")),
        *((name, False) for name in ("EACCES", "EPERM", "EMFILE", "EUCLEAN", "ENODATA")),
    ],
)
def test_what_the_system_refuses_is_no_fault_of_the_image(name: str, transient: bool, after: int):
    number = getattr(errno, name)
    with pytest.raises(
        StorageError, match=re.escape(os.strerror(number) if name != "EAGAIN" else "close it")
    ) as caught:
        decode_image(Refusing(number, after))
    assert caught.value.transient == transient


@pytest.mark.parametrize("name", ["EINVAL", "EOVERFLOW"])
def test_an_offset_that_leads_out_of_the_file_is_the_fault_of_the_image(name: str):
    with pytest.raises(DatasetError, match="cannot be decoded"):
        decode_image(Refusing(getattr(errno, name), 16))


@pytest.mark.parametrize("link", [False, True])
def test_a_pipe_and_a_device_are_refused_before_they_are_opened(tmp_path: Path, link: bool):
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    if link:
        (tmp_path / "link.png").symlink_to(path)
        path = tmp_path / "link.png"
    with pytest.raises(DatasetError, match="it is a named pipe"):
        decode_image(path)
    with pytest.raises(DatasetError, match="it is a device"):
        decode_image(Path("/dev/zero"))


@pytest.mark.parametrize("side", [10_000, 20_000])
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(side: int):
    assert side * side > MAX_PIXELS
    with pytest.raises(DatasetError, match=f"more than the {MAX_PIXELS}"):
        decode_image(png(side, side, 8, 2, b""))


def test_the_image_digest_is_that_of_the_format():
    image = noise(4, (5, 3))
    expected = hashlib.sha256(struct.pack("<3I", 3, 5, 3) + np.asarray(image).tobytes()).digest()
    assert image_digest(image) == expected
    assert image_digest(image.transpose(Image.Transpose.ROTATE_90)) != expected


def test_a_digest_is_taken_of_rgb_only():
    with pytest.raises(ValueError, match="mode L"):
        image_digest(Image.fromarray(GREY))


def test_the_blank_stand_in_is_mid_grey():
    assert blank_image().size == (64, 64)
    assert blank_image().getextrema() == ((128, 128),) * 3
