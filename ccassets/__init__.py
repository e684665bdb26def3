"""ccassets: medical images and concepts become one checked feature database, built as Dagster assets."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ccassets._version import __version__
from ccassets.errors import CcassetsError
from ccassets.study import load_study

if TYPE_CHECKING:
    from ccassets.component import FeatureDatabase
    from ccassets.database.foreign import validate_foreign
    from ccassets.database.reader import open_database
    from ccassets.database.validation import validate_database
    from ccassets.encoders import load_encoder
    from ccassets.extraction import (
        assemble_database,
        extract_images,
        extract_text,
        identify_encoder,
        plan_study,
        read_images,
    )
    from ccassets.extraction.adoption import adopt
    from ccassets.runs import build

_HOME = {
    "FeatureDatabase": "ccassets.component",
    "adopt": "ccassets.extraction.adoption",
    "assemble_database": "ccassets.extraction",
    "build": "ccassets.runs",
    "extract_images": "ccassets.extraction",
    "extract_text": "ccassets.extraction",
    "identify_encoder": "ccassets.extraction",
    "load_encoder": "ccassets.encoders",
    "open_database": "ccassets.database.reader",
    "plan_study": "ccassets.extraction",
    "read_images": "ccassets.extraction",
    "validate_database": "ccassets.database.validation",
    "validate_foreign": "ccassets.database.foreign",
}

__all__ = [
    "CcassetsError",
    "FeatureDatabase",
    "__version__",
    "adopt",
    "assemble_database",
    "build",
    "extract_images",
    "extract_text",
    "identify_encoder",
    "load_encoder",
    "load_study",
    "open_database",
    "plan_study",
    "read_images",
    "validate_database",
    "validate_foreign",
]


def __getattr__(name: str) -> Any:
    # Imported when asked for: reading a file needs neither Dagster nor an encoder.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
