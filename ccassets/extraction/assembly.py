"""Assembly of a study's database: the rows of the manifests, with the bytes of the parts, in a new file."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import database_digest, split_digest, template_digest
from ccassets.database.layout import LOGIT_PARAMETERS, LOGIT_SCALE_SPACE
from ccassets.database.merging import assemble
from ccassets.database.reader import open_database
from ccassets.database.row_order import unverified_rows
from ccassets.database.validation import validate_database
from ccassets.database.writer import FileContent, RowContent
from ccassets.datasets import open_dataset
from ccassets.datasets.manifest import Manifest
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.errors import DamagedSourceError, DatabaseError, DatasetError, StorageError
from ccassets.extraction.data_loss import require_no_loss
from ccassets.extraction.image_extraction import held_entries
from ccassets.extraction.parts import RowIndex, VerifiedFiles, held_rows, is_part, record_of
from ccassets.extraction.plan import row_bytes
from ccassets.extraction.provenance import certificate_provenance, created, encoder_provenance, libraries
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import StoredTemplate, stored_template
from ccassets.files import exclusive, remove_leftovers, require_space, shared
from ccassets.findings import has_errors
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Assembly:
    """The database that `assemble_database` wrote, or left as it was because nothing had changed.

    Attributes:
        path: The file.
        digest: The database's digest (hex).
        rows: Number of rows.
        bytes: Size of the file in bytes.
        seconds: Time of the assembly in seconds.
        unchanged: Whether the file was left as it was.
    """

    path: Path
    digest: str
    rows: int
    bytes: int
    seconds: float
    unchanged: bool


def assemble_database(
    study: Study,
    *,
    store: Store | None = None,
    output: str | os.PathLike[str] | None = None,
    fresh: bool = False,
    allow_loss: bool = False,
    progress: Progress = silent,
) -> Assembly:
    """Assemble the database of a study from its parts.

    The old file stays readable until the new one is whole. A database that is up to date is left as it is. A part is
    hashed when it first enters a database; rows of a damaged part are taken from another file, or the assembly stops.

    Args:
        study: The study; all its images and templates must be encoded.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        output: The file to write, by default the study's database.
        fresh: Take nothing from the old file, and write also what is up to date.
        allow_loss: Replace the old file although no part and no other database holds some of its rows.
        progress: Called with the rows copied so far and the rows of the database.

    Returns:
        The file and its digest.

    Raises:
        StorageError: Parts are missing or damaged (split or template are named), the disk is too small, or rows of the
            old file would be lost.
        DatasetError: Splits were read under different class lists.
        StudyError: The study's folder in the storage belongs to a study of the same name at another path.
        DatabaseError: `keep_parts: false` and the database is not valid; parts are kept then.
    """
    store = store or Store.of(study)
    path = store.database if output is None else Path(output)
    started = time.perf_counter()
    card = recorded_card(study, store)
    manifests = [recorded_manifest(study, split, store) for split in study.splits]
    _require_one_class_list(study, manifests)
    templates = _templates(study, card, store)
    with exclusive(store.folder):
        remove_leftovers(path.parent)
        with shared(store.encoder_parts(card.identity)):
            while True:
                index = held_rows(store, card.identity)
                entries = np.concatenate([np.empty(0, np.int64), *(held_entries(rows, index) for rows in manifests)])
                content = _content(study, store, card, manifests, templates, index, entries, started)
                unchanged = not fresh and _is_already(path, content, VerifiedFiles(store.folder))
                if unchanged:
                    break
                if not allow_loss:
                    require_no_loss(study, store, path, card.identity, manifests)
                require_space(path.parent, len(entries) * row_bytes(card), f"The database of {study.name}")
                try:
                    _write(path, content, index, entries, progress, fresh=fresh)
                    VerifiedFiles(store.folder).add(path, read=True)
                    break
                except DamagedSourceError as error:  # The next index leaves its rows out.
                    _log.warning("%s", error)
                    record_of(error.path).forget(error.path)
        if not study.storage.keep_parts and path == store.database:  # Rows of a file elsewhere are not found again.
            _drop_parts(study, store, card, index, entries)
    digest = content.attributes["provenance"]["digests"]["database"]
    return Assembly(path, digest, len(entries), path.stat().st_size, time.perf_counter() - started, unchanged)


def _require_one_class_list(study: Study, manifests: Sequence[Manifest]) -> None:
    """Refuse splits whose labels were numbered after different class lists: equal labels would mean other classes."""
    for manifest in manifests:
        if manifest.classes != manifests[0].classes:
            raise DatasetError(
                f"Split {manifests[0].split!r} of {study.name} was read with the classes {list(manifests[0].classes)}, "
                f"split {manifest.split!r} with {list(manifest.classes)}. "
                f"Materialize `{study.name}/images` for all splits again."
            )


def _templates(study: Study, card: EncoderCard, store: Store) -> dict[str, StoredTemplate]:
    templates = {}
    for template_id, template in study.vocabulary.templates().items():
        stored = stored_template(template, card, store)
        if stored is None:
            raise StorageError(
                f"Template {template_id!r} of {study.name} is not encoded yet. "
                f"Materialize `{study.name}/template_features/{template_id}` first."
            )
        templates[template_id] = stored
    return templates


def _content(
    study: Study,
    store: Store,
    card: EncoderCard,
    manifests: Sequence[Manifest],
    templates: Mapping[str, StoredTemplate],
    index: RowIndex,
    entries: npt.NDArray[np.int64],
    started: float,
) -> FileContent:
    rows = _rows(manifests, index.feature_digest[entries])
    vocabulary = _vocabulary(study)
    splits = _split_digests(manifests, rows)
    dataset = open_dataset(study, store)
    parts = _part_provenance(index, entries)
    origins = {*(template.origin for template in templates.values()), *(part["origin"] for part in parts)}
    provenance = {
        "origin": "adopted" if "adopted" in origins else "extracted",
        "encoder": encoder_provenance(card),
        **certificate_provenance(store.certificate, card.identity),
        "dataset": {
            "kind": study.dataset.kind,
            "name": dataset.name,
            "version": dataset.version,
            **({"license": study.dataset.license} if study.dataset.license else {}),
            "labels": "present" if all(manifest.labelled for manifest in manifests) else "none",
            "classes": list(manifests[0].classes),
            "splits": _split_provenance(manifests),
        },
        "extraction": {
            "batch_size": study.extraction.batch_size,
            "rows_per_shard": study.extraction.rows_per_shard,
            "on_bad_image": study.extraction.on_bad_image,
        },
        "libraries": libraries(),
        "created": created(time.perf_counter() - started),
        "parts": parts,
        "templates": {
            name: {"origin": template.origin, **({"order": "unverified"} if template.unverified else {})}
            for name, template in templates.items()
        },
        "digests": {
            "splits": splits,
            "database": database_digest(
                splits, {name: template_digest(template.content) for name, template in templates.items()}, vocabulary
            ),
        },
    }
    logit_parameters = {name: getattr(card, name) for name in LOGIT_PARAMETERS if getattr(card, name) is not None}
    attributes: dict[str, Any] = {
        "split_counts": {manifest.split: len(manifest.keys) for manifest in manifests},
        **vocabulary,
        "concepts": [concept.model_dump(mode="json") for concept in study.vocabulary.concepts.words],
        "label_classes": list(manifests[0].classes),
        **({"label_ordinal": True} if study.vocabulary.labels.ordinal else {}),
        **logit_parameters,
        **({"logit_scale_space": LOGIT_SCALE_SPACE} if logit_parameters else {}),
        **({"limit": study.extraction.limit} if study.extraction.limit else {}),
        "dataset": dataset.name,
        "provenance": provenance,
    }
    contents = {name: template.content for name, template in templates.items()}
    return FileContent("database", card.dim, card.token_count, rows, contents, attributes)


def _rows(manifests: Sequence[Manifest], feature_digest: npt.NDArray[np.uint8]) -> RowContent:
    grouped = [manifest.groups for manifest in manifests if manifest.groups is not None]
    matrices = [manifest.label_matrix for manifest in manifests if manifest.label_matrix is not None]
    return RowContent(
        split=[manifest.split for manifest in manifests for _ in manifest.keys],
        labels=np.concatenate([manifest.labels for manifest in manifests]),
        keys=[key for manifest in manifests for key in manifest.keys],
        image_digest=np.concatenate([manifest.image_digest for manifest in manifests]),
        feature_digest=feature_digest,
        groups=[group for groups in grouped for group in groups] if len(grouped) == len(manifests) else None,
        label_matrix=np.concatenate(matrices) if len(matrices) == len(manifests) else None,
    )


def _vocabulary(study: Study) -> dict[str, list[str]]:
    vocabulary = study.vocabulary
    return {
        "label_texts": list(vocabulary.labels.words),
        "prompt_temp_for_labels": list(vocabulary.labels.templates),
        "concept_texts": list(vocabulary.concepts.texts),
        "prompt_temp_for_concepts": list(vocabulary.concepts.templates),
    }


def _split_digests(manifests: Sequence[Manifest], rows: RowContent) -> dict[str, str]:
    digests = {}
    first = 0
    for manifest in manifests:
        rows_of_split = slice(first, first + len(manifest.keys))
        digests[manifest.split] = split_digest(
            rows.feature_digest[rows_of_split],
            keys=manifest.keys,
            labels=manifest.labels,
            groups=manifest.groups,
            label_matrix=manifest.label_matrix,
        )
        first = rows_of_split.stop
    return digests


def _split_provenance(manifests: Sequence[Manifest]) -> dict[str, Any]:
    splits = {}
    first = 0
    for manifest in manifests:
        splits[manifest.split] = {
            "rows": len(manifest.keys),
            "images": manifest.digest,
            "skipped": [{"key": key, "reason": reason} for key, reason in manifest.skipped],
            "blank": (first + np.flatnonzero(manifest.blank)).tolist(),
            **({"overridden": dict(manifest.overridden)} if manifest.overridden else {}),
        }
        first += len(manifest.keys)
    return splits


def _part_provenance(index: RowIndex, entries: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    numbers, counts = np.unique(index.source[entries], return_counts=True)
    return [
        {
            "name": index.sources[number].name,
            "rows": int(count),
            "origin": "adopted" if index.is_adopted[number] else "extracted",
            **({"order": "unverified"} if index.is_unverified[number] else {}),
        }
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)
    ]


def _is_already(path: Path, content: FileContent, verified: VerifiedFiles) -> bool:
    """Whether the file at `path` already holds these rows, templates and attributes, and was not changed."""
    if not path.is_file() or not verified.has(path):
        return False
    with open_database(path) as database:
        return _timeless(database.attributes, content.attributes) == _timeless(content.attributes, content.attributes)


def _timeless(attributes: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The given attributes, without those that differ between two assemblies of the same database."""
    chosen = {name: attributes.get(name) for name in names}
    provenance = dict(chosen["provenance"] or {})
    unverified = unverified_rows(provenance, 0)
    for name in ("created", "parts", "libraries"):
        provenance.pop(name, None)
    return {**chosen, "provenance": provenance, "unverified rows": unverified}


