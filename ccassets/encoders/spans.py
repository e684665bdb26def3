"""From the characters of an inserted word to the positions of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ccassets.errors import EncoderError


def token_spans(
    offsets: npt.NDArray[np.int32],
    attention_mask: npt.NDArray[np.uint8],
    subjects: Sequence[tuple[int, int]],
) -> npt.NDArray[np.int32]:
    """Half-open ranges of token positions, (K, 2) int32, that cover the subjects' half-open character ranges.

    `offsets` (K, T, 2) and `attention_mask` (K, T) are those of `TextFeatures`. A token belongs to a subject when
    their characters overlap; a prompt without a subject, (0, 0), has the span (0, 0). Raises `EncoderError` for a
    subject that no token covers.
    """
    spans = np.zeros((len(subjects), 2), np.int32)
    for row, (start, end) in enumerate(subjects):
        if start == end:
            continue
        first, last = offsets[row, :, 0], offsets[row, :, 1]
        covered = np.flatnonzero((first < end) & (last > start) & (last > first) & (attention_mask[row] != 0))
        if not len(covered):
            raise EncoderError(f"No token covers the characters {start} to {end} of prompt {row}: is its word empty?")
        spans[row] = covered[0], covered[-1] + 1
    return spans
