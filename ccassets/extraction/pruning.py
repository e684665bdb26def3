"""Pruning: removal of files under a storage root that no known study needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ccassets.database.reader import open_database
from ccassets.datasets.manifest import Manifest
from ccassets.extraction.parts import UNUSABLE, Digests
from ccassets.extraction.sources import recorded_identity
from ccassets.extraction.text_extraction import template_part_name
from ccassets.files import exclusive, leftovers
from ccassets.study.loading import load_study, study_files
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class Unneeded:
    """A file that no study needs, and the reason; `path` is relative to the storage root."""

    path: str
    bytes: int
    reason: str


@dataclass
class _Needs:
    """The needs for one encoder identity: rows by image digest, template parts by name.

    Both can be unknown; then every part of that kind is needed.
    """

    rows: set[bytes] = field(default_factory=set)
    templates: set[str] = field(default_factory=set)
    rows_unknown: bool = False
    templates_unknown: bool = False


def prune(study: Study, *, store: Store | None = None, dry_run: bool = False) -> list[Unneeded]:
    """Remove the files that no known study needs from a storage.

    Known are the study, every study found by name, and every folder of the storage with an encoder card, manifests
    or a database. Unneeded are all parts of an encoder that none of their cards and databases names, image parts
    none of whose rows is in a manifest or database of theirs, template parts that are in none of their vocabularies,
    and temporary files whose writer is gone.

    Args:
        study: A study in the storage.
        store: Its files, by default below `CCASSETS_STORAGE`.
        dry_run: Remove nothing.

    Returns:
        The files that were removed, or would be.

    Raises:
        StudyError: A study cannot be read, so that its needs are unknown. Nothing is removed then.
        DatasetError: The same for a manifest.
        DatabaseError: The same for a database.
    """
    store = store or Store.of(study)
    studies = [study, *(load_study(path) for path in study_files().values())]
    with ExitStack() as locks:
        encoders = sorted(path for path in (store.root / "features").glob("*") if path.is_dir())
        for folder in encoders if not dry_run else ():
            locks.enter_context(exclusive(folder / "rows"))
            locks.enter_context(exclusive(folder / "templates"))
        needs = _needs(store, studies)
        parts = [part for folder in encoders for part in _unneeded_parts(folder, needs.get(folder.name), store)]
        for part in parts if not dry_run else ():
            (store.root / part.path).unlink()
    return [*parts, *_leftovers(store, dry_run)]


def _needs(store: Store, studies: Sequence[Study]) -> Mapping[str, _Needs]:
    """The needs of all studies, by encoder identity."""
    needs: defaultdict[str, _Needs] = defaultdict(_Needs)
    for folder in store.root.glob("*"):
        identity = recorded_identity(Store(store.root, folder.name, ""))
        if identity is not None:
            _add_recorded(needs[identity], folder, [study for study in studies if study.name == folder.name])
        for path in folder.glob("*.h5"):
            with open_database(path) as database:
                encoder = (database.provenance or {}).get("encoder", {}).get("identity")
                if encoder is not None and database.image_digest is not None:
                    needs[encoder].rows |= _as_set(database.image_digest)
                    needs[encoder].templates_unknown |= encoder != identity
    return needs


def _add_recorded(needs: _Needs, folder: Path, studies: Sequence[Study]) -> None:
    """Add what a study's folder needs of the encoder on its card."""
    for path in folder.glob("manifest/*.parquet"):
        manifest = Manifest.load(path)
        needs.rows |= _as_set(manifest.image_digest)
        # A limit names some rows only; those that were encoded without it will be needed again.
        needs.rows_unknown |= manifest.limit is not None
    for study in studies:
        needs.templates |= {template_part_name(template) for template in study.vocabulary.templates().values()}
    needs.templates_unknown |= not studies


def _unneeded_parts(folder: Path, needs: _Needs | None, store: Store) -> Iterator[Unneeded]:
    for path in sorted(folder.glob("*/*.h5")):
        if needs is None:
            yield _unneeded(path, "of an encoder that no study uses", store)
        elif path.parent.name == "templates" and not needs.templates_unknown and path.name not in needs.templates:
            yield _unneeded(path, "of a template that no study has", store)
        elif path.parent.name == "rows" and not needs.rows_unknown and _holds_none_of(path, needs.rows):
            yield _unneeded(path, "of images that are in no study", store)


def _holds_none_of(path: Path, rows: set[bytes]) -> bool:
    """Whether an image part holds none of the given rows; one that cannot be read now may be readable later."""
    try:
        with open_database(path) as part:
            return part.image_digest is not None and _as_set(part.image_digest).isdisjoint(rows)
    except UNUSABLE:
        return False


def _leftovers(store: Store, dry_run: bool) -> list[Unneeded]:
    files = []
    for folder in [store.root, *(path for path in store.root.rglob("*") if path.is_dir())]:
        for path in leftovers(folder):
            files.append(_unneeded(path, "left behind by a process that died", store))
            if not dry_run:
                path.unlink()
    return files


def _unneeded(path: Path, reason: str, store: Store) -> Unneeded:
    return Unneeded(store.relative(path), path.stat().st_size, reason)


def _as_set(digests: Digests) -> set[bytes]:
    return {digest.tobytes() for digest in digests}
