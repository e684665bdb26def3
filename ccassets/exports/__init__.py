"""Exports: files in which other tools read the rows of a database."""

from ccassets.exports.formats import FORMATS, export
from ccassets.exports.publication import publish

__all__ = ["FORMATS", "export", "publish"]
