"""Writing a new study file for a folder of images or a set of MedMNIST."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from pydantic import ValidationError

from ccassets.datasets.folder import FolderDataset
from ccassets.datasets.image_files import IMAGE_SUFFIXES
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.encoders.presets import load_presets, preset_of
from ccassets.errors import DatasetError, StudyError
from ccassets.files import storage_error, write_text
from ccassets.progress import silent
from ccassets.study.loading import SHIPPED_STUDIES, STUDY_FILE, load_study
from ccassets.study.schema import FolderConfig, MedmnistConfig

_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


@dataclass(frozen=True)
class NewStudy:
    """A study file that was written.

    Attributes:
        path: The study file.
        summary: Its images, classes and splits in one phrase.
        splits: One line for each split: its images, and how many of each class.
    """

    path: Path
    summary: str
    splits: Sequence[str]


def write_folder_study(name: str, images: Path, studies: Path, *, encoder: str = "conceptclip") -> NewStudy:
    """Write the study file for a folder of images.

    The images lie in `<split>/<class>/`, in `<class>/` (the folder itself is then the one split), or in either without
    class folders.

    Args:
        name: Name of the study: letters, digits and `_`.
        images: Folder of the images.
        studies: Folder of studies; the file is `<studies>/<name>/defs.yaml`.
        encoder: A preset of `ccassets encoders`, or the folder of a model of open_clip or transformers.

    Returns:
        The path of the study file and what it describes.

    Raises:
        DatasetError: The folder is missing, holds no images, or holds them in another layout.
        StudyError: The study file exists, the name cannot be a study's, or there is no such encoder.
        StorageError: The study file cannot be written.
    """
    path, section = _new_study_path(name, studies), _encoder_section(encoder, studies / name)
    images = images.expanduser()
    root, splits = _root_and_splits(images.absolute())
    try:
        config = FolderConfig(kind="folder", root=root, splits=splits)
    except ValidationError as error:
        raise StudyError(f"{root}: {error.errors()[0]['msg']}. Rename the folder.") from error
    dataset = FolderDataset(config, root=root, words=())
    dataset.fetch(silent)
    counts = {split: Counter(dataset.rows(split).labels.tolist()) for split in splits}
    total = sum(count.total() for count in counts.values())
    if not total:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(f"{images} holds no images. Expected files that end in {suffixes}.")
    lines = [
        f"{split}: {_image_count(count.total())}"
        + "".join(f", {count[number]:,} {name}" for number, name in enumerate(dataset.classes))
        for split, count in counts.items()
    ]
    written_root = root if images.is_absolute() else Path(os.path.relpath(root, path.parent))
    return _write(path, config, str(written_root), dataset.classes, total, lines, section)


def write_medmnist_study(name: str, flag: str, studies: Path, *, encoder: str = "conceptclip") -> NewStudy:
    """Write the study file for a 2D set of MedMNIST at 224 px. Nothing is downloaded.

    Args:
        name: Name of the study: letters, digits and `_`.
        flag: Name of the set, such as `bloodmnist`.
        studies: Folder of studies; the file is `<studies>/<name>/defs.yaml`.
        encoder: A preset of `ccassets encoders`, or the folder of a model of open_clip or transformers.

    Returns:
        The path of the study file and what it describes.

    Raises:
        DatasetError: MedMNIST has no such set.
        StudyError: The study file exists, the name cannot be a study's, or there is no such encoder.
        StorageError: The study file cannot be written.
    """
    path, section = _new_study_path(name, studies), _encoder_section(encoder, studies / name)
    config = MedmnistConfig(kind="medmnist", name=flag, size=224)
    dataset = MedmnistDataset(config, root=Path(), unpacked_root=Path())
    counts = dataset.published_rows
    lines = [f"{split}: {_image_count(count)}" for split, count in counts.items()]
    return _write(path, config, "", dataset.classes, sum(counts.values()), lines, section)


def _new_study_path(name: str, studies: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise StudyError(f"{name!r} cannot name a study: expected letters, digits and _.")
    if (SHIPPED_STUDIES / name).is_dir():
        raise StudyError(f"{name!r} is the name of a study that ships, which yours would hide; choose another name.")
    path = studies.expanduser().absolute() / name / STUDY_FILE
    if path.exists():
        raise StudyError(f"{path} exists and was not changed; choose another name or folder.")
    return path


def _encoder_section(encoder: str, study_folder: Path) -> Mapping[str, str]:
    """The encoder section of a preset, or of the folder of a model; raises `StudyError` when it is neither."""
    if preset := load_presets().get(encoder):
        return preset.section
    folder = Path(encoder).expanduser()
    for kind, file in (("open_clip", "open_clip_config.json"), ("transformers", "config.json")):
        if (folder / file).is_file():
            weights = folder if folder.is_absolute() else Path(os.path.relpath(folder.absolute(), study_folder))
            return {"kind": kind, "weights": str(weights)}
    raise StudyError(
        f"{encoder!r} is no preset ({', '.join(load_presets())}), and no folder with open_clip_config.json or "
        "config.json."
    )


def _root_and_splits(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The data set's root and splits: the subfolders, or the folder itself where the subfolders are classes."""
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}.")
    subfolders = {child.name: _visible_folders(child) for child in _visible_folders(folder)}
    nested = [child.name for children in subfolders.values() for child in children]
    # Class folders repeat in every split; folders of patients below a class do not.
    repeated = len(set(nested)) < len(nested)
    if not repeated and not any(name.lower() in _SPLIT_NAMES for name in subfolders):
        return folder.parent, (folder.name,)
    order = {name: number for number, name in enumerate(_SPLIT_NAMES)}
    return folder, tuple(sorted(subfolders, key=lambda name: (order.get(name.lower(), len(order)), name)))


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _write(
    path: Path,
    config: FolderConfig | MedmnistConfig,
    root: str,
    classes: Sequence[str],
    total: int,
    lines: Sequence[str],
    encoder: Mapping[str, str],
) -> NewStudy:
    summary = _image_count(total) + (f" of {len(classes)} classes" if classes else " without labels")
    summary += f" in {len(lines)} splits" if len(lines) > 1 else ""
    environment = Environment(loader=PackageLoader("ccassets.tools"), keep_trailing_newline=True)
    environment.filters["yaml"] = _yaml
    text = environment.get_template("defs.yaml").render(
        name=path.parent.name,
        summary=summary,
        config=config,
        root=root,
        classes=classes,
        lines=lines,
        encoder=encoder,
        preset=preset_of(encoder["weights"]),
    )
    try:
        write_text(path, text)
    except OSError as error:
        raise storage_error(error, path) from error
    load_study(path)
    return NewStudy(path, summary, lines)


def _image_count(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"


def _yaml(value: Any) -> str:
    """A text or a list of texts on one line of YAML, in quotes where YAML needs them."""
    if isinstance(value, str):
        return _yaml([value])[1:-1]
    return yaml.safe_dump(list(value), default_flow_style=True, allow_unicode=True, width=2**20).strip()
