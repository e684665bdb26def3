"""Finite tests by the bits of numbers, for every float that the format stores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ccassets.database.float16 import all_finite, not_finite_rows


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_odd_value_is_found_wherever_it_stands(dtype: Any, odd: float) -> None:
    values = np.array([np.finfo(dtype).max, np.finfo(dtype).min, 0.0, -0.0], dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    for position in range(len(values)):
        changed = values.copy()
        changed[position] = odd
        assert not all_finite(changed)


def test_every_float16_is_told_from_the_others_as_numpy_does() -> None:
    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(64, -1, 2)
    assert not_finite_rows(values).tolist() == np.flatnonzero(~np.isfinite(values).all(axis=(1, 2))).tolist()
    assert not_finite_rows(values.reshape(-1, 1)).tolist() == np.flatnonzero(~np.isfinite(values).ravel()).tolist()
    assert not_finite_rows(values[:0]).tolist() == []
