"""Publishing a growing file in the finished form, and removing its templates."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import read_json_attribute
from ccassets.database.feature_digests import database_digest, iter_feature_digests, split_digest, template_digest
from ccassets.database.hdf5 import iter_blocks, safe_dataset
from ccassets.database.layout import (
    BULK,
    IMAGE_FEATURES,
    IMAGE_TOKEN_FEATURES,
    LOGIT_PARAMETERS,
    LOGIT_SCALE_SPACE,
    WORD_LISTS,
)
from ccassets.database.reader import Database, open_database
from ccassets.database.validation import validate_database
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file
from ccassets.errors import DatabaseError
from ccassets.extraction.provenance import created
from ccassets.files import require_space
from ccassets.h5.exceptions import ArgumentError, MissingFileError
from ccassets.h5.growing_file import DEFAULT_PATH, init_file, read_split_counts
from ccassets.h5.growing_provenance import read_provenance
from ccassets.h5.journal import exclude_writers

PathLike = str | os.PathLike[str]

_BLOCK_BYTES = 8 << 20
_SET_BY_WRITER = (
    "D",
    "T_img",
    "created_at",
    "version",
    "profile",
    "split_counts",
    "provenance",
    "rows_digest",
    "attribute_digests",
)


def finalize(path: PathLike, output_path: PathLike | None = None) -> Path:
    """Publish a growing file in the finished, contiguous form.

    The file is validated, read once for its digests and once to be copied, in small blocks, into a new file that is
    renamed over it. Files of the original scripts can be published too, with the origin `adopted`. A finished file
    cannot grow any more: `init_file` refuses it. Keys are the rows' numbers in their splits, since loaders name no
    files. There are no image digests. A study's own build has both.

    Args:
        path: The growing file.
        output_path: The path of the finished file, in which case `path` stays; by default `path`.

    Returns:
        The path of the finished file.

    Raises:
        MissingFileError: There is no such file.
        DatabaseError: Validation found errors, all of which are listed; nothing was written.
        ArgumentError: The file is finished, and `output_path` is another one.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    source, target = Path(path), Path(output_path or path)
    if not source.is_file():
        raise MissingFileError(f"There is no file {path}.")
    with exclude_writers(source):
        errors = [finding for finding in validate_database(source) if finding.severity == "error"]
        if errors:
            listed = "\n".join(f"{finding.check} at {finding.where}: {finding.message}" for finding in errors)
            raise DatabaseError(f"{path} is not published, validation found {len(errors)} errors:\n{listed}")
        with open_database(source) as database:
            if "profile" not in database.attributes:
                require_space(target.parent, source.stat().st_size, f"Publishing {source.name}")
                _write(target, database, _published(database))
                return target
    if target != source:
        raise ArgumentError(f"{path} is a finished file already; copy it with any tool.")
    return target


def clear_all_templates(path: PathLike = DEFAULT_PATH, *, confirm: bool = False) -> None:
    """Remove every template, and the word and template lists of the file.

    Unlike the original: nothing is removed unless `confirm=True`, since one call would undo the text extraction; the
    lists go too, which would otherwise describe templates that the file lacks; and the printed line says what becomes
    of the space. A growing file keeps it until `finalize`; a finished one is written anew without the templates.

    Args:
        path: The file.
        confirm: Remove the templates; must be True where there are any.

    Raises:
        MissingFileError: There is no such file.
        ArgumentError: There are templates, and `confirm` is not set.
        StorageError: The file is open elsewhere, or the disk refuses.
    """
    source = Path(path)
    if not source.is_file():
        raise MissingFileError(f"There is no file {path}.")
    with exclude_writers(source), open_database(source) as database:
        names = list(database.templates)
        size = sum(_stored_size(database.file["templates"][name]) for name in names)
        if names and not confirm:
            raise ArgumentError(
                f"clear_all_templates would remove {len(names)} templates ({size:,} bytes) of {path}, which must be "
                f"encoded again afterwards: {names}. Call clear_all_templates(path, confirm=True) to remove them."
            )
        finished = "profile" in database.attributes
        if finished and names:
            require_space(source.parent, source.stat().st_size, f"Writing {source.name} without its templates")
            _write(source, database, _without_templates(database))
    if not finished:
        with init_file(source) as file:
            del file["templates"]
            file.create_group("templates")
            for name in WORD_LISTS:
                file.attrs.pop(name, None)
    fate = "given back" if finished else "kept in the file until finalize() publishes it"
    ellipsis = " ..." if len(names) > 5 else ""
    print(f"Cleared {len(names)} template groups: {names[:5]}{ellipsis} ({size:,} bytes, {fate})")


