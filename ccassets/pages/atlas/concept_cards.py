"""The cards of the atlas: every concept with the images that score highest, and heat maps over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ccassets.analysis.scores import FloatArray, patch_scores
from ccassets.database.attributes import section
from ccassets.database.token_geometry import no_map_reason
from ccassets.errors import DatabaseError
from ccassets.pages.atlas.atlas_view import AtlasView, Figure, Rows, evenly_spaced, make_figure
from ccassets.pages.renderer import markdown_cell
from ccassets.pages.thumbnails import data_uri, image_strip, overlay
from ccassets.progress import Progress
from ccassets.study.schema import Concept

CARD_IMAGES = 8
"""Images of every card, those with the highest scores."""

BASELINE_IMAGES = 256
"""Images whose patches give the mean and deviation that heat is measured against."""

HEAT_FROM, HEAT_TO = 1.0, 4.0
"""Standard deviations above the mean patch where heat begins and where it is full."""

MARKDOWN_BYTES = 150_000
MARKDOWN_IMAGES = 4
MARKDOWN_SIDE = 56


@dataclass(frozen=True, eq=False)
class Cards:
    """Every concept with the images that score highest."""

    concepts: tuple[tuple[Concept, tuple[Figure, ...]], ...]


def make_cards(view: AtlasView, heat: Heat | None, progress: Progress) -> Cards:
    """Make the card of every concept; `progress` counts concepts."""
    cards = []
    for column, concept in enumerate(view.concepts):
        rows = np.argsort(-view.scores[:, column], kind="stable")[:CARD_IMAGES]
        heats = [None] * len(rows) if heat is None else heat(column, rows)
        figures = tuple(make_figure(view, int(row), column, map_) for row, map_ in zip(rows, heats, strict=True))
        cards.append((concept, figures))
        progress(column + 1, len(view.concepts))
    return Cards(tuple(cards))


Heat = Callable[[int, Rows], FloatArray]
"""From a concept's column and rows (n,) to heat between 0 and 1, (n, T)."""


def make_heat(view: AtlasView) -> tuple[Heat | None, str | None]:
    """Heat as standard deviations above the mean patch of the reference images; or why there is none."""
    database = view.database
    if reason := no_map_reason(section(database.provenance, "encoder"), database.token_count):
        return None, reason
    try:
        baseline = patch_scores(database, evenly_spaced(view.reference_rows, BASELINE_IMAGES))
    except DatabaseError as error:
        return None, str(error)
    mean, deviation = baseline.mean(axis=(0, 2)), baseline.std(axis=(0, 2))

    def heat(column: int, rows: Rows) -> FloatArray:
        maps = patch_scores(database, rows, [view.words[column]])[:, 0]
        above = (maps - mean[column]) / deviation[column]
        return np.asarray(np.clip((above - HEAT_FROM) / (HEAT_TO - HEAT_FROM), 0, 1))

    return heat, None


def cards_as_markdown(cards: Cards) -> str:
    """For every concept its first four images, plain and with heat, as a Markdown table of a bounded size."""
    lines = ["| concept | images with the highest scores |", "|---|---|"]
    size = 0
    for concept, figures in cards.concepts:
        shown = [(figure.image, figure.layer) for figure in figures[:MARKDOWN_IMAGES]]
        plain = [image for image, _ in shown if image is not None]
        heated = [overlay(image, layer) for image, layer in shown if image is not None and layer is not None]
        if not plain:
            return "The file does not say where its rows came from: there are no pictures."
        line = f"| {markdown_cell(concept.word)} | ![]({data_uri(image_strip([*plain, *heated], MARKDOWN_SIDE))}) |"
        size += len(line)
        if size > MARKDOWN_BYTES:
            break
        lines.append(line)
    return "\n".join(lines)
