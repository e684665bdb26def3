"""Checks of a file's origin: provenance, encoder identity, leaks between splits, skipped and blank rows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ccassets.database.attributes import json_array, section
from ccassets.database.encoder_identity import compute_identity
from ccassets.database.hdf5 import Array
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.row_order import unverified_rows, unverified_templates
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import (
    FindingCollector,
    RowNumbers,
    count,
    listed,
    rows_text,
    shortened,
)
from ccassets.database.validation.row_rules import split_rows

_SECTIONS = {"encoder": dict, "dataset": dict, "extraction": dict, "created": dict, "digests": dict, "libraries": dict}
_ORIGINS = ("extracted", "adopted")
_PRIVATE = re.compile(r"(/|[A-Za-z]:[\\/]|\\\\)\S|.*\bhf_[A-Za-z0-9]{16,}", re.DOTALL)
_RANDOM = re.compile(r"random([:,]|$)")
_IDENTITY_NEEDS = {"kind", "weights_digest", "preprocessing", "extraction_version", "recorded"}


def check_provenance(contents: Contents, findings: FindingCollector) -> None:
    """Provenance and what it says about the rows; leaks by image digest and by group."""
    provenance = contents.provenance
    if provenance is None:
        if contents.kind == "database" and "provenance" not in contents.attributes:
            findings.add("no_provenance", "/@provenance", "expected a record of how the file came to be, found none")
    else:
        _check_sections(contents, provenance, findings)
        _check_encoder(contents, section(provenance, "encoder"), findings)
        _check_private(provenance, findings)
        _check_splits(contents, section(provenance, "dataset"), findings)
        unverified = unverified_rows(provenance, contents.rows)
        if unverified:
            findings.add(
                "unverified_order",
                "/@provenance parts",
                f"expected a proof of which image every row shows, found none for {count(unverified, 'row')}, "
                "adopted by position without a sample",
            )
        templates = unverified_templates(provenance, contents.templates)
        if templates:
            findings.add(
                "unverified_order",
                "/@provenance templates",
                f"expected a proof of which prompts features are of, found none for {listed(templates)}, adopted "
                "without a sample",
            )
    limit = contents.attributes.get("limit")
    if limit is not None:
        findings.add(
            "limited",
            "/@limit",
            f"expected the whole data set, found a first try: a limit of {limit} rows a split",
        )
    _check_leaks(contents, findings)


def _check_sections(contents: Contents, provenance: Mapping[str, Any], findings: FindingCollector) -> None:
    origin = provenance.get("origin")
    if origin not in _ORIGINS:
        findings.add("provenance", "/@provenance", f"origin: expected 'extracted' or 'adopted', found {origin!r}")
    complete = contents.kind == "database" and origin == "extracted"
    wrong = [
        name
        for name, kind in _SECTIONS.items()
        if (name in provenance or complete) and not isinstance(provenance.get(name), kind)
    ]
    if wrong:
        findings.add("provenance", "/@provenance", f"expected JSON objects under {', '.join(wrong)}, found none")


# --- encoder ------------------------------------------------------------------------------------------


def _check_encoder(contents: Contents, encoder: Mapping[str, Any], findings: FindingCollector) -> None:
    if not encoder:
        return
    identity = encoder.get("identity")
    if not isinstance(identity, str) or not identity:
        findings.add("encoder_identity", "/@provenance", f"expected encoder.identity, found {identity!r}")
    elif encoder.keys() >= _IDENTITY_NEEDS and identity != compute_identity(encoder):
        findings.add(
            "encoder_identity",
            "/@provenance",
            f"expected the digest of the encoder's recorded fields, {compute_identity(encoder)}, found {identity}",
        )
    for name, size in _dimensions(contents).items():
        if isinstance(encoder.get(name), int) and encoder[name] != size:
            findings.add(
                "encoder_identity", "/@provenance", f"expected features of {name} {encoder[name]}, found {size}"
            )
    recorded = section(encoder, "recorded")
    weights = str(recorded.get("weights", ""))
    if recorded.get("untrained") is True or _RANDOM.match(weights) or _RANDOM.match(str(encoder.get("weights_digest"))):
        findings.add(
            "random_weights",
            "/@provenance",
            f"expected trained weights; this encoder was not trained ({weights or 'untrained'}): "
            "its features have no meaning",
        )


def _dimensions(contents: Contents) -> dict[str, int]:
    """D and T_img of the stored features, by their names in an encoder's card."""
    features, tokens = contents.datasets.get(IMAGE_FEATURES), contents.datasets.get(IMAGE_TOKEN_FEATURES)
    sizes = {}
    if features is not None:
        sizes["dim"] = int(features.shape[1])
        if tokens is not None or contents.attributes.get("T_img") == -1:
            sizes["token_count"] = 0 if tokens is None else int(tokens.shape[1])
    return sizes


