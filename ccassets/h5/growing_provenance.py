"""The provenance of a growing file: its origin, and for every split the number of rows and whether it has labels."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import h5py

from ccassets.database.attributes import read_json_attribute, write_text_attribute
from ccassets.h5.exceptions import ArgumentError


def read_provenance(file: h5py.File) -> dict[str, Any]:
    """The provenance of a growing file, with every section of the format.

    For each split, `dataset.splits` has its `rows`, the `planned` rows of its loader, and whether its `labels` are
    `present` or `none`.
    """
    stored = read_json_attribute(file, "provenance")
    sections: dict[str, Any] = {
        # Rows without a recorded origin were written by somebody else.
        "origin": "adopted" if len(file["split"]) else "extracted",
        "encoder": {},
        "dataset": {},
        "extraction": {"writer": "ccassets.h5"},
        "libraries": {},
        "created": {},
        "digests": {},
    }
    provenance = {**sections, **stored} if isinstance(stored, dict) else sections
    provenance["dataset"].setdefault("splits", {})
    return provenance


def write_provenance(file: h5py.File, provenance: dict[str, Any], counts: Mapping[str, int]) -> None:
    """Store a changed provenance, with the rows of every split that are stored or planned."""
    splits = provenance["dataset"]["splits"]
    for split in counts:
        splits.setdefault(split, {})
    for split, entry in splits.items():
        entry["rows"] = max(counts.get(split, 0), entry.get("planned", 0))
    kinds = {entry["labels"] for entry in splits.values() if "labels" in entry}
    if kinds:
        provenance["dataset"]["labels"] = kinds.pop() if len(kinds) == 1 else "some"
    write_text_attribute(file, "provenance", json.dumps(provenance, ensure_ascii=False))


def record_labels(file: h5py.File, splits: Iterable[str], labelled: bool) -> dict[str, Any]:
    """The provenance, changed to say whether these splits have labels; a split with both is refused."""
    provenance = read_provenance(file)
    state = "present" if labelled else "none"
    for split in splits:
        entry = provenance["dataset"]["splits"].setdefault(split, {})
        if entry.setdefault("labels", state) != state:
            raise ArgumentError(
                f"labels: those of {split!r} are {entry['labels']} so far, and {state} in this batch; a stored 0 "
                "would be ambiguous. Nothing was written."
            )
    return provenance
