"""The row about decoding: image files and arrays become an encoder's pixels, as every image of an extraction does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.contest import Contest, Contestant, Target
from benchmarks.sizes import Size
from ccassets.datasets.image_decoding import image_digest, to_rgb
from ccassets.datasets.image_files import read_image_file
from ccassets.datasets.phantom import PhantomDataset
from ccassets.encoders.preprocessing import MEAN, STD, squash
from ccassets.study.schema import DicomConfig, PhantomDatasetConfig

SIDE, ENCODER_SIDE = 224, 384
IMAGES_PER_SECOND = 250
FORMATS = ("png", "jpg")


@dataclass(frozen=True)
class Images:
    """The same pictures as PNG files, as JPEG files, and as one array like those of MedMNIST."""

    folder: Path
    keys: tuple[str, ...]
    array: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.keys) + len(self.array)


def decoding(folder: Path, size: Size) -> Contest:
    images = _images(folder / "decoding", max(1, size.images // 16))
    return Contest(
        work=(
            f"{len(images)} images of {SIDE} px, a third each PNG, JPEG and arrays, decoded, digested, resized to "
            f"{ENCODER_SIDE} px and normalised in one thread"
        ),
        ours=lambda: _ours(images),
        limit=Contestant("Pillow's decoding and resizing, and SHA-256", lambda: _usual(images, np.asarray)),
        usual=Contestant("the same with the pixels in NumPy, step by step", lambda: _usual(images, _normalised)),
        target=Target(seconds=len(images) / IMAGES_PER_SECOND),
    )


def _ours(images: Images) -> None:
    for key in images.keys:
        _encoder_input(read_image_file(images.folder, key, DicomConfig()))
    for pixels in images.array:
        _encoder_input(to_rgb(Image.fromarray(np.array(pixels))))


def _encoder_input(image: Image.Image) -> None:
    image_digest(image)
    squash(image, ENCODER_SIDE)


def _usual(images: Images, finish: Callable[[Image.Image], object]) -> None:
    decoded = (Image.open(images.folder / key).convert("RGB") for key in images.keys)
    for image in chain(decoded, map(Image.fromarray, images.array)):
        hashlib.sha256(image.tobytes()).digest()
        finish(image.resize((ENCODER_SIDE, ENCODER_SIDE), Image.Resampling.BICUBIC))


def _normalised(image: Image.Image) -> npt.NDArray[np.float32]:
    pixels = np.asarray(image, dtype=np.float32) / np.float32(255)
    return np.ascontiguousarray(((pixels - np.float32(MEAN)) / np.float32(STD)).transpose(2, 0, 1))


def _images(folder: Path, count: int) -> Images:
    cells = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": count}, size=SIDE))
    pictures = [cells.read("train", row) for row in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    keys = tuple(f"{row:04d}.{suffix}" for suffix in FORMATS for row in range(count))
    for key, picture in zip(keys, pictures * len(FORMATS), strict=True):
        picture.save(folder / key)
    return Images(folder, keys, np.stack([np.asarray(picture) for picture in pictures]))
