"""The rows of an export: every column of theirs, in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.bottleneck import MODEL
from ccassets.analysis.concept_models import ConceptModel, apply_model, encoder_identity, load_model
from ccassets.analysis.results import analysis_folder
from ccassets.analysis.samples import database_concepts, row_classes
from ccassets.analysis.scores import normalise, row_range
from ccassets.database.feature_digests import hexadecimal
from ccassets.database.hdf5 import iter_blocks, take_rows
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.progress import Progress, silent

Columns = dict[str, npt.NDArray[Any]]
"""Columns of n rows by name: texts (n,) object, numbers (n, …)."""

_BLOCK_BYTES = 4 << 20
_DIGESTS = ("image_digest", "feature_digest")


class ExportedRows:
    """The rows of a database, or of one of its splits, as columns.

    What is known of a row comes first: `id`, `key`, `split`, `label`, `class`, `group`, `label_matrix`, `image_digest`
    and `feature_digest` (hexadecimal), and `predicted` with `probabilities` where the study's classifier stands beside
    the file. Then `image_features`, `image_token_features` if they are asked for, and `concept_scores` (n, K) float32.
    Columns that a file does not have are left out.

    Args:
        database: The database.
        split: A split's name; by default all rows.
        tokens: Whether to give token features.

    Raises:
        AnalysisError: Tokens are asked for and the file has none, or the classifier beside it cannot be read.
        DatabaseError: There is no such split, or the file is damaged.
    """

    def __init__(self, database: Database, split: str | None = None, tokens: bool = False) -> None:
        if tokens and database.image_token_features is None:
            raise AnalysisError(f"{database.path.name} was stored without token features: leave `--tokens` out.")
        self.database = database
        self.rows = row_range(database, split)
        self._tokens = database.image_token_features if tokens else None
        has_scores = any(name.startswith("concept_prompts_t") for name in database.templates)
        self.concepts = {concept.word: concept.code for concept in database_concepts(database)} if has_scores else {}
        """The code of every concept, None where it has none, by its word."""

    def __len__(self) -> int:
        return int(self.rows.stop - self.rows.start)

    def facts(self, rows: slice | npt.NDArray[np.int64]) -> Columns:
        """What is known of rows of the file."""
        known = {name: values[rows] for name, values in self._facts.items()}
        return known | {name: np.array(hexadecimal(known[name]), object) for name in _DIGESTS if name in known}

    @cached_property
    def _vectors(self) -> npt.NDArray[np.float32]:
        return self.database.concept_features()

    @cached_property
    def _facts(self) -> Columns:
        database = self.database
        known = {
            "id": database.ids,
            "key": database.keys,
            "split": database.split,
            "label": database.shown_labels,
            "class": np.array(row_classes(database), object),
            "group": database.groups,
            "label_matrix": database.label_matrix,
            "image_digest": database.image_digest,
            "feature_digest": database.feature_digest,
        }
        return {name: values for name, values in known.items() if values is not None}

    @cached_property
    def model(self) -> ConceptModel | None:
        """The classifier that the study's analysis left beside the database; None without one of its encoder."""
        path = analysis_folder(self.database) / MODEL
        model = load_model(path) if path.is_file() and not self.database.is_remote else None
        # Of a build with another encoder: the next one fits it anew.
        return model if model and model.encoder_identity == encoder_identity(self.database) else None

    @cached_property
    def predictions(self) -> Columns:
        """What that classifier predicts; nothing without one."""
        if self.model is None:
            return {}
        predictions = apply_model(self.model, self.database)
        return {"predicted": np.array(predictions.predicted, object), "probabilities": predictions.probabilities}

    @cached_property
    def empty(self) -> Columns:
        """Every column without a row: names, dtypes and shapes."""
        tokens = None if self._tokens is None else np.asarray(self._tokens[:0])
        return self._columns(slice(0, 0), np.asarray(self.database.image_features[:0]), tokens)

    def blocks(
        self, progress: Progress = silent, rows: slice | None = None, block_bytes: int = _BLOCK_BYTES
    ) -> Iterator[Columns]:
        """The columns of blocks of rows, in the order of the file; a block is valid until the next one."""
        chosen = rows or self.rows
        arrays = [self.database.image_features, *([] if self._tokens is None else [self._tokens])]
        row_bytes = [int(np.prod(array.shape[1:])) * array.dtype.itemsize for array in arrays]
        step = max(1, block_bytes // max(1, sum(row_bytes)))
        iterators = [
            iter_blocks(array, max(1, step * size), chosen) for array, size in zip(arrays, row_bytes, strict=True)
        ]
        for blocks in zip(*iterators, strict=True):
            first, features = blocks[0]
            last = first + len(features)
            yield self._columns(slice(first, last), features, blocks[1][1] if len(blocks) > 1 else None)
            progress(last - self.rows.start, len(self))

    def take(self, rows: npt.NDArray[np.int64]) -> Columns:
        """The columns of rows by number, in any order; without tokens."""
        return self._columns(rows, take_rows(self.database.image_features, rows), None)

    def _columns(
        self, rows: slice | npt.NDArray[np.int64], features: npt.NDArray[Any], tokens: npt.NDArray[Any] | None
    ) -> Columns:
        columns = {**self.facts(rows), **{name: values[rows] for name, values in self.predictions.items()}}
        columns["image_features"] = features
        if tokens is not None:
            columns["image_token_features"] = tokens
        if self.concepts:
            columns["concept_scores"] = self.scores(features)
        return columns

    def scores(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """The cosines of image features (n, D) with the concepts, (n, K)."""
        return np.asarray(normalise(features) @ self._vectors.T, np.float32)
