"""SHA-256 of model files, computed again only when a file's fingerprint changed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from ccassets.errors import StorageError
from ccassets.files import reading_refused, write_text
from ccassets.progress import Progress, silent

CACHE_FILE = "encoder-file-digests.json"

_BLOCK = 1 << 20


def digest_files(files: Sequence[Path], *, cache: Path | None = None, progress: Progress = silent) -> str:
    """SHA-256 (hex) of a file's bytes; of several, SHA-256 of their digests in order, so names do not matter.

    `cache` is a folder where digests are kept by file fingerprint. `progress` counts bytes. Raises `StorageError`
    when the system does not let a file be read.
    """
    total = sum(file.stat().st_size for file in files)
    known = _load(cache)
    digests, done = [], 0
    for file in files:
        key = _fingerprint(file)
        if key not in known:
            known[key] = _sha256(file, done, total, progress)
            _save(cache, known)
        digests.append(known[key])
        done += file.stat().st_size
        progress(done, total)
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("\n".join(digests).encode("ascii")).hexdigest()


def _fingerprint(file: Path) -> str:
    """What changes whenever a file's bytes may have; hashed, so that the cache tells nobody's paths."""
    stat = file.stat()
    facts = (os.fspath(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    return hashlib.sha256(json.dumps(facts).encode("utf-8")).hexdigest()


def _sha256(file: Path, before: int, total: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    try:
        with file.open("rb") as opened:
            while block := opened.read(_BLOCK):
                digest.update(block)
                progress(before + opened.tell(), total)
    except OSError as error:
        reason = f"{file} cannot be read: {error.strerror or error}."
        raise reading_refused(error, str(file)) or StorageError(reason) from error
    return digest.hexdigest()


def _load(cache: Path | None) -> dict[str, str]:
    if cache is None:
        return {}
    try:
        known = json.loads((cache / CACHE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # A cache that is not there or not readable costs a hash, nothing else.
        return {}
    return known if isinstance(known, dict) else {}


def _save(cache: Path | None, known: dict[str, str]) -> None:
    if cache is None:
        return
    write_text(cache / CACHE_FILE, json.dumps(known))
