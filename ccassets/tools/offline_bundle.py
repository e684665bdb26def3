"""Offline bundles: everything a study needs in one folder, with digests, for a machine without network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.dicom import split_frame
from ccassets.datasets.folder import FolderDataset
from ccassets.datasets.huggingface import HuggingfaceDataset
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.datasets.revised_rows import source_dataset
from ccassets.datasets.table import TableDataset
from ccassets.encoders import encoder_files, inspect_encoder
from ccassets.encoders.conceptclip import ARCHITECTURE_FILE
from ccassets.errors import DatasetError, StorageError
from ccassets.extraction.sources import fetch_dataset
from ccassets.files import (
    digest_files,
    make_folder,
    replacing_folder,
    require_new_folder,
    require_space,
    storage_errors,
    sync,
    write_text,
)
from ccassets.progress import Progress, silent
from ccassets.study.loading import STUDY_FILE, load_study
from ccassets.study.schema import ConceptClipConfig, MedmnistConfig, Study
from ccassets.study.storage import Store
from ccassets.study.study_text import study_text

RECORD = "bundle.json"
"""File in a bundle: its study file, its encoder, and the SHA-256 and size of every file."""

_HEADER = "# Written by `ccassets bundle`: every path leads into the bundle, and nothing is downloaded.\n"


class FileRecord(TypedDict):
    """SHA-256 and size of a file in a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """A bundle that was written: its study file, and how many files and bytes it holds."""

    study: Path
    files: int
    bytes: int


def write_bundle(study: Study, folder: Path, *, hf_token: str | None = None, progress: Progress = silent) -> Bundle:
    """Copy a study with its weights, tokenizer and data into a new folder, which appears whole or not at all.

    `<folder>/<study>/defs.yaml` is the study with paths into the bundle. Weights and archives that are not on this
    machine are downloaded first.

    Args:
        study: The study to bundle.
        folder: The folder of the bundle; new or empty.
        hf_token: Access token of the Hugging Face hub; `HF_TOKEN` by default.
        progress: Called with the bytes copied so far and in all.

    Returns:
        The study file in the bundle, and the number of files and bytes.

    Raises:
        DatasetError: Images are missing, or lie outside the data set's root.
        EncoderError: The weights cannot be read or downloaded, or the encoder is a class of the user's own.
        StorageError: The folder is not empty, or the disk is too small or refuses the files.
    """
    folder = folder.expanduser().absolute()
    require_new_folder(folder)
    weights = encoder_files(study, hf_token=hf_token)
    card = inspect_encoder(study, hf_token=hf_token)
    dataset = fetch_dataset(_with_download(study), Store.of(study))
    sources = _sources(study, dataset, weights)
    require_space(folder.parent, sum(path.stat().st_size for path in sources.values()), f"The bundle of {study.name}")
    with storage_errors(folder), replacing_folder(folder) as partial:
        files = _copy(sources, partial, progress)
        if isinstance(source_dataset(dataset), FolderDataset):
            for split in study.splits:  # An empty split is a folder too.
                make_folder(partial / "data" / dataset.name / split)
        path = partial / study.name / STUDY_FILE
        changes = {"dataset": _dataset_paths(study, dataset), "encoder": _encoder_paths(study, weights)}
        write_text(path, study_text(study, changes, header=_HEADER))
        files[f"{study.name}/defs.yaml"] = _record(path)
        _require_same_rows(study, dataset, load_study(path))
        content = {
            "study": f"{study.name}/defs.yaml",
            "encoder": {"identity": card.identity, **card.recorded},
            "files": files,
        }
        write_text(partial / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return Bundle(folder / study.name / STUDY_FILE, len(files), sum(file["bytes"] for file in files.values()))


def changed_files(folder: Path) -> list[str]:
    """List the files of a bundle that are missing or differ from what was bundled.

    Args:
        folder: The folder of the bundle.

    Returns:
        Paths relative to the folder, in the order of the record.

    Raises:
        StorageError: The record of the bundle cannot be read.
    """
    try:
        files: dict[str, FileRecord] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return [name for name, file in files.items() if not (folder / name).is_file() or _record(folder / name) != file]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{folder / RECORD} is not the record of a bundle: {error}. Bundle the study again."
        ) from error


# --- the files of a bundle ---------------------------------------------------------------------------


def _with_download(study: Study) -> Study:
    """The study with permission to download its data set, which bundling it implies."""
    if not isinstance(study.dataset, MedmnistConfig):
        return study
    return study.model_copy(update={"dataset": study.dataset.model_copy(update={"download": True})})


