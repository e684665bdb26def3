"""Samples: the labelled rows that classifiers are fitted and measured on, and the folds they are divided into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.scores import concept_scores
from ccassets.database.attributes import section
from ccassets.database.label_names import NO_LABEL, joined_labels
from ccassets.database.reader import Database, as_list
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept


@dataclass(frozen=True)
class Samples:
    """N labelled rows, each described by K columns.

    Attributes:
        features: (N, K) float: concept scores, or any other columns.
        columns: Names of the columns.
        labels: (N,) int64 indices into `classes`; of a multi-label set (N, C), 1 where a row has the class.
        split: (N,) str.
        classes: Names of the classes.
        ids: (N,) int64, the rows' own numbers.
        groups: (N,) str, the patient or slide; None where none are known.
        keys: (N,) str, where the rows came from; None where that is not known.

    Raises:
        AnalysisError: The parts do not fit together, or a row has no label.
    """

    features: npt.NDArray[np.floating[Any]]
    columns: tuple[str, ...]
    labels: npt.NDArray[Any]
    split: npt.NDArray[np.object_]
    classes: tuple[str, ...]
    ids: npt.NDArray[np.int64]
    groups: npt.NDArray[np.object_] | None = None
    keys: npt.NDArray[np.object_] | None = None

    def __post_init__(self) -> None:
        rows, columns = self.features.shape
        if columns != len(self.columns):
            raise AnalysisError(f"{columns} columns of features were given with {len(self.columns)} names")
        for name in ("labels", "split", "ids", "groups", "keys"):
            values = getattr(self, name)
            if values is not None and len(values) != rows:
                raise AnalysisError(f"{rows} rows of features were given with {len(values)} {name}")
        if self.multilabel:
            if self.labels.shape[1] != len(self.classes) or not np.isin(self.labels, (0, 1)).all():
                raise AnalysisError(f"Expected labels of 0 and 1 for each of {len(self.classes)} classes.")
            return
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(wrong):
            raise AnalysisError(
                f"Expected labels from 0 to {len(self.classes) - 1} ({len(self.classes)} classes); row "
                f"{self.ids[wrong[0]]} has {self.labels[wrong[0]]} ({len(wrong)} such rows). A classifier needs a "
                "label for every row."
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def multilabel(self) -> bool:
        """Whether a row can have several classes, or none."""
        return self.labels.ndim == 2

    @property
    def class_counts(self) -> npt.NDArray[np.int64]:
        """(C,): how many rows have each class."""
        if self.multilabel:
            return np.asarray(self.labels.sum(axis=0, dtype=np.int64))
        return np.bincount(self.labels, minlength=len(self.classes))

    def require_single(self, what: str) -> None:
        """Raise `AnalysisError` where a row can have several classes.

        Args:
            what: The analysis that needs one class for each row, for the message.

        Raises:
            AnalysisError: A row can have several classes.
        """
        if self.multilabel:
            raise AnalysisError(f"{what} needs one class for every row; these rows can have several, or none.")

    def of(self, *splits: str) -> Samples:
        """Take the rows of some splits.

        Args:
            *splits: Names of splits.

        Returns:
            The rows of these splits, in the order of the database.

        Raises:
            AnalysisError: A split has no rows.
        """
        for split in splits:
            if not np.any(self.split == split):
                known = sorted(set(self.split.tolist()))
                raise AnalysisError(f"There are no rows of the split {split!r}; there are {known}.")
        return self.take(np.flatnonzero(np.isin(self.split, splits)))

    def take(self, rows: npt.NDArray[Any]) -> Samples:
        """Take rows by number or by mask.

        Args:
            rows: (m,) row numbers, or (n,) bool.

        Returns:
            These rows.
        """
        return replace(
            self,
            features=self.features[rows],
            labels=self.labels[rows],
            split=self.split[rows],
            ids=self.ids[rows],
            groups=None if self.groups is None else self.groups[rows],
            keys=None if self.keys is None else self.keys[rows],
        )

    def select(self, columns: str | Sequence[str]) -> Samples:
        """Keep some columns, in this order.

        Args:
            columns: Names of columns; one name stands for a list of one.

        Returns:
            The same rows with these columns.

        Raises:
            AnalysisError: There is no such column.
        """
        columns = as_list(columns)
        unknown = [name for name in columns if name not in self.columns]
        if unknown:
            raise AnalysisError(f"There are no columns {unknown}; there are {list(self.columns)}.")
        indices = [self.columns.index(name) for name in columns]
        return replace(self, features=self.features[:, indices], columns=tuple(columns))

    def with_features(self, features: npt.NDArray[np.floating[Any]], columns: Sequence[str]) -> Samples:
        """Replace the columns.

        Args:
            features: (n, K) floats.
            columns: K names.

        Returns:
            The same rows with these columns.
        """
        return replace(self, features=features, columns=tuple(columns))


def concept_samples(database: Database, words: str | Sequence[str] | None = None) -> Samples:
    """Describe every row of a database by its cosine concept scores.

    Args:
        database: A database with labels.
        words: Concepts; by default all, in their order.

    Returns:
        The samples, `features` (N, K) float32.

    Raises:
        AnalysisError: The database has no labels.
        DatabaseError: The database has no such concept.
    """
    names = [concept.word for concept in database_concepts(database)] if words is None else as_list(words)
    return _samples(database, concept_scores(database, names), names)


def feature_samples(database: Database) -> Samples:
    """Describe every row of a database by its image features.

    Args:
        database: A database with labels.

    Returns:
        The samples, `features` (N, D) float32.

    Raises:
        AnalysisError: The database has no labels.
    """
    features = np.asarray(database.image_features, np.float32)
    return _samples(database, features, [f"f{number}" for number in range(database.dim)])


def is_labelled(database: Database) -> bool:
    """Tell whether the stored labels mean anything: a data set without labels has zeros there."""
    return bool(section(database.provenance, "dataset").get("labels") != "none")


def is_ordinal(database: Database) -> bool:
    """Tell whether the classes are grades, in their order."""
    return bool(database.attributes.get("label_ordinal"))


def class_names(database: Database) -> tuple[str, ...]:
    """Name the labels: by the data set's classes, else by the label words, else by their numbers."""
    names = database.attributes.get("label_classes") or database.attributes.get("label_texts")
    return tuple(names or map(str, range(int(database.labels.max(initial=-1)) + 1)))


