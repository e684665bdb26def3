"""What is in a file, as plain values: for `ccassets info`, the validation page, and whoever wants it as JSON."""

from __future__ import annotations

from typing import Any

from ccassets.database.reader import Database
from ccassets.errors import DatabaseError


def summarize(database: Database) -> dict[str, Any]:
    """Sizes, splits, templates, vocabulary and origin of a file; what the file does not say is None or empty."""
    provenance = _object(database.attributes.get("provenance"))
    encoder = _object(provenance.get("encoder"))
    return {
        "file": database.path.name,
        "profile": database.profile,
        "bytes": database.path.stat().st_size,
        "rows": len(database),
        "dim": database.dim,
        "token_count": database.token_count,
        "splits": _splits(database),
        "templates": {
            name: {"prompts": len(template.texts), "first": template.texts[0] if template.texts else None}
            for name, template in database.templates.items()
        },
        "labels": _list(database.attributes.get("label_texts")),
        "concepts": _list(database.attributes.get("concept_texts")),
        "created_at": database.attributes.get("created_at"),
        "limit": database.attributes.get("limit"),
        "logit_multiplier": database.logit_multiplier,
        "concept_logit_multiplier": database.concept_logit_multiplier,
        "origin": provenance.get("origin"),
        "digest": _object(provenance.get("digests")).get("database"),
        "encoder": {name: encoder.get(name) for name in ("kind", "identity", "weights_digest", "dtype")},
        "dataset": _object(provenance.get("dataset")),
        "libraries": _object(provenance.get("libraries")),
    }


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _splits(database: Database) -> dict[str, int]:
    """Rows per split as they stand in the file, together or not; none in a file of templates alone."""
    try:
        return {name: place.stop - place.start for name, place in database.splits.items()}
    except DatabaseError:
        counts: dict[str, int] = {}
        for name in database.split:
            counts[name] = counts.get(name, 0) + 1
        return counts
