"""Concept annotations: which images show which concepts, as the data set knows it. Scores play no part in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.reader import Database
from ccassets.datasets.dicom import split_frame
from ccassets.datasets.image_files import first_few
from ccassets.datasets.table import without_blanks
from ccassets.errors import AnalysisError, DatasetError
from ccassets.study.schema import PhantomDatasetConfig, Study, TableConfig

ConceptAnnotations = npt.NDArray[np.float32]
"""(N, K): 1 where the image shows the concept, 0 where it does not, nan where nothing is known."""

RowAnnotations = Callable[[str, str], dict[str, bool]]
"""A function from split and key of a row to its annotations, by concept word."""


def read_concept_annotations(study: Study, database: Database) -> ConceptAnnotations | None:
    """Read which images of a database show which concepts.

    Phantom images have annotations of every concept; a table has those that `dataset.columns.concepts` names.

    Args:
        study: The study that the database was built from.
        database: The database.

    Returns:
        (N, K) float32 in the order of the study's concepts: 1, 0, or nan where nothing is known. None where the data
        set knows no concept.

    Raises:
        AnalysisError: `dataset.columns.concepts` names an unknown concept, or a value that no row has.
        DatasetError: The table cannot be read.
    """
    if database.keys is None:
        return None
    dataset = study.dataset
    words = [concept.word for concept in study.vocabulary.concepts.words]
    if isinstance(dataset, PhantomDatasetConfig):
        return _collect(words, database, _phantom_annotations(dataset))
    if isinstance(dataset, TableConfig) and dataset.columns.concepts:
        return _collect(words, database, _table_annotations(study, dataset))
    return None


def _collect(words: list[str], database: Database, annotations_of: RowAnnotations) -> ConceptAnnotations:
    assert database.keys is not None
    annotations = np.full((len(database), len(words)), np.nan, np.float32)
    column_of = {word: column for column, word in enumerate(words)}
    for row, (split, key) in enumerate(zip(database.split, database.keys, strict=True)):
        for word, present in annotations_of(split, key).items():
            if word in column_of:
                annotations[row, column_of[word]] = present
    return annotations


def _phantom_annotations(config: PhantomDatasetConfig) -> RowAnnotations:
    from ccassets.datasets.phantom import PhantomDataset

    dataset = PhantomDataset(config)
    return lambda split, key: dataset.concepts(split, int(key.rpartition("/")[2]))


def _table_annotations(study: Study, config: TableConfig) -> RowAnnotations:
    columns = config.columns
    unknown = sorted(set(columns.concepts) - {concept.word for concept in study.vocabulary.concepts.words})
    if unknown:
        raise AnalysisError(
            f"dataset.columns.concepts names {unknown}, which are not among the concepts of the study {study.name!r}. "
            "Write the words as they stand in vocabulary.concepts."
        )
    rules_of = {
        word: {column: {values} if isinstance(values, str) else set(values) for column, values in rules.items()}
        for word, rules in columns.concepts.items()
    }
    root = study.resolve(config.root) if config.root else study.resolve(config.file).parent
    rows = _table_rows(study, config, root)
    for word, rules in rules_of.items():
        for column, values in rules.items():
            absent = values - {row[column] for row in rows}
            if absent:
                raise AnalysisError(
                    f"dataset.columns.concepts: no row has {sorted(absent)} in the column {column!r}, which would make "
                    f"{word!r} true. Correct the value (in YAML, yes and no need quotes)."
                )
    by_key = {(row[columns.split], _key(row[columns.path], root)): row for row in rows}

    def annotations_of(split: str, key: str) -> dict[str, bool]:
        row = by_key.get((split, key)) or by_key.get((split, split_frame(root, key)[0]))
        if row is None:
            return {}
        return {
            word: all(row[column] in values for column, values in rules.items())
            for word, rules in rules_of.items()
            # An empty cell is not an answer.
            if all(row[column] for column in rules)
        }

    return annotations_of


def _table_rows(study: Study, config: TableConfig, root: Path) -> list[dict[str, Any]]:
    """The rows of the table as text, with the columns that the annotations need."""
    import pyarrow as pa

    from ccassets.datasets.table_files import read_columns

    file = study.resolve(config.file)
    concept_columns = [column for rules in config.columns.concepts.values() for column in rules]
    names = list(dict.fromkeys([config.columns.path, config.columns.split, *concept_columns]))

    def choose(present: Sequence[str]) -> list[str]:
        if missing := [name for name in names if name not in present]:
            raise DatasetError(f"{file}: the columns {missing} cannot be read: it has {first_few(present, 30)}.")
        return names

    table = read_columns(file, choose, encoding=config.encoding).cast(
        pa.schema([(name, pa.string()) for name in names])
    )
    cells = {name: without_blanks(table[name], root if name == config.columns.path else None) for name in names}
    rows: list[dict[str, Any]] = pa.table(cells).to_pylist()
    return rows


def _key(path: str, root: Path) -> str:
    """The key that the data set gives the image of that path."""
    pure = PurePosixPath(path)
    return str(pure.relative_to(root) if pure.is_absolute() else pure)
