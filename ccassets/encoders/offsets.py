"""Character offsets of tokens where a tokenizer gives none, or gives those of a text that was cleaned first."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

import numpy as np
import numpy.typing as npt

Offsets = npt.NDArray[np.int32]

WORD_START = "▁"
"""How SentencePiece writes the blank before a word."""


def offsets_in_prompt(offsets: Offsets, cleaned: str, prompt: str) -> Offsets:
    """Move character ranges of a cleaned text to the prompt that it was made of.

    Args:
        offsets: Half-open character ranges of `cleaned`, (T, 2).
        cleaned: The text after lower-casing, removal of blanks and punctuation, and the like.
        prompt: The text before.

    Returns:
        Half-open character ranges of `prompt`, (T, 2); (0, 0) for a token none of whose characters stands there.
    """
    if cleaned == prompt:
        return offsets
    # One character each, so that positions stay: a few change their number when they are lowered.
    lowered, target_text = ("".join(character.lower()[:1] for character in text) for text in (cleaned, prompt))
    position = np.full(len(cleaned), -1)
    for start, target, size in SequenceMatcher(None, lowered, target_text, autojunk=False).get_matching_blocks():
        position[start : start + size] = np.arange(target, target + size)
    moved = np.zeros_like(offsets)
    for row, (start, end) in enumerate(offsets):
        matched = position[start:end]
        matched = matched[matched >= 0]
        if len(matched):
            moved[row] = matched[0], matched[-1] + 1
    return moved


def offsets_of_pieces(pieces: Sequence[str], prompt: str) -> Offsets:
    """Find the characters of a prompt that each piece of SentencePiece stands for.

    Args:
        pieces: The pieces in order; an empty text for a special token.
        prompt: The text that they were made of.

    Returns:
        Half-open character ranges, (T, 2); (0, 0) for special tokens.
    """
    ends = np.cumsum([len(piece) for piece in pieces], dtype=np.int32)
    starts = ends - [len(piece.lstrip(WORD_START)) for piece in pieces]
    offsets = np.stack([starts, ends], axis=1).astype(np.int32)
    offsets[starts == ends] = 0
    return offsets_in_prompt(offsets, "".join(pieces).replace(WORD_START, " "), prompt)
