"""Parts: the rows that the files of finished shards hold, and whether these files are still intact."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import section
from ccassets.database.feature_digests import iter_feature_digests, rows_digest
from ccassets.database.hdf5 import READ_ERRORS
from ccassets.database.reader import Database, open_database
from ccassets.database.row_order import has_unverified_order
from ccassets.errors import DatabaseError
from ccassets.extraction.part_index import MOST_OPENED, Digests, PartRows, read_part_index, write_part_index
from ccassets.files import files_in, fingerprint, reading_errors, storage_errors
from ccassets.study.storage import Store

UNUSABLE = (DatabaseError, *READ_ERRORS)
"""Errors of reading a damaged part, whose rows are then encoded again.

`StorageError` is not one: a file that the system does not let us read now may be intact.
"""


_NEVER = (None, None)


@dataclass(frozen=True)
class RowIndex:
    """The rows that parts and databases of one encoder identity already hold, found by image digest.

    `image_digest` (M, 32), `feature_digest` (M, 16), `source` and `row` (M,) give for every held row its image, its
    features, and where it lies. Earlier entries take precedence: the newest part first, databases last. `is_adopted`
    says for every source whether its features were imported, `is_unverified` whether their order was not verified.
    `damaged` names parts whose bytes changed since they were written; their rows do not count as held.
    """

    sources: Sequence[Path]
    image_digest: Digests
    feature_digest: Digests
    source: npt.NDArray[np.int64]
    row: npt.NDArray[np.int64]
    is_adopted: npt.NDArray[np.bool_]
    is_unverified: npt.NDArray[np.bool_]
    damaged: Sequence[str] = ()

    def rows_of(self, source: Path) -> int:
        """Number of rows that a source holds."""
        return int(np.count_nonzero(self.source == list(self.sources).index(source)))

    @cached_property
    def _sorted(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The beginnings of the held images' digests, sorted, and the first entry of each."""
        distinct, first = np.unique(_beginnings(self.image_digest), return_index=True)
        return distinct, first.astype(np.int64)

    def find(self, image_digest: Digests) -> npt.NDArray[np.int64]:
        """For every image digest (n, 32) the entry that holds it, -1 where none does: (n,) int64."""
        known, first = self._sorted
        if not len(known) or not len(image_digest):
            return np.full(len(image_digest), -1, np.int64)
        # Numbers are sorted and found three times as fast as whole digests, of which hardly two begin alike; and in
        # their order twice as fast again, because neighbours lie in the cache.
        beginnings = _beginnings(image_digest)
        order = np.argsort(beginnings)
        nearest = np.empty(len(order), np.int64)
        nearest[order] = np.minimum(np.searchsorted(known, beginnings[order]), len(known) - 1)
        held, keys, entries = as_keys(self.image_digest), as_keys(image_digest), first[nearest]
        equal = held[entries] == keys
        entries[~equal] = -1
        doubtful = np.flatnonzero(~equal & (known[nearest] == beginnings))
        if len(doubtful):
            entry_of = {digest: entry for entry, digest in reversed(list(enumerate(held.tolist())))}
            entries[doubtful] = [entry_of.get(digest, -1) for digest in keys[doubtful].tolist()]
        return entries

    def without_unverified(self) -> RowIndex:
        """The index without rows of unverified order."""
        kept = ~self.is_unverified[self.source]
        return replace(
            self,
            image_digest=self.image_digest[kept],
            feature_digest=self.feature_digest[kept],
            source=self.source[kept],
            row=self.row[kept],
        )


