"""What a file holds, read once and defensively: a file may be anything, and whatever it is becomes a finding here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, VERSION
from ccassets.database.reader import READ_ERRORS, FeatureDatabase, safe_dataset
from ccassets.database.validation.report import Report, count, listed, rows_text, shortened
from ccassets.errors import DatabaseError

Array = npt.NDArray[Any]
T = TypeVar("T")

TEXT_ONLY_VERSION = "text-only-1.0"
ROW_DATASETS = (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, "ids", "labels", "split")
WORD_LISTS = ("label_texts", "prompt_temp_for_labels", "concept_texts", "prompt_temp_for_concepts")

_STRINGS_PER_READ = 1 << 16
_PLAUSIBLE_BYTES = 64 << 20
_PLAUSIBLE_RATIO = 16


@dataclass(frozen=True)
class Form:
    """The dtype of a data set (`None`: strings), and its shape; a named axis may have any length."""

    dtype: str | None
    shape: tuple[str | int, ...]

    def __str__(self) -> str:
        return f"({', '.join(map(str, self.shape))}{',' if len(self.shape) == 1 else ''})"


_ROW_FORMS: Mapping[str, Form] = {
    IMAGE_FEATURES: Form("<f2", ("N", "D")),
    IMAGE_TOKEN_FEATURES: Form("<f2", ("N", "T_img", "D")),
    "ids": Form("<i8", ("N",)),
    "labels": Form("<i8", ("N",)),
    "split": Form(None, ("N",)),
    "keys": Form(None, ("N",)),
    "groups": Form(None, ("N",)),
    "label_matrix": Form("|u1", ("N", "L")),
    "image_digest": Form("|u1", ("N", 32)),
    "feature_digest": Form("|u1", ("N", 16)),
}
_TEMPLATE_FORMS: Mapping[str, Form] = {
    "text_features": Form("<f4", ("K", "D")),
    "text_token_features": Form("<f4", ("K", "T_txt", "D")),
    "texts": Form(None, ("K",)),
    "input_ids": Form("<i4", ("K", "T")),
    "attention_mask": Form("|u1", ("K", "T")),
    "subject_span": Form("<i4", ("K", 2)),
}


@dataclass(frozen=True)
class Names:
    """Strings by row, as numbers of distinct names in the order in which they first appear."""

    names: Sequence[str]
    codes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.codes)

    def rows_of(self, name: str) -> npt.NDArray[np.int64]:
        return np.flatnonzero(self.codes == self.names.index(name)) if name in self.names else np.empty(0, np.int64)

    def counts(self) -> dict[str, int]:
        """Rows of every name."""
        numbers = np.bincount(self.codes, minlength=len(self.names)).tolist()
        return dict(zip(self.names, numbers, strict=True))


@dataclass(frozen=True)
class Run:
    """Rows `start` to `stop - 1`, which stand together and share a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TemplateContents:
    """A template: the data sets that can be read, its attributes, and its texts where they can be."""

    template_id: str
    datasets: Mapping[str, h5py.Dataset]
    attributes: Mapping[str, Any]
    texts: Sequence[str] | None

    @property
    def where(self) -> str:
        return f"/templates/{self.template_id}"


