"""The data set `table`: a CSV or Parquet file with one image per row, in the order of the file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ccassets.datasets.dataset_contract import Rows
from ccassets.datasets.dicom import frame_keys, patient_groups, require_nameless_keys
from ccassets.datasets.image_files import check_keys, fingerprints, first_few, read_image_file
from ccassets.datasets.labels import class_order
from ccassets.datasets.table_files import CSV_SUFFIXES, read_columns
from ccassets.errors import DatasetError
from ccassets.progress import Progress
from ccassets.study.schema import TableConfig

_log = logging.getLogger(__name__)

_ROW = "ccassets row"


@dataclass(frozen=True)
class TableDataset:
    """A table of images. Integer labels are label numbers; any other label is a class name.

    Several label columns hold 0 or 1 each: a row has the labels whose columns hold 1, which may be none.

    Rows of splits that the study does not name are ignored. Without a label column the data set is unlabelled.
    """

    config: TableConfig
    file: Path
    root: Path
    words: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.file.name

    @property
    def version(self) -> None:
        return None

    @property
    def labelled(self) -> bool:
        return self._multi_label or self.config.columns.label in self._table.column_names

    @property
    def classes(self) -> tuple[str, ...]:
        return self._labels[1]

    def fetch(self, progress: Progress) -> None:
        """Read and check the table; nothing is ever downloaded."""
        for number, split in enumerate(self.config.splits, start=1):
            self._rows_of(split)
            progress(number, len(self.config.splits))

    def rows(self, split: str) -> Rows:
        keys, chosen = self._rows_of(split)
        column = self.config.columns.group
        groups = self._table[column].take(pa.array(chosen)).to_pylist() if column else None
        if self.config.dicom.group:
            groups = patient_groups(self.root, keys)
        matrix = self._label_matrix[chosen] if self._multi_label else None
        return Rows(keys, self._labels[0][chosen], fingerprints(self.root, keys, self.config.dicom), groups, matrix)

    def read(self, split: str, row: int) -> Image.Image:
        return read_image_file(self.root, self._rows_of(split)[0][row], self.config.dicom)

    def _rows_of(self, split: str) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The keys of a split, and the number in the table of the row that each comes from."""
        try:
            return self._rows[split]
        except KeyError:
            raise DatasetError(f"The study has no split {split!r}, only {list(self._rows)}.") from None

    @cached_property
    def _rows(self) -> dict[str, tuple[list[str], npt.NDArray[np.int64]]]:
        """A row that names a DICOM file of several frames stands for all of them."""
        paths = self._table[self.config.columns.path]
        rows = {}
        for split, chosen in self._chosen.items():
            frames = [frame_keys(self.root, self._key(path)) for path in paths.take(pa.array(chosen)).to_pylist()]
            keys = [key for of_row in frames for key in of_row]
            self._check_keys(split, keys)
            rows[split] = keys, np.repeat(chosen, [len(of_row) for of_row in frames])
        return rows

    def _check_keys(self, split: str, keys: Sequence[str]) -> None:
        require_nameless_keys(self.root, self.name, keys, self.config.splits)
        check_keys(keys, where=str(self.file))
        twice = [key for key, count in Counter(keys).items() if count > 1]
        if twice:
            raise DatasetError(
                f"{self.file}: split {split!r} names images twice: {first_few(twice)}. A key stands for one row of a "
                "split; remove the repeated rows."
            )

    def _key(self, path: str) -> str:
        pure = PurePosixPath(path)
        if not pure.is_absolute():
            return str(pure)
        if pure.is_relative_to(self.root):
            return str(pure.relative_to(self.root))
        raise DatasetError(
            f"{self.file}: {path!r} is absolute and not under {self.root}. Write paths relative to dataset.root, by "
            "default the table's folder."
        )

    @cached_property
    def _chosen(self) -> dict[str, npt.NDArray[np.int64]]:
        """By split: the numbers of its rows in the table."""
        column = self._table[self.config.columns.split]
        return {split: np.flatnonzero(pc.equal(column, split).to_numpy()) for split in self.config.splits}

    @cached_property
    def _labels(self) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
        """The label number of every row, and the class names."""
        if not self.labelled:
            return np.zeros(len(self._table), np.int64), ()
        if self._multi_label:
            first: npt.NDArray[np.int64] = self._label_matrix.argmax(axis=1)  # 0 where none is set
            return first, self.config.classes or self._label_columns
        column = self._table[self.config.columns.label]
        declared = self.config.classes
        if pa.types.is_string(column.type):
            classes = class_order(pc.unique(column).to_pylist(), declared=declared, words=self.words)
            return pc.index_in(column, pa.array(classes)).to_numpy().astype(np.int64), classes
        labels = column.to_numpy()
        highest = np.iinfo(np.int64).max if declared is None else len(declared) - 1
        wrong = np.flatnonzero((labels < 0) | (labels > highest))
        if len(wrong):
            first = wrong[0]
            expected = (
                "0 or more" if declared is None else f"0 to {highest}, as dataset.classes has {highest + 1} names"
            )
            raise DatasetError(
                f"{self.file}: label numbers must be {expected}; row {self._table[_ROW][first]} has {labels[first]} "
                f"({len(wrong)} such rows)."
            )
        return labels, declared or ()

    @property
    def _multi_label(self) -> bool:
        return not isinstance(self.config.columns.label, str)

    @property
    def _label_columns(self) -> tuple[str, ...]:
        label = self.config.columns.label
        return (label,) if isinstance(label, str) else label

    @cached_property
    def _label_matrix(self) -> npt.NDArray[np.uint8]:
        """(n, L): 1 where a row of a multi-label data set has a label."""
        names, declared = self._label_columns, self.config.classes
        if declared is not None and len(declared) != len(names):
            raise DatasetError(
                f"{self.file}: expected a class for each of the {len(names)} label columns; dataset.classes names "
                f"{len(declared)}."
            )
        values = np.stack([self._table[name].to_numpy() for name in names], axis=1)
        wrong = np.argwhere((values != 0) & (values != 1))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise DatasetError(
                f"{self.file}: expected 0 or 1 in each of several label columns; row {self._table[_ROW][row]} has "
                f"{values[row, column]:g} under {names[column]!r} ({len(wrong)} such cells). Decide what they mean, or "
                "remove the rows."
            )
        return values.astype(np.uint8)

    @cached_property
    def _table(self) -> Any:
        """The rows of the study's splits: text columns, an int64 or text label, and the number of the row."""
        columns = self.config.columns
        table = self._read()
        self._refuse_empty_cells(table, columns.split)
        splits = pc.unique(table[columns.split]).to_pylist()
        absent = sorted(set(self.config.splits) - set(splits))
        if absent:
            raise DatasetError(
                f"{self.file} has no rows of the splits {absent}; column {columns.split!r} holds "
                f"{first_few(sorted(splits))}. Correct dataset.splits."
            )
        rows = len(table)
        table = table.filter(pc.is_in(table[columns.split], pa.array(self.config.splits)))
        if len(table) < rows:
            others = tuple(sorted(set(splits) - set(self.config.splits)))
            _warn_of_other_splits(self.file, columns.split, others, rows - len(table), rows)
        for column in table.column_names:
            self._refuse_empty_cells(table, column)
        return table

    def _refuse_empty_cells(self, table: Any, column: str) -> None:
        cells = table[column]
        empty = pc.is_null(cells)
        if pa.types.is_string(cells.type):
            empty = pc.or_kleene(empty, pc.equal(cells, ""))
        rows = table[_ROW].filter(pc.fill_null(empty, True)).to_pylist()
        if rows:
            raise DatasetError(
                f"{self.file}: column {column!r} is empty in row {first_few([str(row) for row in rows])} (rows count "
                "from 1 without the header). Fill the cells or remove the rows."
            )

    def _read(self) -> Any:
        table = read_columns(self.file, self._columns_to_read, encoding=self.config.encoding)
        try:
            table = pa.table({name: self._typed(name, table[name]) for name in table.column_names})
        except pa.ArrowException as error:
            raise DatasetError(f"{self.file} cannot be read as a table: {error}") from error
        return table.append_column(_ROW, pa.array(np.arange(1, len(table) + 1)))

    def _columns_to_read(self, present: Sequence[str]) -> list[str]:
        columns = self.config.columns
        needed = [columns.path, columns.split, *([columns.group] if columns.group else [])]
        # Without a label column there are no labels, but not where the study speaks of labels itself.
        labels = self._label_columns
        if labels[0] in present or "label" in columns.model_fields_set or self.config.classes:
            needed += labels
        wrong = [name for name in needed if present.count(name) != 1]
        if wrong:
            raise DatasetError(
                f"{self.file} must have each of the columns {wrong} once; it has {first_few(present, 30)}. "
                "dataset.columns says which column holds what; commas, semicolons or tabs stand between columns."
            )
        return list(dict.fromkeys(needed))

    def _typed(self, name: str, column: Any) -> Any:
        """A column as text, a label column of whole numbers as int64, one of several as float64."""
        label = name in self._label_columns
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if label and self._multi_label:
            if pa.types.is_string(column.type):
                cells = without_blanks(column)
                column = pc.if_else(pc.equal(cells, ""), None, cells)
            return column.cast(pa.float64())
        whole_numbers = pa.types.is_integer(column.type)
        if not (whole_numbers or pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise DatasetError(f"{self.file}: column {name!r} holds {column.type}; text or integers are expected.")
        if label and whole_numbers:
            return column.cast(pa.int64())
        cells = column.cast(pa.string())
        column = without_blanks(cells, self.root if name == self.config.columns.path else None)
        if count := pc.sum(pc.not_equal(column, cells)).as_py():
            _warn_of_blanks(self.file, name, count, len(cells))
        if (
            label
            and self.file.suffix.lower() in CSV_SUFFIXES
            and pc.all(pc.match_substring_regex(column, r"^(-?\d+)?$")).as_py()
        ):
            return pc.if_else(pc.equal(column, ""), None, column).cast(pa.int64())
        return column


_BLANKS = "".join(filter(str.isspace, map(chr, range(0x10000)))) + "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
"""What a cell does not show at its ends: white space, marks without width, and the mark that begins a file."""


def without_blanks(column: Any, names_files_in: Path | None = None) -> Any:
    """Text cells without the blanks around them, which spreadsheets do not show.

    Args:
        column: The cells.
        names_files_in: A folder; cells that are exactly the path of a file in it stay as they are.

    Returns:
        The cells, as many as there were.
    """
    stripped = pc.utf8_trim(column, _BLANKS)
    if names_files_in is None:
        return stripped
    padded = column.filter(pc.not_equal(column, stripped)).to_pylist()
    files = [path for path in padded if (names_files_in / path).is_file()]
    return pc.if_else(pc.is_in(column, pa.array(files, pa.string())), column, stripped)


@cache
def _warn_of_blanks(file: Path, column: str, count: int, total: int) -> None:
    """Log once how many cells had blanks around them; a table is opened many times in a build."""
    _log.warning(
        "%s: %d of %d cells of column %r have blanks around them, which were left out.", file, count, total, column
    )


@cache
def _warn_of_other_splits(file: Path, column: str, others: tuple[str, ...], count: int, total: int) -> None:
    """Log once how many rows are ignored because the study does not name their splits."""
    _log.warning(
        "%s: %d of %d rows are ignored: column %r holds %s, which dataset.splits does not name.",
        *(file, count, total, column, first_few(others)),
    )