class VerifiedFiles:
    """A record of the files of a folder whose bytes were verified, by fingerprint: only changed files are hashed again.

    `rows_only` is a record of its own for databases of which only the rows were hashed, not templates, labels and keys.
    A writer records what it wrote without reading it back; `was_read` says whether the bytes were hashed as they lie on
    the disk, too. Kept as lines of JSON (name, fingerprint, and the time at which it was read) that are only ever
    appended, so that several processes may write, and a line that is incomplete or missing only means that a file is
    hashed once more.
    """

    def __init__(self, folder: Path, *, rows_only: bool = False) -> None:
        self._path = folder / ("verified_rows.jsonl" if rows_only else "verified.jsonl")

    @cached_property
    def _known(self) -> dict[str, tuple[str | None, int | None]]:
        known: dict[str, tuple[str | None, int | None]] = {}
        try:
            text = self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return known
        for line in text.splitlines():
            with suppress(ValueError, TypeError):  # A damaged line may be any JSON.
                name, seen, *read_at = json.loads(line)
                known[name] = seen, read_at[0] if read_at else None
        return known

    def has(self, path: Path) -> bool:
        """Whether the file is the one that was verified."""
        return self.verified_fingerprint(path) == fingerprint(path)

    def verified_fingerprint(self, path: Path) -> str | None:
        """The fingerprint that the file had when it was verified; None where it never was."""
        return self._known.get(path.name, _NEVER)[0]

    def was_read(self, path: Path) -> bool:
        """Whether the file is the one that was verified, by reading it after it was written."""
        return self.has(path) and self._known[path.name][1] is not None

    def add(self, path: Path, *, read: bool = False) -> None:
        """Record that the file has the right bytes now; with `read`, that they were read from the disk."""
        facts = fingerprint(path), int(time.time()) if read else None
        self._known[path.name] = facts
        line = [path.name, facts[0], *([facts[1]] if read else [])]
        with suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget(self, path: Path) -> None:
        """Mark the file to be hashed again before its next use; raises `StorageError` when that cannot be recorded."""
        self._known.pop(path.name, None)
        with storage_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            # On a line of its own also after a torn one: this line must not be lost.
            file.write("\n" + json.dumps([path.name, None]) + "\n")


def is_part(source: Path) -> bool:
    """Whether a source of rows is an image part; else it is a database."""
    return source.parent.name == "rows" and source.parents[2].name == "features"  # A study may be called `rows`.


def record_of(path: Path) -> VerifiedFiles:
    """The record that holds a part or a database.

    A database that was verified as a whole needs no check of its rows; one whose rows alone were hashed is not verified
    as a whole.
    """
    whole = VerifiedFiles(path.parent)
    return whole if is_part(path) or whole.has(path) else VerifiedFiles(path.parent, rows_only=True)


def held_rows(store: Store, identity: str, *, known_only: bool = False) -> RowIndex:
    """The index of all rows of an encoder identity under a storage root: parts first, then databases.

    A file whose fingerprint is not known is verified first; with `known_only` its rows are not held. Parts that changed
    since the index of their folder was written are opened; where these are many, it is written anew.
    """
    folder = store.image_parts(identity)
    verified = VerifiedFiles(folder)
    indexed = read_part_index(folder, identity)
    parts = [_read_rows(path, identity, verified, known_only, indexed) for path in files_in(folder, "*.h5")]
    intact = [part for part in parts if not part.damaged]
    if sum(indexed.get(part.path.name) is not part for part in intact) > MOST_OPENED:
        write_part_index(folder, identity, intact)
    newest_first = sorted(parts, key=lambda part: (-part.written, part.path.name))
    with reading_errors(store.root):
        files = sorted(store.root.glob("*/*.h5"))
    databases = [
        _read_rows(path, identity, record_of(path), known_only) for path in files if _identity_of(path) == identity
    ]
    return _index([*newest_first, *databases])


def with_newer(index: RowIndex, parts: Iterable[Path], identity: str, verified: VerifiedFiles) -> RowIndex:
    """The index with newer parts, which take precedence over its entries."""
    newer = _index(_read_rows(path, identity, verified) for path in parts)
    return RowIndex(
        sources=[*newer.sources, *index.sources],
        image_digest=np.concatenate([newer.image_digest, index.image_digest]),
        feature_digest=np.concatenate([newer.feature_digest, index.feature_digest]),
        source=np.concatenate([newer.source, len(newer.sources) + index.source]),
        row=np.concatenate([newer.row, index.row]),
        is_adopted=np.concatenate([newer.is_adopted, index.is_adopted]),
        is_unverified=np.concatenate([newer.is_unverified, index.is_unverified]),
        damaged=[*newer.damaged, *index.damaged],
    )


