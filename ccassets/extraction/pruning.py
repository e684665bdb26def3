"""Pruning: removal of files under a storage root that no known study needs."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ccassets.database.attributes import section
from ccassets.database.encoder_identity import compute_identity
from ccassets.database.reader import Database, open_database
from ccassets.datasets.manifest import Manifest
from ccassets.errors import DatabaseError, DatasetError, EncoderError, StorageError
from ccassets.extraction.part_index import Digests
from ccassets.extraction.parts import UNUSABLE, has_rows_digest
from ccassets.extraction.sources import load_encoder_record, request_digest
from ccassets.extraction.text_extraction import template_part_name
from ccassets.files import exclusive, files_in, is_locked, leftovers, storage_errors
from ccassets.study.loading import command_argument, load_study, study_files
from ccassets.study.schema import Study
from ccassets.study.storage import Store

PRUNE_LOG = "pruned.jsonl"
"""The file in the storage root that names every file that was removed, with reason, size, study and time."""

_RECENT_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Unneeded:
    """A file that no study needs.

    Attributes:
        path: The path relative to the storage root.
        bytes: The size in bytes.
        reason: Why it is not needed.
        recent: Whether it is a part younger than a day, which is kept unless `now` is set.
    """

    path: str
    bytes: int
    reason: str
    recent: bool = False


@dataclass
class _Needs:
    """The needs for one encoder identity: rows by image digest, template parts by name.

    Both can be unknown; then every part of that kind is needed.
    """

    rows: set[bytes] = field(default_factory=set)
    templates: set[str] = field(default_factory=set)
    rows_unknown: bool = False
    templates_unknown: bool = False


def prune(study: Study, *, store: Store | None = None, dry_run: bool = False, now: bool = False) -> list[Unneeded]:
    """Remove the files that no known study needs from a storage.

    The known studies are this one, every study found by name, and every folder of the storage with an encoder card,
    manifests or a database. Not needed are all parts of an encoder that no known study uses, image parts without a row
    in a manifest or database of a known study, template parts of none of their vocabularies, and temporary files whose
    writer is gone. A file that cannot be read as a part of its encoder is never removed.

    Args:
        study: A study in the storage.
        store: Its files, by default below `CCASSETS_STORAGE`.
        dry_run: Remove nothing.
        now: Also remove parts younger than a day.

    Returns:
        The unneeded files. Those that are not `recent` were removed, or would be by a call without `dry_run`; with
        `now`, the recent ones too.

    Raises:
        StudyError: A study cannot be read. With this and the following errors, needs are unknown and nothing is
            removed.
        EncoderError: An encoder card is missing, damaged, or older than the study's encoder section.
        DatasetError: A manifest is missing or damaged.
        DatabaseError: A database is missing or damaged.
        StorageError: A folder is missing or cannot be read, or a run is in progress.
    """
    store = store or Store.of(study)
    studies = [study, *(load_study(path) for path in study_files().values())]
    remove = _no_removal if dry_run else _Remover(study, store)
    with ExitStack() as locks:
        encoders = _folders(store.root / "features")
        for folder in encoders if not dry_run else ():
            locks.enter_context(exclusive(folder / "rows"))
            locks.enter_context(exclusive(folder / "templates"))
            locks.enter_context(exclusive(folder))  # Whoever copies from parts holds it.
        _require_no_run(store)
        needs = _needs(store, study, studies)
        parts = [part for folder in encoders for part in _unneeded_parts(folder, needs.get(folder.name), store)]
        for part in parts:
            if now or not part.recent:
                remove(part)
    return [*parts, *_leftovers(store, remove)]


# --- what is needed ----------------------------------------------------------------------------------


def _require_no_run(store: Store) -> None:
    """Refuse to prune beside a run: the card and the manifests that it has not written yet say what it needs."""
    for path in files_in(store.runs, "*.lock"):
        if is_locked(path):
            raise StorageError(f"Run {path.stem} is in progress in {store.root}. Prune when it has ended.")


def _needs(store: Store, study: Study, studies: Sequence[Study]) -> Mapping[str, _Needs]:
    """The needs of all studies, by encoder identity."""
    needs: defaultdict[str, _Needs] = defaultdict(_Needs)
    folders = _folders(store.root)
    if store.folder not in folders:
        raise StorageError(
            f"{store.folder} is missing, so the needs of {study.name} are unknown. Run "
            f"`ccassets build {command_argument(study)} --plan` first, or prune with another study of this storage if "
            "this one is over."
        )
    for folder in folders:
        named = [known for known in studies if known.name == folder.name]
        identity = _add_recorded(needs, Store(store.root, folder.name, ""), named)
        for name in _names(folder):
            if name.endswith(".h5"):
                _add_database(needs, folder / name, identity)
    return needs


def _add_recorded(needs: Mapping[str, _Needs], store: Store, studies: Sequence[Study]) -> str | None:
    """Add what a study's folder needs of the encoder on its card, whose identity is returned."""
    names = _names(store.folder)
    manifests = [name for name in _names(store.folder / "manifest") if name.endswith(".parquet")]
    if store.encoder_card.name not in names:
        if manifests or studies or store.study_record.name in names:
            raise EncoderError(f"{store.encoder_card} is missing; without it, {_unknown_needs(store)}")
        return None
    record = load_encoder_record(store)
    if studies and record.request not in map(request_digest, studies):
        raise EncoderError(
            f"The encoder section of {store.study} changed since {store.encoder_card} was written; "
            f"{_unknown_needs(store)}"
        )
    splits = {*record.splits, *(split for study in studies for split in study.splits)}
    missing = sorted({store.manifest(split).name for split in splits}.difference(manifests))
    if missing or not manifests:
        path = store.folder / "manifest" / (missing[0] if missing else "")
        raise DatasetError(f"{path} is missing; without it, {_unknown_needs(store)}")
    _add_manifests(needs[record.card.identity], store, [store.folder / "manifest" / name for name in manifests])
    needs[record.card.identity].templates |= {
        template_part_name(template) for study in studies for template in study.vocabulary.templates().values()
    }
    needs[record.card.identity].templates_unknown |= not studies
    return record.card.identity


