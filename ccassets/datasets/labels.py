"""Label numbers of class names: one rule for every data set whose labels are names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from ccassets.errors import DatasetError
from ccassets.findings import Finding
from ccassets.study.schema import FolderConfig, Study, TableConfig

_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?")


def class_order(names: Collection[str], *, declared: tuple[str, ...] | None, words: tuple[str, ...]) -> tuple[str, ...]:
    """Sort class names by their label numbers.

    1. The study's `classes`, where it names them; a name outside them is an error.
    2. The order of the study's label words, where every name is one of them (upper and lower case are equal);
       a word that no name stands for keeps its number.
    3. The order of the numbers, where every name is one; else alphabetical order.
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
    if len(by_word) == len(names) and _all_are_words(names, words):
        return tuple(by_word.get(_fold(word), word) for word in words)
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def find_label_mismatch(study: Study, classes: tuple[str, ...]) -> list[Finding]:
    """Find out whether label numbers and label words may mean different classes; the finding is a warning.

    That is when there are more or fewer words than classes, or when class names were ordered by the alphabet because
    some of them are not label words.
    """
    words = study.vocabulary.labels.words
    if not words or not classes:
        return []
    dataset = study.dataset
    listed = isinstance(dataset, TableConfig) and not isinstance(dataset.columns.label, str)
    ordered_here = isinstance(dataset, FolderConfig | TableConfig) and dataset.classes is None and not listed
    if len(words) == len(classes) and (not ordered_here or _all_are_words(classes, words)):
        return []
    message = (
        f"Label words and classes should be the same things in the same order; the words are {list(words)}, the "
        f"classes {list(classes)}. Set dataset.classes to the class names in the order of the words."
    )
    return [Finding("label_words_are_not_the_classes", "warning", message, "vocabulary.labels.words")]


def find_similar_classes(classes: Sequence[str]) -> list[Finding]:
    """Find classes whose names differ in letter case, blanks or punctuation alone; the finding is a warning."""
    by_form: dict[str, list[str]] = {}
    for name in classes:
        by_form.setdefault(re.sub(r"[\W_]+", " ", _fold(name)).strip(), []).append(name)
    similar = [names for form, names in by_form.items() if form and len(names) > 1]
    if not similar:
        return []
    message = (
        f"Classes should differ in more than letter case, blanks or punctuation; found {similar}. If they are one "
        "class, give them one name."
    )
    return [Finding("classes_alike", "warning", message, "dataset")]


def require_words_for_labels(study: Study, classes: Sequence[str], labels: npt.NDArray[np.int64]) -> None:
    """Refuse images whose label number has no label word, before anything is encoded.

    Args:
        study: The study.
        classes: The class names, () when unknown.
        labels: The label numbers of images.

    Raises:
        DatasetError: A label number has no word, although the study has label words.
    """
    words = study.vocabulary.labels.words
    highest = int(labels.max(initial=-1))
    if words and highest >= len(words):
        named = f" ({', '.join(map(repr, classes[len(words) :][:10]))})" if len(classes) > len(words) else ""
        raise DatasetError(
            f"vocabulary.labels.words has {len(words)} words, but there are images of the label number "
            f"{highest}{named}; numbers start at 0. Write a word for each class, in the order of the classes"
            f"{f', {list(classes)}' if 0 < len(classes) <= 30 else ''}."
        )


def _all_are_words(names: Collection[str], words: Collection[str]) -> bool:
    return {_fold(name) for name in names} <= {_fold(word) for word in words}


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
