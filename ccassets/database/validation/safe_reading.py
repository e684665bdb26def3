"""Reading attributes, groups and data sets of a file that may hold anything: every failure becomes a finding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import h5py
import numpy as np

from ccassets.database.attributes import plain_value
from ccassets.database.hdf5 import READ_ERRORS, member_path, safe_dataset
from ccassets.database.validation.finding_collector import (
    FindingCollector,
    RowNumbers,
    count,
    listed,
    rows_text,
    shortened,
)
from ccassets.errors import DatabaseError
from ccassets.files import system_error_kind

T = TypeVar("T")

_STRINGS_PER_READ = 1 << 16
_PLAUSIBLE_BYTES = 64 << 20
_PLAUSIBLE_RATIO = 16


@dataclass(frozen=True)
class DatasetSpec:
    """The dtype of a data set (`None`: strings), and its shape; a named axis may have any length."""

    dtype: str | None
    shape: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.shape))}{',' if len(self.shape) == 1 else ''})"


@dataclass(frozen=True)
class Categorical:
    """Strings by row, as numbers of distinct names in the order in which they first appear."""

    names: Sequence[str]
    codes: RowNumbers

    def __len__(self) -> int:
        return len(self.codes)

    def rows_of(self, name: str) -> RowNumbers:
        return np.flatnonzero(self.codes == self.names.index(name)) if name in self.names else np.empty(0, np.int64)

    def counts(self) -> dict[str, int]:
        """Rows of every name."""
        numbers = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return dict(zip(self.names, numbers, strict=True))


# --- attributes ---------------------------------------------------------------------------------------


def read_plain_attributes(group: h5py.Group, where: str, findings: FindingCollector) -> dict[str, Any]:
    """Every attribute that can be read: text as `str`, scalars as Python numbers, arrays as lists."""
    attributes: dict[str, Any] = {}
    try:
        names = list(group.attrs)
    except READ_ERRORS as error:
        findings.add_unreadable(where, "The attributes cannot be listed", error)
        return attributes
    for name in names:
        try:
            value = plain_value(group.attrs[name])
        except READ_ERRORS as error:
            findings.add_unreadable(f"{where}@{name}", "The attribute cannot be read", error)
            continue
        if isinstance(value, str) and not is_utf8(value):
            findings.add("utf8", f"{where}@{name}", f"expected UTF-8 text, found {shortened(value)}")
        attributes[name] = value
    return attributes


def is_utf8(text: str) -> bool:
    """Whether a text has no surrogates, which stand for bytes that are not UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_integer(attributes: Mapping[str, Any], name: str, where: str, findings: FindingCollector) -> int | None:
    """An integer attribute; None where it is absent, and with a finding where it is something else."""
    value = attributes.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    findings.add("attributes", f"{where}@{name}", f"{name}: expected an int64, found {_type_text(value)}")
    return None


def _type_text(value: Any) -> str:
    return f"{type(value).__name__} {shortened(str(value), 40)}"


# --- groups -------------------------------------------------------------------------------------------


def member_names(group: h5py.Group, findings: FindingCollector) -> list[str]:
    """The names in a group that can be read."""
    try:
        names = list(group)
    except READ_ERRORS as error:
        findings.add_unreadable(group.name, "the names in the group cannot be read", error)
        return []
    broken = [repr(name) for name in names if not isinstance(name, str)]
    if broken:
        findings.add("utf8", group.name, f"expected names in UTF-8, found {listed(broken)}")
    return [name for name in names if isinstance(name, str)]


def read_group(group: h5py.Group, name: str, findings: FindingCollector, *, listed: bool = False) -> h5py.Group | None:
    """A group that lies in the file itself; None where there is no such name, or with a finding.

    `listed` says that the name is known to be there.
    """
    where = member_path(group, name)
    try:
        link = group.get(name, getlink=True)
        if link is None:
            if listed:
                findings.add("unreadable", where, "the name is listed, and leads to nothing")
            return None
        if not isinstance(link, h5py.HardLink):
            findings.add("self_contained", where, "expected a group of the file itself, found a soft or external link")
            return None
        member = group[name]
    except READ_ERRORS as error:
        findings.add_unreadable(where, "the group cannot be opened", error)
        return None
    if not isinstance(member, h5py.Group):
        findings.add("datasets", where, "expected a group, found another kind of object")
        return None
    return member


# --- data sets ----------------------------------------------------------------------------------------


def usable_dataset(
    group: h5py.Group, name: str, spec: DatasetSpec, file_bytes: int, findings: FindingCollector, *, required: bool
) -> h5py.Dataset | None:
    """A data set that later checks can read; None, with a finding, where there is none."""
    where = member_path(group, name)
    try:
        link = group.get(name, getlink=True)
        if link is None:
            if required:
                findings.add("datasets", where, f"expected a data set of shape {spec}, found none")
            return None
        if isinstance(link, h5py.HardLink) and group.get(name, getclass=True) is not h5py.Dataset:
            findings.add("datasets", where, f"expected a data set of shape {spec}, found another kind of object")
            return None
        dataset = safe_dataset(group, name)
        assert dataset is not None
        fits = _matches(dataset, spec, where, findings) and _is_plausible(dataset, where, file_bytes, findings)
    except DatabaseError as error:
        findings.add("self_contained", where, str(error))
        return None
    except READ_ERRORS as error:
        findings.add_unreadable(where, "the data set cannot be opened", error)
        return None
    return dataset if fits else None


