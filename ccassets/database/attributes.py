"""Attributes of HDF5 objects: how the format's numbers, texts and JSON are written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import h5py
import numpy as np

from ccassets.database.hdf5 import decode_text
from ccassets.database.layout import JSON_ATTRIBUTES

_TEXT = h5py.string_dtype("utf-8")
_TEXT_INFO = h5py.check_string_dtype(_TEXT)


def plain_value(value: Any) -> Any:
    """A stored value as Python's own numbers, texts and lists."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    return decode_text(value) if isinstance(value, bytes) else value


def decode_json(value: Any) -> Any:
    """The value of a JSON text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):  # No JSON, nested too deeply, or a number of too many digits.
        return value


def read_attributes(group: h5py.Group) -> dict[str, Any]:
    """Every attribute of a group; those that the format defines as JSON are decoded."""
    plain = {name: plain_value(value) for name, value in group.attrs.items()}
    return {name: decode_json(value) if name in JSON_ATTRIBUTES else value for name, value in plain.items()}


def read_json_attribute(group: h5py.Group, name: str) -> Any:
    """One attribute, decoded where it is JSON; None where there is none."""
    return decode_json(plain_value(group.attrs.get(name)))


def section(value: Any, *names: str) -> Mapping[str, Any]:
    """The JSON object in a value, or under these names inside it; empty where a file of other origin has none."""
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def json_array(value: Any) -> list[Any]:
    """The JSON array that a value is; empty where it is anything else."""
    return value if isinstance(value, list) else []


def write_attribute(group: h5py.Group, name: str, value: Any) -> None:
    """Write numbers and texts as they are, and everything else as JSON that keeps its characters."""
    if name in JSON_ATTRIBUTES or isinstance(value, bool) or not isinstance(value, (int, float, str)):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        write_text_attribute(group, name, value)
    else:
        group.attrs[name] = np.int64(value) if isinstance(value, int) else np.float64(value)


def write_text_attribute(group: h5py.Group, name: str, text: str) -> None:
    """Write a text of variable length: one of fixed length fails above 64 KB."""
    # A new attribute in place of an old one would leave the old text's bytes behind.
    if name in group.attrs and h5py.check_string_dtype(group.attrs.get_id(name).dtype) == _TEXT_INFO:
        group.attrs.modify(name, text)
    else:
        group.attrs.create(name, text, dtype=_TEXT)
