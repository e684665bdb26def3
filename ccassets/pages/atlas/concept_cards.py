"""The cards of the atlas: every concept with the images that score highest, and heat maps over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isqrt

import numpy as np

from ccassets.analysis.scores import FloatArray, patch_scores
from ccassets.errors import DatabaseError
from ccassets.pages.atlas.view import Rows, Shown, View, show, spread
from ccassets.pages.renderer import markdown_cell
from ccassets.pages.thumbnails import data_uri, heat_layer, overlaid, strip
from ccassets.progress import Progress
from ccassets.study.schema import Concept

SHOWN = 8
"""Images shown for every concept, those with the highest scores."""

BASELINE = 256
"""Images whose patches say what is usual for a concept."""

HEAT_FROM, HEAT_TO = 1.0, 4.0
"""Heat begins so many standard deviations above the usual patch, and is full at the second number."""

SHEET_BYTES = 150_000
SHEET_IMAGES = 4
SHEET_SIDE = 56


@dataclass(frozen=True, eq=False)
class Cards:
    """Every concept with the images that score highest; `unavailable_reason` says why there are no heat maps."""

    concepts: tuple[tuple[Concept, tuple[Shown, ...]], ...]
    unavailable_reason: str | None


def make_cards(view: View, progress: Progress) -> Cards:
    heat, unavailable_reason = _heat(view)
    cards = []
    for column, concept in enumerate(view.concepts):
        rows = np.argsort(-view.scores[:, column], kind="stable")[:SHOWN]
        layers = [None] * len(rows) if heat is None else [heat_layer(one) for one in heat(column, rows)]
        shown = tuple(show(view, int(row), column, layer) for row, layer in zip(rows, layers, strict=True))
        cards.append((concept, shown))
        progress(column + 1, len(view.concepts))
    return Cards(tuple(cards), unavailable_reason)


Heat = Callable[[int, Rows], FloatArray]
"""From a concept's column and rows (n,) to heat between 0 and 1, (n, T)."""


def _heat(view: View) -> tuple[Heat | None, str | None]:
    """How hot patches are: by how many standard deviations they exceed the usual patch; or why that is not known."""
    database = view.database
    side = isqrt(database.token_count)
    if side * side != database.token_count:
        return None, f"{database.token_count} patches are no square: there is no way to lay them over a picture."
    try:
        usual = patch_scores(database, spread(view.usual, BASELINE))
    except DatabaseError as error:
        return None, str(error)
    mean, deviation = usual.mean(axis=(0, 2)), usual.std(axis=(0, 2))

    def heat(column: int, rows: Rows) -> FloatArray:
        maps = patch_scores(database, rows, [view.words[column]])[:, 0]
        above = (maps - mean[column]) / deviation[column]
        return np.asarray(np.clip((above - HEAT_FROM) / (HEAT_TO - HEAT_FROM), 0, 1))

    return heat, None


def contact_sheet(cards: Cards) -> str:
    """For every concept its first four images, plain and with heat, as a Markdown table of a bounded size."""
    lines = ["| concept | images with the highest scores |", "|---|---|"]
    size = 0
    for concept, images in cards.concepts:
        first = [(one.picture, one.layer) for one in images[:SHEET_IMAGES]]
        plain = [picture for picture, _ in first if picture is not None]
        hot = [overlaid(picture, layer) for picture, layer in first if picture is not None and layer is not None]
        if not plain:
            return "The file does not say where its rows came from: there are no pictures."
        line = f"| {markdown_cell(concept.word)} | ![]({data_uri(strip([*plain, *hot], SHEET_SIDE))}) |"
        size += len(line)
        if size > SHEET_BYTES:
            break
        lines.append(line)
    return "\n".join(lines)
