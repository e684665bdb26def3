"""The contract of a data set: named splits of rows, each with a key, a label and an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.progress import Progress


@dataclass(frozen=True)
class Rows:
    """The n rows of one split in the data set's own order, known without decoding an image.

    Attributes:
        keys: (n,) str, where a row came from: the path relative to the data set's root, or its index in the data set.
        labels: (n,) int64; 0 where the data set has none.
        fingerprints: (n,) str, which change whenever the bytes behind a row may have changed; for a file: size,
            mtime_ns, ctime_ns and inode.
        groups: (n,) str, patient or slide; None where there are none.
        label_matrix: (n, L) uint8 of a multi-label set, else None.
        overridden: By key: the data set's own label of every row that the study gives another label.
    """

    keys: Sequence[str]
    labels: npt.NDArray[np.int64]
    fingerprints: Sequence[str]
    groups: Sequence[str] | None = None
    label_matrix: npt.NDArray[np.uint8] | None = None
    overridden: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)


class Dataset(Protocol):
    """Named splits of images with keys and labels; what every data set kind provides."""

    @property
    def name(self) -> str:
        """The name in the provenance."""

    @property
    def version(self) -> str | None:
        """The version in the provenance, where the data set has one."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names in the order of the label numbers, () when unknown."""

    @property
    def labelled(self) -> bool:
        """Whether the data set has labels at all."""

    def fetch(self, progress: Progress) -> None:
        """Make the data set readable: find it, or download, verify and unpack it where the study allows that.

        Args:
            progress: Called with what is done and the total, in bytes where files are fetched or unpacked.

        Raises:
            DatasetError: Something is missing; the message says what, and what to do.
        """

    def rows(self, split: str) -> Rows:
        """The rows of a split.

        Args:
            split: One of the study's splits.

        Returns:
            The rows in the data set's own order.

        Raises:
            DatasetError: The data set has no such split.
        """

    def read(self, split: str, row: int) -> Image.Image:
        """The image of a row as 8-bit RGB; safe in worker threads, flat in memory.

        Args:
            split: One of the study's splits.
            row: The row's number in `rows(split)`.

        Returns:
            The decoded image.

        Raises:
            DatasetError: The image cannot be decoded. The message is the reason alone: the caller adds split and key.
        """
