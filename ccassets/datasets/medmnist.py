"""The data set `medmnist`: every 2D set and size of the MedMNIST collection, read from unpacked, mapped arrays."""

from __future__ import annotations

import hashlib
import json
import shutil
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO, Final
from urllib.error import HTTPError

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.image_decoding import to_rgb
from ccassets.errors import AbsentDataError, DatasetError
from ccassets.files import exclusive, fingerprint, reading_refused, replacing, require_space, storage_errors, sync
from ccassets.progress import Progress
from ccassets.study.schema import MedmnistConfig

_SPLITS: Final = ("train", "val", "test")
_BLOCK: Final = 1 << 20
_RECORD: Final = "record.json"

_Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MedmnistDataset:
    """A MedMNIST set: the `.npz` lies in `root`; its arrays are unpacked once below `unpacked_root` and then mapped.

    A row's key is its index. Multi-label sets (chestmnist) have a label matrix, and the first set label as label.
    """

    config: MedmnistConfig
    root: Path
    unpacked_root: Path

    @property
    def name(self) -> str:
        return f"{self.config.name}_{self.config.size}"

    @property
    def version(self) -> str:
        return f"md5:{self._md5}"

    @property
    def labelled(self) -> bool:
        return True

    @cached_property
    def classes(self) -> tuple[str, ...]:
        names: dict[str, str] = self._info["label"]
        return tuple(names[str(number)] for number in range(len(names)))

    @property
    def archive(self) -> Path:
        """The path of the downloaded file, whether it exists yet or not."""
        return self.root / f"{self.config.name}{self._suffix}.npz"

    @property
    def url(self) -> str:
        """The address of the published archive."""
        url: str = self._info[f"url{self._suffix}"]
        return url

    @property
    def published_rows(self) -> dict[str, int]:
        """The number of images in every split, known without the archive."""
        return dict(self._info["n_samples"])

    def fetch(self, progress: Progress) -> None:
        """Download (where the study allows it), verify and unpack; steps that are done are left out.

        Args:
            progress: Called with bytes done and bytes in all, for each step.

        Raises:
            DatasetError: The archive is absent, damaged or another one.
            StorageError: The disk is too small.
        """
        self._info  # noqa: B018  an unknown set is named before anything is locked or written
        with exclusive(self.unpacked_root):
            if self._is_unpacked():
                return
            if self.archive.is_file():
                self._verify(progress)
            else:
                self._download(progress)
            self._unpack(progress)

    def rows(self, split: str) -> Rows:
        labels = self._arrays[split][1]
        keys = [str(row) for row in range(len(labels))]
        fingerprints = [self._md5] * len(labels)
        if not self._multi_label:
            return Rows(keys, labels[:, 0].astype(np.int64), fingerprints)
        first = labels.argmax(axis=1)  # 0 where none is set
        return Rows(keys, first.astype(np.int64), fingerprints, label_matrix=labels.astype(np.uint8))

    def read(self, split: str, row: int) -> Image.Image:
        return to_rgb(Image.fromarray(np.array(self._arrays[split][0][row])))

    @cached_property
    def _info(self) -> dict[str, Any]:
        from medmnist import INFO  # brings torch and pandas with it

        sets: dict[str, dict[str, Any]] = {name: info for name, info in INFO.items() if not name.endswith("3d")}
        if self.config.name not in sets:
            raise DatasetError(f"MedMNIST has no 2D set {self.config.name!r}; it has {', '.join(sets)}.")
        return sets[self.config.name]

    @property
    def _suffix(self) -> str:
        return "" if self.config.size == 28 else f"_{self.config.size}"

    @property
    def _md5(self) -> str:
        md5: str = self._info[f"MD5{self._suffix}"]
        return md5

    @property
    def _multi_label(self) -> bool:
        return bool(self._info["task"].startswith("multi-label"))

    @property
    def _unpacked(self) -> Path:
        return self.unpacked_root / self.name

    def _record(self) -> dict[str, str]:
        """Facts that identify the unpacked arrays as those of the archive."""
        return {"file": self.archive.name, "fingerprint": fingerprint(self.archive), "md5": self._md5}

    def _is_unpacked(self) -> bool:
        try:
            record = json.loads((self._unpacked / _RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return self.archive.is_file() and bool(record == self._record())

    def _verify(self, progress: Progress) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        with self.archive.open("rb") as file:
            for block in _blocks(file, self.archive.stat().st_size, progress):
                digest.update(block)
        if digest.hexdigest() != self._md5:
            raise DatasetError(
                f"{self.archive} has the MD5 {digest.hexdigest()}, published is {self._md5}: it is damaged, or "
                "another file. Remove it and get it again."
            )

    def _download(self, progress: Progress) -> None:
        if not self.config.download:
            raise AbsentDataError(
                f"{self.archive} does not exist. Set `download: true` under dataset to download it, or get it from "
                f"{self.url} and put it there."
            )
        with exclusive(self.root):
            with storage_errors(self.root):
                for left_behind in self.root.glob(f".{self.archive.name}.*.partial"):
                    left_behind.unlink()
            self._save_download(progress)

    def _save_download(self, progress: Progress) -> None:
        digest = hashlib.md5(usedforsecurity=False)
        with replacing(self.archive) as temporary:
            with temporary.open("wb") as file:
                for block in self._downloaded_blocks(progress):
                    digest.update(block)
                    file.write(block)
            if digest.hexdigest() != self._md5:
                raise DatasetError(
                    f"The download from {self.url} has the MD5 {digest.hexdigest()}, published is {self._md5}; it was "
                    f"not kept. Try again, or put the right file at {self.archive}."
                )

    def _downloaded_blocks(self, progress: Progress) -> Iterator[bytes]:
        """The bytes of the published archive; errors raised here come from the network, not from the disk."""
        try:
            with urllib.request.urlopen(self.url, timeout=60) as response:
                yield from _blocks(response, int(response.headers.get("Content-Length") or 0), progress)
        except (OSError, HTTPException) as error:
            raise DatasetError(
                f"{self.url} could not be downloaded to {self.archive}: {error}. Try again, or get it in another way "
                "and put it there.",
                transient=not isinstance(error, HTTPError) or error.code >= 500 or error.code == 429,
            ) from error

    def _unpack(self, progress: Progress) -> None:
        """Unpack the arrays, block by block, to a folder that appears as a whole or not at all."""
        partial = self._unpacked.with_name(f".{self.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        record = self._record()
        try:
            with zipfile.ZipFile(self.archive) as archive:
                self._unpack_members(archive, partial, progress)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise DatasetError(f"{self.archive} is not a valid .npz archive ({error}); get it again.") from error
        for split in _SPLITS:
            self._load(partial, split)
        (partial / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        sync(partial / _RECORD)
        sync(partial)
        shutil.rmtree(self._unpacked, ignore_errors=True)
        partial.rename(self._unpacked)
        sync(self._unpacked.parent)

    def _unpack_members(self, archive: zipfile.ZipFile, folder: Path, progress: Progress) -> None:
        names = [f"{split}_{part}.npy" for split in _SPLITS for part in ("images", "labels")]
        missing = sorted(set(names) - set(archive.namelist()))
        if missing:
            raise DatasetError(f"{self.archive} lacks {missing}; it holds {archive.namelist()}.")
        total = sum(archive.getinfo(name).file_size for name in names)
        require_space(folder, total, f"Unpacking {self.archive.name}")
        done = 0
        for name in names:
            with archive.open(name) as packed, (folder / name).open("wb") as file:
                while block := packed.read(_BLOCK):
                    file.write(block)
                    done += len(block)
                    progress(done, total)
            sync(folder / name)

    @cached_property
    def _arrays(self) -> dict[str, tuple[_Array, _Array]]:
        if not self._is_unpacked():
            raise DatasetError(f"{self.archive} is not unpacked, or it changed since; fetch the data set first.")
        return {split: self._load(self._unpacked, split) for split in _SPLITS}

    def _load(self, folder: Path, split: str) -> tuple[_Array, _Array]:
        """Mapped images (n, size, size) or (n, size, size, 3) and labels (n, 1) or (n, L), checked."""
        images = self._map(folder, f"{split}_images")
        labels = self._map(folder, f"{split}_labels")
        size = self.config.size
        pixels = (size, size, 3) if self._info["n_channels"] == 3 else (size, size)
        width = len(self.classes) if self._multi_label else 1
        if images.dtype != np.uint8 or images.shape[1:] != pixels:
            raise DatasetError(
                f"{self.archive}: {split}_images must be uint8 of the shape (n, {', '.join(map(str, pixels))}); found "
                f"{images.dtype} {images.shape}."
            )
        if labels.dtype.kind not in "iu" or labels.shape != (len(images), width):
            raise DatasetError(
                f"{self.archive}: {split}_labels must be integers of the shape ({len(images)}, {width}); found "
                f"{labels.dtype} {labels.shape}."
            )
        highest = 1 if self._multi_label else len(self.classes) - 1
        if labels.size and not 0 <= labels.min() <= labels.max() <= highest:
            raise DatasetError(
                f"{self.archive}: {split}_labels must be 0 to {highest}; found {labels.min()} to {labels.max()}."
            )
        return images, labels

    def _map(self, folder: Path, member: str) -> _Array:
        try:
            array: _Array = np.load(folder / f"{member}.npy", mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError, OSError, OverflowError) as error:
            raise reading_refused(error, str(folder)) or DatasetError(
                f"{self.archive}: {member} is not a plain array ({error})."
            ) from error
        if array.ndim == 0:
            raise DatasetError(f"{self.archive}: {member} is a single value, not an array.")
        return array


def _blocks(stream: BinaryIO, size: int, progress: Progress) -> Iterator[bytes]:
    """The bytes of a stream of about that size, in blocks."""
    done = 0
    while block := stream.read(_BLOCK):
        done += len(block)
        progress(done, max(size, done))
        yield block
