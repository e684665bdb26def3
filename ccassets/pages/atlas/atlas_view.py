"""The view of a database that every part of the atlas shares: concepts, classes, standardised scores, thumbnails."""

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
from ccassets.database.attributes import section
from ccassets.database.label_names import NO_LABEL
from ccassets.database.reader import Database
from ccassets.database.token_geometry import token_geometry
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.pages.thumbnails import data_uri, fit_layer, heat_layer, thumbnail
from ccassets.study.schema import Concept, Study

ALL_IMAGES = "all images"

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AtlasView:
    """A database as the page shows it.

    `scores` (N, K) are cosine concept scores in standard deviations from the mean of `reference_rows`, the rows of
    `reference`: the split train, or "all images". `labels` (N,) are indices into `classes`: one class, "all images",
    where there are no labels; in a multi-label set the first of each, and "none" as one class more. `members` (N, C)
    say which classes a row has, `captions` name them. `annotations` (N, K) are None where none are known.
    `read_thumbnail` returns the thumbnail of a row; None where the file has no keys.
    """

    database: Database
    concepts: tuple[Concept, ...]
    classes: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    members: npt.NDArray[np.bool_]
    captions: list[str]
    scores: FloatArray
    reference: str
    reference_rows: Rows
    annotations: ConceptAnnotations | None
    read_thumbnail: Callable[[int], Image.Image] | None

    @property
    def words(self) -> list[str]:
        return [concept.word for concept in self.concepts]


def make_view(study: Study, database: Database) -> AtlasView:
    """Score every image on every concept and read what is known of the rows."""
    reference = TRAIN if TRAIN in database.splits and len(database.select(TRAIN)) else ALL_IMAGES
    reference_rows = database.select(TRAIN if reference == TRAIN else None).rows
    cosines = concept_scores(database)
    scale = cosines[reference_rows].std(axis=0)
    classes: tuple[str, ...] = (ALL_IMAGES,)
    labels = np.zeros(len(database), np.int64)
    matrix = database.label_matrix
    if is_labelled(database):
        classes, labels = class_names(database), database.labels
    members = labels[:, None] == np.arange(len(classes))
    if is_labelled(database) and matrix is not None:
        without = ~matrix.any(axis=1)
        classes, labels = (*classes, NO_LABEL), np.where(without, len(classes), labels)
        members = np.column_stack([matrix > 0, without])
    return AtlasView(
        database=database,
        concepts=database_concepts(database),
        classes=classes,
        labels=labels,
        members=members,
        captions=[", ".join(classes[label] for label in np.flatnonzero(row)) for row in members],
        scores=(cosines - cosines[reference_rows].mean(axis=0)) / np.where(scale > 0, scale, 1),
        reference=reference,
        reference_rows=reference_rows,
        annotations=read_concept_annotations(study, database),
        read_thumbnail=None if database.keys is None else _thumbnail_reader(study, database),
    )


def evenly_spaced(rows: Rows, count: int) -> Rows:
    """Take at most `count` of the rows, evenly spaced."""
    return np.asarray(rows[evenly_spaced_positions(len(rows), count)])


def _thumbnail_reader(study: Study, database: Database) -> Callable[[int], Image.Image]:
    read_image = image_reader(study, database)
    return lru_cache(maxsize=None)(lambda row: thumbnail(read_image(row)))


@dataclass(frozen=True, eq=False)
class Figure:
    """An image with its caption.

    `present` says whether the image shows the concept, None where that is not known. `layer` is the heat layer over
    the image, None where there is none.
    """

    image: Image.Image | None
    layer: Image.Image | None
    key: str
    split: str
    label: str
    score: float
    present: bool | None

    @cached_property
    def source(self) -> str | None:
        """The image as the page carries it."""
        return None if self.image is None else data_uri(self.image)

    @cached_property
    def heat(self) -> str | None:
        """The heat layer as the page carries it."""
        return None if self.layer is None else data_uri(self.layer, lossless=True)


def make_figure(view: AtlasView, row: int, column: int, heat: FloatArray | None = None) -> Figure:
    """Show a row with its score on the concept of that column, and heat (T,) between 0 and 1 over its patches."""
    database = view.database
    image = None if view.read_thumbnail is None else view.read_thumbnail(row)
    geometry = token_geometry(section(database.provenance, "encoder"))
    layer = None
    if heat is not None and image is not None and geometry is not None:
        layer = fit_layer(heat_layer(heat), image.size, geometry.rectangle(*image.size))
    annotation = np.nan if view.annotations is None else view.annotations[row, column]
    return Figure(
        image=image,
        layer=layer,
        key=f"row {row}" if database.keys is None else str(database.keys[row]),
        split=str(database.split[row]),
        label=view.captions[row],
        score=float(view.scores[row, column]),
        present=None if np.isnan(annotation) else bool(annotation),
    )
