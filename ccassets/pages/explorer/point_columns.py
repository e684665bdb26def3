"""Columns of all rows in binary, as the map reads them: one typed array each, after a header that names them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.errors import AnalysisError

_ALIGNMENT = 8
_NONE = 0xFFFF
"""The code of a row without a value."""


@dataclass(frozen=True, eq=False)
class Column:
    """A column (N,): numbers, or codes into `categories`, 65535 for a row without one."""

    name: str
    values: npt.NDArray[Any]
    categories: tuple[str, ...] | None = None


def coded(name: str, texts: npt.NDArray[np.object_] | None, known: Sequence[str]) -> Column:
    """Code texts by category: the known ones in their order, then all others as they occur; "" means none.

    Raises:
        AnalysisError: There are more categories than codes.
    """
    if texts is None:
        return Column(name, np.empty(0, np.uint16), ())
    codes = {text: code for code, text in enumerate(known)}
    for text in dict.fromkeys(texts.tolist()):
        if text:
            codes.setdefault(text, len(codes))
    if len(codes) >= _NONE:
        raise AnalysisError(f"{name}: expected fewer than {_NONE} different values, found {len(codes)}.")
    values = np.fromiter((codes.get(text, _NONE) for text in texts.tolist()), np.uint16, len(texts))
    return Column(name, values, tuple(codes))


def pack_columns(rows: int, columns: Sequence[Column]) -> bytes:
    """Pack columns: the length of the header (uint32), the header as JSON, and every column at its own offset.

    All is little-endian. The header says `rows`, and of each column `name`, `type` (a NumPy dtype), `offset` from the
    start, `length`, and `categories` of codes.
    """
    arrays = [np.ascontiguousarray(column.values, column.values.dtype.newbyteorder("<")) for column in columns]

    def header(start: int) -> bytes:
        described, offset = [], start
        for column, array in zip(columns, arrays, strict=True):
            facts: dict[str, Any] = {"name": column.name, "type": array.dtype.name, "offset": offset}
            described.append(facts | {"length": len(array), "categories": column.categories})
            offset = _aligned(offset + array.nbytes)
        return json.dumps({"rows": rows, "columns": described}).encode()

    start = _aligned(4 + len(header(1 << 50)))  # The real offsets have fewer digits: the rest is spaces.
    text = header(start).ljust(start - 4)
    packed = bytearray(len(text).to_bytes(4, "little") + text)
    for array in arrays:
        packed += b"\0" * (_aligned(len(packed)) - len(packed))
        packed += array.tobytes()
    return bytes(packed)


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
