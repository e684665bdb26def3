"""Losses: what was made and is not on the disk any more as it was written. Dagster's records alone cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ccassets.analysis.results import RESULT_FILES, available_analyses
from ccassets.errors import CcassetsError
from ccassets.extraction.parts import VerifiedFiles, held_rows
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import missing_templates
from ccassets.orchestration.assets.common import is_partitioned
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_GONE = "its file is not there"


def absent(study: Study, place: Store) -> dict[str, str]:
    """What is not there of a study, as `asset` or `asset:split` in the order of the graph, and in what way.

    Told by fingerprints and by what small files say: nothing is decoded or hashed. What was never made is absent too.
    Without a record of the sources nothing can be told, and there is none.
    """
    try:
        card = recorded_card(study, place)
        index = held_rows(place, card.identity, known_only=True)
        found = {f"template_features/{name}": "no part holds it" for name in missing_templates(study, card, place)}
        for split in study.splits:
            rows = index.find(recorded_manifest(study, split, place).image_digest)
            if lacking := int(np.count_nonzero(rows < 0)):
                name = f"image_features:{split}" if is_partitioned(study) else "image_features"
                found[name] = f"{lacking} of {len(rows)} images of {split} are in no part"
    except CcassetsError:
        return {}
    if reason := absent_database(place):
        found["feature_database"] = reason
    return found | dict.fromkeys(absent_pages(study, place), _GONE)


def absent_database(place: Store) -> str | None:
    """Why the database is not the file that was assembled; None if it is."""
    if not place.database.is_file():
        return _GONE
    return None if VerifiedFiles(place.folder).has(place.database) else "its file is not the one that was written"


def absent_pages(study: Study, place: Store) -> list[str]:
    """The report and the analyses whose files are not there."""
    return [name for name, path in _pages(study, place) if not path.is_file()]


def _pages(study: Study, place: Store) -> Iterator[tuple[str, Path]]:
    yield "validation_report", place.reports / "validation.html"
    for name in available_analyses(study):
        yield name, place.analysis / RESULT_FILES[name]
