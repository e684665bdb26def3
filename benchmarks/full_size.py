"""A built study of BloodMNIST's size that takes little of the disk: its token features are holes but for one patch.

Everything is made by the project's own code. The parts are written without their holes; while the first build
assembles the database, `os.copy_file_range` leaves holes where it finds them, as `cp` does. No space is reserved.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np

from benchmarks.material import save_images, sparse_files, stand_in_encoder, write_study
from benchmarks.sizes import SIZES, Size
from benchmarks.stand_in import SIDE
from ccassets.database.feature_digests import feature_digests
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.datasets.manifest import Manifest
from ccassets.encoders import load_encoder
from ccassets.extraction import identify_encoder, read_images
from ccassets.extraction.parts import VerifiedFiles
from ccassets.extraction.plan import nothing_held, plan_images
from ccassets.extraction.provenance import part_provenance
from ccassets.orchestration.build import run_build
from ccassets.study.schema import Study
from ccassets.study.storage import Store

SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}


def stage(folder: Path, size: Size) -> Study:
    """Make the study's pictures and parts under `folder`, and build it through Dagster, once."""
    rows = {split: round(share * size.build_rows) for split, share in SHARES.items()}
    rows["test"] = size.build_rows - rows["train"] - rows["val"]
    image_folder = folder / "pictures"
    save_images(image_folder, rows, SIDE)
    study = write_study(
        folder / "studies" / "cells",
        stand_in_encoder(size.dim, size.build_tokens),
        image_folder,
        dataset={"kind": "folder", "root": str(image_folder), "splits": list(rows)},
    )
    store = Store.of(study)
    identify_encoder(study, store=store)
    for split in study.splits:
        _write_parts(study, store, read_images(study, split, store=store))
    with _holes_kept():
        run_build(study)
    return study


def _write_parts(study: Study, store: Store, manifest: Manifest) -> None:
    """All parts of a split, as an extraction would leave them."""
    encoder = load_encoder(study)
    card = encoder.card
    folder = store.image_parts(card.identity)
    verified = VerifiedFiles(folder)
    provenance = part_provenance(study, encoder, 1.0)
    rng = np.random.default_rng(0)
    for number, shard in enumerate(plan_images(manifest, nothing_held(), study.extraction.rows_per_shard).shards):
        directions = rng.standard_normal((len(shard), card.dim), np.float32)
        features = (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float16)
        tokens = np.zeros((card.token_count, card.dim), np.float16)
        tokens[0] = features[0]
        rows = RowContent(
            split=[manifest.split] * len(shard),
            labels=manifest.labels[shard],
            keys=[manifest.keys[row] for row in shard],
            image_digest=manifest.image_digest[shard],
            feature_digest=feature_digests(features, np.broadcast_to(tokens, (len(shard), *tokens.shape))),
        )
        attributes = {"split_counts": {manifest.split: len(shard)}, "provenance": provenance}
        path = folder / f"{manifest.split}_{number:05d}.h5"
        with new_file(path, FileContent("image-part", card.dim, card.token_count, rows, {}, attributes)) as file:
            file.write(IMAGE_FEATURES, 0, features)
            for row in range(len(shard)):
                file.write(IMAGE_TOKEN_FEATURES, row, tokens[0])  # The first patch; the others stay a hole.
        verified.add(path)


@contextmanager
def _holes_kept() -> Iterator[None]:
    copy = os.copy_file_range

    def copy_data(source: int, target: int, count: int, source_offset: int, target_offset: int) -> int:
        try:
            hole = min(count, os.lseek(source, source_offset, os.SEEK_DATA) - source_offset)
        except OSError as error:
            if error.errno != errno.ENXIO:  # No data after this offset.
                raise
            return count
        if hole:
            return hole
        data = min(count, os.lseek(source, source_offset, os.SEEK_HOLE) - source_offset)
        return copy(source, target, data, source_offset, target_offset)

    with mock.patch.object(os, "copy_file_range", copy_data), sparse_files():
        yield


if __name__ == "__main__":
    stage(Path(sys.argv[1]), SIZES[sys.argv[2]])
