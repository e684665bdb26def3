"""The original functions that read and show a database; nothing here writes."""

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
from ccassets.database.hdf5 import safe_dataset, take_rows
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, LOGIT_PARAMETERS, WORD_LISTS
from ccassets.database.reader import Database, Template, open_database
from ccassets.findings import Finding
from ccassets.h5.exceptions import ArgumentError, MissingFileError, NameMissingError, RowError
from ccassets.h5.growing_file import DEFAULT_PATH
from ccassets.h5.growing_templates import load_model_params
from ccassets.h5.journal import no_writer

Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]

_IMAGE_TYPES = {"image": IMAGE_FEATURES, "patches": IMAGE_TOKEN_FEATURES, "label": "labels"}
_TEXT_TYPES = {"text": "text_features", "tokens": "text_token_features"}
_ROOT_ATTRIBUTES = ("D", "T_img", "created_at", "version", "split_counts", *LOGIT_PARAMETERS, *WORD_LISTS)
_TEMPLATE_ATTRIBUTES = ("K", "D", "T_txt", "texts_hash", "created_at")


@contextmanager
def _reading(path: PathLike) -> Iterator[Database]:
    if not Path(path).is_file():
        raise MissingFileError(f"There is no file {path}.")
    with no_writer(Path(path)), open_database(path) as database:
        yield database


# --- rows ---------------------------------------------------------------------------------------------


def access_sample_by_index(index: int, path: PathLike = DEFAULT_PATH) -> dict[str, Any]:
    """One row of the file, and a printed line about it.

    Gives `image_feature` (D,) float16, `image_token_feature` (T_img, D) float16, `id`, `label` and `split`.
    Unlike the original: a store without token features gives None for them instead of failing.
    """
    with _reading(path) as database:
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
    """Rows of a split (or of "all") as an array: image features (n, D), patches (n, T_img, D) or labels (n,).

    `type` (or `feature`, as the scripts call it) is "image", the default, "patches" or "label". `idx` counts inside
    the split, as numpy does: None, a number (which gives one row, (1, D)), a slice, a list, an array or a mask.

    Unlike the original: any order is allowed, repeats, negative numbers and reversed slices too; any split name of
    the file; and only the rows asked for are read, in runs. All patches of a large split still fill the memory:
    ask for some rows at a time, or map them with `ccassets.open_database`.

    Raises `ArgumentError` (a ValueError), `RowError` (an IndexError), `NameMissingError` (a KeyError) or
    `MissingFileError` (a FileNotFoundError), all of them `DatabaseError`s.
    """
    name = _choice("image", _IMAGE_TYPES, type=type, feature=feature)
    with _reading(path) as database:
        rows = _chosen(_rows_of_split(database, split), idx, split)
        if name == "labels":
            return database.labels[rows]
        values = database.image_features if name == IMAGE_FEATURES else database.image_token_features
        if values is None:
            raise NameMissingError(f"{path} was stored without token features; there are no patches in it.")
        return take_rows(values, rows)


def _choice(default: str, known: dict[str, str], **given: str | None) -> str:
    """What one of two argument names, the notebook's and the script's, chooses."""
    chosen = {value.strip().lower() for value in given.values() if value is not None} or {default}
    if len(chosen) > 1 or not chosen <= set(known):
        raise ArgumentError(f"{' or '.join(given)}: one of {list(known)} was expected; found {sorted(chosen)}.")
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


def _chosen(rows: npt.NDArray[np.int64], idx: Any, split: str | None) -> npt.NDArray[np.int64]:
    if idx is None:
        return rows
    if isinstance(idx, slice):
        return rows[idx]
    wanted = np.asarray(idx)
    if not wanted.size and wanted.dtype.kind == "f":  # an empty list
        wanted = wanted.astype(np.int64)
    if wanted.dtype.kind not in "iub":
        raise ArgumentError(f"idx: None, a number, a slice, row numbers or a mask were expected; found {idx!r:.80}.")
    try:
        return np.atleast_1d(rows[wanted])
    except IndexError as error:
        raise RowError(f"{split!r} has {len(rows)} rows: {error}.") from error


# --- templates ----------------------------------------------------------------------------------------


def get_template_names(path: PathLike = DEFAULT_PATH) -> list[str]:
    """The ids of all templates, sorted."""
    with _reading(path) as database:
        return list(database.templates)


