"""The work on shards: their images are decoded ahead, encoded in whole batches, and written as a part each."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import feature_digests
from ccassets.database.float16 import not_finite_rows
from ccassets.database.layout import BULK, STORED_IMAGE_DTYPE
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Manifest, read_image
from ccassets.encoders.encoder_contract import Encoder, EncoderCard, FloatArray, ImageFeatures
from ccassets.errors import DatasetError, EncoderError
from ccassets.extraction.parts import VerifiedFiles
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.text_extraction import require_identity
from ccassets.study.schema import Study
from ccassets.study.storage import Store

MOST_DECODERS = 16
"""Threads that decode. They are as fast as processes: Pillow, NumPy and the hash let each other work, and nothing has
to be sent. Each makes some 160 images of 224 px a second ready, so these are enough for the fastest GPU.
"""
_BATCHES_AHEAD = 2

Shard = Manifest
"""The rows of a shard and nothing else of their split: all that whoever encodes them has to be told."""


@dataclass(frozen=True)
class Work:
    """What every worker has to know besides its shards."""

    study: Study
    card: EncoderCard
    store: Store


@dataclass(frozen=True)
class Part:
    """A finished shard: the split and number of its rows, and the file that holds them."""

    split: str
    rows: int
    path: Path


@dataclass
class StageTimes:
    """Where the time of encoding went, in seconds, of all workers together.

    Of the whole, `encoding` is when an encoder was at a batch, and `writing` when the part before had to be on the disk
    first. The rest is waiting for images: `decoding`.
    """

    seconds: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0

    @property
    def decoding(self) -> float:
        return max(0.0, self.seconds - self.encoding - self.writing)

    def add(self, other: StageTimes) -> None:
        self.seconds += other.seconds
        self.encoding += other.encoding
        self.writing += other.writing

    def share(self, seconds: float) -> float:
        """The share of the whole that so many seconds are; 0 before anything was encoded."""
        return min(1.0, seconds / self.seconds) if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"encoder busy {self.share(self.encoding):.0%}, waiting for images {self.share(self.decoding):.0%}, "
            f"for the disk {self.share(self.writing):.0%}"
        )


Report = Callable[[int, StageTimes], None]
"""Called after every batch with the rows that were encoded since the last call, and the time that took."""


def cut(manifest: Manifest, rows: npt.NDArray[np.int64]) -> Shard:
    """The shard that these rows of a manifest are."""
    return replace(
        manifest,
        keys=[manifest.keys[row] for row in rows.tolist()],
        rows=manifest.rows[rows],
        labels=manifest.labels[rows],
        groups=None,
        label_matrix=None,
        image_digest=manifest.image_digest[rows],
        blank=manifest.blank[rows],
        fingerprints=(),
        skipped=(),
    )


def available_cores() -> int:
    """The cores that this process may use, which a container or a batch system may have made fewer."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_shards(
    work: Work, encoder: Encoder, shards: Iterable[Shard], report: Report, cores: int | None = None
) -> Iterator[Part]:
    """Encode shards one after the other and write each as a part, in the folder of the encoder's identity.

    The next batches are decoded, by as many threads as there are cores, and the last part is written, while one is
    encoded; memory holds two shards at most. Batches end where a shard does, so that a part's features depend on
    nothing but its shard. Raises `DatasetError` when an image is no longer the one in the manifest, `EncoderError`
    when features are not finite or the encoder is another, `StorageError` when the disk refuses.
    """
    require_identity(encoder, work.card)
    dataset = open_dataset(work.study, work.store)
    writer = _PartWriter(work, encoder)
    writing: Future[Part] | None = None
    with ThreadPoolExecutor(min(cores or available_cores(), MOST_DECODERS)) as decoders, ThreadPoolExecutor(1) as disk:
        clock, begun = _Clock(), time.perf_counter()
        batches = _decoded(decoders, dataset, encoder, _batches(shards, work.study.extraction.batch_size))
        for shard, rows, encoded in _encoded(encoder, batches, clock):
            if rows.start == 0:
                features, tokens = _room(work.card, len(shard))
            _store(encoded, shard.keys[rows], features[rows], None if tokens is None else tokens[rows])
            report(rows.stop - rows.start, clock.snapshot())
            if rows.stop == len(shard):
                seconds, begun = time.perf_counter() - begun, time.perf_counter()
                if writing is not None:
                    part = _written(writing, clock)
                    clock.pause()
                    yield part
                    clock.resume()
                writing = disk.submit(writer.write, shard, features, tokens, seconds)
        if writing is not None:
            part = _written(writing, clock)
            report(0, clock.snapshot())
            yield part


def _written(writing: Future[Part], clock: _Clock) -> Part:
    asked = time.perf_counter()
    part = writing.result()
    clock.times.writing += time.perf_counter() - asked
    return part


def write_image_part(
    folder: Path,
    manifest: Manifest,
    shard: npt.NDArray[np.int64],
    features: npt.NDArray[np.float16],
    tokens: npt.NDArray[np.float16] | None,
    provenance: Mapping[str, Any],
) -> Path:
    """Write rows of a manifest with their features (n, D) and token features (n, T_img, D) as an image part."""
    images = manifest.image_digest[shard]
    content = FileContent(
        profile="image-part",
        dim=features.shape[1],
        token_count=0 if tokens is None else tokens.shape[1],
        rows=RowContent(
            split=[manifest.split] * len(shard),
            labels=manifest.labels[shard],
            keys=[manifest.keys[row] for row in shard],
            image_digest=images,
            feature_digest=feature_digests(features, tokens),
        ),
        attributes={"split_counts": {manifest.split: len(shard)}, "provenance": provenance},
    )
    path = folder / part_name(images)
    with new_file(path, content) as rows:
        rows.write(BULK[0], 0, features)
        if tokens is not None:
            rows.write(BULK[1], 0, tokens)
    return path