def _stored_size(group: h5py.Group) -> int:
    datasets = [safe_dataset(group, name) for name in group]
    return sum(dataset.id.get_storage_size() for dataset in datasets if dataset is not None)


# --- content ------------------------------------------------------------------------------------------


def _published(database: Database) -> FileContent:
    started = time.perf_counter()
    rows = _rows(database)
    return _content(database, rows, _templates(database), _provenance(database, started), drop=())


def _without_templates(database: Database) -> FileContent:
    record = dict(database.provenance or {})
    return _content(database, _rows(database), {}, record, drop=(*WORD_LISTS, "concepts"))


def _content(
    database: Database,
    rows: RowContent,
    templates: Mapping[str, TemplateContent],
    record: dict[str, Any],
    drop: Iterable[str],
) -> FileContent:
    attributes = {
        name: value for name, value in database.attributes.items() if name not in _SET_BY_WRITER and name not in drop
    }
    if any(name in attributes for name in LOGIT_PARAMETERS):
        attributes.setdefault("logit_scale_space", LOGIT_SCALE_SPACE)
    splits = _split_digests(database, rows)
    vocabulary = {name: attributes[name] for name in WORD_LISTS if name in attributes}
    digests = {name: template_digest(template) for name, template in templates.items()}
    record["digests"] = {"splits": splits, "database": database_digest(splits, digests, vocabulary)}
    attributes |= {"split_counts": read_split_counts(database.file), "provenance": record}
    return FileContent("database", database.dim, database.token_count, rows, templates, attributes)


def _rows(database: Database) -> RowContent:
    positions = np.concatenate(
        [np.empty(0, np.int64), *(np.arange(s.stop - s.start) for s in database.splits.values())]
    )
    return RowContent(
        split=database.split.tolist(),
        labels=database.labels,
        keys=[str(row) for row in positions] if database.keys is None else database.keys.tolist(),
        image_digest=database.image_digest,
        feature_digest=_feature_digests(database) if database.feature_digest is None else database.feature_digest,
        groups=None if database.groups is None else database.groups.tolist(),
        label_matrix=database.label_matrix,
    )


def _feature_digests(database: Database) -> npt.NDArray[np.uint8]:
    blocks = iter_feature_digests(database.image_features, database.image_token_features, block_bytes=_BLOCK_BYTES)
    return np.concatenate([np.empty((0, 16), np.uint8), *(digests for _, digests in blocks)])


def _templates(database: Database) -> dict[str, TemplateContent]:
    return {
        name: TemplateContent(
            texts=template.texts,
            text_features=template.text_features,
            text_token_features=template.text_token_features,
            input_ids=template.input_ids,
            attention_mask=template.attention_mask,
            subject_span=template.subject_span,
        )
        for name, template in database.templates.items()
    }


def _provenance(database: Database, started: float) -> dict[str, Any]:
    record = read_provenance(database.file)
    record["created"] = dict(created(time.perf_counter() - started))
    record["dataset"].setdefault("labels", "unknown")
    record["dataset"]["image_digests"] = "none"
    for split, rows in read_split_counts(database.file).items():
        record["dataset"]["splits"].setdefault(split, {})["rows"] = rows
    record["grown"] = {"created_at": read_json_attribute(database.file, "created_at")}
    return record


def _split_digests(database: Database, rows: RowContent) -> dict[str, str]:
    return {
        split: split_digest(
            rows.feature_digest[chosen],
            keys=rows.keys[chosen],
            labels=rows.labels[chosen],
            groups=None if rows.groups is None else rows.groups[chosen],
            label_matrix=None if rows.label_matrix is None else rows.label_matrix[chosen],
        )
        for split, chosen in database.splits.items()
    }


def _write(path: Path, database: Database, content: FileContent) -> None:
    with new_file(path, content) as rows:
        for name in BULK if content.token_count else (IMAGE_FEATURES,):
            values = database.image_token_features if name == IMAGE_TOKEN_FEATURES else database.image_features
            assert values is not None
            for first, block in iter_blocks(values, _BLOCK_BYTES):
                rows.write(name, first, block)
