"""Damage tracing: from a damaged database to the damaged parts behind it, so that the next build repairs both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS, validate_database
from ccassets.errors import StorageError
from ccassets.extraction.parts import UNUSABLE, VerifiedFiles, is_part, verify_rows
from ccassets.extraction.sources import recorded_identity
from ccassets.files import files_in, reading_errors
from ccassets.findings import Finding
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_OF_ROWS = {"feature_digest", "rows_digest"}


def trace_damage(file: Path, findings: Sequence[Finding]) -> list[Finding]:
    """Find the damaged parts behind a deep validation, so that the next build repairs them.

    A file of a storage whose bytes have changed is no longer recorded as verified, and neither is any damaged part of
    its study's encoder. The next build assembles the file again and encodes the rows of these parts. A file outside a
    storage has no parts; for it, nothing is changed.

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
    return _damaged_parts(
        Store(file.parent.parent, file.parent.name, file.name), "the next build encodes its images again"
    )


def check_deeply(study: Study, store: Store) -> list[Finding]:
    """Validate a study's database and all parts of its encoder byte by byte; damaged ones no longer count as verified.

    Args:
        study: The study.
        store: Its files.

    Returns:
        The findings of the database, and one for every damaged part, by its path in the storage.

    Raises:
        DatabaseError: There is no database, or it cannot be read.
        StorageError: The system refuses to read it.
    """
    findings = validate_database(store.database, study=study, deep=True)
    advice = "remove it; a build takes its rows from a database that holds them, or encodes them again"
    return [*findings, *(trace_damage(store.database, findings) or _damaged_parts(store, advice))]


def _damaged_parts(store: Store, advice: str) -> list[Finding]:
    """The parts of a study's encoder that hold other bytes than were written, which no longer count as verified."""
    identity = recorded_identity(store)
    if identity is None:
        return []
    damaged = list(_unequal_parts(store.image_parts(identity)))
    is_recorded = _forget(damaged, [VerifiedFiles(store.image_parts(identity))])
    advice = advice if is_recorded else "remove it, and build again"
    return [
        Finding(
            "feature_digest",
            "error",
            f"expected the bytes that were written to this part, found others: {advice}",
            store.relative(part),
        )
        for part in damaged
    ]


def _unequal_parts(folder: Path) -> Iterator[Path]:
    for path in files_in(folder, "*.h5"):
        try:
            with reading_errors(path), open_database(path) as part:
                if not verify_rows(part):
                    yield path
        except UNUSABLE:
            yield path


def _forget(files: Iterable[Path], records: Sequence[VerifiedFiles]) -> bool:
    """Mark files to be hashed again before their next use; False if the storage cannot be written."""
    try:
        for file in files:
            for record in records:
                if record.has(file):
                    record.forget(file)
    except StorageError:
        return False
    return True
