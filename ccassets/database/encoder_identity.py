"""The identity of an encoder: one digest of all fields that determine its numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def compute_identity(fields: Mapping[str, Any]) -> str:
    """The first 32 hex digits of SHA-256 over the canonical JSON of an encoder's fields.

    Args:
        fields: The declared fields of a card; `identity` and `recorded` are left out of the digest.
    """
    declared = {name: value for name, value in fields.items() if name not in {"identity", "recorded"}}
    text = json.dumps(declared, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