def fetch_template_features(
    template_id: str | Sequence[str] | None = None,
    *,
    is_concept: bool = True,
    concept_list: Sequence[str] | None = None,
    is_label: bool = False,
    type: str | None = None,
    feature: str | None = None,
    path: PathLike = DEFAULT_PATH,
) -> Array | dict[str, Array]:
    """Text features (K, D), or token features (K, T_txt, D) with `type="tokens"`, of the chosen templates.

    By default of every template whose id begins with "concept"; `is_concept=False` leaves that filter out, and
    `is_label=True` then takes those that begin with "label". `template_id` is one id or several. `concept_list`
    takes the rows of these concepts, in the order asked for; concepts that no template has are named in a warning
    and left out. One template gives an array, several a dictionary by id, as in the original.

    Unlike the original: one id may be a string in the script's form too (`feature=` for `type=`), and a concept's row
    is found in the template's own texts. Templates that were made from other lists than the file's are refused
    where rows are asked for by concept, since the wrong rows would answer.
    """
    if is_concept and is_label:
        raise ArgumentError("is_concept and is_label exclude each other; for labels say is_concept=False too.")
    name = _choice("text", _TEXT_TYPES, type=type, feature=feature)
    with _reading(path) as database:
        chosen = _chosen_templates(database, template_id, "concept" if is_concept else "label" if is_label else "")
        found = {key: template for key, template in chosen.items() if getattr(template, name) is not None}
        if not found:
            raise ArgumentError(f"{path}: {list(chosen) or 'no template'} holds {name}.")
        concepts = [concept_list] if isinstance(concept_list, str) else list(concept_list or ())
        rows = _concept_rows(database, found, concepts) if is_concept and concepts else {}
        results = {
            key: getattr(template, name)[rows[key]] if key in rows else getattr(template, name)
            for key, template in found.items()
        }
    return next(iter(results.values())) if len(results) == 1 else results


def _chosen_templates(database: Database, template_id: str | Sequence[str] | None, prefix: str) -> dict[str, Template]:
    filtered = {key: template for key, template in database.templates.items() if key.startswith(prefix)}
    if template_id is None:
        return filtered
    wanted = {template_id} if isinstance(template_id, str) else {str(key) for key in template_id}
    chosen = {key: template for key, template in filtered.items() if key in wanted}
    if not chosen:
        hint = f" that begins with {prefix!r} (is_concept=False takes any)" if prefix else ""
        raise ArgumentError(
            f"{database.path.name} has no template {sorted(wanted)}{hint}; it has {list(database.templates)}."
        )
    return chosen


def _concept_rows(database: Database, templates: dict[str, Template], concepts: Sequence[str]) -> dict[str, list[int]]:
    rows = {key: _rows_by_word(database, template) for key, template in templates.items()}
    unknown = [concept for concept in concepts if not any(concept in found for found in rows.values())]
    if unknown:
        print(f"Warning: Concepts not found in concept_texts, will ignore: {unknown}")
    wanted = [concept for concept in concepts if concept not in unknown]
    if not wanted:
        raise ArgumentError(f"concept_list: none of {list(concepts)} is a concept of {database.path.name}.")
    for key, found in rows.items():
        missing = [concept for concept in wanted if concept not in found]
        if missing:
            raise ArgumentError(
                f"Template {key!r} does not hold {missing}, or holds texts that the file's lists do not give: it was "
                "made from other lists. Write it again, or read it without concept_list and compare its texts."
            )
    return {key: [found[concept] for concept in wanted] for key, found in rows.items()}


def _rows_by_word(database: Database, template: Template) -> dict[str, int]:
    """The row of every concept in a template, by its own texts; {} when the lists of the file do not explain them."""
    words = [str(word) for word in database.attributes.get("concept_texts") or ()]
    row_of = {text: row for row, text in enumerate(template.texts)}
    strings = [str(string) for string in database.attributes.get("prompt_temp_for_concepts") or ()]
    found = [
        {word: row_of[string.replace("{}", word)] for word in words if string.replace("{}", word) in row_of}
        for string in strings
    ]
    best = max(found, key=len, default={})
    if best:
        return best
    # A custom template, whose string is not stored: the order of the words explains its texts, or nothing does.
    explained = len(words) == len(template.texts) and all(map(str.__contains__, template.texts, words))
    return {word: row for row, word in enumerate(words)} if explained else {}


# --- overviews ----------------------------------------------------------------------------------------


def summarize_h5(path: PathLike = DEFAULT_PATH, max_templates: int = 3) -> None:
    """Print what the file holds: shapes, first ids, split counts, templates, and its tree."""
    with _reading(path) as database:
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
    for name in (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, "ids", "labels", "split"):
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
    """Print shapes, first rows, counts, lists, templates and parameters; then check the file, and print what is wrong.

    Gives the findings of `ccassets.validate_database`, [] for a flawless file; None, as in the original, when there
    is no file. Unlike the original, which printed and checked nothing.
    """
    from ccassets.database.validation import validate_database

    if not Path(path).is_file():
        print(f"File '{path}' does not exist yet.")
        return None
    with _reading(path) as database:
        _print_contents(database, max_templates)
    findings = validate_database(path)
    print(f"Findings: {len(findings) or 'none'}")
    for finding in findings:
        print(f"  • {finding.severity}: {finding.check} at {finding.where}: {finding.message}")
    return findings


def _print_contents(database: Database, max_templates: int) -> None:
    file = database.file
    rows = {name: safe_dataset(file, name) for name in (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, "ids", "labels", "split")}
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
