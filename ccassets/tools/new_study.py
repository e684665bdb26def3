"""Writing a new study file for a folder, a table, a Hugging Face data set or a set of MedMNIST."""

from __future__ import annotations

import codecs
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from pydantic import ValidationError

from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.folder import FolderDataset, is_visible
from ccassets.datasets.huggingface import HuggingfaceDataset, image_columns, open_tables
from ccassets.datasets.image_files import IMAGE_SUFFIXES, first_few
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.datasets.table import TableDataset
from ccassets.datasets.table_files import read_columns
from ccassets.encoders.presets import load_presets, preset_of
from ccassets.errors import DatasetError, StudyError
from ccassets.files import write_text
from ccassets.progress import silent
from ccassets.study.loading import STUDY_FILE, load_study, require_new_name
from ccassets.study.schema import FolderConfig, HuggingfaceConfig, MedmnistConfig, TableColumns, TableConfig
from ccassets.study.storage import storage_root

_SPLIT_NAMES = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
_COLUMN_NAMES = {
    "path": (
        "path",
        "image",
        "file",
        "filename",
        "file path",
        "image path",
        "image file",
        "image name",
        "img",
        "image id",
    ),
    "label": ("label", "labels", "class", "target", "diagnosis", "dx", "category", "grade"),
    "split": ("split", "fold", "set", "subset", "partition"),
    "group": ("group", "patient", "patient id", "subject", "subject id", "case", "case id", "slide", "slide id"),
}
"""Usual names of columns by what they hold, the likeliest first."""
_MOST_NUMBERED_CLASSES = 100


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
    path, section = new_study_path(name, studies), _encoder_section(encoder, studies / name)
    images = images.expanduser()
    root, splits = _root_and_splits(images.absolute())
    try:
        config = FolderConfig(kind="folder", root=root, splits=splits)
    except ValidationError as error:
        raise StudyError(f"{root}: {error.errors()[0]['msg']}. Rename the folder.") from error
    dataset = FolderDataset(config, root=root, words=())
    total, lines = _counts(dataset, splits, dataset.classes)
    if not total:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise DatasetError(f"{images} holds no images. Expected files that end in {suffixes}.")
    return _write(path, config, _written(root, images, path), dataset.classes, total, lines, section)


def write_table_study(name: str, file: Path, studies: Path, *, encoder: str = "conceptclip") -> NewStudy:
    """Write the study file for a table with one image per row.

    Columns are known by usual names (`path`, `filename`, `label`, `diagnosis`, `split`, `patient`, …).

    Args:
        name: Name of the study: letters, digits and `_`.
        file: A CSV or Parquet file; the images lie in its folder, or in a folder beside it.
        studies: Folder of studies; the file is `<studies>/<name>/defs.yaml`.
        encoder: A preset of `ccassets encoders`, or the folder of a model of open_clip or transformers.

    Returns:
        The path of the study file and what it describes.

    Raises:
        DatasetError: The table cannot be read, has no column of paths or splits, or its images are missing.
        StudyError: The study file exists, the name cannot be a study's, or there is no such encoder.
        StorageError: The study file cannot be written.
    """
    path, section = new_study_path(name, studies), _encoder_section(encoder, studies / name)
    file = file.expanduser()
    encoding = "utf-16" if _starts_like_utf16(file) else "utf-8"
    table = read_columns(file.absolute(), lambda present: list(dict.fromkeys(present)), encoding=encoding)
    columns = {role: _column_of(role, table.column_names) for role in _COLUMN_NAMES}
    for role in ("path", "split"):
        if columns[role] is None:
            raise DatasetError(
                f"{file} has no column that is known to hold the {role} of an image: expected one of "
                f"{', '.join(_COLUMN_NAMES[role])}; it has {first_few(table.column_names, 30)}. Rename or add it."
            )
    present = {role: column for role, column in columns.items() if column is not None}
    splits = _in_split_order({str(value).strip() for value in table[present["split"]].to_pylist() if value is not None})
    root = _root_of(file.absolute().parent, [str(key).strip() for key in table[present["path"]][:20].to_pylist()])
    try:
        config = TableConfig(
            kind="table",
            file=file,
            root=root,
            columns=TableColumns.model_validate(present),
            splits=splits,
            encoding=encoding,
        )
    except ValidationError as error:
        raise StudyError(f"{file}: {error.errors()[0]['msg']}. Correct column {present['split']!r}.") from error
    dataset = TableDataset(config, file=file.absolute(), root=root, words=())
    classes = dataset.classes or _number_names(dataset, splits)
    total, lines = _counts(dataset, splits, classes)
    image_root = "" if root == file.absolute().parent else _written(root, file, path)
    return _write(
        path, config, _written(file.absolute(), file, path), classes, total, lines, section, image_root=image_root
    )


