"""Concept truth: what is known to be in the images, for the data sets that know it. Scores are nowhere in here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.reader import Database
from ccassets.errors import AnalysisError, DatasetError
from ccassets.study.schema import PhantomDatasetConfig, Study, TableConfig

ConceptAnnotations = npt.NDArray[np.float32]
"""(N, K): 1 where the concept is there, 0 where it is not, nan where nothing is known."""


def read_concept_annotations(study: Study, database: Database) -> ConceptAnnotations | None:
    """The truth of the study's concepts for every row, (N, K) in the order of the concepts; 1, 0, or nan for unknown.

    Phantom images know every concept that they are drawn by; a table those that `dataset.columns.concepts` names.
    None where the data set knows no concept.
    """
    if database.keys is None:
        return None
    dataset = study.dataset
    words = [concept.word for concept in study.vocabulary.concepts.words]
    if isinstance(dataset, PhantomDatasetConfig):
        return _gathered(words, database, _phantom_truth(dataset))
    if isinstance(dataset, TableConfig) and dataset.columns.concepts:
        return _gathered(words, database, _table_truth(study, dataset))
    return None


Source = Callable[[str, str], dict[str, bool]]
"""From split and key of a row to what is known of it, by concept word."""


def _gathered(words: list[str], database: Database, source: Source) -> ConceptAnnotations:
    assert database.keys is not None
    truth = np.full((len(database), len(words)), np.nan, np.float32)
    place = {word: column for column, word in enumerate(words)}
    for row, (split, key) in enumerate(zip(database.split, database.keys, strict=True)):
        for word, there in source(split, key).items():
            if word in place:
                truth[row, place[word]] = there
    return truth


def _phantom_truth(config: PhantomDatasetConfig) -> Source:
    from ccassets.datasets.phantom import PhantomDataset

    dataset = PhantomDataset(config)

    def source(split: str, key: str) -> dict[str, bool]:
        return dataset.annotations(split, int(key.rpartition("/")[2])).concepts

    return source


def _table_truth(study: Study, config: TableConfig) -> Source:
    columns = config.columns
    unknown = sorted(set(columns.concepts) - {concept.word for concept in study.vocabulary.concepts.words})
    if unknown:
        raise AnalysisError(
            f"dataset.columns.concepts names {unknown}, which are not among the concepts of the study {study.name!r}. "
            "Write the words as they stand in vocabulary.concepts."
        )
    wanted = {
        word: {column: {values} if isinstance(values, str) else set(values) for column, values in rules.items()}
        for word, rules in columns.concepts.items()
    }
    rows = _table_rows(study, config)
    for word, rules in wanted.items():
        for column, values in rules.items():
            absent = values - {row[column] for row in rows}
            if absent:
                raise AnalysisError(
                    f"dataset.columns.concepts: no row has {sorted(absent)} in the column {column!r}, which would make "
                    f"{word!r} true. Correct the value (in YAML, yes and no need quotes)."
                )
    root = study.resolve(config.root) if config.root else study.resolve(config.file).parent
    by_key = {(row[columns.split], _key(row[columns.path], root)): row for row in rows}

    def source(split: str, key: str) -> dict[str, bool]:
        row = by_key.get((split, key))
        if row is None:
            return {}
        return {
            word: all(row[column] in values for column, values in rules.items())
            for word, rules in wanted.items()
            # An empty cell is not an answer.
            if all(row[column] for column in rules)
        }

    return source


def _table_rows(study: Study, config: TableConfig) -> list[dict[str, Any]]:
    """The rows of the table as text, with the columns that are needed."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    file = study.resolve(config.file)
    named = [column for rules in config.columns.concepts.values() for column in rules]
    names = list(dict.fromkeys([config.columns.path, config.columns.split, *named]))
    try:
        if file.suffix.lower() == ".parquet":
            table = pq.read_table(file, columns=names)
            table = table.select(names).cast(pa.schema([(name, pa.string()) for name in names]))
        else:
            convert = pa_csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
            table = pa_csv.read_csv(
                file, parse_options=pa_csv.ParseOptions(newlines_in_values=True), convert_options=convert
            )
    except (OSError, KeyError, pa.ArrowException) as error:
        raise DatasetError(f"{file}: the columns {names} cannot be read: {error}") from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _key(path: str, root: Any) -> str:
    """The key that the data set gives the image of that path."""
    pure = PurePosixPath(path)
    return str(pure.relative_to(root) if pure.is_absolute() else pure)
