"""What a file's provenance says about order: whether it was verified which image or prompt each feature belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ccassets.database.attributes import section


def unverified_rows(provenance: Mapping[str, Any], rows: int) -> int:
    """The number of rows whose order was not verified.

    Args:
        provenance: The provenance of a part, or of a database, which lists its parts.
        rows: The rows of the file.

    Returns:
        All rows of a part that was adopted by position without a sample; of a database those of such parts.
    """
    parts = provenance.get("parts")
    if isinstance(parts, list):
        unverified = [part for part in map(section, parts) if part.get("order") == "unverified"]
        return sum(part["rows"] for part in unverified if isinstance(part.get("rows"), int))
    if provenance.get("origin") != "adopted":
        return 0
    if isinstance(order := provenance.get("order"), dict):
        return 0 if order.get("verified_by") else rows
    return rows if str(provenance.get("matched_by")).startswith("position") else 0


def unverified_templates(provenance: Mapping[str, Any], templates: Iterable[str]) -> list[str]:
    """The templates whose features were not compared with their prompts.

    Args:
        provenance: The provenance of a template part, or of a database, which lists its templates.
        templates: The templates of the file.

    Returns:
        For a part that was adopted without a sample, all its templates; for a database, those of such parts.
    """
    records = provenance.get("templates")
    if isinstance(records, dict):
        return [name for name in records if "order" in section(records, name)]
    is_verified = section(provenance, "order").get("verified_by")
    return [] if is_verified or provenance.get("matched_by") != "prompts" else list(templates)


def has_unverified_order(provenance: Mapping[str, Any]) -> bool:
    """Whether a file has rows whose order was not verified."""
    return unverified_rows(provenance, 1) > 0
