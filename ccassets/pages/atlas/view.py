"""What the atlas looks at: a database with its concepts, classes, standardised scores, truth and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.analysis.concept_annotations import ConceptAnnotations, read_concept_annotations
from ccassets.analysis.image_source import image_reader
from ccassets.analysis.results import TRAIN
from ccassets.analysis.samples import class_names, database_concepts, is_labelled
from ccassets.analysis.scores import FloatArray, concept_scores
from ccassets.database.reader import Database
from ccassets.pages.thumbnails import data_uri, thumbnail
from ccassets.study.schema import Concept, Study

EVERYTHING = "all images"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class View:
    """A database as the page sees it.

    `scores` (N, K) are cosine concept scores in standard deviations from the mean of the rows `usual`, which are those
    of `standard`: the split train, or "all images". `labels` (N,) are places in `classes`: one class, "all images",
    where there are no labels. `picture` gives a row's thumbnail; None where the file knows no keys.
    """

    database: Database
    concepts: tuple[Concept, ...]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    scores: FloatArray
    standard: str
    usual: Rows
    truth: ConceptAnnotations | None
    picture: Callable[[int], Image.Image] | None

    @property
    def words(self) -> list[str]:
        return [concept.word for concept in self.concepts]


def look_at(study: Study, database: Database) -> View:
    standard = TRAIN if TRAIN in database.splits and len(database.select(TRAIN)) else EVERYTHING
    usual = database.select(TRAIN if standard == TRAIN else None).rows
    cosines = concept_scores(database)
    scale = cosines[usual].std(axis=0)
    labelled = is_labelled(database)
    return View(
        database=database,
        concepts=database_concepts(database),
        classes=class_names(database) if labelled else (EVERYTHING,),
        labels=database.labels if labelled else np.zeros(len(database), np.int64),
        scores=(cosines - cosines[usual].mean(axis=0)) / np.where(scale > 0, scale, 1),
        standard=standard,
        usual=usual,
        truth=read_concept_annotations(study, database),
        picture=None if database.keys is None else _thumbnails(study, database),
    )


def spread(rows: Rows, most: int) -> Rows:
    """At most so many of the rows, evenly spaced."""
    places = np.linspace(0, len(rows) - 1, min(most, len(rows))).round().astype(np.int64)
    return np.asarray(rows[places])


def _thumbnails(study: Study, database: Database) -> Callable[[int], Image.Image]:
    read = image_reader(study, database)
    return lru_cache(maxsize=None)(lambda row: thumbnail(read(row)))


@dataclass(frozen=True, eq=False)
class Shown:
    """A picture with what is said under it; `there` is the truth of the concept where that is known.

    `layer` is the heat map to lay over it, None where there is none.
    """

    picture: Image.Image | None
    layer: Image.Image | None
    key: str
    split: str
    label: str
    score: float
    there: bool | None

    @cached_property
    def source(self) -> str | None:
        """The picture as the page carries it."""
        return None if self.picture is None else data_uri(self.picture)

    @cached_property
    def heat(self) -> str | None:
        """The heat map as the page carries it."""
        return None if self.layer is None else data_uri(self.layer, lossless=True)


def show(view: View, row: int, column: int, layer: Image.Image | None = None) -> Shown:
    """A row, with its score on the concept of that column."""
    database = view.database
    there = None if view.truth is None or np.isnan(view.truth[row, column]) else bool(view.truth[row, column])
    return Shown(
        picture=None if view.picture is None else view.picture(row),
        layer=layer,
        key=f"row {row}" if database.keys is None else str(database.keys[row]),
        split=str(database.split[row]),
        label=view.classes[view.labels[row]],
        score=float(view.scores[row, column]),
        there=there,
    )
