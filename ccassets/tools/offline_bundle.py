"""Bundles: everything a study needs in one folder, with digests, for a machine that reaches no network."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

import numpy as np
import yaml

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.folder import FolderDataset
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.datasets.table import TableDataset
from ccassets.encoders import encoder_files, inspect_encoder
from ccassets.encoders.conceptclip import ARCHITECTURE_FILE
from ccassets.errors import DatasetError, StorageError
from ccassets.extraction.sources import fetched
from ccassets.files import digest_files, make_folder, require_space, storage_error, sync, write_text
from ccassets.progress import Progress, silent
from ccassets.study.loading import COMPONENT_TYPE, load_study
from ccassets.study.schema import ConceptClipConfig, MedmnistConfig, Study, StudyConfig
from ccassets.study.storage import Store

RECORD = "bundle.json"
"""In the bundle's folder: its study file, its encoder, and SHA-256 and size of every file."""

_HEADER = "# Written by `ccassets fetch`: every path leads into the bundle, and nothing is fetched.\n"


class FileRecord(TypedDict):
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Bundle:
    """What `fetch_bundle` made: the study file in it, and how many files and bytes there are."""

    study: Path
    files: int
    bytes: int


def fetch_bundle(study: Study, to: Path, *, hf_token: str | None = None, progress: Progress = silent) -> Bundle:
    """Gather weights, tokenizer and data of a study in the new folder `to`; what is not here yet is downloaded.

    `<to>/<study>/defs.yaml` is the study with paths into the bundle. The folder appears whole or not at all;
    `progress` counts copied bytes. Raises `DatasetError` or `EncoderError` when something cannot be had,
    `StorageError` when the disk is too small or the folder is not empty.
    """
    to = to.expanduser().absolute()
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise StorageError(f"{to} is there already and not empty; name a new folder for the bundle.")
    weights = encoder_files(study, hf_token=hf_token)
    card = inspect_encoder(study, hf_token=hf_token)
    dataset = fetched(_may_download(study), Store.of(study))
    sources = _sources(study, dataset, weights)
    require_space(to.parent, sum(path.stat().st_size for path in sources.values()), f"The bundle of {study.name}")
    partial = to.with_name(f".{to.name}.{secrets.token_hex(4)}.partial")
    try:
        files = _copy(sources, partial, progress)
        if isinstance(dataset, FolderDataset):
            for split in study.splits:  # An empty split is a folder too.
                make_folder(partial / "data" / dataset.name / split)
        path = partial / study.name / "defs.yaml"
        write_text(path, _HEADER + _text(study, dataset, weights))
        files[f"{study.name}/defs.yaml"] = _record(path)
        _require_same_rows(study, dataset, load_study(path))
        content = {
            "study": f"{study.name}/defs.yaml",
            "encoder": {"identity": card.identity, **card.recorded},
            "files": files,
        }
        write_text(partial / RECORD, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        partial.replace(to)
        sync(to.parent)
    except OSError as error:
        raise storage_error(error, to) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Bundle(to / study.name / "defs.yaml", len(files), sum(file["bytes"] for file in files.values()))


def changed_files(folder: Path) -> list[str]:
    """The files of a bundle that are gone or not what was bundled; raises `StorageError` for an unreadable record."""
    try:
        files: dict[str, FileRecord] = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
        return [name for name, file in files.items() if not (folder / name).is_file() or _record(folder / name) != file]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{folder / RECORD} is not the record of a bundle: {error}. Bundle the study again."
        ) from error


# --- what belongs into it ----------------------------------------------------------------------------


def _may_download(study: Study) -> Study:
    """The study with leave to download its data set: whoever bundles it asks for that."""
    if not isinstance(study.dataset, MedmnistConfig):
        return study
    return study.model_copy(update={"dataset": study.dataset.model_copy(update={"download": True})})


def _sources(study: Study, dataset: Dataset, weights: Mapping[str, Path]) -> dict[str, Path]:
    """Every file to copy, by its path in the bundle."""
    sources = {f"{_model_folder(study)}/{name}": path for name, path in weights.items()}
    if isinstance(dataset, FolderDataset):
        sources |= _images(study, dataset, dataset.root, f"data/{dataset.name}")
    elif isinstance(dataset, TableDataset):
        sources |= {f"data/{dataset.file.name}": dataset.file, **_images(study, dataset, dataset.root, "data")}
    elif isinstance(dataset, MedmnistDataset):
        sources[f"data/{dataset.archive.name}"] = dataset.archive
    readme = study.folder / "README.md"
    if readme.is_file():
        sources[f"{study.name}/README.md"] = readme
    return sources


