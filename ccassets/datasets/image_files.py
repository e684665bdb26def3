"""Image files and their keys: suffixes, names that can be stored, fingerprints, pixels."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

from PIL import Image

from ccassets.datasets.dicom import DICOM_SUFFIXES, decode_frame, dicom_fingerprint, is_dicom, split_frame, suffix_of
from ccassets.datasets.image_decoding import SUFFIXES, decode_image
from ccassets.errors import DatasetError
from ccassets.files import fingerprint, reading_errors
from ccassets.study.schema import DicomConfig

IMAGE_SUFFIXES: Final = SUFFIXES | DICOM_SUFFIXES
MISSING: Final = "missing"
MAX_TABLE_BYTES: Final = 2 << 30
"""A table of ten million rows has about a gigabyte."""
_NO_KEY = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def is_image(root: Path, key: str) -> bool:
    """Whether a file is an image by its suffix, or a DICOM file, whatever it is called."""
    return suffix_of(key) in IMAGE_SUFFIXES or is_dicom(root, key)


def check_keys(keys: Iterable[str], *, where: str) -> None:
    """Raise `DatasetError` for names that cannot be stored as UTF-8 text in one line."""
    wrong = [key for key in keys if _NO_KEY.search(key)]
    if wrong:
        raise DatasetError(
            f"{where}: file names must be UTF-8 without control characters or line breaks; rename "
            f"{first_few([ascii(key) for key in wrong])}."
        )


def fingerprints(root: Path, keys: Sequence[str], dicom: DicomConfig) -> list[str]:
    """A fingerprint for every key, `missing` where there is no file: reading that image reports it.

    Raises `DatasetError` when not one of the files exists: then the folder is wrong; `StorageError` when the system
    does not let a file be looked at.
    """
    paths = [split_frame(root, key)[0] for key in keys]
    known = {path: _fingerprint_or_missing(root, path, dicom) for path in dict.fromkeys(paths)}
    if known and all(fingerprint == MISSING for fingerprint in known.values()):
        similar = similar_file(root, paths[0])
        raise DatasetError(
            f"Not one of {len(known)} image files is under {root}; the first is {paths[0]!r}. "
            + (f"But {similar}." if similar else "Correct dataset.root.")
        )
    return [known[path] for path in paths]


def _fingerprint_or_missing(root: Path, key: str, dicom: DicomConfig) -> str:
    path = root / key
    try:
        with reading_errors(path):
            return dicom_fingerprint(path, dicom) if is_dicom(root, key) else fingerprint(path)
    except OSError:
        return MISSING


def read_image_file(root: Path, key: str, dicom: DicomConfig) -> Image.Image:
    """Decode the image, or the frame of a DICOM file, under a key as 8-bit RGB.

    Args:
        root: The data set's root.
        key: The path below it, with the number of the frame where a file has several.
        dicom: The study's section `dicom`.

    Returns:
        The decoded image.

    Raises:
        DatasetError: The file is not an image that can be read here; the message is only the reason.
        StorageError: The operating system refuses to read the file now.
    """
    name, frame = split_frame(root, key)
    path = root / name
    if not path.exists() and (similar := similar_file(root, name)):
        raise DatasetError(f"there is no such file, but {similar}")
    return decode_frame(path, frame, dicom) if is_dicom(root, name) else decode_image(path)


def similar_file(root: Path, key: str) -> str | None:
    """A sentence that names the file of almost that path: other slashes, letter case, blanks or Unicode form.

    Args:
        root: The data set's root.
        key: A path below it under which there is no file; the folders that a Windows path starts with may be others.

    Returns:
        The end of a sentence with the file's key, or None where there is no such file.
    """
    parts = re.split(r"[\\/]+", key)
    for first in range(len(parts) if "\\" in key else 1):
        names: list[str] = []
        for part in parts[first:]:
            folder = root.joinpath(*names)
            name = _names_by_form(folder, fingerprint(folder)).get(_form(part)) if folder.is_dir() else None
            if name is None:
                break
            names.append(name)
        else:
            if not root.joinpath(*names).is_file():  # A link that leads nowhere.
                return None
            how = "slashes" if "\\" in key else "letter case, blanks or the form of its Unicode characters"
            return f"{'/'.join(names)!r} is there, which differs in {how}; write that in the table, or rename the file"
    return None


@lru_cache(maxsize=64)
def _names_by_form(folder: Path, state: str) -> dict[str, str]:
    """The names in a folder by their normal form; `state` changes with the folder."""
    return {_form(path.name): path.name for path in folder.iterdir()}


def _form(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def first_few(items: Sequence[str], count: int = 10) -> str:
    """The first items as text, with the number of all where there are more."""
    text = ", ".join(items[:count])
    return text if len(items) <= count else f"{text}, … ({len(items)} in all)"
