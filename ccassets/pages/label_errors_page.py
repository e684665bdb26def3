"""The page of label errors: the images whose label is in doubt, each with its own and the likely label."""

from __future__ import annotations

from pathlib import Path

from ccassets.analysis.image_source import image_reader
from ccassets.analysis.label_error_detection import LabelError, listed_errors
from ccassets.analysis.results import AnalysisResult
from ccassets.database.reader import Database, open_database
from ccassets.files import write_text
from ccassets.pages.renderer import render
from ccassets.pages.thumbnails import data_uri, thumbnail
from ccassets.study.schema import Study
from ccassets.study.storage import Store

MOST_SHOWN = 200
"""Label errors on the page, the least believed labels; the list beside it has all."""


def write_label_errors_page(study: Study, store: Store, result: AnalysisResult) -> Path:
    """Write `label_errors.html` beside the result of `judge_labels`.

    Args:
        study: The study.
        store: Its store.
        result: What `judge_labels` returned.

    Returns:
        The page.

    Raises:
        DatasetError: An image is not the one that was encoded.
    """
    errors = listed_errors(result)
    with open_database(store.database) as database:
        shown = list(zip(errors, _sources(study, database, errors[:MOST_SHOWN]), strict=False))
    path = result.path.with_suffix(".html")
    write_text(path, render("label_errors.html", study=study, result=result.content, count=len(errors), shown=shown))
    return path


def _sources(study: Study, database: Database, errors: list[LabelError]) -> list[str | None]:
    """The images of label errors as a page carries them; None where the file does not say where they came from."""
    if database.keys is None:
        return [None] * len(errors)
    read_image = image_reader(study, database)
    rows = {number: row for row, number in enumerate(database.ids.tolist())}
    return [data_uri(thumbnail(read_image(rows[error.id]))) for error in errors]
