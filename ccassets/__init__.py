"""Feature databases of medical images and concepts, built as Dagster assets and read with one call.

`load_study` and `build` make a database, `open_database` reads it, `validate_database` checks it. Exceptions are in
`ccassets.errors`; encoders, data sets, extraction steps, analyses, exports, the functions of the original scripts and
the Dagster definitions are in `ccassets.encoders`, `.datasets`, `.extraction`, `.analysis`, `.exports`, `.h5` and
`.orchestration`. Every other module is internal.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ccassets.errors import CcassetsError

if TYPE_CHECKING:
    from ccassets.database.reader import Database, Selection, Template, open_database
    from ccassets.database.validation import validate_database
    from ccassets.encoders import load_encoder
    from ccassets.encoders.encoder_contract import Encoder, EncoderCard
    from ccassets.extraction import (
        assemble_database,
        extract_images,
        extract_text,
        identify_encoder,
        plan_study,
        read_images,
    )
    from ccassets.extraction.adoption import adopt
    from ccassets.findings import Finding
    from ccassets.orchestration.build import build
    from ccassets.orchestration.component import FeatureDatabase, FeatureDatabaseComponent
    from ccassets.study.loading import load_study
    from ccassets.study.schema import Study
    from ccassets.study.storage import Store

__version__ = "0.1.0"

_HOMES = {
    "Database": "ccassets.database.reader",
    "Encoder": "ccassets.encoders.encoder_contract",
    "EncoderCard": "ccassets.encoders.encoder_contract",
    "FeatureDatabase": "ccassets.orchestration.component",
    "FeatureDatabaseComponent": "ccassets.orchestration.component",
    "Finding": "ccassets.findings",
    "Selection": "ccassets.database.reader",
    "Store": "ccassets.study.storage",
    "Study": "ccassets.study.schema",
    "Template": "ccassets.database.reader",
    "adopt": "ccassets.extraction.adoption",
    "assemble_database": "ccassets.extraction",
    "build": "ccassets.orchestration.build",
    "extract_images": "ccassets.extraction",
    "extract_text": "ccassets.extraction",
    "identify_encoder": "ccassets.extraction",
    "load_encoder": "ccassets.encoders",
    "load_study": "ccassets.study.loading",
    "open_database": "ccassets.database.reader",
    "plan_study": "ccassets.extraction",
    "read_images": "ccassets.extraction",
    "validate_database": "ccassets.database.validation",
}

# Without `FeatureDatabaseComponent`: Dagster lists every component it finds here, and a study names one type.
__all__ = sorted({*_HOMES, "CcassetsError", "__version__"} - {"FeatureDatabaseComponent"})

# pydoc has no other way to show an API without every file of its package: for pydoc alone this is not a package.
_FOLDERS = __path__
del __path__


def __getattr__(name: str) -> Any:
    # Lazy: reading a file imports neither Dagster nor an encoder.
    if name == "__path__" and sys._getframe(1).f_globals.get("__name__") != "pydoc":
        return _FOLDERS
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
