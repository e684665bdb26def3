"""Errors of the original functions: each is also the built-in exception that those raised."""

from __future__ import annotations

from ccassets.errors import DatabaseError


class MissingFileError(DatabaseError, FileNotFoundError):
    """A file does not exist."""


class ArgumentError(DatabaseError, ValueError):
    """An argument has no meaning or does not fit the file; nothing was written."""


class RowError(DatabaseError, IndexError):
    """A row number lies beyond the rows of the split or file."""


class NameMissingError(DatabaseError, KeyError):
    """The file has no such data set, template or attribute."""

    __str__ = Exception.__str__  # a KeyError would put its sentence in quotes
