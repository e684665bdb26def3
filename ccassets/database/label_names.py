"""Names of labels: how the labels of an image are written as one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

NO_LABEL = "none"
"""What an image of a multi-label set without any label is called."""

LABEL_SEPARATOR = "|"


def joined_labels(matrix: npt.NDArray[Any], names: Sequence[str]) -> list[str]:
    """The labels of every row of a matrix (N, L) of 0 and 1 as `a|b`, or "none"."""
    rows = (np.flatnonzero(row).tolist() for row in matrix)
    return [LABEL_SEPARATOR.join(names[label] for label in labels) or NO_LABEL for labels in rows]
