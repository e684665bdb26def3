"""Prints `docs/checks.md`: `python -m ccassets.database.validation > docs/checks.md`."""

from ccassets.database.validation.registry import checks_page

print(checks_page(), end="")
