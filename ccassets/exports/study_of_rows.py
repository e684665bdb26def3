"""New studies of some rows of another one: its images by key, and labels that somebody corrected."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ccassets.analysis.samples import class_names
from ccassets.database.feature_digests import hexadecimal
from ccassets.database.reader import Database
from ccassets.datasets.revised_rows import IMAGE_DIGEST, KEY, LABEL, LabelOverride, distinct_names, read_label_overrides
from ccassets.errors import AnalysisError
from ccassets.files import reading_errors
from ccassets.study.loading import STUDY_FILE, require_new_name
from ccassets.study.schema import Study
from ccassets.study.study_text import study_text

SUBSET_FILE = "subset.txt"
LABELS_FILE = "labels_override.csv"

_REFERENCES = {"path", "weights", "tokenizer", "text"}
"""Keys whose value is a folder, or a name of the hub."""


def study_of_rows(
    study: Study, database: Database, rows: Sequence[int], name: str, labels: Mapping[int, str] | None = None
) -> dict[str, bytes]:
    """Make the files of a study of some rows of another one; a build of it encodes no image that is encoded already.

    Encoder, vocabulary, data set and splits are those of the study, without its limit; paths are absolute, so that the
    folder may lie anywhere on this machine. Labels that the study itself corrects are kept.

    Args:
        study: The study that has the rows.
        database: Its database.
        rows: Numbers of the rows.
        name: Name of the new study, and of the folder that its files belong in: letters, digits and `_`.
        labels: Corrected classes by row number; those of other rows are left out.

    Returns:
        The contents by file name: `defs.yaml`, `subset.txt`, `labels_override.csv` where labels are corrected, and the
        modules that lie beside a study with an encoder of its own.

    Raises:
        AnalysisError: The file has no keys, a key has a line break, or there is no such class.
        DatasetError: The labels that the study corrects cannot be read.
        StudyError: The name cannot be a study's.
        StorageError: A file of the study cannot be read now.
    """
    require_new_name(name)
    names = _names(database)
    overrides = _own_overrides(study, database, names, rows)
    overrides |= _corrected(database, names, {row: labels[row] for row in rows if row in labels} if labels else {})
    files = {SUBSET_FILE: key_lines([names[row] for row in rows])}
    if overrides:
        files[LABELS_FILE] = _csv(overrides)
    if study.encoder.kind == "python":
        for module in sorted(study.folder.glob("*.py")):
            with reading_errors(module):
                files[module.name] = module.read_bytes()
    changes: dict[str, Mapping[str, Any] | str] = {
        "description": f"{len(rows):,} rows of {study.name}.",
        "dataset": {
            **_absolute(study, study.dataset.model_dump()),
            "subset": SUBSET_FILE,
            "labels_override": LABELS_FILE if overrides else None,
        },
        "encoder": _absolute(study, study.encoder.model_dump()),
        "extraction": {"limit": None},
    }
    header = f"# Rows of the study {study.name}: {SUBSET_FILE} has their keys. docs/study.md explains every key.\n"
    return {STUDY_FILE: study_text(study, changes, header=header).encode(), **files}


def label_overrides(database: Database, labels: Mapping[int, str]) -> bytes:
    """Write corrected labels as CSV, for `dataset.labels_override` of a study.

    Every line has the digest of its image, by which a build notices that the key stands for another image now.

    Args:
        database: The database.
        labels: The class of every corrected row, by row number.

    Returns:
        The CSV, `key,label,image_digest`; without the digest where the file has none.

    Raises:
        AnalysisError: The file has no keys, or there is no such class.
    """
    return _csv(_corrected(database, _names(database), labels))


def key_lines(keys: Iterable[str]) -> bytes:
    """Write keys one a line; raises `AnalysisError` where a key has a line break."""
    lines = [f"{key}\n" for key in keys]
    if any("\r" in line or line.count("\n") > 1 for line in lines):
        raise AnalysisError("A key has a line break: a list with a key on each line cannot hold it.")
    return "".join(lines).encode("utf-8", "surrogateescape")


def _corrected(database: Database, names: Sequence[str], labels: Mapping[int, str]) -> dict[str, LabelOverride]:
    classes = class_names(database)
    if unknown := sorted(set(labels.values()) - set(classes)):
        raise AnalysisError(f"There are no classes {unknown}; there are {list(classes)}.")
    digests = database.image_digest
    return {
        names[row]: LabelOverride(label, "" if digests is None else hexadecimal(digests[row : row + 1])[0])
        for row, label in labels.items()
    }


def _own_overrides(
    study: Study, database: Database, names: Sequence[str], rows: Sequence[int]
) -> dict[str, LabelOverride]:
    """The labels that the study itself corrects in some rows, by the names of the rows."""
    file = study.dataset.labels_override
    if not file:
        return {}
    known = read_label_overrides(study.resolve(file))
    keys, splits = stored_keys(database), database.split
    spellings = {row: (names[row], keys[row], f"{splits[row]}/{keys[row]}") for row in rows}
    return {names[row]: known[name] for row in rows for name in dict.fromkeys(spellings[row]) if name in known}


def _names(database: Database) -> list[str]:
    """The name of every row in a study: its key, or `split/key`."""
    return distinct_names(stored_keys(database), database.split.tolist())


def stored_keys(database: Database) -> Sequence[str]:
    """The keys of all rows.

    Raises:
        AnalysisError: The file has none.
    """
    if database.keys is None:
        raise AnalysisError(f"{database.path.name} does not say where its rows came from: they have no keys.")
    keys: Sequence[str] = database.keys.tolist()
    return keys


def _csv(overrides: Mapping[str, LabelOverride]) -> bytes:
    """Keys are names of files as they are: what `csv_text` puts before formulas would make them other names."""
    columns = [KEY, LABEL, IMAGE_DIGEST]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([key, override.label, override.image_digest] for key, override in overrides.items())
    return text.getvalue().encode("utf-8", "surrogateescape")


def _absolute(study: Study, section: Mapping[str, Any]) -> dict[str, str]:
    """The absolute paths of a section; a name of the hub is not changed."""
    return {
        key: str(study.resolve(value))
        for key, value in section.items()
        if isinstance(value, Path) or (key in _REFERENCES and value and study.resolve(value).exists())
    }
