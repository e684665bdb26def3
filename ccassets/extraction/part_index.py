"""The part index: what the parts of a folder hold, in one file, so that a plan need not open every part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xxhash

from ccassets.errors import StorageError
from ccassets.files import replacing

MOST_OPENED = 64
"""Up to so many parts are opened again each time, which costs less than writing the index."""

_FILE = "parts.index"
_DIGEST_BYTES = 16
_BLOCK_BYTES = 1 << 20

Digests = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PartRows:
    """The rows of a part or a database, with the facts that decide which of equal rows is used.

    `fingerprint` is the file's before it was read: another one means that the file may hold other rows.
    """

    path: Path
    fingerprint: str
    written: int
    image_digest: Digests
    feature_digest: Digests
    adopted: bool = False
    unverified: bool = False
    damaged: bool = False


def read_part_index(folder: Path, identity: str) -> Mapping[str, PartRows]:
    """The entries of a folder's index by file name; empty if there is no index or it is damaged.

    The index is a copy: before an entry is used, its fingerprint is compared with that of the part.
    """
    try:
        with (folder / _FILE).open("rb") as file:
            digest = file.read(_DIGEST_BYTES)
            if _digest(file) != digest:
                return {}
            file.seek(_DIGEST_BYTES)
            with np.load(file, allow_pickle=False) as stored:
                columns = {name: stored[name] for name in stored.files}
    except OSError:
        return {}
    if str(columns["identity"]) != identity:
        return {}
    images, features = columns["image_digest"], columns["feature_digest"]
    names = ("name", "fingerprint", "written", "adopted", "unverified")
    facts = zip(*(columns[name].tolist() for name in names), strict=True)
    bounds = pairwise([0, *np.cumsum(columns["rows"]).tolist()])
    return {
        name: PartRows(folder / name, seen, written, images[first:last], features[first:last], adopted, unverified)
        for (name, seen, written, adopted, unverified), (first, last) in zip(facts, bounds, strict=True)
    }


def write_part_index(folder: Path, identity: str, parts: Sequence[PartRows]) -> None:
    """Replace the index of a folder; where the storage cannot be written, parts are opened again the next time.

    If two processes write at once, the later one wins; missing entries are read from the parts.
    """
    columns: dict[str, Any] = {
        "identity": np.array(identity),
        "name": np.array([part.path.name for part in parts]),
        "fingerprint": np.array([part.fingerprint for part in parts]),
        "written": np.array([part.written for part in parts], np.int64),
        "adopted": np.array([part.adopted for part in parts], np.bool_),
        "unverified": np.array([part.unverified for part in parts], np.bool_),
        "rows": np.array([len(part.image_digest) for part in parts], np.int64),
        "image_digest": np.concatenate([part.image_digest for part in parts]),
        "feature_digest": np.concatenate([part.feature_digest for part in parts]),
    }
    with suppress(StorageError), replacing(folder / _FILE) as temporary, temporary.open("r+b") as file:
        file.seek(_DIGEST_BYTES)
        np.savez(file, **columns)
        file.seek(_DIGEST_BYTES)
        digest = _digest(file)
        file.seek(0)
        file.write(digest)


def _digest(file: IO[bytes]) -> bytes:
    """XXH3 of the remaining bytes of a file."""
    hasher = xxhash.xxh3_128()
    while block := file.read(_BLOCK_BYTES):
        hasher.update(block)
    return hasher.digest()
