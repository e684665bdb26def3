"""Rows about encoding: a split extracted from image files into parts, against the model alone."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import original
from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import CLASSES, write_study
from benchmarks.sizes import Size
from ccassets.datasets import open_dataset
from ccassets.datasets.manifest import read_image
from ccassets.datasets.phantom import PhantomDataset
from ccassets.encoders import load_encoder
from ccassets.extraction import extract_images, identify_encoder, read_images
from ccassets.extraction.sources import recorded_manifest
from ccassets.study.schema import PhantomDatasetConfig, Study
from ccassets.study.storage import Store

if TYPE_CHECKING:
    from ccassets.encoders.conceptclip import ConceptClipEncoder

SIDE = 96


def extraction(folder: Path, size: Size) -> Contest:
    """With the phantom encoder, where decoding and writing matter."""
    return _contest(folder / "extraction", {"kind": "phantom"}, size.images, 64, Target(of_limit=0.75))


def extraction_published(folder: Path, size: Size) -> Contest:
    """At the dimensions of the published model, with random weights; two batches of two."""
    import ccassets.encoders.conceptclip as conceptclip

    encoder = {"kind": "conceptclip", "weights": "random", "seed": 0, "tokenizer": str(conceptclip.PHANTOM)}
    return _contest(folder / "published", encoder, 4, 2, Target(of_limit=1 / 1.03))


def _contest(folder: Path, encoder: dict[str, Any], images: int, batch: int, target: Target) -> Contest:
    study = write_study(
        folder / "studies" / "cells",
        encoder,
        folder / "pictures",
        extraction={"batch_size": batch, "rows_per_shard": 2 * batch},
    )
    store = Store.of(study, folder / "storage")
    if not store.encoder_card.exists():
        _save_cells(folder / "pictures" / "train", images)
        identify_encoder(study, store=store)
        read_images(study, "train", store=store)
    model: Any = load_encoder(study)
    work = _Work(study, store, model, folder / "original.h5", batch)
    return Contest(
        work=f"{images} PNG files of {SIDE} px, decoded, checked, encoded, written; batches of {batch}",
        ours=lambda: extract_images(study, "train", encoder=lambda: model, store=store),
        limit=Contestant("the bare forward pass, same batches and threads, tensors ready", work.forward),
        usual=Contestant("a loop that reads, encodes and appends to a chunked LZF file", work.original),
        target=target,
        reset=lambda: shutil.rmtree(store.image_parts(model.card.identity), ignore_errors=True),
    )


class _Work:
    """The same images as tensors that are ready, and read one by one."""

    def __init__(self, study: Study, store: Store, encoder: ConceptClipEncoder, path: Path, batch: int) -> None:
        self._encoder = encoder
        self._path = path
        self._manifest = recorded_manifest(study, "train", store)
        self._read = partial(read_image, open_dataset(study, store), self._manifest)
        self._batches = [
            range(first, min(first + batch, len(self._manifest))) for first in range(0, len(self._manifest), batch)
        ]
        self._tensors: list[Any] = []

    def forward(self) -> None:
        import torch

        if not self._tensors:
            self._tensors = [torch.from_numpy(self._pixels(rows)) for rows in self._batches]
        with torch.inference_mode():
            for pixels in self._tensors:
                self._encoder.model.encode_image(pixels)

    def original(self) -> None:
        card = self._encoder.card
        with original.create(self._path, card.dim, card.token_count) as file:
            for rows in self._batches:
                encoded = self._encoder.encode_pixels(self._pixels(rows))
                assert encoded.tokens is not None
                original.append(file, encoded.features, encoded.tokens, self._manifest.labels[rows.start : rows.stop])
        original.sync(self._path)

    def _pixels(self, rows: range) -> np.ndarray[Any, Any]:
        return np.stack([self._encoder.preprocess(self._read(row)) for row in rows])


def _save_cells(folder: Path, count: int) -> None:
    """Phantom cells as PNG files, in as many classes as the study's vocabulary has."""
    cells = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": count}, size=SIDE))
    for row in range(count):
        path = folder / CLASSES[row % len(CLASSES)] / f"{row:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cells.read("train", row).save(path)
