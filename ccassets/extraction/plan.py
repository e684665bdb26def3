"""The plan of a study: what is still to be encoded, which is its manifests minus the rows that parts hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ccassets.database.layout import STORED_IMAGE_DTYPE
from ccassets.database.reader import as_list
from ccassets.datasets.manifest import Manifest
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.encoders.presets import Preset, load_presets, preset_of
from ccassets.errors import EncoderError
from ccassets.extraction.parts import RowIndex, as_keys, held_rows, seconds_per_row
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import missing_templates
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class ImagePlan:
    """The plan of one split.

    Attributes:
        split: The split.
        rows: Number of rows of the split.
        held: Number of rows that parts hold.
        shards: The shards to be encoded, each (m,) int64 rows of the manifest; each image stands in them once.
    """

    split: str
    rows: int
    held: int
    shards: Sequence[npt.NDArray[np.int64]]

    @property
    def to_encode(self) -> int:
        """Number of rows to encode."""
        return sum(len(shard) for shard in self.shards)

    @property
    def missing(self) -> npt.NDArray[np.int64]:
        """(m,) int64, the rows to encode, of all shards."""
        return np.concatenate([np.empty(0, np.int64), *self.shards])


@dataclass(frozen=True)
class StudyPlan:
    """The plan of a study: what would be encoded, and the bytes that parts and database would take.

    Attributes:
        images: The splits.
        templates: Ids of the templates that would be encoded.
        part_bytes: Bytes of the parts that would be written.
        database_bytes: Bytes of the database.
        seconds: Time of encoding at the speed of the newest parts; None when there are none.
    """

    images: Sequence[ImagePlan]
    templates: Sequence[str]
    part_bytes: int
    database_bytes: int
    seconds: float | None

    @property
    def to_encode(self) -> int:
        """Number of rows to encode in all splits."""
        return sum(plan.to_encode for plan in self.images)


def row_bytes(card: EncoderCard | Preset) -> int:
    """The bytes of one row's image features and token features as they are stored."""
    return STORED_IMAGE_DTYPE.itemsize * card.dim * (1 + card.token_count)


def expected_row_bytes(study: Study) -> int | None:
    """The bytes of a row by the published sizes of the study's model; None for a model without a preset."""
    published = study.encoder.kind == "conceptclip"
    preset = load_presets()["conceptclip"] if published else preset_of(getattr(study.encoder, "weights", ""))
    if preset is None or getattr(study.encoder, "architecture", None) is not None:
        return None
    return row_bytes(replace(preset, token_count=preset.token_count if study.encoder.tokens else 0))


def size_study(study: Study, splits: str | Sequence[str] | None = None, *, store: Store | None = None) -> StudyPlan:
    """Plan a study whose weights are not on this machine: everything is encoded, and sizes are the published ones.

    Args:
        study: The study; its images must have been read.
        splits: A split, or several; by default all of the study.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.

    Returns:
        The plan of an empty storage.

    Raises:
        DatasetError: The images of a split have not been read yet.
        EncoderError: Nothing is published of the model.
    """
    store = store or Store.of(study)
    splits = as_list(splits or study.splits)
    bytes_per_row = expected_row_bytes(study)
    if bytes_per_row is None:
        raise EncoderError(f"The size of a row of {study.name} is not known until its encoder is identified.")
    manifests = [recorded_manifest(study, split, store) for split in splits]
    plans = [plan_images(manifest, nothing_held(), study.extraction.rows_per_shard) for manifest in manifests]
    return StudyPlan(
        images=plans,
        templates=list(study.vocabulary.templates()),
        part_bytes=sum(plan.to_encode for plan in plans) * bytes_per_row,
        database_bytes=sum(plan.rows for plan in plans) * bytes_per_row,
        seconds=None,
    )


def plan_images(manifest: Manifest, index: RowIndex, rows_per_shard: int) -> ImagePlan:
    """Divide the rows of a split that no part holds into shards, in the order of the manifest.

    Equal images are encoded once. With an empty storage, this is the canonical plan. After a kill, it starts at the
    first shard that was not finished, since parts hold whole shards only.
    """
    entries = index.find(manifest.image_digest)
    missing = np.flatnonzero(entries < 0)
    _, first = np.unique(as_keys(manifest.image_digest[missing]), return_index=True)
    distinct = missing[np.sort(first)]
    return ImagePlan(
        split=manifest.split,
        rows=len(entries),
        held=int((entries >= 0).sum()),
        shards=divide(distinct, rows_per_shard),
    )


def divide(rows: npt.NDArray[np.int64], rows_per_shard: int) -> list[npt.NDArray[np.int64]]:
    """Neighbouring rows in shards of `rows_per_shard`; the last one may be shorter."""
    return [rows[first : first + rows_per_shard] for first in range(0, len(rows), rows_per_shard)]


def plan_study(
    study: Study, splits: str | Sequence[str] | None = None, *, store: Store | None = None, fresh: bool = False
) -> StudyPlan:
    """Plan what `extract_images` and `extract_text` would encode now.

    Only recorded manifests and the encoder card are read; nothing is decoded or encoded.

    Args:
        study: The study; its images and encoder must have been read.
        splits: A split, or several; by default all of the study.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        fresh: Plan as if no part held anything.

    Returns:
        The shards and templates to encode, with the bytes and seconds they take.

    Raises:
        DatasetError: The images of a split have not been read yet.
        EncoderError: The encoder was not identified yet, or the study now asks for another one.
    """
    store = store or Store.of(study)
    splits = as_list(splits or study.splits)
    card = recorded_card(study, store)
    held = held_rows(store, card.identity, known_only=fresh)
    index = nothing_held() if fresh else held
    manifests = [recorded_manifest(study, split, store) for split in splits]
    plans = [plan_images(manifest, index, study.extraction.rows_per_shard) for manifest in manifests]
    to_encode = sum(plan.to_encode for plan in plans)
    speed = seconds_per_row(held)
    return StudyPlan(
        images=plans,
        templates=missing_templates(study, card, store) if not fresh else list(study.vocabulary.templates()),
        part_bytes=to_encode * row_bytes(card),
        database_bytes=sum(plan.rows for plan in plans) * row_bytes(card),
        seconds=None if speed is None else to_encode * speed,
    )


def nothing_held() -> RowIndex:
    """The index of an empty storage."""
    none, no_source = np.empty(0, np.int64), np.empty(0, np.bool_)
    return RowIndex([], np.empty((0, 32), np.uint8), np.empty((0, 16), np.uint8), none, none, no_source, no_source)
