"""A new study: what a folder of images or a MedMNIST set holds, written as a commented `defs.yaml` that loads."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from pydantic import ValidationError

from ccassets.datasets.folder import FolderDataset
from ccassets.datasets.image_files import IMAGE_SUFFIXES
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.errors import DatasetError, StudyError
from ccassets.files import write_text
from ccassets.progress import silent
from ccassets.study.loading import load_study
from ccassets.study.schema import FolderConfig, MedmnistConfig

_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")


@dataclass(frozen=True)
class NewStudy:
    """The study file that was written, and what was found: in one phrase, and split by split."""

    path: Path
    found: str
    splits: Sequence[str]


def new_folder_study(name: str, images: Path, into: Path) -> NewStudy:
    """Write `<into>/<name>/defs.yaml` for a folder of images.

    Told apart are `<split>/<class>/*`, `<class>/*` (the folder itself is then the one split), and both without
    classes. Raises `DatasetError` when there are no images or they do not lie like that, `StudyError` when the study
    is there already or cannot be called so.
    """
    path = _free_path(name, into)
    images = images.expanduser()
    root, splits = _layout(images.absolute())
    try:
        config = FolderConfig(kind="folder", root=root, splits=splits)
    except ValidationError as error:
        raise StudyError(f"{root}: {error.errors()[0]['msg']}. Rename the folder.") from error
    dataset = FolderDataset(config, root=root, words=())
    dataset.fetch(silent)
    counts = {split: Counter(dataset.rows(split).labels.tolist()) for split in splits}
    total = sum(count.total() for count in counts.values())
    if not total:
        raise DatasetError(f"{images} holds no images; they end in {' '.join(sorted(IMAGE_SUFFIXES))}.")
    lines = [
        f"{split}: {_images(count.total())}"
        + "".join(f", {count[number]:,} {word}" for number, word in enumerate(dataset.classes))
        for split, count in counts.items()
    ]
    shown = root if images.is_absolute() else Path(os.path.relpath(root, path.parent))
    return _write(path, config, str(shown), dataset.classes, total, lines)


def new_medmnist_study(name: str, flag: str, into: Path) -> NewStudy:
    """Write `<into>/<name>/defs.yaml` for a 2D set of MedMNIST at 224 px; nothing is fetched.

    Raises `DatasetError` when there is no such set, `StudyError` as `new_folder_study` does.
    """
    path = _free_path(name, into)
    config = MedmnistConfig(kind="medmnist", name=flag, size=224)
    dataset = MedmnistDataset(config, root=Path(), unpacked_root=Path())
    counts = dataset.published_rows
    lines = [f"{split}: {_images(count)}" for split, count in counts.items()]
    return _write(path, config, "", dataset.classes, sum(counts.values()), lines)


def _free_path(name: str, into: Path) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise StudyError(f"{name!r} cannot name a study: letters, digits and _ are expected.")
    path = into.expanduser().absolute() / name / "defs.yaml"
    if path.exists():
        raise StudyError(f"{path} is there already and stays as it is; choose another name or folder.")
    return path


def _layout(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The root of the data set and its splits: the folders below, or the folder itself where those are classes."""
    if not folder.is_dir():
        raise DatasetError(f"There is no folder {folder}.")
    inside = {child.name: _folders(child) for child in _folders(folder)}
    below = [child.name for children in inside.values() for child in children]
    # Class folders come back in every split; folders of patients, below a class, are each there once.
    repeated = len(set(below)) < len(below)
    if not repeated and not any(name.lower() in _SPLIT_NAMES for name in inside):
        return folder.parent, (folder.name,)
    order = {name: place for place, name in enumerate(_SPLIT_NAMES)}
    return folder, tuple(sorted(inside, key=lambda name: (order.get(name.lower(), len(order)), name)))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _write(
    path: Path,
    config: FolderConfig | MedmnistConfig,
    root: str,
    classes: Sequence[str],
    total: int,
    lines: Sequence[str],
) -> NewStudy:
    found = f"{_images(total)} of {len(classes)} classes" if classes else f"{_images(total)} without labels"
    found += f" in {len(lines)} splits" if len(lines) > 1 else ""
    environment = Environment(loader=PackageLoader("ccassets.tools"), keep_trailing_newline=True)
    environment.filters["yaml"] = _yaml
    text = environment.get_template("defs.yaml").render(
        name=path.parent.name, found=found, config=config, root=root, classes=classes, lines=lines
    )
    write_text(path, text)
    load_study(path)
    return NewStudy(path, found, lines)


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"


def _yaml(value: Any) -> str:
    """A text or a list of texts as it stands on one line of YAML, in quotes where that is needed."""
    if isinstance(value, str):
        return _yaml([value])[1:-1]
    return yaml.safe_dump(list(value), default_flow_style=True, allow_unicode=True, width=2**20).strip()
