"""Token spans: the positions of the tokens that cover a word inserted into a prompt."""

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
    """Find the tokens that cover the subject of each prompt.

    A token belongs to a subject when their characters overlap.

    Args:
        offsets: The character range of every token, (K, T, 2), as in `TextFeatures`.
        attention_mask: 1 where there is a token, (K, T), as in `TextFeatures`.
        subjects: The half-open character range of every subject, K of them; (0, 0) where a prompt has none.

    Returns:
        Half-open ranges of token positions, (K, 2) int32; (0, 0) where a prompt has no subject.

    Raises:
        EncoderError: No token covers a subject.
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
