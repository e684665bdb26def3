"""The page of label errors: the images whose label is in doubt, each with its own and the likely label."""

from __future__ import annotations

from pathlib import Path

from ccassets.analysis.image_source import image_reader
from ccassets.analysis.label_error_detection import LabelError, listed_errors
from ccassets.analysis.results import AnalysisResult
from ccassets.database.reader import Database, open_database
from ccassets.errors import DatasetError
from ccassets.files import write_text
from ccassets.pages.renderer import render
from ccassets.pages.thumbnails import data_uri, thumbnail
from ccassets.study.schema import Study
from ccassets.study.storage import Store

MOST_SHOWN = 200
"""Label errors on the page, those of the least probable labels; the list beside it has all."""


def write_label_errors_page(study: Study, store: Store, result: AnalysisResult) -> Path:
    """Write `label_errors.html` beside the result of `judge_labels`.

    Args:
        study: The study.
        store: Its store.
        result: What `judge_labels` returned.

    Returns:
        The page; where an image cannot be read, it says why.
    """
    errors = listed_errors(result.content)
    with open_database(store.database) as database:
        sources, reason = _sources(study, database, errors[:MOST_SHOWN])
    page = render(
        "label_errors.html",
        study=study,
        result=result.content,
        count=len(errors),
        shown=list(zip(errors, sources, strict=False)),
        reason=reason,
    )
    path = result.path.with_suffix(".html")
    write_text(path, page)
    return path


def _sources(study: Study, database: Database, errors: list[LabelError]) -> tuple[list[str | None], str | None]:
    """The images of label errors as a page carries them, and why the first of those that are missing cannot be read."""
    sources: list[str | None] = [None] * len(errors)
    reason = None
    try:
        read_image = image_reader(study, database)
    except DatasetError as error:
        return sources, str(error)
    rows = {number: row for row, number in enumerate(database.ids.tolist())}
    for position, label_error in enumerate(errors):
        try:
            sources[position] = data_uri(thumbnail(read_image(rows[label_error.id])))
        except DatasetError as error:
            reason = reason or str(error)
    return sources, reason
