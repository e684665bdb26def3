"""New studies of some rows of another one: its images by key, and corrected labels."""

from __future__ import annotations

import csv
import io
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccassets.datasets import open_dataset
from ccassets.datasets.manifest import Manifest
from ccassets.datasets.revised_rows import IMAGE_DIGEST, KEY, LABEL, LabelOverride, distinct_names, read_label_overrides
from ccassets.errors import StudyError
from ccassets.files import replacing_folder, storage_errors, write_text
from ccassets.progress import silent
from ccassets.study.schema import PhantomDatasetConfig, Study
from ccassets.study.storage import Store
from ccassets.tools.new_study import new_study_path
from ccassets.tools.study_text import study_text

SUBSET_FILE = "subset.txt"
LABELS_FILE = "labels_override.csv"


def new_study_of_rows(
    study: Study,
    name: str,
    keys: Sequence[str],
    labels: Mapping[str, str] | None = None,
    *,
    studies: str | os.PathLike[str] | None = None,
) -> Path:
    """Write a study of some rows of another one; all its features exist already, so a build encodes no image.

    Encoder, vocabulary and data set are those of the study, without its limit; splits without any of the rows are left
    out. Labels that the study itself corrects stay corrected.

    Args:
        study: The study that has the rows.
        name: Name of the new study: letters, digits and `_`.
        keys: Keys of the rows, or `split/key` where several splits have one of the same name (`distinct_names`).
        labels: Corrected labels by key: a class or its number, several of a multi-label set as `a|b`.
        studies: Folder of studies, by default `CCASSETS_STUDIES`, else `./studies`.

    Returns:
        The path of the new study file; `subset.txt` and `labels_override.csv` lie beside it.

    Raises:
        DatasetError: A key or a label is unknown, or the data set cannot be read.
        StudyError: There is no key, the study file exists, or the name cannot be a study's.
        StorageError: The files cannot be written.
    """
    if not keys:
        raise StudyError("A study of rows needs the key of at least one row.")
    path = new_study_path(name, Path(studies or os.environ.get("CCASSETS_STUDIES") or "studies"))
    overrides = _label_overrides(study, labels or {})
    with storage_errors(path.parent), replacing_folder(path.parent) as partial:
        write_text(partial / SUBSET_FILE, "".join(f"{key}\n" for key in dict.fromkeys(keys)))
        if overrides:
            write_text(partial / LABELS_FILE, _csv(overrides))
        if study.encoder.kind == "python":
            for module in study.folder.glob("*.py"):
                shutil.copy(module, partial)
        dataset = _dataset_section(study, path.parent, partial, overrides=bool(overrides))
        changes: dict[str, Mapping[str, Any] | str] = {
            "description": f"{len(keys):,} rows of {study.name}.",
            "dataset": dataset,
            "encoder": _rebased(study, study.encoder.model_dump(), path.parent),
            "extraction": {"limit": None},
        }
        header = f"# Rows of the study {study.name}: {SUBSET_FILE} has their keys. docs/study.md explains every key.\n"
        write_text(partial / path.name, study_text(study, changes, header=header))
    return path


def _dataset_section(study: Study, folder: Path, partial: Path, *, overrides: bool) -> dict[str, Any]:
    """The keys of the data set's section that differ from the study's, checked: the splits that have rows."""
    files = {"subset": SUBSET_FILE, "labels_override": LABELS_FILE if overrides else None}
    written = {key: partial / name if name else None for key, name in files.items()}
    revised = study.model_copy(update={"dataset": study.dataset.model_copy(update=written)})
    dataset = open_dataset(revised, Store.of(study))
    dataset.fetch(silent)
    splits = [split for split in study.splits if len(dataset.rows(split))]
    if isinstance(study.dataset, PhantomDatasetConfig):
        return {"rows": {split: study.dataset.rows[split] for split in splits}, **files}
    return {**_rebased(study, study.dataset.model_dump(), folder), "splits": splits, **files}


def _rebased(study: Study, section: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """The relative paths of a section as they are from another folder; a name of the hub stays as it is."""
    return {
        key: os.path.relpath(study.resolve(value), folder)
        for key, value in section.items()
        if isinstance(value, Path) or (key in _REFERENCES and value and study.resolve(value).exists())
        if not str(value).startswith(("/", "~"))
    }


_REFERENCES = {"path", "weights", "tokenizer", "text"}
"""Keys whose value is a folder, or a name of the hub."""


def _label_overrides(study: Study, labels: Mapping[str, str]) -> dict[str, LabelOverride]:
    """The corrected labels of the study and the new ones, each with the digest of its image."""
    file = study.dataset.labels_override
    known = read_label_overrides(study.resolve(file)) if file else {}
    store = Store.of(study)
    manifests = [Manifest.load(path) for split in study.splits if (path := store.manifest(split)).is_file()]
    keys = [key for manifest in manifests for key in manifest.keys]
    splits = [manifest.split for manifest in manifests for _ in manifest.keys]
    digests = (bytes(digest).hex() for manifest in manifests for digest in manifest.image_digest)
    digest_of = dict(zip(distinct_names(keys, splits), digests, strict=True))
    return known | {key: LabelOverride(label, digest_of.get(key, "")) for key, label in labels.items()}


def _csv(overrides: Mapping[str, LabelOverride]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([KEY, LABEL, IMAGE_DIGEST])
    writer.writerows([key, override.label, override.image_digest] for key, override in overrides.items())
    return text.getvalue()