@dataclass(frozen=True)
class Contents:
    """What could be read of a file; what could not is missing here, and has its finding.

    `datasets` are root data sets of the right kind and rank. `kind` is the profile, or `text-only` for files of
    templates alone. `published` tells files of our writer from those of the original scripts and of `append_batch`.
    """

    kind: Literal["database", "image-part", "template-part", "text-only"]
    published: bool
    attributes: Mapping[str, Any]
    datasets: Mapping[str, h5py.Dataset]
    templates: Mapping[str, TemplateContents]
    ids: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    split: Names | None = None
    keys: Names | None = None
    groups: Names | None = None
    label_matrix: Array | None = None
    image_digest: Array | None = None
    feature_digest: Array | None = None
    word_lists: Mapping[str, Sequence[str]] = field(default_factory=dict)
    provenance: Mapping[str, Any] | None = None

    @property
    def rows(self) -> int:
        """N, by the image features where they can be read."""
        lengths = [len(self.datasets[name]) for name in ROW_DATASETS if name in self.datasets]
        return lengths[0] if lengths else 0

    @property
    def split_counts(self) -> Mapping[str, int] | None:
        """The stored counts; None where they are absent or malformed."""
        counts = self.attributes.get("split_counts")
        return counts if isinstance(counts, dict) else None

    def runs(self) -> list[Run]:
        """Runs of rows of one split, in file order, without torn rows (those whose split is empty)."""
        if self.split is None or not len(self.split):
            return []
        codes = self.split.codes
        starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
        stops = np.r_[starts[1:], len(codes)]
        runs = [
            Run(self.split.names[codes[start]], start, stop)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        return [run for run in runs if run.split]


def read_contents(database: FeatureDatabase, report: Report) -> Contents:
    """Read everything but image features, token features and text arrays; report what is not as it has to be."""
    file = database.file
    attributes = _read_attributes(file, "/", report)
    names = frozenset(_members(file, report))
    kind = _kind(names, attributes, report)
    published = "profile" in attributes
    templates = _read_templates(file, database.path.stat().st_size, report) if kind != "image-part" else {}
    rows = (
        {} if kind in {"template-part", "text-only"} else _row_datasets(database, attributes, published, kind, report)
    )
    small = {name: _read_small(rows[name], report) for name in _SMALL if name in rows}
    decoded = _decode_root(attributes, kind, report)
    contents = Contents(
        kind=kind,
        published=published,
        attributes=decoded,
        datasets={name: dataset for name, dataset in rows.items() if small.get(name, dataset) is not None},
        templates=templates,
        word_lists={name: decoded[name] for name in WORD_LISTS if isinstance(decoded.get(name), list)},
        provenance=decoded["provenance"] if isinstance(decoded.get("provenance"), dict) else None,
        **{name: values for name, values in small.items() if values is not None},
    )
    _check_profile(contents, names, report)
    _check_version(contents, report)
    _check_row_counts(contents, report)
    _check_dimensions(contents, report)
    for template in templates.values():
        _check_template(template, contents, report)
    return contents


# --- attributes ---------------------------------------------------------------------------------------


def _read_attributes(group: h5py.Group, where: str, report: Report) -> dict[str, Any]:
    """Every attribute that can be read: text as `str`, scalars as Python numbers, arrays as they are."""
    attributes: dict[str, Any] = {}
    try:
        names = list(group.attrs)
    except READ_ERRORS as error:
        report.add("unreadable", where, f"The attributes cannot be listed: {error}")
        return attributes
    for name in names:
        try:
            value = _plain(group.attrs[name])
        except READ_ERRORS as error:
            report.add("unreadable", f"{where}@{name}", f"The attribute cannot be read: {error}")
            continue
        if isinstance(value, str) and not _is_utf8(value):
            report.add("utf8", f"{where}@{name}", f"UTF-8 text was expected; found {shortened(value)}")
        attributes[name] = value
    return attributes


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.shape == ():
        value = value[()]
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, np.generic):
        return value.item()
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _decode_root(attributes: Mapping[str, Any], kind: str, report: Report) -> dict[str, Any]:
    """Root attributes with JSON decoded; a malformed one is reported and left out."""
    decoded = dict(attributes)
    for name in WORD_LISTS:
        if name in attributes:
            words = _json(attributes[name])
            if isinstance(words, list) and all(isinstance(word, str) and _is_utf8(word) for word in words):
                decoded[name] = words
            else:
                _malformed(report, "attributes", name, "a JSON list of strings", attributes[name])
                decoded[name] = None
    if "concepts" in attributes:
        concepts = _json(attributes["concepts"])
        if isinstance(concepts, list) and all(_is_concept(concept) for concept in concepts):
            decoded["concepts"] = concepts
        else:
            _malformed(report, "attributes", "concepts", "a JSON list of {word, synonyms, …}", attributes["concepts"])
            decoded["concepts"] = None
    if "split_counts" in attributes:
        counts = _json(attributes["split_counts"])
        if isinstance(counts, dict) and all(_is_count(number) for number in counts.values()):
            decoded["split_counts"] = counts
        else:
            _malformed(
                report, "split_counts", "split_counts", "a JSON object of row numbers", attributes["split_counts"]
            )
            decoded["split_counts"] = None
    if "provenance" in attributes:
        provenance = _json(attributes["provenance"])
        if isinstance(provenance, dict):
            decoded["provenance"] = provenance
        else:
            _malformed(report, "provenance", "provenance", "one JSON object", attributes["provenance"])
            decoded["provenance"] = None
    if "created_at" in attributes or kind != "text-only":
        _check_created_at(attributes, "/", report)
    return decoded