def _images(study: Study, dataset: Dataset, root: Path, place: str) -> dict[str, Path]:
    keys = [key for split in study.splits for key in dataset.rows(split).keys]
    outside = [key for key in keys if ".." in PurePosixPath(key).parts]
    if outside:
        raise DatasetError(
            f"{outside[0]!r} lies outside of {root}, and a bundle cannot hold it; set dataset.root above it."
        )
    missing = [key for key in keys if not (root / key).is_file()]
    if missing:
        raise DatasetError(f"{len(missing)} images are not there, the first is {root / missing[0]}.")
    return {f"{place}/{key}": root / key for key in keys}


def _model_folder(study: Study) -> str:
    """Where the model lies in the bundle; its own name, so that provenance still tells which it is."""
    name = getattr(study.encoder, "weights", "").rstrip("/").rpartition("/")[2]
    return f"models/{name or 'model'}"


# --- the study file ----------------------------------------------------------------------------------


def _text(study: Study, dataset: Dataset, weights: Mapping[str, Path]) -> str:
    """The study as YAML, its paths leading from its folder to the bundle's files."""
    attributes = study.model_dump(mode="json", include=set(StudyConfig.model_fields), exclude_unset=True)
    changes = {"dataset": _dataset_paths(dataset), "encoder": _encoder_paths(study, weights)}
    for section, paths in changes.items():
        merged = {**attributes[section], **paths}
        attributes[section] = {key: value for key, value in merged.items() if value is not None}
    content = {"type": COMPONENT_TYPE, "attributes": attributes}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _dataset_paths(dataset: Dataset) -> dict[str, Any]:
    if isinstance(dataset, FolderDataset):
        # Written out: the class folders that are empty are not in the bundle.
        return {"root": f"../data/{dataset.name}", "classes": list(dataset.classes) or None}
    if isinstance(dataset, TableDataset):
        return {"file": f"../data/{dataset.file.name}", "root": None}
    if isinstance(dataset, MedmnistDataset):
        return {"root": "../data", "download": False}
    return {}


def _encoder_paths(study: Study, weights: Mapping[str, Path]) -> dict[str, Any]:
    folder = f"../{_model_folder(study)}"
    if not weights:
        return {}
    if isinstance(study.encoder, ConceptClipConfig) and study.encoder.weights == "random":
        architecture = f"{folder}/{ARCHITECTURE_FILE}" if ARCHITECTURE_FILE in weights else None
        return {"tokenizer": folder, "architecture": architecture}
    return {"weights": folder, "revision": None, "tokenizer": None, "architecture": None}


def _require_same_rows(study: Study, dataset: Dataset, bundled: Study) -> None:
    """Refuse a bundle whose data set would be read otherwise; an archive is the same file, and need not be unpacked."""
    if isinstance(dataset, MedmnistDataset):
        return
    copy = open_dataset(bundled, Store.of(bundled))
    for split in study.splits:
        before, after = dataset.rows(split), copy.rows(split)
        if list(before.keys) != list(after.keys) or not np.array_equal(before.labels, after.labels):
            raise DatasetError(
                f"Split {split!r} of {study.name} would be another one in the bundle: its files changed."
            )


# --- files and digests -------------------------------------------------------------------------------


def _copy(sources: Mapping[str, Path], to: Path, progress: Progress) -> dict[str, FileRecord]:
    """Copy every file to its place below `to`; what was written, by place."""
    total = sum(path.stat().st_size for path in sources.values())
    records: dict[str, FileRecord] = {}
    done = 0
    for name, source in sources.items():
        target = to / name
        make_folder(target.parent)
        shutil.copyfile(source, target)
        sync(target)
        sync(target.parent)
        records[name] = _record(target)
        done += records[name]["bytes"]
        progress(done, total)
    return records


def _record(path: Path) -> FileRecord:
    return {"sha256": digest_files([path]), "bytes": path.stat().st_size}
