"""The rows of a data set that a study uses, and the labels that it corrects: two files that name keys."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.database.label_names import LABEL_SEPARATOR, NO_LABEL, joined_labels
from ccassets.datasets.dataset_contract import Dataset, Rows
from ccassets.datasets.image_files import first_few
from ccassets.datasets.manifest import Manifest
from ccassets.datasets.table_files import read_columns
from ccassets.errors import AbsentDataError, DatasetError
from ccassets.files import reading_refused
from ccassets.findings import Finding
from ccassets.progress import Progress

KEY, LABEL, IMAGE_DIGEST = "key", "label", "image_digest"
"""The columns of a file of corrected labels; without a digest a label is for whatever image has the key."""

Row = tuple[str, int]
"""A split, and the number of a row in it."""


@dataclass(frozen=True)
class LabelOverride:
    """A line of `labels_override`: the label, and the digest (hex) of the image that it was given to, "" if unknown."""

    label: str
    image_digest: str = ""


@dataclass(frozen=True)
class RevisedDataset:
    """A data set reduced to the rows of `subset`, with the labels of `labels_override`.

    A key stands for its rows in all splits, `split/key` for that of one split. Rows stay in the data set's order, and
    features are shared by image: no image is encoded again for either file.
    """

    source: Dataset
    splits: tuple[str, ...]
    words: tuple[str, ...]
    subset: Path | None
    labels_override: Path | None

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def version(self) -> str | None:
        return self.source.version

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def labelled(self) -> bool:
        return self.source.labelled

    def fetch(self, progress: Progress) -> None:
        """Fetch the data set, and read both files: what is wrong in them is named before an image is read."""
        self.source.fetch(progress)
        for split in self.splits:
            self.rows(split)

    def rows(self, split: str) -> Rows:
        source, chosen = self.source.rows(split), self._chosen(split)
        labels, matrix = source.labels.copy(), None if source.label_matrix is None else source.label_matrix.copy()
        overridden = {}
        for row, text in self._labels.get(split, {}).items():
            before = self._label_text(source, row)
            numbers = self._numbers(text, multi_label=matrix is not None)
            labels[row] = min(numbers, default=0)
            if matrix is not None:
                matrix[row] = np.isin(np.arange(matrix.shape[1]), numbers)
            after = self._label_text(replace(source, labels=labels, label_matrix=matrix), row)
            if after != before:
                overridden[source.keys[row]] = before
        return Rows(
            keys=[source.keys[row] for row in chosen.tolist()],
            labels=labels[chosen],
            fingerprints=[source.fingerprints[row] for row in chosen.tolist()],
            groups=None if source.groups is None else [source.groups[row] for row in chosen.tolist()],
            label_matrix=None if matrix is None else matrix[chosen],
            overridden=overridden,
        )

    def read(self, split: str, row: int) -> Image.Image:
        return self.source.read(split, int(self._chosen(split)[row]))

    def find_unneeded_overrides(self, manifests: Sequence[Manifest]) -> list[Finding]:
        """Find corrected labels whose image is gone or was replaced, and those that change nothing.

        Args:
            manifests: Those of the splits, as they were read last.

        Returns:
            A warning for each reason, with the keys.
        """
        images = {
            (manifest.split, key): bytes(digest).hex()
            for manifest in manifests
            for key, digest in zip(manifest.keys, manifest.image_digest, strict=True)
        }
        corrected = {(manifest.split, key) for manifest in manifests for key in manifest.overridden}
        complete = {manifest.split for manifest in manifests if manifest.limit is None}

        def reason_of(split: str, key: str, override: LabelOverride) -> str | None:
            digest = images.get((split, key))
            if digest is None:
                return "the study has no image" if split in complete else None
            if override.image_digest not in {"", digest}:
                return "another image is"
            return None if (split, key) in corrected else "the data set itself has the label"

        reasons: dict[str, list[str]] = {}
        for name, override in self._overrides.items():
            rows = [(split, self._keys[split][row]) for split, row in self._rows_of(name)]
            for reason in {reason_of(*row, override) for row in rows} if rows else {"the data set has no image"}:
                if reason:
                    reasons.setdefault(reason, []).append(name)
        return [
            Finding(
                "labels_override_unneeded",
                "warning",
                f"Every corrected label should change the label of its image; {len(names)} do not, or should not: "
                f"{reason} under the key {first_few(names)}. Remove the lines.",
                "dataset.labels_override",
            )
            for reason, names in reasons.items()
        ]

    # --- the two files --------------------------------------------------------------------------------

    def _chosen(self, split: str) -> npt.NDArray[np.int64]:
        """The numbers of a split's rows in the data set, in order."""
        if split not in self._keys:
            self.source.rows(split)  # Says which splits there are.
        return self._subset_rows[split] if self.subset else np.arange(len(self._keys[split]))

    @cached_property
    def _subset_rows(self) -> dict[str, npt.NDArray[np.int64]]:
        assert self.subset is not None
        names = _lines(self.subset)
        rows = {name: self._rows_of(name) for name in names}
        self._require_known([name for name in names if not rows[name]], self.subset)
        by_split: dict[str, set[int]] = {split: set() for split in self.splits}
        for split, row in (row for of_name in rows.values() for row in of_name):
            by_split[split].add(row)
        return {split: np.array(sorted(numbers), np.int64) for split, numbers in by_split.items()}

    @cached_property
    def _labels(self) -> dict[str, dict[int, str]]:
        """By split and row: the label that the study gives it; raises `DatasetError` for unknown keys and labels."""
        overrides = self._overrides
        if overrides and not self.source.labelled:
            raise DatasetError(f"{self.labels_override} corrects labels, but {self.name} has none. Leave the key out.")
        by_split: dict[str, dict[int, str]] = {split: {} for split in self.splits}
        for name, override in overrides.items():
            for split, row in self._rows_of(name):
                if by_split[split].setdefault(row, override.label) != override.label:
                    raise DatasetError(
                        f"{self.labels_override} gives {self._keys[split][row]!r} of {split!r} two labels: "
                        f"{by_split[split][row]!r} and {override.label!r}. Remove one of the lines."
                    )
        return by_split

    @cached_property
    def _overrides(self) -> dict[str, LabelOverride]:
        if self.labels_override is None:
            return {}
        overrides = read_label_overrides(self.labels_override)
        # Who names the digest of the image knows that there was one.
        unknown = [name for name, override in overrides.items() if not (override.image_digest or self._rows_of(name))]
        self._require_known(unknown, self.labels_override)
        return overrides

    @cached_property
    def _keys(self) -> dict[str, Sequence[str]]:
        return {split: self.source.rows(split).keys for split in self.splits}

    @cached_property
    def _rows_by_key(self) -> dict[str, list[Row]]:
        rows: dict[str, list[Row]] = {}
        for split, keys in self._keys.items():
            for row, key in enumerate(keys):
                rows.setdefault(key, []).append((split, row))
        return rows

    def _rows_of(self, name: str) -> list[Row]:
        """The rows that a key, or `split/key`, stands for."""
        if name in self._rows_by_key:
            return self._rows_by_key[name]
        qualified = [(split, name.removeprefix(f"{split}/")) for split in self.splits if name.startswith(f"{split}/")]
        return [row for split, key in qualified for row in self._rows_by_key.get(key, ()) if row[0] == split]

    def _require_known(self, unknown: Sequence[str], file: Path) -> None:
        if unknown:
            raise DatasetError(
                f"{file}: {self.name} has no image of {len(unknown)} of the keys: {first_few([*map(repr, unknown)])}. "
                "Expected keys as `ccassets search` prints them, or split/key. Correct or remove the lines."
            )

    # --- labels ---------------------------------------------------------------------------------------

    def _numbers(self, text: str, *, multi_label: bool) -> list[int]:
        """The label numbers that a text names, by class or by number; several as in `a|b`."""
        parts = ([] if text == NO_LABEL else text.split(LABEL_SEPARATOR)) if multi_label else [text]
        return [self._number(part) for part in parts]

    def _number(self, text: str) -> int:
        names = self.source.classes or self.words
        if text in names:
            return names.index(text)
        if re.fullmatch("[0-9]+", text) and (not names or int(text) < len(names)):
            return int(text)
        expected = ", ".join(map(repr, names)) or "whole numbers"
        raise DatasetError(f"{self.labels_override}: {text!r} is not a label of {self.name}; expected {expected}.")

    def _label_text(self, rows: Rows, row: int) -> str:
        names = self.source.classes or self.words
        if rows.label_matrix is not None:
            return joined_labels(rows.label_matrix[row : row + 1], names)[0]
        number = int(rows.labels[row])
        return names[number] if number < len(names) else str(number)


