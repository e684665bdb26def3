"""The data set `huggingface`: an image and a class column of a data set of the hub, or of a local folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.image_decoding import decode_image
from ccassets.datasets.labels import class_order
from ccassets.errors import AbsentDataError, DatasetError
from ccassets.files import fingerprint, reading_refused
from ccassets.progress import Progress
from ccassets.study.hub import HubRepository
from ccassets.study.schema import HuggingfaceConfig

_SAVED: Final = ("dataset_dict.json", "state.json")
"""A file that `save_to_disk` writes; it distinguishes such a folder from one of images or Parquet."""


@dataclass(frozen=True)
class HuggingfaceDataset:
    """A Hugging Face data set: the key of a row is its index in the split; images are decoded from their bytes.

    `local` is the folder or Parquet file that the study names; None where it names a repository of the hub, which is
    taken as a whole at one commit.
    """

    config: HuggingfaceConfig
    local: Path | None
    cache: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.config.path if self.local is None else self.local.name

    @property
    def version(self) -> str | None:
        return f"commit:{self.folder.name}" if self.local is None else None

    @property
    def labelled(self) -> bool:
        return self.label_column is not None

    @property
    def classes(self) -> tuple[str, ...]:
        return self._labels[1]

    @property
    def downloaded(self) -> bool:
        """Whether the files are on this machine."""
        return self.local is not None or self._repository.find_download() is not None

    @cached_property
    def folder(self) -> Path:
        """The local folder or file, or the copy of the repository, whose folder is named like its commit."""
        return self._repository.download() if self.local is None else self.local

    @property
    def label_column(self) -> str | None:
        """The column of the classes; None where there is none and the study does not name one."""
        label = self.config.label
        columns = next(iter(self._tables.values())).column_names
        return label if label in columns or "label" in self.config.model_fields_set else None

    def fetch(self, progress: Progress) -> None:
        """Download a repository of the hub at its revision, and open every split."""
        for number, split in enumerate(self.config.splits, start=1):
            self._split(split)
            progress(number, len(self.config.splits))
        self._labels  # noqa: B018  wrong labels are named before an image is read

    def rows(self, split: str) -> Rows:
        table = self._split(split)
        # The library prepares its files anew whenever the sources change; their fingerprints then change, too.
        state = " ".join(fingerprint(Path(file["filename"])) for file in table.cache_files)
        return Rows([str(row) for row in range(len(table))], self._labels[0][split], [state] * len(table))

    def read(self, split: str, row: int) -> Image.Image:
        value = self._split(split)[row][self.config.image]
        content, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
        if isinstance(content, bytes):
            return decode_image(io.BytesIO(content))
        if isinstance(path, str):
            return decode_image(Path(path))
        raise DatasetError("the row holds no image")

    def _split(self, split: str) -> Any:
        try:
            return self._splits[split]
        except KeyError:
            raise DatasetError(f"The study has no split {split!r}, only {list(self._splits)}.") from None

    @cached_property
    def _tables(self) -> dict[str, Any]:
        return open_tables(self.folder, self.config.name, self.cache)

    @cached_property
    def _splits(self) -> dict[str, Any]:
        """The tables of the study's splits, with images as bytes."""
        tables = self._tables
        absent = [split for split in self.config.splits if split not in tables]
        if absent:
            raise DatasetError(
                f"{self.name} has no split {absent[0]!r}; it has {list(tables)}. Correct dataset.splits."
            )
        return {split: self._checked(tables[split]) for split in self.config.splits}

    def _checked(self, table: Any) -> Any:
        absent = {self.config.image, self.label_column or self.config.image} - set(table.column_names)
        if absent:
            raise DatasetError(
                f"{self.name} has no column {', '.join(map(repr, sorted(absent)))}; it has {table.column_names}. Name "
                "the columns of images and classes in dataset.image and dataset.label."
            )
        return table

    @cached_property
    def _labels(self) -> tuple[dict[str, npt.NDArray[np.int64]], tuple[str, ...]]:
        """By split: the label number of every row; and the class names."""
        column = self.label_column
        if column is None:
            return {split: np.zeros(len(table), np.int64) for split, table in self._splits.items()}, ()
        feature = next(iter(self._splits.values())).features[column]
        values = {split: list(table[column]) for split, table in self._splits.items()}
        names = tuple(getattr(feature, "names", ()))
        kinds = {type(value) for of_split in values.values() for value in of_split}
        if kinds <= {str} and not names:
            names = class_order(
                {name for of_split in values.values() for name in of_split}, declared=None, words=self.words
            )
            numbers = {name: number for number, name in enumerate(names)}
            values = {split: [numbers[name] for name in of_split] for split, of_split in values.items()}
        elif not kinds <= {int, bool}:
            raise DatasetError(
                f"{self.name}: expected a class name or a whole number in every row of column {column!r}, found "
                f"{sorted(kind.__name__ for kind in kinds)}."
            )
        labels = {split: np.array(of_split, np.int64) for split, of_split in values.items()}
        for split, of_split in labels.items():
            if len(wrong := np.flatnonzero(of_split < 0)):
                raise DatasetError(
                    f"{self.name}: expected class numbers from 0; row {wrong[0]} of split {split!r} has "
                    f"{of_split[wrong[0]]} ({len(wrong)} such rows). Leave the split out of dataset.splits, or write "
                    "`label: null` for a data set without labels."
                )
        return labels, names

    @property
    def _repository(self) -> HubRepository:
        return HubRepository(self.config.path, self.config.revision, "dataset", DatasetError, AbsentDataError)


