"""The content of a file beside its features, read once for all checks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import decode_json, section
from ccassets.database.hdf5 import Array
from ccassets.database.layout import BULK, IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, ROW_DATASETS, WORD_LISTS
from ccassets.database.reader import Database
from ccassets.database.validation.finding_collector import FindingCollector, shortened
from ccassets.database.validation.safe_reading import (
    Categorical,
    DatasetSpec,
    is_utf8,
    member_names,
    read_group,
    read_names,
    read_or_report,
    read_plain_attributes,
    usable_dataset,
)

TEXT_ONLY_VERSION = "text-only-1.0"

_ROW_SPECS: Mapping[str, DatasetSpec] = {
    IMAGE_FEATURES: DatasetSpec("<f2", ("N", "D")),
    IMAGE_TOKEN_FEATURES: DatasetSpec("<f2", ("N", "T_img", "D")),
    "ids": DatasetSpec("<i8", ("N",)),
    "labels": DatasetSpec("<i8", ("N",)),
    "split": DatasetSpec(None, ("N",)),
    "keys": DatasetSpec(None, ("N",)),
    "groups": DatasetSpec(None, ("N",)),
    "label_matrix": DatasetSpec("|u1", ("N", "L")),
    "image_digest": DatasetSpec("|u1", ("N", 32)),
    "feature_digest": DatasetSpec("|u1", ("N", 16)),
}
_SMALL = tuple(name for name in _ROW_SPECS if name not in BULK)
_TEMPLATE_SPECS: Mapping[str, DatasetSpec] = {
    "text_features": DatasetSpec("<f4", ("K", "D")),
    "text_token_features": DatasetSpec("<f4", ("K", "T_txt", "D")),
    "texts": DatasetSpec(None, ("K",)),
    "input_ids": DatasetSpec("<i4", ("K", "T")),
    "attention_mask": DatasetSpec("|u1", ("K", "T")),
    "subject_span": DatasetSpec("<i4", ("K", 2)),
}


@dataclass(frozen=True)
class SplitRun:
    """Rows `start` to `stop - 1`, which stand together and share a split."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class TemplateContents:
    """A template: the data sets that can be read, those that cannot (`broken`), its attributes and its texts."""

    template_id: str
    datasets: Mapping[str, h5py.Dataset]
    broken: Collection[str]
    attributes: Mapping[str, Any]
    texts: Sequence[str] | None

    @property
    def where(self) -> str:
        return f"/templates/{self.template_id}"


@dataclass(frozen=True)
class Contents:
    """The readable content of a file; the rest is absent here and has a finding.

    `members` are the names at the root, `attributes` those of the root with JSON decoded, `stored_attributes` as they
    are stored, `datasets` the root data sets of the right kind and rank. `kind` is the profile, or `text-only` for
    files of templates alone. `published` distinguishes files of our writer from those of the original scripts and of
    `append_batch`.
    """

    kind: Literal["database", "image-part", "template-part", "text-only"]
    published: bool
    members: Collection[str]
    attributes: Mapping[str, Any]
    stored_attributes: Mapping[str, Any]
    datasets: Mapping[str, h5py.Dataset]
    templates: Mapping[str, TemplateContents]
    ids: npt.NDArray[np.int64] | None = None
    labels: npt.NDArray[np.int64] | None = None
    split: Categorical | None = None
    keys: Categorical | None = None
    groups: Categorical | None = None
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

    def runs(self) -> list[SplitRun]:
        """Runs of rows of one split, in file order, without torn rows (those whose split is empty)."""
        if self.split is None or not len(self.split):
            return []
        codes = self.split.codes
        starts = np.r_[0, np.flatnonzero(np.diff(codes)) + 1]
        stops = np.r_[starts[1:], len(codes)]
        runs = [
            SplitRun(self.split.names[codes[start]], start, stop)
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        return [run for run in runs if run.split]


def read_contents(database: Database, findings: FindingCollector) -> Contents:
    """Read everything but image features, token features and text arrays; report everything malformed."""
    file, file_bytes = database.file, database.file_bytes
    attributes = read_plain_attributes(file, "/", findings)
    names = frozenset(member_names(file, findings))
    kind = _kind(names, attributes, findings)
    templates = _read_templates(file, file_bytes, findings) if kind != "image-part" else {}
    decoded = _decode_root(attributes, findings)
    rows = _row_datasets(file, file_bytes, decoded, findings) if kind in {"database", "image-part"} else {}
    small = {name: _read_values(rows[name], findings) for name in _SMALL if name in rows}
    return Contents(
        kind=kind,
        published="profile" in attributes,
        members=names,
        attributes=decoded,
        stored_attributes=attributes,
        datasets={name: dataset for name, dataset in rows.items() if small.get(name, dataset) is not None},
        templates=templates,
        word_lists={name: decoded[name] for name in WORD_LISTS if isinstance(decoded.get(name), list)},
        provenance=decoded["provenance"] if isinstance(decoded.get("provenance"), dict) else None,
        **{name: values for name, values in small.items() if values is not None},
    )


# --- attributes ---------------------------------------------------------------------------------------


def _decode_root(attributes: Mapping[str, Any], findings: FindingCollector) -> dict[str, Any]:
    """Root attributes with JSON decoded; a malformed one is reported, and None."""
    decoded = dict(attributes)
    for name, (check, expected, is_right) in _JSON_SPECS.items():
        if name in attributes:
            stored = attributes[name]
            decoded[name] = decode_json(stored) if isinstance(stored, str) else None
            if not is_right(decoded[name]):
                text = shortened(stored) if isinstance(stored, str) else type(stored).__name__
                findings.add(check, f"/@{name}", f"{name}: expected {expected}, found {text}")
                decoded[name] = None
    return decoded


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and is_utf8(word) for word in value)