def part_name(image_digest: npt.NDArray[np.uint8]) -> str:
    """What a part of these images is called.

    The name only has to be the same for the same rows; which rows a part holds is written in it.
    """
    return f"{hashlib.sha256(image_digest.tobytes()).hexdigest()[:32]}.h5"


class _PartWriter:
    """Writes finished shards, in a thread of its own."""

    def __init__(self, work: Work, encoder: Encoder) -> None:
        self._work = work
        self._encoder = encoder
        self._folder = work.store.image_parts(work.card.identity)
        self._verified = VerifiedFiles(self._folder)

    def write(
        self,
        shard: Shard,
        features: npt.NDArray[np.float16],
        tokens: npt.NDArray[np.float16] | None,
        seconds: float,
    ) -> Part:
        provenance = part_provenance(self._work.study, self._encoder, seconds)
        path = write_image_part(self._folder, shard, np.arange(len(shard)), features, tokens, provenance)
        self._verified.add(path)
        return Part(shard.split, len(shard), path)


class _Clock:
    """Where the time went since the last snapshot; it stands still between `pause` and `resume`."""

    def __init__(self) -> None:
        self.times = StageTimes()
        self.resume()

    def pause(self) -> None:
        self.times.seconds += time.perf_counter() - self._since
        self.resume()

    def resume(self) -> None:
        self._since = time.perf_counter()

    def snapshot(self) -> StageTimes:
        self.pause()
        times, self.times = self.times, StageTimes()
        return times


def _batches(shards: Iterable[Shard], size: int) -> Iterator[tuple[Shard, slice]]:
    return (
        (shard, slice(first, min(first + size, len(shard)))) for shard in shards for first in range(0, len(shard), size)
    )


def _decoded(
    decoders: ThreadPoolExecutor, dataset: Dataset, encoder: Encoder, batches: Iterable[tuple[Shard, slice]]
) -> Iterator[tuple[Shard, slice, FloatArray]]:
    """Batches with their decoded images, in order; the next ones are decoded while one is used."""
    ahead: deque[tuple[Shard, slice, FloatArray, list[Future[None]]]] = deque()
    side = encoder.card.image_size

    def oldest() -> tuple[Shard, slice, FloatArray]:
        shard, rows, pixels, images = ahead.popleft()
        for image in images:
            image.result()
        return shard, rows, pixels

    try:
        for shard, rows in batches:
            pixels = np.empty((rows.stop - rows.start, 3, side, side), np.float32)
            images = [
                decoders.submit(_decode, dataset, encoder, shard, row, place)
                for row, place in zip(range(rows.start, rows.stop), pixels, strict=True)
            ]
            ahead.append((shard, rows, pixels, images))
            if len(ahead) > _BATCHES_AHEAD:
                yield oldest()
        while ahead:
            yield oldest()
    finally:
        for _, _, _, images in ahead:
            for image in images:
                image.cancel()


def _decode(dataset: Dataset, encoder: Encoder, shard: Shard, row: int, place: FloatArray) -> None:
    """Put one image as the encoder's input (3, image_size, image_size) in its place in a batch.

    Raises `DatasetError` when it is not the image of the manifest any more.
    """
    image = read_image(dataset, shard, row)
    if image_digest(image) != shard.image_digest[row].tobytes():
        raise DatasetError(
            f"{shard.keys[row]} is not the image that was read for the manifest of {shard.split!r}: "
            "it changed since. Materialize `images` again."
        )
    try:
        place[...] = encoder.preprocess(image)
    except EncoderError as error:
        raise EncoderError(f"{shard.keys[row]}: {error}") from error


def _room(card: EncoderCard, rows: int) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.float16] | None]:
    """Arrays for what a shard's features and token features will be."""
    features = np.empty((rows, card.dim), STORED_IMAGE_DTYPE)
    if not card.token_count:
        return features, None
    return features, np.empty((rows, card.token_count, card.dim), STORED_IMAGE_DTYPE)


def _encoded(
    encoder: Encoder, batches: Iterator[tuple[Shard, slice, FloatArray]], clock: _Clock
) -> Iterator[tuple[Shard, slice, ImageFeatures]]:
    """Batches with their features, in order."""
    for shard, rows, pixels in batches:
        started = time.perf_counter()
        with _named(shard, rows):
            encoded = encoder.encode_pixels(pixels)
        clock.times.encoding += time.perf_counter() - started
        yield shard, rows, encoded


@contextmanager
def _named(shard: Shard, rows: slice) -> Iterator[None]:
    """Say which images an encoder failed on."""
    try:
        yield
    except EncoderError as error:
        keys = shard.keys[rows]
        raise EncoderError(f"{error}\nIt was encoding {keys[0]!r} to {keys[-1]!r}.") from error


def _store(
    encoded: ImageFeatures,
    keys: Sequence[str],
    features: npt.NDArray[np.float16],
    tokens: npt.NDArray[np.float16] | None,
) -> None:
    """Put a batch into the arrays that will be written; `EncoderError` for a wrong shape or what is not finite."""
    for name, stored, values in ((BULK[0], features, encoded.features), (BULK[1], tokens, encoded.tokens)):
        if stored is None:
            continue
        if values is None or values.shape != stored.shape:
            raise EncoderError(
                f"The encoder gave {name} of shape {None if values is None else values.shape}; "
                f"{stored.shape} was expected from its card."
            )
        with np.errstate(over="ignore"):  # What overflows float16 is reported as not finite, with its key.
            stored[...] = values
        wrong = [keys[row] for row in not_finite_rows(stored).tolist()]
        if wrong:
            raise EncoderError(f"The encoder gave {name} that are not finite in float16 for {wrong}.")