def open_tables(folder: Path, name: str | None, cache: Path) -> dict[str, Any]:
    """Open every split of a local data set: Parquet, image folders, or what `save_to_disk` left.

    Args:
        folder: The folder, or a Parquet file with the one split `train`.
        name: The configuration, where there are several.
        cache: Where the library prepares its files.

    Returns:
        The tables by split, images not decoded.

    Raises:
        DatasetError: The library is not installed, or finds no data set there.
    """
    try:
        import datasets
    except ImportError:
        raise DatasetError(
            "The kind huggingface needs the package datasets: `pip install 'ccassets[datasets]'`."
        ) from None
    if not folder.exists():
        raise AbsentDataError(f"The data set {folder} does not exist; dataset.path names it.")
    datasets.disable_progress_bars()
    try:
        if any((folder / name).is_file() for name in _SAVED):
            loaded = datasets.load_from_disk(folder)
        elif folder.is_dir():
            loaded = datasets.load_dataset(str(folder), name, cache_dir=str(cache))
        else:
            loaded = datasets.load_dataset("parquet", data_files=str(folder), cache_dir=str(cache))
    except Exception as error:  # Whatever its readers of many formats raise.
        raise reading_refused(error, str(folder)) or DatasetError(
            f"{folder} cannot be opened as a Hugging Face data set: {str(error) or type(error).__name__}"
        ) from error
    tables = dict(loaded) if isinstance(loaded, Mapping) else {str(loaded.split or "train"): loaded}
    return {split: _without_decoding(table, datasets.Image) for split, table in tables.items()}


def _without_decoding(table: Any, image_type: type[Any]) -> Any:
    for column in image_columns(table):
        if isinstance(table.features[column], image_type):
            table = table.cast_column(column, image_type(decode=False))
    return table


def image_columns(table: Any) -> list[str]:
    """The columns that hold images: those declared so, and those of bytes."""
    from datasets import Image as ImageFeature, Value

    def holds_images(feature: Any) -> bool:
        bytes_of = feature.get("bytes") if isinstance(feature, Mapping) else feature
        return isinstance(feature, ImageFeature) or bytes_of in (Value("binary"), Value("large_binary"))

    return [column for column, feature in table.features.items() if holds_images(feature)]
