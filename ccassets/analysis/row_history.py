"""The history of rows: which image each was computed from, in which part it was encoded, and where the image recurs."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.samples import class_names, row_classes
from ccassets.analysis.scores import image_cosines, normalise
from ccassets.database.attributes import json_array, section
from ccassets.database.feature_digests import hexadecimal
from ccassets.database.reader import Database, open_database
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.files import files_in

if TYPE_CHECKING:
    import pandas as pd

SIMILAR = 0.99
"""The cosine from which an image counts as a near duplicate."""


def row_histories(database: Database) -> pd.DataFrame:
    """Return the history of every row as a table.

    Parts are looked up where builds leave them (`features` beside the study's folder). The columns of a part are empty
    if it is gone, or if the file was moved.

    Args:
        database: A database with image digests.

    Returns:
        A row of the table for each of the file, in its order: `row`, `key`, `split`, `label`, `class`, `group`,
        `image_digest`, `feature_digest`; `part`, `part_origin` (extracted or adopted), `encoded_at`, `device`,
        `part_key`, `part_split` and `part_label` (the row when it was encoded), `reused` (it was encoded under another
        key or for another split); `same_image`: the other rows of the same image, as numbers.

    Raises:
        AnalysisError: The file has no image digests.
    """
    return _with_parts(database, _rows(database))


def _rows(database: Database) -> pd.DataFrame:
    """What the file itself holds of its rows."""
    import pandas as pd

    if database.image_digest is None or database.keys is None or database.feature_digest is None:
        raise AnalysisError(f"{database.path.name} has no keys and digests of its images: adopt it, or build it again.")
    digests = hexadecimal(database.image_digest)
    table: pd.DataFrame = pd.DataFrame(
        {
            "row": np.arange(len(database)),
            "key": database.keys,
            "split": database.split,
            "label": database.shown_labels,
            "class": row_classes(database),
            "group": database.groups,
            "image_digest": digests,
            "feature_digest": hexadecimal(database.feature_digest),
        }
    )
    rows_of = table.groupby("image_digest")["row"].agg(list)
    table["same_image"] = [[other for other in rows_of[digest] if other != row] for row, digest in enumerate(digests)]
    return table


def _with_parts(database: Database, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with the columns of the part that each was encoded in."""
    import pandas as pd

    encoded = pd.DataFrame(_encoded_rows(database, set(rows["image_digest"])), columns=_PART_COLUMNS)
    table: pd.DataFrame = rows.merge(encoded, how="left", on="image_digest", validate="many_to_one")
    moved = (table["part_key"] != table["key"]) | (table["part_split"] != table["split"])
    table["reused"] = moved.where(table["part"].notna())
    table["same_image"] = table.pop("same_image")  # The last column.
    return table


def explain_rows(database: Database, key: str) -> list[dict[str, Any]]:
    """Return what is known about the rows with a key: source, part, encoder, label, splits, duplicates.

    Args:
        database: A database with image digests.
        key: The key of a row; several splits may have one of the same name.

    Returns:
        A dictionary for every row of that key: the columns of `row_histories` that are known, and `dataset`, `encoder`,
        `assembled_at`, `same_image` and `near_duplicates` (cosine of at least 0.99), each a list of rows;
        `label_in_dataset` where the study overrides the data set's own label.

    Raises:
        AnalysisError: The file has no image digests, or no row of that key.
    """
    import pandas as pd

    table = _rows(database)
    chosen = _with_parts(database, table[table["key"] == key])
    if chosen.empty:
        near = get_close_matches(key, table["key"].tolist(), 3) or table["key"].tolist()[:3]
        raise AnalysisError(f"{database.path.name} has no row of the key {key!r}; its keys are like {', '.join(near)}.")
    dataset, encoder = (section(database.provenance, name) for name in ("dataset", "encoder"))
    explained = []
    for row, facts in zip(chosen["row"].tolist(), chosen.to_dict("records"), strict=True):
        known = {str(name): value for name, value in facts.items() if isinstance(value, list) or pd.notna(value)}
        vector = normalise(np.asarray(database.image_features[row])[None])
        cosines = image_cosines(database, vector)[:, 0]
        alike = [
            other for other in np.flatnonzero(cosines >= SIMILAR).tolist() if other not in (row, *known["same_image"])
        ]
        explained.append(
            known
            | {
                "dataset": {name: dataset.get(name) for name in ("kind", "name", "version")},
                "encoder": {name: encoder.get(name) for name in ("kind", "identity", "weights_digest", "dtype")},
                "assembled_at": section(database.provenance, "created").get("at"),
                "same_image": [_reference(table, other) for other in known["same_image"]],
                "near_duplicates": [
                    {**_reference(table, other), "similarity": round(float(cosines[other]), 4)} for other in alike
                ],
            }
        )
        overridden = section(dataset, "splits", known["split"], "overridden")
        if key in overridden:
            explained[-1]["label_in_dataset"] = overridden[key]
        if "part_label" in known and int(known["part_label"]) != int(database.labels[row]):
            names = dict(enumerate(class_names(database)))
            explained[-1]["label_when_encoded"] = names.get(int(known["part_label"]), str(known["part_label"]))
    return explained


def _reference(table: pd.DataFrame, row: int) -> dict[str, Any]:
    facts = table.iloc[row]
    return {"row": row, "key": facts["key"], "split": facts["split"], "class": facts["class"]}


_PART_COLUMNS = [
    "image_digest", "part", "part_origin", "encoded_at", "device", "part_key", "part_split", "part_label",
]  # fmt: skip


def _encoded_rows(database: Database, image_digests: set[str]) -> list[tuple[Any, ...]]:
    """The rows of the database's parts with these image digests, in the order of `_PART_COLUMNS`.

    Parts are read until each digest is found.
    """
    rows: list[tuple[Any, ...]] = []
    missing = set(image_digests)
    for path, origin in _parts(database).items():
        if not missing:
            break
        try:
            with open_database(path) as part:
                created = section(part.provenance, "created").get("at")
                device = section(part.provenance, "extraction").get("device")
                digests = np.empty((0, 32), np.uint8) if part.image_digest is None else part.image_digest
                keys: npt.NDArray[Any] = np.full(len(digests), "") if part.keys is None else part.keys
                for row, digest in enumerate(hexadecimal(digests)):
                    if digest in missing:
                        of_part = path.name, origin, created, device
                        rows.append((digest, *of_part, keys[row], part.split[row], part.labels[row]))
                        missing.discard(digest)
        except DatabaseError:
            continue  # A damaged part: `ccassets validate --deep` names it.
    return rows


def _parts(database: Database) -> dict[Path, str]:
    """The parts of a database that are still there, with their origin; only files that lie where builds leave parts."""
    identity = str(section(database.provenance, "encoder").get("identity"))
    if database.is_remote or not re.fullmatch("[0-9a-f]{32}", identity):  # A file may say anything.
        return {}
    folder = database.path.parents[1] / "features" / identity / "rows"
    known = map(section, json_array(section(database.provenance).get("parts")))
    origins = {str(part.get("name")): str(part.get("origin")) for part in known}
    return {path: origins[path.name] for path in files_in(folder, "*.h5") if path.name in origins}