def has_rows_digest(database: Database) -> bool:
    """Whether image digests and feature digests are those that the file was written with; reads no feature."""
    images, features = database.image_digest, database.feature_digest
    if images is None or features is None:
        return False
    return bool(database.attributes.get("rows_digest") == rows_digest(images, features))


def verify_rows(database: Database) -> bool:
    """Whether every stored row still has the digest that was taken when it was written."""
    expected = database.feature_digest
    if expected is None or len(expected) != len(database) or not has_rows_digest(database):
        return False
    blocks = iter_feature_digests(database.image_features, database.image_token_features)
    return all(np.array_equal(digests, expected[first : first + len(digests)]) for first, digests in blocks)


def seconds_per_row(index: RowIndex) -> float | None:
    """The median time that a row of the newest parts took to encode; None if no part was encoded."""
    times = []
    for path in islice(filter(is_part, index.sources), 16):
        with suppress(*UNUSABLE), open_database(path) as part:
            provenance = part.provenance or {}
            if provenance["origin"] == "extracted":
                times.append(float(provenance["created"]["seconds"]) / len(part))
    return statistics.median(times) if times else None


def _read_rows(
    path: Path,
    identity: str,
    verified: VerifiedFiles,
    known_only: bool = False,
    indexed: Mapping[str, PartRows] = MappingProxyType({}),
) -> PartRows:
    nothing = PartRows(path, "", 0, np.empty((0, 32), np.uint8), np.empty((0, 16), np.uint8), damaged=True)
    try:
        with reading_errors(path):
            seen = fingerprint(path)
        entry = indexed.get(path.name)
        if entry is not None and entry.fingerprint == seen == verified.verified_fingerprint(path):
            return entry
        with reading_errors(path), open_database(path) as database:
            provenance = database.provenance or {}
            images, features = database.image_digest, database.feature_digest
            if section(provenance, "encoder").get("identity") != identity or images is None or features is None:
                return nothing
            if not has_rows_digest(database):
                return nothing  # Known or not: which row is whose image is read anew, and costs nothing to check.
            if not verified.has(path):
                if known_only or not verify_rows(database):
                    return nothing
                verified.add(path, read=True)
            written = int(provenance["created"]["unix_ns"])
            return PartRows(
                path,
                seen,
                written,
                images,
                features,
                adopted=provenance.get("origin") == "adopted",
                unverified=has_unverified_order(provenance),
            )
    except UNUSABLE:
        return nothing


def _identity_of(path: Path) -> Any:
    try:
        with reading_errors(path), open_database(path) as database:
            return section(database.provenance, "encoder").get("identity")
    except UNUSABLE:
        return None


def _index(files: Iterable[PartRows]) -> RowIndex:
    kept, damaged = [], []
    for file in files:
        if file.damaged:
            damaged.append(file.path.name)
        else:
            kept.append(file)
    return RowIndex(
        sources=[file.path for file in kept],
        image_digest=np.concatenate([np.empty((0, 32), np.uint8), *(file.image_digest for file in kept)]),
        feature_digest=np.concatenate([np.empty((0, 16), np.uint8), *(file.feature_digest for file in kept)]),
        source=np.repeat(np.arange(len(kept)), [len(file.image_digest) for file in kept]).astype(np.int64),
        row=np.concatenate([np.empty(0, np.int64), *(np.arange(len(file.image_digest)) for file in kept)]),
        is_adopted=np.array([file.adopted for file in kept], np.bool_),
        is_unverified=np.array([file.unverified for file in kept], np.bool_),
        damaged=damaged,
    )


def _beginnings(digests: Digests) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each digest as a number."""
    return np.ascontiguousarray(digests[:, :8], np.uint8).view(np.uint64).ravel()


def as_keys(digests: Digests) -> npt.NDArray[np.bytes_]:
    """Image digests (n, 32) as n byte strings, to be sorted and compared."""
    # All are 32 bytes long, so numpy's padding of byte strings with zeros cannot make two of them equal.
    return np.ascontiguousarray(digests, np.uint8).reshape(-1, 32).view("S32").ravel()