def _write(
    path: Path,
    content: FileContent,
    index: RowIndex,
    entries: npt.NDArray[np.int64],
    progress: Progress,
    *,
    fresh: bool,
) -> None:
    """Write the database, and record which parts were read; `DamagedSourceError` names a damaged one."""
    sources, source_of, row_in = _copy_sources(index, entries, None if fresh else path)
    used = [sources[number] for number in np.unique(source_of).tolist()]
    records = {folder: VerifiedFiles(folder) for folder in {source.parent for source in used if is_part(source)}}
    record_by_source = {source: records.get(source.parent) or record_of(source) for source in used}
    unread = {source for source, record in record_by_source.items() if not record.was_read(source)}
    assemble(path, content, sources, source_of, row_in, progress, unread=unread)
    for number, source in enumerate(sources):
        # Rows that did not enter the database were not hashed.
        if source in unread and source != path and len(np.unique(row_in[source_of == number])) == index.rows_of(source):
            record_by_source[source].add(source, read=True)


def _copy_sources(
    index: RowIndex, entries: npt.NDArray[np.int64], path: Path | None
) -> tuple[Sequence[Path], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The files to copy rows from, and for every row its file and its row there.

    If the old database at `path` holds exactly these rows, it is the only source. Its layout is the same, so the bytes
    are aligned as in the new file, and the file system can share them.
    """
    if path is not None and path in index.sources:
        number = list(index.sources).index(path)
        inside = np.flatnonzero(index.source == number)
        if len(inside) == len(entries) and np.array_equal(index.feature_digest[inside], index.feature_digest[entries]):
            return [path], np.zeros(len(entries), np.int64), index.row[inside]
    return index.sources, index.source[entries], index.row[entries]


def _drop_parts(study: Study, store: Store, card: EncoderCard, index: RowIndex, entries: npt.NDArray[np.int64]) -> None:
    """Remove image parts whose every row is in the database, once the database is deeply valid."""
    in_database = {digest.tobytes() for digest in index.image_digest[entries]}
    spare = [
        part
        for number, part in enumerate(index.sources)
        if is_part(part)
        and in_database.issuperset(digest.tobytes() for digest in index.image_digest[index.source == number])
    ]
    if not spare:
        return
    findings = validate_database(store.database, study=study, deep=True)
    if has_errors(findings):
        errors = "; ".join(finding.message for finding in findings if finding.severity == "error")
        raise DatabaseError(
            f"{store.database.name} is not valid, so its image parts are kept: {errors}. `ccassets validate "
            f"{store.database} --deep` says what to do about each."
        )
    with exclusive(store.encoder_parts(card.identity)):  # Another study may be copying from them.
        for part in spare:
            part.unlink(missing_ok=True)
