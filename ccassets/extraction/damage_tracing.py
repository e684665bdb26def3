"""Damage tracing: from a damaged database to the damaged parts behind it, so that the next build mends both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS
from ccassets.errors import StorageError
from ccassets.extraction.parts import UNUSABLE, VerifiedFiles, is_part, verify_rows
from ccassets.extraction.sources import recorded_identity
from ccassets.files import reading_refused
from ccassets.findings import Finding
from ccassets.study.storage import Store

_OF_ROWS = {"feature_digest", "rows_digest"}


def trace_damage(file: Path, findings: Sequence[Finding]) -> list[Finding]:
    """Find the damaged parts behind a deep validation, and have the next build mend what it found.

    A file of a storage that holds other bytes than were written, and every damaged part of its study's encoder, are no
    longer recorded as verified: the next build assembles the file again, and encodes the rows of these parts. Of a
    file in no storage nothing is known, and nothing is changed.

    Args:
        file: The file that was validated.
        findings: The findings of its deep validation.

    Returns:
        A finding for every damaged part, by its path in the storage.
    """
    checks = {finding.check for finding in findings if finding.severity == "error"}
    if not any(CHECKS[check].group == "digests" for check in checks if check in CHECKS):
        return []
    file = file.absolute()
    _forget([file], [VerifiedFiles(file.parent), VerifiedFiles(file.parent, rows_only=True)])
    if is_part(file) or not checks & _OF_ROWS:
        return []
    store = Store(file.parent.parent, file.parent.name, file.name)
    identity = recorded_identity(store)
    if identity is None:
        return []
    damaged = list(_damaged_parts(store.image_parts(identity)))
    is_recorded = _forget(damaged, [VerifiedFiles(store.image_parts(identity))])
    advice = "the next build encodes its images again" if is_recorded else "remove it, and build again"
    return [
        Finding(
            "feature_digest",
            "error",
            f"the bytes that were written to this part were expected; found others: {advice}",
            store.relative(part),
        )
        for part in damaged
    ]


def _damaged_parts(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.glob("*.h5")):
        try:
            with open_database(path) as part:
                if not verify_rows(part):
                    yield path
        except UNUSABLE as error:
            if refusal := reading_refused(error, str(path)):
                raise refusal from error
            yield path


def _forget(files: Iterable[Path], records: Sequence[VerifiedFiles]) -> bool:
    """Have files hashed again by whoever uses them next; False where the storage cannot be written."""
    try:
        for file in files:
            for record in records:
                if record.has(file):
                    record.forget(file)
    except StorageError:
        return False
    return True
