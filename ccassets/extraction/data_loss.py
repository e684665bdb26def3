"""Data loss: rows that replacing a database would destroy, since no part and no other database holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import section
from ccassets.database.reader import Database, open_database
from ccassets.datasets.manifest import Manifest
from ccassets.errors import DatabaseError, StorageError
from ccassets.extraction.parts import UNUSABLE, as_keys, held_rows
from ccassets.files import reading_errors
from ccassets.study.loading import command_argument
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def require_no_loss(study: Study, store: Store, path: Path, identity: str, manifests: Sequence[Manifest]) -> None:
    """Refuse to replace the database at `path` if that would destroy rows that no other file holds.

    Args:
        study: The study.
        store: Its files.
        path: The database that is to be replaced; there may be none.
        identity: The encoder identity of the rows of the new database.
        manifests: The rows of the new database.

    Raises:
        StorageError: Rows, or the templates of a file without rows, would be lost; the message says which, and how
            to drop them all the same.
    """
    if not path.is_file():
        return
    try:
        with reading_errors(path):
            database = open_database(path)
    except UNUSABLE:
        return  # Nothing can be taken from such a file.
    with database:
        try:
            with reading_errors(path):
                refusal = _refusal(study, store, database, identity, manifests)
        except UNUSABLE as error:
            refusal = None if study.storage.keep_parts else _refusal_of_damaged(study, path, error)
    if refusal:
        raise StorageError(refusal)


def _refusal(
    study: Study, store: Store, database: Database, identity: str, manifests: Sequence[Manifest]
) -> str | None:
    """Why the database must not be replaced; None where nothing would be lost."""
    try:
        provenance = dict(database.provenance or {})
    except DatabaseError:
        provenance = {}
    if not len(database) and database.templates and "parts" not in provenance:
        return (
            f"{database.path} would be replaced. It holds templates that no build wrote, and no rows. Move it away and "
            f"build again; or run `ccassets build {command_argument(study)} --allow-loss`."
        )
    encoder = section(provenance, "encoder")
    lost = _lost_rows(database, encoder.get("identity"), store, identity, manifests)
    return _refusal_of_rows(study, database, encoder, lost) if len(lost) else None


def _lost_rows(
    database: Database, old_identity: str | None, store: Store, identity: str, manifests: Sequence[Manifest]
) -> npt.NDArray[np.int64]:
    """The rows of a database that are neither in the manifests nor in parts or other databases."""
    if database.image_digest is None:
        return np.arange(len(database))  # Of the original scripts: nobody knows which images these are.
    images = as_keys(database.image_digest)
    lost = np.arange(len(images))
    if old_identity == identity:
        kept = np.concatenate([np.empty((0, 32), np.uint8), *(manifest.image_digest for manifest in manifests)])
        lost = np.flatnonzero(~np.isin(images, as_keys(kept)))
    if not len(lost):
        return lost
    index = held_rows(store, old_identity or identity)
    is_other = np.array([source != database.path for source in index.sources], np.bool_)[index.source]
    if old_identity is not None:
        lost = lost[~np.isin(images[lost], as_keys(index.image_digest[is_other]))]
    if database.feature_digest is None:
        return lost
    # Where an image digest is damaged, or nobody knows the encoder, equal features are the same row.
    held = {digest.tobytes() for digest in index.feature_digest[is_other]} if len(lost) else set()
    return np.array([row for row in lost.tolist() if database.feature_digest[row].tobytes() not in held], np.int64)


def _refusal_of_rows(study: Study, database: Database, encoder: Mapping[str, Any], lost: npt.NDArray[np.int64]) -> str:
    splits, counts = np.unique(database.split[lost].astype(str), return_counts=True)
    by_split = ", ".join(f"{count} of {split}" for split, count in zip(splits, counts, strict=True))
    first = "" if database.keys is None else f"; the first is {database.keys[lost[0]]!r}"
    known = encoder.keys() >= {"kind", "dtype"}
    source = f"by {encoder['kind']} in {encoder['dtype']}" if known else "by an encoder that the file does not name"
    return (
        f"{database.path} would be replaced. Expected all its rows in the new file, in a part or in another database; "
        f"found {len(lost)} of {len(database)} rows nowhere else ({by_split}, encoded {source}{first}). The file was "
        "left as it is. Make the data set complete, or change the encoder back, and build again; or keep a copy of the "
        f"file. {_way_on(study)}"
    )


def _refusal_of_damaged(study: Study, path: Path, error: Exception) -> str:
    return (
        f"{path} would be replaced. It is damaged, and may hold the only copy of its rows: {error}. The file was left "
        "as it is. Move it away, take what is sound in it by "
        f"`ccassets adopt FILE {command_argument(study)} --repair`, and build again. {_way_on(study)}"
    )


def _way_on(study: Study) -> str:
    return (
        f"To lose these rows, run `ccassets build {command_argument(study)} --allow-loss`, or materialize "
        f"`{study.name}/feature_database` in the UI with `allow_loss: true` in its config."
    )