def row_classes(database: Database) -> list[str]:
    """The class of every row, "" where it is not known; of a multi-label set its labels, `a|b`, or "none"."""
    names = class_names(database)
    if database.label_matrix is None:
        return [names[label] if 0 <= label < len(names) else "" for label in database.labels.tolist()]
    return joined_labels(database.label_matrix, names)


def label_number(database: Database, name: str) -> int:
    """Find the number of a label by its class, its label word, or the number as a text; -1 for "none".

    Raises `AnalysisError` when the database has no such label.
    """
    for names in (class_names(database), database.attributes.get("label_texts") or ()):
        if name in names:
            return list(names).index(name)
    if name.isdecimal():
        return int(name)
    if name == NO_LABEL and database.label_matrix is not None:
        return -1
    raise AnalysisError(f"{database.path.name} has no label {name!r}; it has {list(class_names(database))}.")


def database_concepts(database: Database) -> tuple[Concept, ...]:
    """List the concepts of a database.

    Args:
        database: The database.

    Returns:
        The concepts in their order, with group, level and synonyms where the file knows them.
    """
    stored = {concept["word"]: concept for concept in database.attributes.get("concepts") or ()}
    return tuple(
        Concept.model_validate(stored.get(word) or {"word": word, "synonyms": texts[1:]})
        for word, texts in database.concepts.items()
    )


def _samples(database: Database, features: npt.NDArray[np.float32], columns: Sequence[str]) -> Samples:
    if not is_labelled(database):
        raise AnalysisError(f"{database.path.name} has no labels: its data set has none. A classifier needs them.")
    return Samples(
        features=features,
        columns=tuple(columns),
        labels=database.labels if database.label_matrix is None else database.label_matrix,
        split=database.split,
        classes=class_names(database),
        ids=database.ids,
        groups=database.groups,
        keys=database.keys,
    )


def folds(samples: Samples, count: int, seed: int = 0) -> list[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]]:
    """Divide rows into rows to fit on and rows left out, `count` times.

    Classes are spread evenly, those of a multi-label set by chance, and no group is on both sides. Raises
    `AnalysisError` where a class has fewer rows, or the data fewer groups, than there are folds.
    """
    from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold

    counts = samples.class_counts
    scarce = [f"{samples.classes[label]} {counts[label]}" for label in np.flatnonzero((counts > 0) & (counts < count))]
    if scarce:
        raise AnalysisError(f"{count} folds need {count} rows of every class; found {', '.join(scarce)}.")
    if samples.groups is None:
        splitter = KFold if samples.multilabel else StratifiedKFold
        return list(splitter(count, shuffle=True, random_state=seed).split(samples.features, samples.labels))
    groups = len(set(samples.groups.tolist()))
    if groups < count:
        raise AnalysisError(f"{count} folds need {count} groups; found {groups}.")
    grouped = GroupKFold if samples.multilabel else StratifiedGroupKFold
    return list(grouped(count, shuffle=True, random_state=seed).split(samples.features, samples.labels, samples.groups))
