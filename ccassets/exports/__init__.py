"""Exports: files in which other tools read the scores and features of a database."""

from ccassets.exports.tables import export

__all__ = ["export"]