def write_huggingface_study(name: str, reference: str, studies: Path, *, encoder: str = "conceptclip") -> NewStudy:
    """Write the study file for a data set of the Hugging Face hub, which is downloaded, or of a local folder.

    Args:
        name: Name of the study: letters, digits and `_`.
        reference: The hub id, a folder, or a Parquet file.
        studies: Folder of studies; the file is `<studies>/<name>/defs.yaml`.
        encoder: A preset of `ccassets encoders`, or the folder of a model of open_clip or transformers.

    Returns:
        The path of the study file and what it describes.

    Raises:
        DatasetError: There is no such data set, it cannot be downloaded, or it has no column of images.
        StudyError: The study file exists, the name cannot be a study's, or there is no such encoder.
        StorageError: The study file cannot be written.
    """
    path, section = new_study_path(name, studies), _encoder_section(encoder, studies / name)
    local = Path(reference).expanduser()
    exists = local.exists()
    config = HuggingfaceConfig(kind="huggingface", path=str(local.absolute()) if exists else reference)
    cache = storage_root() / "datasets" / "huggingface"
    source = HuggingfaceDataset(config, local=local.absolute() if exists else None, cache=cache, words=())
    tables = open_tables(source.folder, None, cache)
    table = next(iter(tables.values()))
    images = image_columns(table)
    if not images:
        raise DatasetError(
            f"{reference}: expected a column of images, found {table.column_names}. Cast one of them to the feature "
            "Image of `datasets`, or save the images as files and use --folder or --table."
        )
    label = _column_of("label", table.column_names)
    revision = "main" if exists else source.folder.name
    config = config.model_copy(
        update={"image": images[0], "label": label, "splits": _in_split_order(tables), "revision": revision}
    )
    dataset = HuggingfaceDataset(config, local=source.local, cache=cache, words=())
    classes = dataset.classes or _number_names(dataset, config.splits)
    total, lines = _counts(dataset, config.splits, classes)
    written = _written(local.absolute(), local, path) if exists else reference
    return _write(path, config, written, classes, total, lines, section)


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
    path, section = new_study_path(name, studies), _encoder_section(encoder, studies / name)
    config = MedmnistConfig(kind="medmnist", name=flag, size=224)
    dataset = MedmnistDataset(config, root=Path(), unpacked_root=Path())
    counts = dataset.published_rows
    lines = [f"{split}: {_image_count(count)}" for split, count in counts.items()]
    return _write(path, config, "", dataset.classes, sum(counts.values()), lines, section)


def new_study_path(name: str, studies: Path) -> Path:
    """The path of a new study's file; raises `StudyError` when there is one, or the name cannot be a study's."""
    require_new_name(name)
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
        f"{encoder!r} is not a preset ({', '.join(load_presets())}), nor a folder with open_clip_config.json or "
        "config.json."
    )


def _starts_like_utf16(file: Path) -> bool:
    try:
        with file.open("rb") as start:
            return start.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}
    except OSError:
        return False  # Reading the table says why.


def _column_of(role: str, present: Sequence[str]) -> str | None:
    """The first column with a usual name for a role, written in any case and with any or no mark between words."""
    by_name = {_letters(name): name for name in reversed(present)}
    return next((by_name[name] for name in map(_letters, _COLUMN_NAMES[role]) if name in by_name), None)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))


def _root_of(folder: Path, keys: Sequence[str]) -> Path:
    """The folder that the first keys are relative to: that of the table, or one beside it."""
    candidates = [folder, *_visible_folders(folder)]
    return next((root for root in candidates if any((root / key).is_file() for key in keys)), folder)


def _number_names(dataset: TableDataset | HuggingfaceDataset, splits: Sequence[str]) -> tuple[str, ...]:
    """Names of classes that are only known by their numbers: the numbers, for the user to replace."""
    if not dataset.labelled:
        return ()
    highest = max((int(dataset.rows(split).labels.max(initial=0)) for split in splits), default=0)
    return tuple(map(str, range(highest + 1))) if highest < _MOST_NUMBERED_CLASSES else ()


def _counts(dataset: Dataset, splits: Sequence[str], classes: Sequence[str]) -> tuple[int, list[str]]:
    """The number of all images, and a line for each split: its images, and how many of each class."""
    dataset.fetch(silent)
    total, lines = 0, []
    for split in splits:
        rows = dataset.rows(split)
        matrix = rows.label_matrix
        counts = Counter(rows.labels.tolist()) if matrix is None else dict(enumerate(matrix.sum(axis=0).tolist()))
        of_classes = "".join(f", {counts.get(number, 0):,} {name}" for number, name in enumerate(classes))
        lines.append(f"{split}: {_image_count(len(rows))}{of_classes}")
        total += len(rows)
    return total, lines


def _written(target: Path, given: Path, study: Path) -> str:
    """A path as the study file says it: absolute where the user gave it so, else from the study's folder."""
    return str(target if given.is_absolute() else Path(os.path.relpath(target, study.parent)))


def _in_split_order(names: Iterable[str]) -> tuple[str, ...]:
    order = {name: number for number, name in enumerate(_SPLIT_NAMES)}
    return tuple(sorted(names, key=lambda name: (order.get(name.lower(), len(order)), name)))


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
    return folder, _in_split_order(subfolders)


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and is_visible(path.name))


def _write(
    path: Path,
    config: FolderConfig | TableConfig | HuggingfaceConfig | MedmnistConfig,
    source: str,
    classes: Sequence[str],
    total: int,
    lines: Sequence[str],
    encoder: Mapping[str, str],
    *,
    image_root: str = "",
) -> NewStudy:
    summary = _image_count(total) + (f" of {len(classes)} classes" if classes else " without labels")
    summary += f" in {len(lines)} splits" if len(lines) > 1 else ""
    environment = Environment(loader=PackageLoader("ccassets.tools"), keep_trailing_newline=True)
    environment.filters["yaml"] = _yaml
    text = environment.get_template("defs.yaml").render(
        name=path.parent.name,
        summary=summary,
        config=config,
        source=source,
        image_root=image_root,
        classes=classes,
        lines=lines,
        encoder=encoder,
        preset=preset_of(encoder["weights"]),
    )
    write_text(path, text)
    load_study(path)
    return NewStudy(path, summary, lines)


def _image_count(count: int) -> str:
    return f"{count:,} image{'s' if count != 1 else ''}"


def _yaml(value: Any) -> str:
    """A text, a list or a mapping of texts on one line of YAML, in quotes where YAML needs them."""
    if isinstance(value, str):
        return _yaml([value])[1:-1]
    content = dict(value) if isinstance(value, Mapping) else list(value)
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=True, allow_unicode=True, width=2**20).strip()
