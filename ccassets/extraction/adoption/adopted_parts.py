"""Parts with the features of an adopted file, and the record of that file in each."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, STORED_IMAGE_DTYPE
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.provenance_rules import private_details
from ccassets.database.validation.stored_rows import StoredRows
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets.datasets.manifest import Manifest, Shard
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.extraction.adoption.row_matching import Ints
from ccassets.extraction.image_shards import write_image_part
from ccassets.extraction.parts import RowIndex, VerifiedFiles
from ccassets.extraction.plan import divide, plan_images
from ccassets.extraction.provenance import created, encoder_provenance, libraries
from ccassets.extraction.text_extraction import stored_template, template_part
from ccassets.progress import Progress
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True)
class Source:
    """The adopted file as every part of it records it: name and digest, its own attributes, how rows were matched."""

    name: str
    size: int
    sha256: str
    attributes: Mapping[str, Any]
    matched_by: str
    repaired: bool

    def provenance(self, card: EncoderCard, started: float, order: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The provenance of a part, with how the order of its rows was verified.

        Attributes that hold a path or a token, or are no JSON, are named and left out.
        """
        kept = {name: value for name, value in self.attributes.items() if _may_be_recorded(value)}
        return {
            "origin": "adopted",
            "encoder": encoder_provenance(card),
            "source": {
                "name": self.name,
                "bytes": self.size,
                "sha256": self.sha256,
                "attributes": kept,
                "left_out": sorted(set(self.attributes) - set(kept)),
            },
            "matched_by": self.matched_by,
            **({} if order is None else {"order": order}),
            "repaired": self.repaired,
            "libraries": libraries(),
            "created": created(time.perf_counter() - started),
        }


def _may_be_recorded(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError):
        return False
    return not private_details({"": value})


@dataclass(frozen=True, eq=False)
class AdoptedShard:
    """A shard, and the row of the adopted file that holds the features of each of its rows."""

    shard: Shard
    file_rows: Ints

    def __len__(self) -> int:
        return len(self.shard)


def shards_to_take(
    study: Study, manifests: Sequence[Manifest], numbers: Mapping[str, Ints], row_of_image: Ints, index: RowIndex
) -> list[AdoptedShard]:
    """The rows of the file that no part holds, in shards of the study's size, in manifest order, each image once."""
    row_of_image = row_of_image.copy()
    size = study.extraction.rows_per_shard
    shards = []
    for manifest in manifests:
        rows = plan_images(manifest, index, size).missing
        images = numbers[manifest.split][rows]
        is_in_file = row_of_image[images] >= 0
        rows, images = rows[is_in_file], images[is_in_file]
        file_rows = row_of_image[images]
        row_of_image[images] = -1  # An image that is in two splits is taken once.
        shards += [
            AdoptedShard(manifest.take(shard_rows), shard_file_rows)
            for shard_rows, shard_file_rows in zip(divide(rows, size), divide(file_rows, size), strict=True)
        ]
    return shards


def write_images(
    folder: Path,
    contents: Contents,
    shards: Sequence[AdoptedShard],
    card: EncoderCard,
    source: Source,
    orders: Mapping[str, Mapping[str, Any]],
    progress: Progress,
) -> None:
    """Write one part for each shard, one in memory at a time; `orders` are the records of every split's order."""
    verified = VerifiedFiles(folder)
    done, total = 0, sum(map(len, shards))
    for shard in shards:
        verified.add(_write_shard(folder, contents, shard, card, source, orders[shard.shard.split]))
        done += len(shard)
        progress(done, total)


def _write_shard(
    folder: Path,
    contents: Contents,
    shard: AdoptedShard,
    card: EncoderCard,
    source: Source,
    order: Mapping[str, Any],
) -> Path:
    started = time.perf_counter()
    features = take_rows(contents.datasets[IMAGE_FEATURES], shard.file_rows)
    tokens = take_rows(contents.datasets[IMAGE_TOKEN_FEATURES], shard.file_rows) if card.token_count else None
    return write_image_part(folder, shard.shard, features, tokens, source.provenance(card, started, order))


def take_rows(dataset: h5py.Dataset, rows: Ints) -> npt.NDArray[np.float16]:
    """Read rows of a data set, a block of neighbouring ones at a time."""
    stored = StoredRows(dataset)
    taken = np.empty((len(rows), *dataset.shape[1:]), STORED_IMAGE_DTYPE)
    for position, first, count in _runs(rows, stored.step(_BLOCK_BYTES)):
        taken[position : position + count] = stored.read(first, count)
    return taken


def _runs(rows: Ints, most: int) -> Iterator[tuple[int, int, int]]:
    """(position, first row, count) of neighbouring rows, `most` of them at a time."""
    starts = np.flatnonzero(np.r_[True, np.diff(rows) != 1])
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(rows)], strict=True):
        for position in range(start, stop, most):
            yield position, int(rows[position]), min(most, stop - position)


def write_templates(
    study: Study,
    store: Store,
    card: EncoderCard,
    templates: Mapping[str, TemplateContent],
    source: Source,
    orders: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """Write a part for each template that no part holds, or only an unverified one; return their ids."""
    written = []
    for template_id, template in study.vocabulary.templates().items():
        content = templates.get(template_id)
        if content is None:
            continue
        order, stored = orders[template_id], stored_template(template, card, store)
        if stored is not None and not (stored.unverified and order["verified_by"]):
            continue
        attributes = {"provenance": source.provenance(card, time.perf_counter(), order)}
        path = template_part(template, card, store)
        with new_file(path, FileContent("template-part", card.dim, 0, None, {template_id: content}, attributes)):
            pass  # A template part has no rows.
        written.append(template_id)
    return written