# --- what travels with the file -----------------------------------------------------------------------


def _check_private(provenance: Mapping[str, Any], findings: FindingCollector) -> None:
    locations = private_details(provenance)
    if locations:
        findings.add(
            "private_details",
            "/@provenance",
            f"expected no absolute path and no token, found one under {listed(locations)}",
        )


def private_details(value: Any) -> list[str]:
    """The dotted paths inside a JSON value that hold an absolute path or an access token."""
    return [location for location, text in _strings(value, "") if _PRIVATE.match(text)]


def _strings(value: Any, location: str) -> Iterator[tuple[str, str]]:
    """Every string of a JSON value with its dotted path; keys of images are left out."""
    if isinstance(value, str):
        yield location, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name not in {"skipped", "overridden"}:
                yield from _strings(inner, f"{location}.{name}" if location else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, location)


# --- rows ---------------------------------------------------------------------------------------------


def _check_splits(contents: Contents, dataset: Mapping[str, Any], findings: FindingCollector) -> None:
    splits = section(dataset, "splits")
    if not splits or contents.split is None:
        return
    counts = split_rows(contents)
    recorded = {name: split.get("rows") for name, split in splits.items() if isinstance(split, dict)}
    names = [*recorded, *(name for name in counts if name not in recorded)]
    wrong = [name for name in names if recorded.get(name, 0) != counts.get(name, 0)]
    if wrong:
        text = listed([f"{name!r}: expected {recorded.get(name, 0)}, found {counts.get(name, 0)}" for name in wrong])
        findings.add("provenance_rows", "/@provenance", f"expected the recorded rows of every split; {text}")
    skipped = {
        name: split["skipped"] for name, split in splits.items() if isinstance(split, dict) and split.get("skipped")
    }
    if skipped:
        text = "; ".join(f"{name!r}: {_skipped_text(rows)}" for name, rows in list(skipped.items())[:3])
        findings.add(
            "skipped_rows",
            "/@provenance",
            f"expected every image; some could not be read and were left out: {text}",
        )
    blank = blank_rows(contents)
    if len(blank):
        findings.add(
            "blank_rows",
            f"/image_features {rows_text(blank)}",
            f"expected every image; {count(len(blank), 'row')} could not be read and hold a mid-grey image"
            f"{_keys_text(contents, blank)}",
        )
    outside = [
        name
        for name, rows in ((name, _blank_rows_of(split)) for name, split in splits.items())
        if rows and not set(rows) <= set(contents.split.rows_of(name).tolist())
    ]
    if outside:
        findings.add(
            "provenance_rows",
            "/@provenance",
            f"expected blank rows inside their split; not so in {listed(outside)}",
        )


def _skipped_text(rows: Any) -> str:
    keys = [str(row.get("key")) if isinstance(row, dict) else str(row) for row in json_array(rows)]
    return f"{len(keys)} ({listed(keys)})"


def _blank_rows_of(split: Any) -> list[int]:
    return [row for row in json_array(section(split).get("blank")) if isinstance(row, int)]


