"""The hash of prompts: what a template's `texts_hash` is."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def texts_hash(prompts: Sequence[str]) -> str:
    """SHA-256 over every prompt's UTF-8 bytes, each followed by one zero byte, in order (lower-case hex)."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(prompt.encode("utf-8") + b"\0")
    return digest.hexdigest()
