"""The data set `folder`: image files in `<root>/<split>/<class>/`, sorted by key."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.dicom import frame_keys, patient_groups, require_nameless_keys
from ccassets.datasets.image_files import (
    IMAGE_SUFFIXES,
    check_keys,
    fingerprints,
    first_few,
    is_image,
    read_image_file,
)
from ccassets.datasets.labels import class_order
from ccassets.errors import AbsentDataError, DatasetError
from ccassets.files import reading_refused
from ccassets.progress import Progress
from ccassets.study.schema import FolderConfig

_SYSTEM_FILES = {
    *("thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information"),
    "dicomdir",
}
"""Names that systems, archives, network disks and DICOM media leave behind; such a folder is neither class nor
split.
"""


def is_visible(name: str) -> bool:
    """Whether a file or folder of that name belongs to a data set."""
    return not name.startswith(".") and name.lower() not in _SYSTEM_FILES


@dataclass(frozen=True)
class FolderDataset:
    """A folder of images: each file is a row, in the byte order of the keys; folders below a class may nest.

    Without a class folder in any split the data set is unlabelled and the images lie in the split's folder.
    """

    config: FolderConfig
    root: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def version(self) -> None:
        return None

    @property
    def labelled(self) -> bool:
        return bool(self._class_names)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        if not self.labelled:
            return ()
        return class_order(self._class_names, declared=self.config.classes, words=self.words)

    def fetch(self, progress: Progress) -> None:
        """List every split, so that errors are reported at once; nothing is ever downloaded."""
        for number, split in enumerate(self.config.splits, start=1):
            self._keys_of(split)
            progress(number, len(self.config.splits))

    def rows(self, split: str) -> Rows:
        keys = self._keys_of(split)
        labels = np.zeros(len(keys), np.int64)
        if self.labelled:
            numbers = {name: number for number, name in enumerate(self.classes)}
            labels[:] = [numbers[key.split("/", 2)[1]] for key in keys]
        groups = patient_groups(self.root, keys) if self.config.dicom.group else None
        return Rows(keys, labels, fingerprints(self.root, keys, self.config.dicom), groups)

    def read(self, split: str, row: int) -> Image.Image:
        return read_image_file(self.root, self._keys_of(split)[row], self.config.dicom)

    def _keys_of(self, split: str) -> list[str]:
        try:
            return self._keys[split]
        except KeyError:
            raise DatasetError(f"The study has no split {split!r}, only {list(self._keys)}.") from None

    @cached_property
    def _class_names(self) -> frozenset[str]:
        """The folders below the splits; keys would not show a class folder that is empty."""
        folders = {
            entry.name
            for split in self.config.splits
            for entry in self._entries(self._split_folder(split))
            if entry.is_dir()
        }
        return frozenset(folders)

    @cached_property
    def _keys(self) -> dict[str, list[str]]:
        keys: dict[str, list[str]] = {}
        strange: list[str] = []
        for split in self.config.splits:
            files = sorted(self._files(self._split_folder(split), split, frozenset()))
            keys[split] = [key for key in files if is_image(self.root, key)]
            strange += sorted(set(files) - set(keys[split]))
            require_nameless_keys(self.root, self.name, keys[split], self.config.splits)
        check_keys((key for of_split in (*keys.values(), strange) for key in of_split), where=str(self.root))
        if strange:
            raise DatasetError(
                f"{self.root} holds files whose suffix is not that of an image, and no file is skipped silently: "
                f"{first_few(strange)}. Take them out or hide them (a name with a leading dot); images end in "
                f"{' '.join(sorted(IMAGE_SUFFIXES))}, or are DICOM files with the mark DICM."
            )
        loose = [key for of_split in keys.values() for key in of_split if key.count("/") == 1]
        if loose and self._class_names:
            raise DatasetError(
                f"{self.root} has class folders ({first_few(sorted(self._class_names))}) and also images outside "
                f"them: {first_few(loose)}. Put every image into a class folder, or none."
            )
        if loose and self.config.classes:
            raise DatasetError(
                f"dataset.classes names classes, but {self.root} has no class folders: put the images into "
                "<split>/<class>/, or remove classes for a data set without labels."
            )
        return {
            split: [frame for key in of_split for frame in frame_keys(self.root, key)]
            for split, of_split in keys.items()
        }

    def _split_folder(self, split: str) -> Path:
        folder = self.root / split
        if folder.is_dir():
            return folder
        if not self.root.is_dir():
            raise AbsentDataError(f"The data set's folder {self.root} does not exist; dataset.root names it.")
        there = sorted(path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith("."))
        # An empty one is where a disk is not mounted.
        raise (DatasetError if there else AbsentDataError)(
            f"{self.root} has no folder for the split {split!r}; it has {there}. Create it, or correct dataset.splits."
        )

    def _files(self, folder: Path, key: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        """The keys of all visible files below a folder. Links are followed, but never in a circle."""
        status = folder.stat()
        here = (status.st_dev, status.st_ino)
        if here in above:
            raise DatasetError(f"{folder} is a link to a folder that it lies in; remove it.")
        for entry in self._entries(folder):
            if entry.is_dir():
                yield from self._files(folder / entry.name, f"{key}/{entry.name}", above | {here})
            else:
                yield f"{key}/{entry.name}"

    @staticmethod
    def _entries(folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                return [entry for entry in entries if is_visible(entry.name)]
        except OSError as error:
            raise reading_refused(error, str(folder)) or DatasetError(
                f"{folder} cannot be listed: {error.strerror}"
            ) from error
