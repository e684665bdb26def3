"""float16 by its bits, against numpy on every float16 there is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ccassets.database.float16 import all_finite, widened

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def test_every_finite_half_becomes_the_same_single() -> None:
    finite = EVERY_HALF[np.isfinite(EVERY_HALF)]
    expected = finite.astype(np.float32)
    assert np.array_equal(widened(finite).view(np.uint32), expected.view(np.uint32))  # -0.0 is told from 0.0.


def test_infinity_and_nan_stay_what_they_are() -> None:
    assert np.array_equal(widened(EVERY_HALF), EVERY_HALF.astype(np.float32), equal_nan=True)


def test_the_result_goes_where_it_is_wanted() -> None:
    place = np.zeros((2, 3), np.float32)
    halves = np.arange(12, dtype=np.float16).reshape(2, 6)[:, ::2]
    assert widened(halves, place) is place
    assert place.tolist() == [[0, 2, 4], [6, 8, 10]]
    assert widened(np.empty((0, 3), np.float16)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan, -np.nan])
def test_one_odd_value_is_found_wherever_it_stands(dtype: Any, odd: float) -> None:
    values = np.array([np.finfo(dtype).max, np.finfo(dtype).min, 0.0, -0.0], dtype)
    assert all_finite(values)
    assert all_finite(values[:0])
    for place in range(len(values)):
        changed = values.copy()
        changed[place] = odd
        assert not all_finite(changed)
