"""Tests for finite values by their bits: numpy tests float16 one value at a time, but integers many at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def all_finite(values: npt.NDArray[Any]) -> bool:
    """Whether no value is infinite or NaN; for native floats of at most 8 bytes.

    IEEE 754: infinity and NaN have the largest exponent, so as integers they are the largest numbers of their sign.
    """
    size = values.dtype.itemsize
    infinity = np.array(np.inf, values.dtype)
    positive = values.view(f"i{size}").max(initial=0) < infinity.view(f"i{size}")
    return bool(positive and values.view(f"u{size}").max(initial=0) < (-infinity).view(f"u{size}"))


def not_finite_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """The rows (first axis) that hold an infinite value or NaN, increasing."""
    if all_finite(values):
        return np.empty(0, np.int64)
    return np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