def _json(value: Any) -> Any:
    """The value of a JSON attribute; None where it is no JSON text."""
    if not isinstance(value, str):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _is_concept(concept: Any) -> bool:
    return (
        isinstance(concept, dict)
        and isinstance(concept.get("word"), str)
        and all(isinstance(synonym, str) for synonym in concept.get("synonyms") or ())
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _malformed(report: Report, check: str, name: str, expected: str, found: Any) -> None:
    text = shortened(found) if isinstance(found, str) else type(found).__name__
    report.add(check, f"/@{name}", f"{name}: {expected} was expected; found {text}")


def _check_created_at(attributes: Mapping[str, Any], where: str, report: Report) -> None:
    found = attributes.get("created_at")
    if not isinstance(found, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found):
        text = "none" if found is None else shortened(str(found))
        report.add("created_at", f"{where}@created_at", f"a time as YYYY-MM-DD HH:MM:SS was expected; found {text}")


def integer(attributes: Mapping[str, Any], name: str, where: str, report: Report) -> int | None:
    """An integer attribute; None where it is absent, and with a finding where it is something else."""
    value = attributes.get(name)
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    report.add("attributes", f"{where}@{name}", f"{name}: an int64 was expected; found {_type_text(value)}")
    return None


def _type_text(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}, {value.dtype}"
    return f"{type(value).__name__} {shortened(str(value), 40)}"


# --- kinds of files -----------------------------------------------------------------------------------


def _kind(
    names: Collection[str], attributes: Mapping[str, Any], report: Report
) -> Literal["database", "image-part", "template-part", "text-only"]:
    profile = attributes.get("profile")
    if profile in ("database", "image-part", "template-part"):
        return profile  # type: ignore[no-any-return]
    if profile is not None:
        report.add(
            "profile",
            "/@profile",
            f"database, image-part or template-part was expected; found {shortened(str(profile))}. "
            "The file is checked as a database.",
        )
        return "database"
    signs = {*ROW_DATASETS, "D", "T_img", "split_counts"}
    bare = "templates" in names and signs.isdisjoint(names) and signs.isdisjoint(attributes)
    if attributes.get("version") == TEXT_ONLY_VERSION or bare:
        report.add(
            "text_only",
            "/",
            "A text-only file: templates, and no image features, ids, labels or splits. "
            "Its templates can be used; images have to be extracted.",
        )
        return "text-only"
    return "database"


def _check_profile(contents: Contents, names: Collection[str], report: Report) -> None:
    images = [name for name in ROW_DATASETS if name in names]
    if contents.kind == "image-part":
        if contents.split is not None and len(contents.split.names) > 1:
            found = listed([repr(name) for name in contents.split.names])
            report.add("profile", "/split", f"rows of one split were expected in an image part; found {found}")
        if "templates" in names:
            report.add("profile", "/templates", "no templates were expected in an image part; found some")
    elif contents.kind == "template-part":
        if len(contents.templates) != 1:
            found = listed(list(contents.templates)) or "none"
            report.add("profile", "/templates", f"one template was expected in a template part; found {found}")
        if images:
            report.add("profile", "/", f"no images were expected in a template part; found {', '.join(images)}")
    elif contents.kind == "text-only" and images:
        report.add(
            "profile", "/@version", f"no images were expected in a {TEXT_ONLY_VERSION} file; found {listed(images)}"
        )


def _check_version(contents: Contents, report: Report) -> None:
    expected = TEXT_ONLY_VERSION if contents.kind == "text-only" else VERSION
    found = contents.attributes.get("version")
    if found not in {expected, VERSION}:
        text = "no such attribute" if found is None else shortened(found) if isinstance(found, str) else repr(found)
        report.add("version", "/@version", f"version {expected!r} was expected; found {text}")


# --- data sets ----------------------------------------------------------------------------------------


def usable_dataset(
    group: h5py.Group, name: str, form: Form, file_bytes: int, report: Report, *, required: bool
) -> h5py.Dataset | None:
    """A data set that later checks can read; None, with a finding, where there is none."""
    where = f"{group.name.rstrip('/')}/{name}"
    try:
        link = group.get(name, getlink=True)
        if link is None:
            if required:
                report.add("datasets", where, f"a data set of shape {form} was expected; there is none")
            return None
        if isinstance(link, h5py.HardLink) and group.get(name, getclass=True) is not h5py.Dataset:
            report.add("datasets", where, f"a data set of shape {form} was expected; found another kind of object")
            return None
        dataset = safe_dataset(group, name)
        assert dataset is not None
        fits = _has_form(dataset, form, where, report) and _is_there(dataset, where, file_bytes, report)
    except DatabaseError as error:
        report.add("self_contained", where, str(error))
        return None
    except READ_ERRORS as error:
        report.add("unreadable", where, f"the data set cannot be opened: {error}")
        return None
    return dataset if fits else None


def _has_form(dataset: h5py.Dataset, form: Form, where: str, report: Report) -> bool:
    shape = dataset.shape
    if shape is None or len(shape) != len(form.shape):
        report.add("shapes", where, f"shape {form} was expected; found {shape if shape is not None else 'no values'}")
        return False
    widths = [(axis, length) for axis, length in zip(form.shape, shape, strict=True) if isinstance(axis, int)]
    if any(axis != length for axis, length in widths):
        report.add("shapes", where, f"shape {form} was expected; found {shape}")
        return False
    if form.dtype is None:
        return _is_text(dataset, where, report)
    expected = np.dtype(form.dtype)
    if dataset.dtype != expected:
        report.add(
            "dtypes", where, f"{expected.name} ({expected.str}) was expected; found {_dtype_text(dataset.dtype)}"
        )
    if expected.kind == "f":
        return bool(dataset.dtype.kind == "f")
    return dataset.dtype.kind in "iu"


def _dtype_text(dtype: np.dtype[Any]) -> str:
    return f"{dtype.name} ({dtype.str})" if dtype.kind in "iufb" else str(dtype)


def _is_text(dataset: h5py.Dataset, where: str, report: Report) -> bool:
    info = h5py.check_string_dtype(dataset.dtype)
    if info is None:
        report.add("dtypes", where, f"variable-length UTF-8 strings were expected; found {_dtype_text(dataset.dtype)}")
        return False
    if info.length is not None or info.encoding != "utf-8":
        length = "variable-length" if info.length is None else f"{info.length}-byte"
        report.add(
            "string_types", where, f"variable-length UTF-8 strings were expected; found {length} {info.encoding} ones"
        )
    return True


def _is_there(dataset: h5py.Dataset, where: str, file_bytes: int, report: Report) -> bool:
    """Whether reading the data set needs no missing filter, and no memory that its file cannot account for."""
    declared = int(np.prod([int(length) for length in dataset.shape], dtype=object)) * dataset.dtype.itemsize
    chunk = int(np.prod(dataset.chunks or (0,), dtype=object)) * dataset.dtype.itemsize
    allowed = max(_PLAUSIBLE_BYTES, _PLAUSIBLE_RATIO * file_bytes)
    if max(declared, chunk) > allowed:
        report.add(
            "declared_size",
            where,
            f"shape {dataset.shape} declares {declared:,} bytes in a file of {file_bytes:,}: most was never written",
        )
        return False
    return _filters_work(dataset, where, report)


def _filters_work(dataset: h5py.Dataset, where: str, report: Report) -> bool:
    properties = dataset.id.get_create_plist()
    filters = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    missing = [
        f"{code} ({name.decode('utf-8', 'replace') or 'unnamed'})" for code, _, _, name in filters if not _known(code)
    ]
    try:
        # An optional filter that was not applied is not needed either: only reading tells.
        if missing and dataset.size:
            dataset[:1]
    except READ_ERRORS:
        report.add("unreadable", where, f"the HDF5 filter {listed(missing)} is needed, and not installed here")
        return False
    return True


def _known(code: int) -> bool:
    return bool(h5py.h5z.filter_avail(code))


_SMALL = ("ids", "labels", "split", "keys", "groups", "label_matrix", "image_digest", "feature_digest")


def _row_datasets(
    database: FeatureDatabase, attributes: Mapping[str, Any], published: bool, kind: str, report: Report
) -> dict[str, h5py.Dataset]:
    file, file_bytes = database.file, database.path.stat().st_size
    required = {IMAGE_FEATURES, "ids", "labels", "split"}
    if attributes.get("T_img") != -1:
        required.add(IMAGE_TOKEN_FEATURES)
    if published:
        required |= {"keys", "image_digest", "feature_digest"}
    found = {
        name: usable_dataset(file, name, form, file_bytes, report, required=name in required)
        for name, form in _ROW_FORMS.items()
    }
    return {name: dataset for name, dataset in found.items() if dataset is not None}


def _read_small(dataset: h5py.Dataset, report: Report) -> Any:
    """The values of a row data set that is small beside the features; None, with a finding, where it has none."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return read_names(dataset, report)
    return guarded(lambda: dataset[...], dataset.name, report)


def guarded(read: Callable[[], T], where: str, report: Report) -> T | None:
    """What `read` returns; None, with a finding, when the bytes cannot be read."""
    try:
        return read()
    except READ_ERRORS as error:
        report.add("unreadable", where, f"the values cannot be read: {error}")
        return None


def read_names(dataset: h5py.Dataset, report: Report) -> Names | None:
    """Strings by row; None, with a finding, where they cannot be read."""
    place: dict[bytes, int] = {}
    codes = np.empty(len(dataset), np.int64)
    try:
        for first in range(0, len(dataset), _STRINGS_PER_READ):
            block: list[bytes] = dataset[first : first + _STRINGS_PER_READ].tolist()
            codes[first : first + len(block)] = [place.setdefault(text, len(place)) for text in block]
    except READ_ERRORS as error:
        report.add("unreadable", dataset.name, f"the strings cannot be read: {error}")
        return None
    names, broken = [], []
    for code, text in enumerate(place):
        try:
            names.append(text.decode("utf-8"))
        except UnicodeDecodeError:
            names.append(text.decode("utf-8", "surrogateescape"))
            broken.append(code)
    if broken:
        rows = np.flatnonzero(np.isin(codes, broken))
        report.add(
            "utf8",
            f"{dataset.name} {rows_text(rows)}",
            f"UTF-8 strings were expected; {count(len(rows), 'row')} are not",
        )
    return Names(names, codes)


# --- lengths and dimensions ---------------------------------------------------------------------------


def _check_row_counts(contents: Contents, report: Report) -> None:
    lengths = {name: len(dataset) for name, dataset in contents.datasets.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name} {length}" for name, length in lengths.items())
        report.add("row_counts", "/", f"one number of rows was expected in all row data sets; found {text}")


def _check_dimensions(contents: Contents, report: Report) -> None:
    if contents.kind == "text-only":
        return
    dim = integer(contents.attributes, "D", "/", report)
    tokens = integer(contents.attributes, "T_img", "/", report)
    for name, value in (("D", dim), ("T_img", tokens)):
        if name not in contents.attributes:
            report.add("dimensions", f"/@{name}", f"the attribute {name} was expected; there is none")
        elif value is not None and value < 1 and (name, value) != ("T_img", -1):
            report.add("dimensions", f"/@{name}", f"{name} of 1 or more was expected; found {value}")
    for name, axes in (
        (IMAGE_FEATURES, {"D": (1, dim)}),
        (IMAGE_TOKEN_FEATURES, {"T_img": (1, tokens), "D": (2, dim)}),
    ):
        dataset = contents.datasets.get(name)
        for attribute, (axis, value) in axes.items():
            if dataset is not None and value is not None and dataset.shape[axis] != value:
                report.add(
                    "dimensions",
                    f"/{name}",
                    f"the attribute {attribute} says {value}; the data set has the shape {dataset.shape}",
                )


# --- templates ----------------------------------------------------------------------------------------


def _read_templates(file: h5py.File, file_bytes: int, report: Report) -> dict[str, TemplateContents]:
    group = _subgroup(file, "templates", report)
    if group is None:
        return {}
    templates = {}
    for template_id in sorted(_members(group, report)):
        template = _subgroup(group, template_id, report)
        if template is not None:
            templates[template_id] = _read_template(template, template_id, file_bytes, report)
    return templates


def _members(group: h5py.Group, report: Report) -> list[str]:
    """The names in a group that can be read."""
    try:
        names = list(group)
    except READ_ERRORS as error:
        report.add("unreadable", group.name, f"the names in the group cannot be read: {error}")
        return []
    broken = [repr(name) for name in names if not isinstance(name, str)]
    if broken:
        report.add("utf8", group.name, f"names in UTF-8 were expected; found {listed(broken)}")
    return [name for name in names if isinstance(name, str)]


def _subgroup(group: h5py.Group, name: str, report: Report) -> h5py.Group | None:
    """A group that lies in the file itself; None where there is no such name, or with a finding."""
    where = f"{group.name.rstrip('/')}/{name}"
    try:
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            report.add(
                "self_contained", where, "a group of the file itself was expected; found a soft or external link"
            )
            return None
        found = group[name]
    except READ_ERRORS as error:
        report.add("unreadable", where, f"the group cannot be opened: {error}")
        return None
    if not isinstance(found, h5py.Group):
        report.add("datasets", where, "a group was expected; found another kind of object")
        return None
    return found


def _read_template(group: h5py.Group, template_id: str, file_bytes: int, report: Report) -> TemplateContents:
    attributes = _read_attributes(group, group.name, report)
    found = {
        name: usable_dataset(group, name, form, file_bytes, report, required=name in {"text_features", "texts"})
        for name, form in _TEMPLATE_FORMS.items()
    }
    texts = None
    if found["texts"] is not None:
        names = read_names(found["texts"], report)
        texts = None if names is None else [names.names[code] for code in names.codes]
    return TemplateContents(
        template_id, {name: dataset for name, dataset in found.items() if dataset is not None}, attributes, texts
    )


def _check_template(template: TemplateContents, contents: Contents, report: Report) -> None:
    shapes = {name: dataset.shape for name, dataset in template.datasets.items()}
    features, tokens = shapes.get("text_features"), shapes.get("text_token_features")
    expected = {
        "K": next((shape[0] for shape in shapes.values()), None),
        "D": None if features is None else features[1],
        "T_txt": -1 if tokens is None else tokens[1],
    }
    for name, value in expected.items():
        found = integer(template.attributes, name, template.where, report)
        if name not in template.attributes:
            if contents.kind != "text-only":
                report.add("template_shapes", f"{template.where}@{name}", f"the attribute {name} was expected")
        elif found is not None and value is not None and found != value:
            report.add(
                "template_shapes", f"{template.where}@{name}", f"{name} = {value} was expected by shape; found {found}"
            )
    for axis, lengths in {
        "K": {name: shape[0] for name, shape in shapes.items()},
        "D": {name: shape[-1] for name, shape in shapes.items() if name in {"text_features", "text_token_features"}},
        "T": {name: shape[1] for name, shape in shapes.items() if name in {"input_ids", "attention_mask"}},
    }.items():
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {length}" for name, length in lengths.items())
            report.add("template_shapes", template.where, f"one {axis} was expected in all arrays; found {text}")
    if contents.kind != "text-only":
        _check_created_at(template.attributes, template.where, report)
    images = contents.datasets.get(IMAGE_FEATURES)
    dim = images.shape[1] if images is not None else contents.attributes.get("D")
    if features is not None and isinstance(dim, int) and features[1] != dim:
        report.add("template_dim", template.where, f"D = {dim}, as in the images, was expected; found {features[1]}")
