"""ccassets: medical images and concepts become one checked feature database, built as Dagster assets."""

from ccassets._version import __version__
from ccassets.errors import CcassetsError
from ccassets.study import load_study

__all__ = ["CcassetsError", "__version__", "load_study"]
