"""Values that callers give, as arrays and texts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ccassets.database.hdf5 import Array


def to_array(values: Any) -> Array:
    """A tensor of any device and dtype, or an array-like, as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if str(values.dtype) == "torch.bfloat16":  # numpy has none
            values = values.float()
    return np.asarray(values)


def to_text(value: Any) -> str:
    """A text or its UTF-8 bytes as `str`."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
