"""Which label number a class name gets: one rule for every data set whose labels are names."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection

from ccassets.errors import DatasetError


def class_order(names: Collection[str], *, declared: tuple[str, ...] | None, words: tuple[str, ...]) -> tuple[str, ...]:
    """The class names in the order of their label numbers.

    1. The study's `classes`, where it names them; a name outside them is an error.
    2. The order of the study's label words, where every name is one of them (upper and lower case are equal);
       a word that no name stands for keeps its number.
    3. Alphabetical order.
    """
    if declared is not None:
        if len(set(declared)) != len(declared):
            raise DatasetError(f"Every class may stand once under dataset.classes; found {list(declared)}")
        unknown = sorted(set(names) - set(declared))
        if unknown:
            raise DatasetError(
                f"The data set has the classes {unknown}, which dataset.classes does not name. It names "
                f"{list(declared)}; add what is missing, or take the files out."
            )
        return declared
    by_word = {_fold(name): name for name in sorted(names)}
    folded = [_fold(word) for word in words]
    if len(by_word) == len(names) and set(by_word) <= set(folded):
        return tuple(by_word.get(fold, word) for fold, word in zip(folded, words, strict=True))
    return tuple(sorted(names))


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
