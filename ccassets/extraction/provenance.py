"""Provenance: the record of how features were made. Declared fields only; no path, no host, no token."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ccassets.encoders.encoder_contract import Encoder, EncoderCard
from ccassets.errors import StorageError
from ccassets.files import reading_refused
from ccassets.study.schema import Study

_LIBRARIES = (
    *("ccassets", "torch", "transformers", "tokenizers", "open_clip_torch", "timm", "sentencepiece"),
    *("numpy", "pillow", "h5py", "medmnist"),
)


def encoder_provenance(card: EncoderCard) -> dict[str, Any]:
    """The identity and every declared field of the card."""
    return {"identity": card.identity, **card.declared()}


def part_provenance(study: Study, encoder: Encoder, seconds: float) -> dict[str, Any]:
    """The provenance of a part."""
    return {
        "origin": "extracted",
        "encoder": encoder_provenance(encoder.card),
        "extraction": {"batch_size": study.extraction.batch_size, "device": encoder.device},
        "libraries": libraries(),
        "created": created(seconds),
    }


def certificate_provenance(certificate: Path, identity: str) -> dict[str, Any]:
    """The certificate of an encoder as a field of the provenance; nothing without one, or with another encoder's."""
    try:
        facts = json.loads(certificate.read_text(encoding="utf-8"))
        return {"certificate": facts} if facts["identity"] == identity else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise reading_refused(error, str(certificate)) or StorageError(
            f"{certificate} cannot be read ({error}). Run `ccassets certify` again, or remove it."
        ) from error


def created(seconds: float) -> Mapping[str, Any]:
    """The time of creation (UTC, and in nanoseconds) and the duration."""
    now = time.time_ns()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now // 10**9))
    return {"at": stamp, "unix_ns": now, "seconds": round(seconds, 3)}


@cache
def libraries() -> dict[str, str]:
    """The versions of the libraries whose code the features went through."""
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
