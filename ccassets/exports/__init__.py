"""Exports: files in which other tools read scores and features."""
