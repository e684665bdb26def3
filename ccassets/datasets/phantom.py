"""The data set `phantom`: generated blood-smear cells with known concepts, for a demo and for tests of meaning."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.phantom_cells import CLASSES, Morphology, concepts_of, draw, sample_morphology
from ccassets.errors import DatasetError
from ccassets.progress import Progress
from ccassets.study.schema import PhantomDatasetConfig

GENERATOR = "1"
"""Raised whenever a seed gives another image or other annotations than before."""


@dataclass(frozen=True)
class PhantomAnnotations:
    """The facts of a phantom image.

    Attributes:
        concepts: Whether the image shows it, by concept word.
        nucleus: (H, W) bool, the nucleus of the central cell; a platelet has none.
        cytoplasm: (H, W) bool, the cytoplasm of the central cell, without the nucleus. The background is neither.
    """

    concepts: dict[str, bool]
    nucleus: npt.NDArray[np.bool_]
    cytoplasm: npt.NDArray[np.bool_]


class PhantomDataset:
    """Images drawn from (seed, size, split, row) alone, whatever the number of rows.

    Each run of eight rows shows all eight classes, in an order of its own.

    Args:
        config: The numbers of rows, the edge of the images, and the seed.
    """

    name = "phantom"
    version = GENERATOR
    classes = CLASSES
    labelled = True

    def __init__(self, config: PhantomDatasetConfig) -> None:
        self._config = config

    def fetch(self, progress: Progress) -> None:
        """Report everything as done: images are drawn when they are read.

        Args:
            progress: Called once, with all rows done.
        """
        total = sum(self._config.rows.values())
        progress(total, total)

    def rows(self, split: str) -> Rows:
        """The rows of a split.

        Args:
            split: One of the study's splits.

        Returns:
            Keys and labels, in order.

        Raises:
            DatasetError: There is no such split.
        """
        count = self._count(split)
        keys = [f"{split}/{row:05d}" for row in range(count)]
        source = f"phantom {GENERATOR} seed {self._config.seed} size {self._config.size}"
        return Rows(
            keys=keys,
            labels=np.array([self.label(split, row) for row in range(count)], np.int64),
            fingerprints=[f"{source} {key}" for key in keys],
        )

    def read(self, split: str, row: int) -> Image.Image:
        """The image of a row.

        Args:
            split: One of the study's splits.
            row: The row's number in `rows(split)`.

        Returns:
            The image, mode RGB.

        Raises:
            DatasetError: There is no such split or row.
        """
        return self.example(split, row)[0]

    def annotations(self, split: str, row: int) -> PhantomAnnotations:
        """The concepts and masks of a row's image.

        Args:
            split: One of the study's splits.
            row: The row's number in `rows(split)`.

        Returns:
            Whether the image shows each concept, and the masks of nucleus and cytoplasm.

        Raises:
            DatasetError: There is no such split or row.
        """
        return self.example(split, row)[1]

    def concepts(self, split: str, row: int) -> dict[str, bool]:
        """Whether a row's image shows each concept, without drawing it.

        Args:
            split: One of the study's splits.
            row: The row's number in `rows(split)`.

        Returns:
            Whether the image shows it, by concept word.

        Raises:
            DatasetError: There is no such split or row.
        """
        return concepts_of(self._morphology(split, row)[0])

    def example(self, split: str, row: int) -> tuple[Image.Image, PhantomAnnotations]:
        """The image of a row together with its annotations, drawn once.

        Args:
            split: One of the study's splits.
            row: The row's number in `rows(split)`.

        Returns:
            The image, mode RGB, and its annotations.

        Raises:
            DatasetError: There is no such split or row.
        """
        cell, rng = self._morphology(split, row)
        drawing = draw(cell, rng, self._config.size)
        return drawing.image, PhantomAnnotations(concepts_of(cell), drawing.nucleus, drawing.cytoplasm)

    def label(self, split: str, row: int) -> int:
        """The label number of a row: each block of eight rows is a permutation of the classes.

        Args:
            split: Name of a split.
            row: The row's number in `rows(split)`.

        Returns:
            The position of the row's class in `classes`.
        """
        block, position = divmod(row, len(CLASSES))
        return int(self._random(split, "block", block).permutation(len(CLASSES))[position])

    def _morphology(self, split: str, row: int) -> tuple[Morphology, np.random.Generator]:
        """What a row's image shows, and the random numbers that it is drawn by."""
        if not 0 <= row < self._count(split):
            raise DatasetError(
                f"The phantom split {split!r} has rows 0 to {self._count(split) - 1}; there is no row {row}."
            )
        rng = self._random(split, "row", row)
        return sample_morphology(CLASSES[self.label(split, row)], rng), rng

    def _random(self, split: str, what: str, number: int) -> np.random.Generator:
        text = f"phantom {GENERATOR}\0{self._config.seed}\0{split}\0{what}\0{number}"
        return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest(), "little"))

    def _count(self, split: str) -> int:
        try:
            return self._config.rows[split]
        except KeyError:
            known = ", ".join(self._config.rows)
            raise DatasetError(f"The phantom data set has the splits {known}; there is no split {split!r}.") from None