def _add_manifests(needs: _Needs, store: Store, paths: Sequence[Path]) -> None:
    for path in paths:
        manifest = Manifest.load(path)
        if store.manifest(manifest.split) != path:
            raise DatasetError(f"{path} is the manifest of split {manifest.split!r}, so {_unknown_needs(store)}")
        needs.rows |= _as_set(manifest.image_digest)
        # A limit names some rows only; those that were encoded without it will be needed again.
        needs.rows_unknown |= manifest.limit is not None


def _add_database(needs: Mapping[str, _Needs], path: Path, card_identity: str | None) -> None:
    """Add the rows of a database; one of the original scripts has no digests, and no part."""
    with open_database(path) as database:
        if database.image_digest is None and "provenance" not in database.attributes:
            return
        identity = _trusted_identity(database)
        if identity is None or database.image_digest is None:
            raise DatabaseError(
                f"The provenance or the digests of {path} are damaged, so it is unknown which parts it needs. Restore "
                "the file from a copy, or remove it and build its study again."
            )
        needs[identity].rows |= _as_set(database.image_digest)
        needs[identity].templates_unknown |= identity != card_identity


def _trusted_identity(database: Database) -> str | None:
    """The encoder identity of a database whose provenance and row digests agree with their own digests, else None."""
    encoder = section(database.provenance, "encoder")
    if not has_rows_digest(database):
        return None
    identity = encoder.get("identity")
    return identity if isinstance(identity, str) and identity == compute_identity(encoder) else None


def _unknown_needs(store: Store) -> str:
    return (
        f"it is unknown which parts {store.study} needs. Nothing was removed. Run `ccassets build {store.study} "
        f"--plan`, which reads images and encoder again, or remove {store.folder} if the study is over."
    )


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted; `StorageError` for a link that leads to nothing, as to a disk that is away."""
    folders = []
    for name in _names(folder):
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise StorageError(f"{path} leads to nothing: is its disk mounted? Nothing was removed.")
        if path.is_dir():
            folders.append(path)
    return folders


def _names(folder: Path) -> list[str]:
    """The names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(path.name for path in folder.iterdir())  # `glob` would pass over a folder it cannot read.
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}. Nothing was removed.") from error


# --- what is not -------------------------------------------------------------------------------------


def _unneeded_parts(folder: Path, needs: _Needs | None, store: Store) -> Iterator[Unneeded]:
    for path in sorted(folder.glob("*/*.h5")):
        reason = _reason(path, folder.name, needs)
        if reason:
            age = time.time() - path.stat().st_mtime
            yield _unneeded(path, reason, store, recent=age < _RECENT_SECONDS)


def _reason(path: Path, identity: str, needs: _Needs | None) -> str | None:
    """Why a part is not needed; None for one that is, and for a file that is not understood as a part."""
    try:
        with open_database(path) as part:
            if _part_identity(part) != identity:
                return None
            if needs is None:
                return "of an encoder that no study uses"
            if part.profile == "template-part":
                is_known = needs.templates_unknown or path.name in needs.templates
                return None if is_known else "of a template that no study has"
            if needs.rows_unknown or part.image_digest is None or not _as_set(part.image_digest).isdisjoint(needs.rows):
                return None
            return "of images that are in no study"
    except UNUSABLE:
        return None  # What cannot be read now may be readable later.


def _part_identity(part: Database) -> str | None:
    """The encoder identity of a part; None for another kind of file, or one in the folder of the other kind."""
    folders = {"image-part": "rows", "template-part": "templates"}
    if folders.get(part.profile) != part.path.parent.name:
        return None
    return section(part.provenance, "encoder").get("identity")


def _leftovers(store: Store, remove: Callable[[Unneeded], None]) -> list[Unneeded]:
    files = []
    for folder in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        for path in leftovers(folder):
            files.append(_unneeded(path, "left behind by a process that died", store))
            remove(files[-1])
    return files


def _unneeded(path: Path, reason: str, store: Store, *, recent: bool = False) -> Unneeded:
    return Unneeded(store.relative(path), path.stat().st_size, reason, recent)


# --- removal -----------------------------------------------------------------------------------------


def _no_removal(file: Unneeded) -> None:
    pass


class _Remover:
    """Removes files of a storage, each after a line in the log: what cannot be logged is not removed."""

    def __init__(self, study: Study, store: Store) -> None:
        self._study = study
        self._store = store

    def __call__(self, file: Unneeded) -> None:
        path = self._store.root / file.path
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"at": at, "study": self._study.name, "path": file.path, "bytes": file.bytes, "reason": file.reason}
        log = self._store.root / PRUNE_LOG
        with storage_errors(log), log.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")
        with storage_errors(path):
            path.unlink(missing_ok=True)


def _as_set(digests: Digests) -> set[bytes]:
    return {digest.tobytes() for digest in digests}