def _are_concepts(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(concept, dict)
        and isinstance(concept.get("word"), str)
        and isinstance(concept.get("synonyms", []), list)
        and all(isinstance(synonym, str) for synonym in concept.get("synonyms", []))
        for concept in value
    )


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(number) is int and number >= 0 for number in value.values())


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


_JSON_SPECS: Mapping[str, tuple[str, str, Callable[[Any], bool]]] = {
    **dict.fromkeys(WORD_LISTS, ("attributes", "a JSON list of strings", _are_words)),
    "concepts": ("attributes", "a JSON list of {word, synonyms, …}", _are_concepts),
    "split_counts": ("split_counts", "a JSON object of row numbers", _are_counts),
    "provenance": ("provenance", "one JSON object", _is_object),
    "attribute_digests": ("attributes", "a JSON object of digests", _is_object),
}


# --- kinds of files -----------------------------------------------------------------------------------


def _kind(
    names: Collection[str], attributes: Mapping[str, Any], findings: FindingCollector
) -> Literal["database", "image-part", "template-part", "text-only"]:
    profile = attributes.get("profile")
    if profile in ("database", "image-part", "template-part"):
        return profile  # type: ignore[no-any-return]
    if profile is not None:
        findings.add(
            "profile",
            "/@profile",
            f"expected database, image-part or template-part, found {shortened(str(profile))}. "
            "The file is checked as a database.",
        )
        return "database"
    image_names = {*ROW_DATASETS, "D", "T_img", "split_counts"}
    bare = "templates" in names and image_names.isdisjoint(names) and image_names.isdisjoint(attributes)
    if attributes.get("version") == TEXT_ONLY_VERSION or bare:
        findings.add(
            "text_only",
            "/",
            "A text-only file: templates, and no image features, ids, labels or splits. "
            "Its templates can be used; images have to be extracted.",
        )
        return "text-only"
    return "database"


def _row_datasets(
    file: h5py.File, file_bytes: int, attributes: Mapping[str, Any], findings: FindingCollector
) -> dict[str, h5py.Dataset]:
    required = {IMAGE_FEATURES, "ids", "labels", "split"}
    if attributes.get("T_img") != -1:
        required.add(IMAGE_TOKEN_FEATURES)
    if "profile" in attributes:
        required |= {"keys", "feature_digest"}
        if _records_image_digests(attributes.get("provenance")):
            required.add("image_digest")
    datasets = {
        name: usable_dataset(file, name, spec, file_bytes, findings, required=name in required)
        for name, spec in _ROW_SPECS.items()
    }
    return {name: dataset for name, dataset in datasets.items() if dataset is not None}


def _records_image_digests(provenance: Any) -> bool:
    """False for a file that grew from a loader's tensors and records that it has none."""
    return section(provenance, "dataset").get("image_digests") != "none"


def _read_values(dataset: h5py.Dataset, findings: FindingCollector) -> Any:
    """The values of a row data set that is small beside the features; None, with a finding, where it has none."""
    if h5py.check_string_dtype(dataset.dtype) is not None:
        return read_names(dataset, findings)
    return read_or_report(lambda: dataset[...], dataset.name, findings)


# --- templates ----------------------------------------------------------------------------------------


def _read_templates(file: h5py.File, file_bytes: int, findings: FindingCollector) -> dict[str, TemplateContents]:
    group = read_group(file, "templates", findings)
    if group is None:
        return {}
    templates = {}
    for template_id in sorted(member_names(group, findings)):
        template = read_group(group, template_id, findings, listed=True)
        if template is not None:
            templates[template_id] = _read_template(template, template_id, file_bytes, findings)
    return templates


def _read_template(
    group: h5py.Group, template_id: str, file_bytes: int, findings: FindingCollector
) -> TemplateContents:
    attributes = read_plain_attributes(group, group.name, findings)
    present = member_names(group, findings)
    datasets = {
        name: usable_dataset(group, name, spec, file_bytes, findings, required=name in {"text_features", "texts"})
        for name, spec in _TEMPLATE_SPECS.items()
    }
    texts = None
    if datasets["texts"] is not None:
        names = read_names(datasets["texts"], findings)
        texts = None if names is None else [names.names[code] for code in names.codes]
    return TemplateContents(
        template_id=template_id,
        datasets={name: dataset for name, dataset in datasets.items() if dataset is not None},
        broken=[name for name, dataset in datasets.items() if dataset is None and name in present],
        attributes=attributes,
        texts=texts,
    )
