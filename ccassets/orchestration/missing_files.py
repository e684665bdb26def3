"""Files of a study that are gone or were replaced, which Dagster's records do not show."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ccassets.analysis.results import RESULT_FILES, available_analyses
from ccassets.errors import CcassetsError
from ccassets.extraction.parts import VerifiedFiles, held_rows
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import missing_templates
from ccassets.orchestration.partitions import is_partitioned
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_GONE = "its file is gone"


def missing_files(study: Study, store: Store) -> dict[str, str]:
    """What is missing of a study, as `asset` or `asset:split` in the order of the graph, each with the reason.

    Only fingerprints and small files are read: nothing is decoded or hashed. Assets that were never made are missing
    too. If the sources are not recorded, the result is empty.
    """
    try:
        card = recorded_card(study, store)
        index = held_rows(store, card.identity, known_only=True)
        missing = {f"template_features/{name}": "no part holds it" for name in missing_templates(study, card, store)}
        for split in study.splits:
            rows = index.find(recorded_manifest(study, split, store).image_digest)
            if count := int(np.count_nonzero(rows < 0)):
                name = f"image_features:{split}" if is_partitioned(study) else "image_features"
                missing[name] = f"{count} of {len(rows)} images of {split} are in no part"
    except CcassetsError:
        return {}
    if reason := missing_database(store):
        missing["feature_database"] = reason
    return missing | dict.fromkeys(missing_pages(study, store), _GONE)


def missing_database(store: Store) -> str | None:
    """Why the database is not the file that was assembled; None if it is."""
    if not store.database.is_file():
        return _GONE
    return None if VerifiedFiles(store.folder).has(store.database) else "its file is not the one that was written"


def missing_pages(study: Study, store: Store) -> list[str]:
    """The report and the analyses whose files are not there."""
    return [name for name, path in _pages(study, store) if not path.is_file()]


def _pages(study: Study, store: Store) -> Iterator[tuple[str, Path]]:
    yield "validation_report", store.reports / "validation.html"
    for name in available_analyses(study):
        yield name, store.analysis / RESULT_FILES[name]
