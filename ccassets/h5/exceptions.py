"""Our errors as callers of the original functions know them: each is also the built-in exception raised there."""

from __future__ import annotations

from ccassets.errors import DatabaseError


class MissingFileError(DatabaseError, FileNotFoundError):
    """There is no such file."""


class ArgumentError(DatabaseError, ValueError):
    """An argument that means nothing, or that does not fit the file; nothing was written."""


class RowError(DatabaseError, IndexError):
    """A row number beyond the rows that were asked."""


class NameMissingError(DatabaseError, KeyError):
    """A data set, template or attribute that the file does not have."""

    __str__ = Exception.__str__  # a KeyError would put its sentence in quotes
