"""Databases of phantom cells, made by the library alone, with the phantom encoder that ships."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from ccassets.extraction import assemble_database, extract_text
from ccassets.extraction.image_extraction import extract_images
from ccassets.study.loading import SHIPPED_STUDIES, load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def phantom_study(folder: Path, change: Callable[[dict[str, Any]], object]) -> Study:
    """The demo study, changed."""
    content = yaml.safe_load((SHIPPED_STUDIES / "demo" / "defs.yaml").read_text(encoding="utf-8"))
    change(content["attributes"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "defs.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_study(folder / "defs.yaml")


def extracted(study: Study, root: Path) -> Store:
    """The study's database, built under a storage root."""
    store = Store.of(study, root)
    extract_text(study, store=store)
    extract_images(study, study.splits, store=store)
    assemble_database(study, store=store)
    return store