def blank_rows(contents: Contents) -> RowNumbers:
    """Rows that stand for unreadable images, as the provenance records them."""
    splits = section(contents.provenance, "dataset", "splits")
    rows = {row for split in splits.values() for row in _blank_rows_of(split)}
    return np.array(sorted(row for row in rows if 0 <= row < contents.rows), np.int64)


def _keys_text(contents: Contents, rows: RowNumbers) -> str:
    keys = [_row_text(contents, row) for row in rows.tolist()]
    return f": {listed(keys)}" if contents.keys is not None else ""


def _row_text(contents: Contents, row: int) -> str:
    """A row as a person finds it: its key where there is one, its split and number."""
    split = contents.split.names[contents.split.codes[row]] if contents.split and row < len(contents.split) else "?"
    key = contents.keys.names[contents.keys.codes[row]] if contents.keys and row < len(contents.keys) else ""
    return f"{shortened(key)} ({split!r} row {row})" if key else f"{split!r} row {row}"


# --- leaks --------------------------------------------------------------------------------------------


def _check_leaks(contents: Contents, findings: FindingCollector) -> None:
    split = contents.split
    if split is None or len(split.names) < 2:
        return
    digests = contents.image_digest
    if digests is not None and len(digests) == len(split):
        # One number for each distinct picture; stand-ins are equal to each other and show nothing.
        known = np.asarray(digests.any(axis=1))
        known[blank_rows(contents)] = False
        rows = _rows_with_duplicates(digests, np.flatnonzero(known))
        _, pictures = np.unique(np.ascontiguousarray(digests[rows]).view("V32").ravel(), return_inverse=True)
        shared = _rows_in_several_splits(pictures, split.codes[rows], rows)
        if shared:
            text = listed([" = ".join(_row_text(contents, row) for row in rows[:3]) for rows in shared], separator="; ")
            findings.add(
                "image_in_two_splits",
                "/image_digest",
                f"expected no image in two splits, found {count(len(shared), 'picture')}: {text}",
            )
    groups = contents.groups
    if groups is not None and len(groups) == len(split):
        rows = np.flatnonzero(groups.codes != groups.names.index("")) if "" in groups.names else np.arange(len(groups))
        shared = _rows_in_several_splits(groups.codes[rows], split.codes[rows], rows)
        if shared:
            text = listed([_group_text(contents, rows) for rows in shared], separator="; ")
            findings.add(
                "group_in_two_splits",
                "/groups",
                f"expected no group in two splits, found {count(len(shared), 'group')}: {text}",
            )


def _rows_with_duplicates(digests: Array, rows: RowNumbers) -> RowNumbers:
    """The rows whose digest begins like another's; sorting numbers is much faster than sorting whole digests."""
    _, number, counts = np.unique(
        np.ascontiguousarray(digests[rows, :8]).view("<u8").ravel(), return_inverse=True, return_counts=True
    )
    return rows[counts[number] > 1]


def _rows_in_several_splits(codes: RowNumbers, splits: RowNumbers, rows: RowNumbers) -> list[list[int]]:
    """For every code that occurs in more than one split: its first row in each of them."""
    width = int(splits.max(initial=0)) + 1
    pairs, first = np.unique(codes * width + splits, return_index=True)
    _, number, counts = np.unique(pairs // width, return_inverse=True, return_counts=True)
    several = np.flatnonzero(counts[number] > 1)
    rows_of: dict[int, list[int]] = {}
    for code, row in zip((pairs[several] // width).tolist(), rows[first[several]].tolist(), strict=True):
        rows_of.setdefault(code, []).append(row)
    return sorted(sorted(shared_rows) for shared_rows in rows_of.values())


def _group_text(contents: Contents, rows: list[int]) -> str:
    assert contents.groups is not None
    assert contents.split is not None
    names = [repr(contents.split.names[contents.split.codes[row]]) for row in rows]
    return f"{shortened(contents.groups.names[contents.groups.codes[rows[0]]])} in {' and '.join(names)}"