def _matches(dataset: h5py.Dataset, spec: DatasetSpec, where: str, findings: FindingCollector) -> bool:
    shape = dataset.shape
    if shape is None or len(shape) != len(spec.shape):
        findings.add("shapes", where, f"expected shape {spec}, found {shape if shape is not None else 'no values'}")
        return False
    widths = [(axis, length) for axis, length in zip(spec.shape, shape, strict=True) if isinstance(axis, int)]
    if any(axis != length for axis, length in widths):
        findings.add("shapes", where, f"expected shape {spec}, found {shape}")
        return False
    if spec.dtype is None:
        return _is_text(dataset, where, findings)
    expected = np.dtype(spec.dtype)
    if dataset.dtype != expected:
        findings.add("dtypes", where, f"expected {expected.name} ({expected.str}), found {_dtype_text(dataset.dtype)}")
    if expected.kind == "f":
        return bool(dataset.dtype.kind == "f")
    return dataset.dtype.kind in "iu"


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return f"{dtype.name} ({dtype.str})" if dtype.kind in "iufb" else str(dtype)


def _is_text(dataset: h5py.Dataset, where: str, findings: FindingCollector) -> bool:
    info = h5py.check_string_dtype(dataset.dtype)
    if info is None:
        findings.add("dtypes", where, f"expected variable-length UTF-8 strings, found {_dtype_text(dataset.dtype)}")
        return False
    if info.length is not None or info.encoding != "utf-8":
        length = "variable-length" if info.length is None else f"{info.length}-byte"
        findings.add(
            "string_types", where, f"expected variable-length UTF-8 strings, found {length} {info.encoding} ones"
        )
    return True


def _is_plausible(dataset: h5py.Dataset, where: str, file_bytes: int, findings: FindingCollector) -> bool:
    """Whether reading the data set needs no missing filter, and no memory that its file cannot account for."""
    declared = int(np.prod([int(length) for length in dataset.shape], dtype=object)) * dataset.dtype.itemsize
    chunk = int(np.prod(dataset.chunks or (0,), dtype=object)) * dataset.dtype.itemsize
    allowed = max(_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO * file_bytes)
    if declared > allowed:
        findings.add(
            "declared_size",
            where,
            f"shape {dataset.shape} declares {declared:,} bytes in a file of {file_bytes:,}: most was never written, "
            "or packed so tightly that unpacking it would fill the memory",
        )
        return False
    if chunk > allowed:
        findings.add(
            "declared_size",
            where,
            f"expected chunks smaller than the file of {file_bytes:,} bytes, found {dataset.chunks} of {chunk:,} each",
        )
        return False
    return _filters_work(dataset, where, findings)


def _filters_work(dataset: h5py.Dataset, where: str, findings: FindingCollector) -> bool:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    missing = [
        f"{code} ({name.decode('utf-8', 'replace') or 'unnamed'})"
        for code, _, _, name in filters
        if not _is_available(code)
    ]
    try:
        # An optional filter that was not applied is not needed either: only reading tells.
        if missing and dataset.size:
            dataset[:1]
    except READ_ERRORS as error:
        if system_error_kind(error):
            raise
        findings.add("unreadable", where, f"the HDF5 filter {listed(missing)} is needed, and not installed here")
        return False
    return True


def _is_available(code: int) -> bool:
    return bool(h5py.h5z.filter_avail(code))


def read_or_report(read: Callable[[], T], where: str, findings: FindingCollector) -> T | None:
    """The result of `read`; None, with a finding, when the bytes cannot be read."""
    try:
        return read()
    except READ_ERRORS as error:
        findings.add_unreadable(where, "the values cannot be read", error)
        return None


def read_names(dataset: h5py.Dataset, findings: FindingCollector) -> Categorical | None:
    """Strings by row; None, with a finding, where they cannot be read."""
    code_of: dict[bytes, int] = {}
    codes = np.empty(len(dataset), np.int64)
    try:
        for first in range(0, len(dataset), _STRINGS_PER_READ):
            block: list[bytes] = dataset[first : first + _STRINGS_PER_READ].tolist()
            codes[first : first + len(block)] = [code_of.setdefault(text, len(code_of)) for text in block]
    except READ_ERRORS as error:
        findings.add_unreadable(dataset.name, "the strings cannot be read", error)
        return None
    names, broken = [], []
    for code, text in enumerate(code_of):
        try:
            names.append(text.decode("utf-8"))
        except UnicodeDecodeError:
            names.append(text.decode("utf-8", "surrogateescape"))
            broken.append(code)
    if broken:
        rows = np.flatnonzero(np.isin(codes, broken))
        findings.add(
            "utf8",
            f"{dataset.name} {rows_text(rows)}",
            f"expected UTF-8 strings; {count(len(rows), 'row')} are not",
        )
    return Categorical(names, codes)
