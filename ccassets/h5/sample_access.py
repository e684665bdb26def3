"""The original functions that read and print a database; none of them writes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import read_json_attribute
from ccassets.database.hdf5 import Array, safe_dataset, take_rows
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, LOGIT_PARAMETERS, ROW_DATASETS, WORD_LISTS
from ccassets.database.reader import Database, Template, as_list, open_database
from ccassets.database.validation import validate_database
from ccassets.findings import Finding
from ccassets.h5.exceptions import ArgumentError, MissingFileError, NameMissingError, RowError
from ccassets.h5.growing_file import DEFAULT_PATH
from ccassets.h5.growing_templates import load_model_params
from ccassets.h5.journal import exclude_writers

PathLike = str | os.PathLike[str]

_IMAGE_TYPES = {"image": IMAGE_FEATURES, "patches": IMAGE_TOKEN_FEATURES, "label": "labels"}
_TEXT_TYPES = {"text": "text_features", "tokens": "text_token_features"}
_ROOT_ATTRIBUTES = ("D", "T_img", "created_at", "version", "split_counts", *LOGIT_PARAMETERS, *WORD_LISTS)
_TEMPLATE_ATTRIBUTES = ("K", "D", "T_txt", "texts_hash", "created_at")


@contextmanager
def _opened(path: PathLike) -> Iterator[Database]:
    if not Path(path).is_file():
        raise MissingFileError(f"There is no file {path}.")
    with exclude_writers(Path(path)), open_database(path) as database:
        yield database


# --- rows ---------------------------------------------------------------------------------------------


def access_sample_by_index(index: int, path: PathLike = DEFAULT_PATH) -> dict[str, Any]:
    """Read one row of a file, and print a line about it.

    Unlike the original: a store without token features gives None for them instead of failing.

    Args:
        index: The row's number; negative ones count from the end.
        path: The file.

    Returns:
        `image_feature` (D,) float16, `image_token_feature` (T_img, D) float16 or None, `id`, `label` and `split`.

    Raises:
        MissingFileError: There is no such file.
        RowError: There is no such row.
        DatabaseError: The file cannot be read.
        StorageError: A writer has the file open.
    """
    with _opened(path) as database:
        if not -len(database) <= index < len(database):
            raise RowError(f"{path} has {len(database)} rows; there is no row {index}.")
        stored = database.image_token_features
        features, tokens = np.array(database.image_features[index]), None if stored is None else np.array(stored[index])
        number, label = int(database.ids[index]), int(database.labels[index])
        split = str(database.split[index])
    print(
        f"sample_id: {number}, label: {label}, split_name: {split}, "
        f"img_feat.shape: {features.shape}, img_tokens.shape: {None if tokens is None else tokens.shape}"
    )
    return {"image_feature": features, "image_token_feature": tokens, "id": number, "label": label, "split": split}


def access_batch(
    split: str | None = "all",
    idx: Any = None,
    type: str | None = None,
    path: PathLike = DEFAULT_PATH,
    *,
    feature: str | None = None,
) -> Array:
    """Read rows of a split, or of all splits, as an array.

    Unlike the original: any order is allowed, repeats, negative numbers and reversed slices too; any split name of
    the file; and only the chosen rows are read. All patches of a large split still fill the memory: read some rows at
    a time, or map them with `ccassets.open_database`.

    Args:
        split: A split's name; "all" or None for the whole file.
        idx: Rows within the split, as numpy takes them: None for all, a number for one row, a slice, a list, an array
            or a mask.
        type: "image" (the default), "patches" or "label".
        path: The file.
        feature: The same as `type`, under the scripts' name.

    Returns:
        Image features (n, D) float16, patches (n, T_img, D) float16, or labels (n,) int64; a copy.

    Raises:
        ArgumentError: An argument has no meaning (a `ValueError`).
        RowError: There is no such row (an `IndexError`).
        NameMissingError: The file has no token features (a `KeyError`).
        MissingFileError: There is no such file (a `FileNotFoundError`).
        DatabaseError: The file cannot be read; the base of the four above.
        StorageError: A writer has the file open.
    """
    name = _choice("image", _IMAGE_TYPES, type=type, feature=feature)
    with _opened(path) as database:
        rows = _rows_at(_rows_of_split(database, split), idx, split)
        if name == "labels":
            return database.labels[rows]
        values = database.image_features if name == IMAGE_FEATURES else database.image_token_features
        if values is None:
            raise NameMissingError(f"{path} was stored without token features; there are no patches in it.")
        return take_rows(values, rows)


def _choice(default: str, known: dict[str, str], **given: str | None) -> str:
    """The choice made by either of two arguments, the notebook's or the script's."""
    chosen = {value.strip().lower() for value in given.values() if value is not None} or {default}
    if len(chosen) > 1 or not chosen <= set(known):
        raise ArgumentError(f"{' or '.join(given)}: expected one of {list(known)}, found {sorted(chosen)}.")
    return known[chosen.pop()]


def _rows_of_split(database: Database, split: str | None) -> npt.NDArray[np.int64]:
    if not split or split.lower() == "all":
        return np.arange(len(database), dtype=np.int64)
    names = database.split
    known = dict.fromkeys(names.tolist()) | dict.fromkeys(database.attributes.get("split_counts") or {})
    # The original put names into lower case.
    name = split if split in known else split.lower()
    if name not in known:
        raise ArgumentError(f"{database.path.name} has no split {split!r}; it has {['all', *known]}.")
    return np.flatnonzero(names == name).astype(np.int64)


def _rows_at(rows: npt.NDArray[np.int64], idx: Any, split: str | None) -> npt.NDArray[np.int64]:
    if idx is None:
        return rows
    if isinstance(idx, slice):
        return rows[idx]
    index = np.asarray(idx)
    if not index.size and index.dtype.kind == "f":  # an empty list
        index = index.astype(np.int64)
    if index.dtype.kind not in "iub":
        raise ArgumentError(f"idx: expected None, a number, a slice, row numbers or a mask, found {idx!r:.80}.")
    try:
        return np.atleast_1d(rows[index])
    except IndexError as error:
        raise RowError(f"{split!r} has {len(rows)} rows: {error}.") from error


# --- templates ----------------------------------------------------------------------------------------


def get_template_names(path: PathLike = DEFAULT_PATH) -> list[str]:
    """The ids of all templates.

    Args:
        path: The file.

    Returns:
        Template ids, sorted.

    Raises:
        MissingFileError: There is no such file.
        DatabaseError: The file cannot be read.
        StorageError: A writer has the file open.
    """
    with _opened(path) as database:
        return list(database.templates)


def fetch_template_features(
    template_id: str | Sequence[str] | None = None,
    *,
    is_concept: bool = True,
    concept_list: str | Sequence[str] | None = None,
    is_label: bool = False,
    type: str | None = None,
    feature: str | None = None,
    path: PathLike = DEFAULT_PATH,
) -> Array | dict[str, Array]:
    """Read text features or token features of templates.

    Unlike the original: one id may be a string in the script's form too, and a concept's row is found in the template's
    own texts. With `concept_list`, templates that were made from other lists than the file's are refused, since the
    wrong rows would be returned.

    Args:
        template_id: One id or several; by default every template that passes both filters.
        is_concept: Take templates whose id begins with "concept" alone.
        concept_list: Take the rows of these concepts, in this order; concepts that no template has are named in a
            printed warning and left out.
        is_label: With `is_concept=False`, take templates whose id begins with "label" alone.
        type: "text" (the default) or "tokens".
        feature: The same as `type`, under the scripts' name.
        path: The file.

    Returns:
        (K, D) float32 text features or (K, T_txt, D) float32 token features: of one template an array, of several a
        dictionary by id, as in the original.

    Raises:
        ArgumentError: An argument has no meaning, or no template is left (a `ValueError`).
        MissingFileError: There is no such file (a `FileNotFoundError`).
        DatabaseError: The file cannot be read; the base of the two above.
        StorageError: A writer has the file open.
    """
    if is_concept and is_label:
        raise ArgumentError("is_concept and is_label exclude each other; for labels say is_concept=False too.")
    name = _choice("text", _TEXT_TYPES, type=type, feature=feature)
    with _opened(path) as database:
        chosen = _chosen_templates(database, template_id, "concept" if is_concept else "label" if is_label else "")
        templates = {key: template for key, template in chosen.items() if getattr(template, name) is not None}
        if not templates:
            raise ArgumentError(f"{path}: expected a template with {name}, found none among {list(chosen)}.")
        concepts = as_list(concept_list or ())
        rows = _concept_rows(database, templates, concepts) if is_concept and concepts else {}
        results = {
            key: getattr(template, name)[rows[key]] if key in rows else getattr(template, name)
            for key, template in templates.items()
        }
    return next(iter(results.values())) if len(results) == 1 else results


def _chosen_templates(database: Database, template_id: str | Sequence[str] | None, prefix: str) -> dict[str, Template]:
    filtered = {key: template for key, template in database.templates.items() if key.startswith(prefix)}
    if template_id is None:
        return filtered
    ids = set(map(str, as_list(template_id)))
    chosen = {key: template for key, template in filtered.items() if key in ids}
    if not chosen:
        hint = f" that begins with {prefix!r} (is_concept=False takes any)" if prefix else ""
        raise ArgumentError(
            f"{database.path.name} has no template {sorted(ids)}{hint}; it has {list(database.templates)}."
        )
    return chosen


def _concept_rows(database: Database, templates: dict[str, Template], concepts: Sequence[str]) -> dict[str, list[int]]:
    row_of = {key: _rows_by_word(database, template) for key, template in templates.items()}
    unknown = [concept for concept in concepts if not any(concept in rows for rows in row_of.values())]
    if unknown:
        print(f"Warning: Concepts not found in concept_texts, will ignore: {unknown}")
    known = [concept for concept in concepts if concept not in unknown]
    if not known:
        raise ArgumentError(f"concept_list: none of {list(concepts)} is a concept of {database.path.name}.")
    for key, rows in row_of.items():
        missing = [concept for concept in known if concept not in rows]
        if missing:
            raise ArgumentError(
                f"Template {key!r} does not hold {missing}, or holds texts that the file's lists do not give: it was "
                "made from other lists. Write it again, or read it without concept_list and compare its texts."
            )
    return {key: [rows[concept] for concept in known] for key, rows in row_of.items()}


def _rows_by_word(database: Database, template: Template) -> dict[str, int]:
    """The row of every concept in a template, by its own texts; {} when the lists of the file do not give them."""
    words = [str(word) for word in database.attributes.get("concept_texts") or ()]
    row_of = {text: row for row, text in enumerate(template.texts)}
    strings = [str(string) for string in database.attributes.get("prompt_temp_for_concepts") or ()]
    candidates = [
        {word: row_of[string.replace("{}", word)] for word in words if string.replace("{}", word) in row_of}
        for string in strings
    ]
    best = max(candidates, key=len, default={})
    if best:
        return best
    # The string of a custom template is not stored: its texts are matched by the order of the words alone.
    matches = len(words) == len(template.texts) and all(map(str.__contains__, template.texts, words))
    return {word: row for row, word in enumerate(words)} if matches else {}


# --- overviews ----------------------------------------------------------------------------------------


def summarize_h5(path: PathLike = DEFAULT_PATH, max_templates: int = 3) -> None:
    """Print the content of a file: shapes, first ids, split counts, templates, and its tree.

    Args:
        path: The file.
        max_templates: The number of templates to show.

    Raises:
        MissingFileError: There is no such file.
        DatabaseError: The file cannot be read.
        StorageError: A writer has the file open.
    """
    with _opened(path) as database:
        file = database.file
        names = list(database.templates)
        shown = names[:max_templates] + (["..."] if len(names) > max_templates else [])
        ids = safe_dataset(file, "ids")
        print("image_features:", _shape_of(safe_dataset(file, IMAGE_FEATURES)))
        print("ids preview (first 5):", None if ids is None else ids[:5])
        print("split counts:", read_json_attribute(file, "split_counts") or {})
        print("templates:", shown)
        print("\nH5 structure:\n")
        print("\n".join(_tree(database, max_templates)))


def _tree(database: Database, max_templates: int) -> Iterator[str]:
    file = database.file
    notes = {"ids": " int64", "labels": " int64"}
    yield database.path.name
    for name in ROW_DATASETS:
        dataset = safe_dataset(file, name)
        if dataset is not None:
            yield f"├── {name:<28} # {_shape(dataset)}{notes.get(name, '')}"
    yield f"├── attrs: {{{_attribute_names(file, _ROOT_ATTRIBUTES)}}}"
    names = list(database.templates)
    if "templates" not in file:
        return
    yield "└── templates/"
    for number, name in enumerate(names[:max_templates], start=1):
        group = file["templates"][name]
        last = number == len(names)
        indent = "        " if last else "    │   "
        yield f"    {'└──' if last else '├──'} {name}/"
        for array in ("text_features", "text_token_features", "texts"):
            dataset = safe_dataset(group, array)
            if dataset is not None:
                kind = "variable length string" if array == "texts" else dataset.dtype
                yield f"{indent}├── {array:<20} # {_shape(dataset)} ({kind})"
        yield f"{indent}└── attrs: {{{_attribute_names(group, _TEMPLATE_ATTRIBUTES)}}}"
    if len(names) > max_templates:
        yield "    └── ..."


def _shape(dataset: h5py.Dataset) -> str:
    return f"[{', '.join(map(str, dataset.shape))}]"


def _attribute_names(group: h5py.Group, known: Sequence[str]) -> str:
    further = ["..."] if set(group.attrs) - set(known) else []
    return ", ".join([name for name in known if name in group.attrs] + further)


def validate_h5(path: PathLike = DEFAULT_PATH, max_templates: int = 2) -> list[Finding] | None:
    """Print the content of a file, then check it and print the findings.

    Unlike the original, which printed and checked nothing.

    Args:
        path: The file.
        max_templates: The number of templates to show.

    Returns:
        The findings of `ccassets.validate_database`, empty for a flawless file. None if the file does not exist, as in
        the original.

    Raises:
        DatabaseError: The file cannot be read.
        StorageError: A writer has the file open.
    """
    if not Path(path).is_file():
        print(f"File '{path}' does not exist yet.")
        return None
    with _opened(path) as database:
        _print_contents(database, max_templates)
    findings = validate_database(path)
    print(f"Findings: {len(findings) or 'none'}")
    for finding in findings:
        print(f"  • {finding.severity}: {finding.check} at {finding.where}: {finding.message}")
    return findings


def _print_contents(database: Database, max_templates: int) -> None:
    file = database.file
    rows = {name: safe_dataset(file, name) for name in ROW_DATASETS}
    print(f"Total samples stored: {len(database)}")
    for name in (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES):
        print(f"{name} dataset shape: {_shape_of(rows[name])}")
    for label, name in (("ids", "ids"), ("labels", "labels"), ("splits", "split")):
        dataset = rows[name]
        print(f"Preview {label}: {None if dataset is None else dataset[:5]}")
    print(f"Recorded split counts: {read_json_attribute(file, 'split_counts') or {}}")
    for name in WORD_LISTS:
        value = read_json_attribute(file, name)
        if value is not None:
            print(f"{name}: {value[:3] + ['...'] * (len(value) > 3) if isinstance(value, list) else value}")
    print(f"Templates stored: {list(database.templates)}")
    for name, template in list(database.templates.items())[:max_templates]:
        texts = np.array([text.encode("utf-8", "surrogateescape") for text in template.texts[:3]], object)
        stored = template.attributes
        print(f"  • Template '{name}' -> K={stored.get('K')}, D={stored.get('D')}, sample texts={texts}")
    print(f"Stored model params: {load_model_params(file)}")


def _shape_of(dataset: h5py.Dataset | None) -> tuple[int, ...] | None:
    return None if dataset is None else dataset.shape