def source_dataset(dataset: Dataset) -> Dataset:
    """The data set without the study's subset and corrected labels."""
    return dataset.source if isinstance(dataset, RevisedDataset) else dataset


def read_label_overrides(file: Path) -> dict[str, LabelOverride]:
    """Read a file of corrected labels.

    Args:
        file: A table with the columns `key`, `label` and, where it is known, `image_digest`.

    Returns:
        The labels by key.

    Raises:
        DatasetError: The file is missing, is not such a table, or has a key twice.
        StorageError: The operating system refuses to read it now.
    """
    _require_file(file)

    def choose(present: Sequence[str]) -> list[str]:
        if missing := [name for name in (KEY, LABEL) if present.count(name) != 1]:
            raise DatasetError(f"{file} must have the columns {missing} once; it has {first_few(present, 30)}.")
        return [KEY, LABEL, *({IMAGE_DIGEST} & set(present))]

    columns = read_columns(file, choose).to_pydict()
    rows = zip(*(["" if cell is None else str(cell) for cell in column] for column in columns.values()), strict=True)
    overrides: dict[str, LabelOverride] = {}
    for key, *values in rows:
        if overrides.setdefault(key, override := LabelOverride(*map(str.strip, values))) != override:
            raise DatasetError(f"{file} gives {key!r} two labels. Remove one of the lines.")
    return overrides


def _lines(file: Path) -> list[str]:
    """The keys in a file, one a line."""
    _require_file(file)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeError) as error:
        raise reading_refused(error, str(file)) or DatasetError(f"{file} cannot be read as UTF-8: {error}") from error
    keys = dict.fromkeys(line.removesuffix("\r") for line in lines)
    return [key for key in keys if key]


def _require_file(file: Path) -> None:
    if not file.is_file():
        raise AbsentDataError(f"There is no file {file}; dataset.subset and dataset.labels_override name such files.")


def distinct_names(keys: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Name each row for a file of keys, so that no row of another split has its name.

    That is its key where the key starts with the split, else `split/key`: the rows may be some of a data set, which has
    the same key in another split.
    """
    count = Counter(keys)
    return [
        key if count[key] == 1 and key.startswith(f"{split}/") else f"{split}/{key}"
        for key, split in zip(keys, splits, strict=True)
    ]