def _sources(study: Study, dataset: Dataset, weights: Mapping[str, Path]) -> dict[str, Path]:
    """Every file to copy, by its path in the bundle."""
    sources = {f"{_model_folder(study)}/{name}": path for name, path in weights.items()}
    sources |= {f"{study.name}/{key}{path.suffix}": path for key, path in _row_files(study).items()}
    source = source_dataset(dataset)
    if isinstance(source, FolderDataset):
        sources |= _images(study, dataset, source.root, f"data/{source.name}")
    elif isinstance(source, TableDataset):
        sources |= {f"data/{source.file.name}": source.file, **_images(study, dataset, source.root, "data")}
    elif isinstance(source, MedmnistDataset):
        sources[f"data/{source.archive.name}"] = source.archive
    elif isinstance(source, HuggingfaceDataset):
        files = [source.folder] if source.folder.is_file() else sorted(source.folder.rglob("*"))
        base = f"data/{_last_part(source.name)}"
        sources |= {str(PurePosixPath(base, path.relative_to(source.folder))): path for path in files if path.is_file()}
    readme = study.folder / "README.md"
    if readme.is_file() and readme.resolve().is_relative_to(study.folder.resolve()):
        sources[f"{study.name}/README.md"] = readme
    return sources


def _images(study: Study, dataset: Dataset, root: Path, target: str) -> dict[str, Path]:
    keys = list(dict.fromkeys(split_frame(root, key)[0] for split in study.splits for key in dataset.rows(split).keys))
    outside = [key for key in keys if ".." in PurePosixPath(key).parts]
    if outside:
        raise DatasetError(
            f"{outside[0]!r} lies outside {root}, so a bundle cannot hold it. Set dataset.root to a folder above it."
        )
    top = root.resolve()
    links = [key for key in keys if not (root / key).resolve().is_relative_to(top)]
    if links:
        raise DatasetError(
            f"{len(links)} images are links to files outside {root}, which a bundle would take off this machine; the "
            f"first is {links[0]!r}. Put the files themselves there, or set dataset.root to a folder above them."
        )
    missing = [key for key in keys if not (root / key).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} images are missing; the first is {root / missing[0]}.")
    return {f"{target}/{key}": root / key for key in keys}


def _model_folder(study: Study) -> str:
    """Folder of the model in the bundle, under its own name, which the provenance records."""
    return f"models/{_last_part(getattr(study.encoder, 'weights', '')) or 'model'}"


def _last_part(reference: str) -> str:
    """The name of a folder, or of a repository of the hub without its owner."""
    return reference.rstrip("/").rpartition("/")[2]


# --- the study file ----------------------------------------------------------------------------------


def _dataset_paths(study: Study, dataset: Dataset) -> dict[str, Any]:
    row_files = {key: f"{key}{path.suffix}" for key, path in _row_files(study).items()}
    return {**_source_paths(source_dataset(dataset)), **row_files}


def _row_files(study: Study) -> dict[str, Path]:
    """The files that name rows of the data set, by their keys in the study."""
    files = {key: getattr(study.dataset, key) for key in ("subset", "labels_override")}
    return {key: study.resolve(file) for key, file in files.items() if file}


def _source_paths(dataset: Dataset) -> dict[str, Any]:
    if isinstance(dataset, FolderDataset):
        # Listed, since empty class folders are not in the bundle.
        return {"root": f"../data/{dataset.name}", "classes": list(dataset.classes) or None}
    if isinstance(dataset, TableDataset):
        return {"file": f"../data/{dataset.file.name}", "root": None}
    if isinstance(dataset, MedmnistDataset):
        return {"root": "../data", "download": False}
    if isinstance(dataset, HuggingfaceDataset):
        return {"path": f"../data/{_last_part(dataset.name)}", "revision": None}
    return {}


def _encoder_paths(study: Study, weights: Mapping[str, Path]) -> dict[str, Any]:
    folder = f"../{_model_folder(study)}"
    if not weights:
        return {}
    if isinstance(study.encoder, ConceptClipConfig) and study.encoder.weights == "random":
        architecture = f"{folder}/{ARCHITECTURE_FILE}" if ARCHITECTURE_FILE in weights else None
        return {"tokenizer": folder, "architecture": architecture}
    return {"weights": folder, **dict.fromkeys(("revision", "tokenizer", "architecture", "text", "text_revision"))}


def _require_same_rows(study: Study, dataset: Dataset, bundled: Study) -> None:
    """Raise `DatasetError` when the bundle's data set has other rows. An archive is copied whole."""
    if isinstance(source_dataset(dataset), MedmnistDataset):
        return
    copy = open_dataset(bundled, Store.of(bundled))
    for split in study.splits:
        before, after = dataset.rows(split), copy.rows(split)
        if list(before.keys) != list(after.keys) or not np.array_equal(before.labels, after.labels):
            raise DatasetError(f"Split {split!r} of {study.name} changed while it was bundled. Bundle it again.")


# --- files and digests -------------------------------------------------------------------------------


def _copy(sources: Mapping[str, Path], folder: Path, progress: Progress) -> dict[str, FileRecord]:
    """Copy every source to its path in a folder; return the records of the copies by that path."""
    total = sum(path.stat().st_size for path in sources.values())
    records: dict[str, FileRecord] = {}
    copied = 0
    for name, source in sources.items():
        target = folder / name
        make_folder(target.parent)
        shutil.copyfile(source, target)
        sync(target)
        sync(target.parent)
        records[name] = _record(target)
        copied += records[name]["bytes"]
        progress(copied, total)
    return records


def _record(path: Path) -> FileRecord:
    return {"sha256": digest_files([path]), "bytes": path.stat().st_size}
