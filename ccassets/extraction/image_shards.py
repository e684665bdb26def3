"""Encoding of shards: images are decoded ahead, encoded in whole batches, and written as one part for each shard."""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import feature_digests
from ccassets.database.float16 import all_finite
from ccassets.database.layout import BULK, STORED_IMAGE_DTYPE
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Shard, read_image
from ccassets.encoders.encoder_contract import Encoder, EncoderCard, FloatArray, ImageFeatures
from ccassets.errors import DatasetError, EncoderError
from ccassets.extraction.parts import VerifiedFiles
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.text_extraction import require_identity
from ccassets.progress import BatchListener, StageTimes, available_cores
from ccassets.study.schema import Study
from ccassets.study.storage import Store

MOST_DECODERS = 16
"""Threads that decode. They are as fast as processes: Pillow, NumPy and the hash release the interpreter, and nothing
has to be sent. Each prepares some 160 images of 224 px a second, so these are enough for the fastest GPU.
"""
_BATCHES_AHEAD = 2

_Features = npt.NDArray[np.float16]


@dataclass(frozen=True)
class WorkerSetup:
    """The setup of a worker: everything it needs except its shards."""

    study: Study
    card: EncoderCard
    store: Store


@dataclass(frozen=True)
class ImagePart:
    """A finished shard: the split and number of its rows, and the file that holds them."""

    split: str
    rows: int
    path: Path


def encode_shards(
    setup: WorkerSetup, encoder: Encoder, shards: Iterable[Shard], listener: BatchListener, cores: int | None = None
) -> Iterator[ImagePart]:
    """Encode shards one after the other and write each as a part, in the folder of the encoder's identity.

    While one batch is encoded, the next ones are decoded and the last part is written; memory holds two shards at
    most. Batches end where a shard does, so that a part's features depend on nothing but its shard.

    Args:
        setup: The study, the card that its encoder must have, and where parts are stored.
        encoder: The encoder; it is called by this thread, its `preprocess` by others.
        shards: The shards, taken one at a time.
        listener: Called after every batch.
        cores: Threads that decode, at most `MOST_DECODERS`; by default the available cores.

    Yields:
        The parts, in the order of the shards.

    Raises:
        DatasetError: An image is no longer the one in the manifest.
        EncoderError: Features are not finite, or the encoder is not the one of the card.
        StorageError: The disk refuses.
    """
    writer = _PartWriter(setup, encoder)
    writing: Future[ImagePart] | None = None
    clock = Clock()
    encoding = encoded_shards(setup, encoder, shards, listener, clock, cores)
    with ThreadPoolExecutor(1) as disk, closing(encoding):
        for encoded in encoding:
            if writing is not None:
                part = _wait_for_part(writing, clock)
                clock.pause()
                yield part
                clock.resume()
            writing = disk.submit(writer.write, encoded)
        if writing is not None:
            part = _wait_for_part(writing, clock)
            listener(0, clock.snapshot())
            yield part


@dataclass(frozen=True, eq=False)
class EncodedShard:
    """A shard with its features (n, D) and token features (n, T_img, D), float16, and the seconds that they took."""

    shard: Shard
    features: _Features
    tokens: _Features | None
    seconds: float


def encoded_shards(
    setup: WorkerSetup,
    encoder: Encoder,
    shards: Iterable[Shard],
    listener: BatchListener,
    clock: Clock,
    cores: int | None = None,
) -> Generator[EncodedShard, None, None]:
    """`encode_shards` without writing: the features of each shard, in order."""
    require_identity(encoder, setup.card)
    dataset = open_dataset(setup.study, setup.store)
    with ThreadPoolExecutor(min(cores or available_cores(), MOST_DECODERS)) as decoders:
        start = time.perf_counter()
        for batch in _decoded(decoders, dataset, encoder, _batches(shards, setup.study.extraction.batch_size)):
            shard, rows = batch.shard, batch.rows
            encoded = _encode(encoder, batch, clock)
            if rows.start == 0:
                features, tokens = _empty_features(setup.card, len(shard))
            _store(encoded, batch.keys, features[rows], None if tokens is None else tokens[rows])
            listener(rows.stop - rows.start, clock.snapshot())
            if rows.stop == len(shard):
                seconds, start = time.perf_counter() - start, time.perf_counter()
                yield EncodedShard(shard, features, tokens, seconds)


def write_image_part(
    folder: Path, shard: Shard, features: _Features, tokens: _Features | None, provenance: Mapping[str, Any]
) -> Path:
    """Write a shard with its features (n, D) and token features (n, T_img, D) as an image part; return its path."""
    content = FileContent(
        profile="image-part",
        dim=features.shape[1],
        token_count=0 if tokens is None else tokens.shape[1],
        rows=RowContent(
            split=[shard.split] * len(shard),
            labels=shard.labels,
            keys=shard.keys,
            image_digest=shard.image_digest,
            feature_digest=feature_digests(features, tokens),
        ),
        attributes={"split_counts": {shard.split: len(shard)}, "provenance": provenance},
    )
    path = folder / part_name(shard.image_digest)
    with new_file(path, content) as rows:
        rows.write(BULK[0], 0, features)
        if tokens is not None:
            rows.write(BULK[1], 0, tokens)
    return path


def part_name(image_digest: npt.NDArray[np.uint8]) -> str:
    """The file name of a part with these images.

    The name only has to be the same for the same rows; the part itself says which rows it holds.
    """
    return f"{hashlib.sha256(image_digest.tobytes()).hexdigest()[:32]}.h5"


class _PartWriter:
    """Writes finished shards, in a thread of its own."""

    def __init__(self, setup: WorkerSetup, encoder: Encoder) -> None:
        self._study = setup.study
        self._encoder = encoder
        self._folder = setup.store.image_parts(setup.card.identity)
        self._verified = VerifiedFiles(self._folder)

    def write(self, encoded: EncodedShard) -> ImagePart:
        provenance = part_provenance(self._study, self._encoder, encoded.seconds)
        path = write_image_part(self._folder, encoded.shard, encoded.features, encoded.tokens, provenance)
        self._verified.add(path)
        return ImagePart(encoded.shard.split, len(encoded.shard), path)


def _wait_for_part(writing: Future[ImagePart], clock: Clock) -> ImagePart:
    start = time.perf_counter()
    part = writing.result()
    clock.times.writing += time.perf_counter() - start
    return part


class Clock:
    """Times of the stages since the last snapshot; the clock stands still between `pause` and `resume`."""

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


# --- batches -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Batch:
    """Neighbouring rows of a shard and their images as the encoder's input, (B, 3, image_size, image_size)."""

    shard: Shard
    rows: slice
    pixels: FloatArray

    @property
    def keys(self) -> Sequence[str]:
        return self.shard.keys[self.rows]


def _batches(shards: Iterable[Shard], size: int) -> Iterator[tuple[Shard, slice]]:
    return (
        (shard, slice(first, min(first + size, len(shard)))) for shard in shards for first in range(0, len(shard), size)
    )


def _decoded(
    decoders: ThreadPoolExecutor, dataset: Dataset, encoder: Encoder, batches: Iterable[tuple[Shard, slice]]
) -> Iterator[_Batch]:
    """Batches with their decoded images, in order; the next ones are decoded while one is used."""
    ahead: deque[tuple[_Batch, list[Future[None]]]] = deque()
    side = encoder.card.image_size

    def oldest() -> _Batch:
        batch, images = ahead.popleft()
        for image in images:
            image.result()
        return batch

    try:
        for shard, rows in batches:
            pixels = np.empty((rows.stop - rows.start, 3, side, side), np.float32)
            images = [
                decoders.submit(_decode, dataset, encoder, shard, row, image_pixels)
                for row, image_pixels in zip(range(rows.start, rows.stop), pixels, strict=True)
            ]
            ahead.append((_Batch(shard, rows, pixels), images))
            if len(ahead) > _BATCHES_AHEAD:
                yield oldest()
        while ahead:
            yield oldest()
    finally:
        for _, images in ahead:
            for image in images:
                image.cancel()


def _decode(dataset: Dataset, encoder: Encoder, shard: Shard, row: int, pixels: FloatArray) -> None:
    """Fill `pixels` (3, image_size, image_size) with the preprocessed image of a row.

    Raises `DatasetError` when it is no longer the image of the manifest.
    """
    image = read_image(dataset, shard, row)
    if image_digest(image) != shard.image_digest[row].tobytes():
        raise DatasetError(
            f"{shard.keys[row]} is not the image that was read for the manifest of {shard.split!r}: "
            "it changed since. Materialize `images` again."
        )
    try:
        pixels[...] = encoder.preprocess(image)
    except EncoderError as error:
        raise EncoderError(f"{shard.keys[row]}: {error}") from error


def _encode(encoder: Encoder, batch: _Batch, clock: Clock) -> ImageFeatures:
    """The features of a batch; an `EncoderError` names its images."""
    start = time.perf_counter()
    try:
        encoded = encoder.encode_pixels(batch.pixels)
    except EncoderError as error:
        raise EncoderError(f"{error}\nIt was encoding {batch.keys[0]!r} to {batch.keys[-1]!r}.") from error
    clock.times.encoding += time.perf_counter() - start
    return encoded


def _empty_features(card: EncoderCard, rows: int) -> tuple[_Features, _Features | None]:
    """Arrays for the features and token features of a shard."""
    features = np.empty((rows, card.dim), STORED_IMAGE_DTYPE)
    if not card.token_count:
        return features, None
    return features, np.empty((rows, card.token_count, card.dim), STORED_IMAGE_DTYPE)


def _store(encoded: ImageFeatures, keys: Sequence[str], features: _Features, tokens: _Features | None) -> None:
    """Put a batch into the arrays to be written; `EncoderError` for a wrong shape or values that are not finite."""
    for name, stored, values in ((BULK[0], features, encoded.features), (BULK[1], tokens, encoded.tokens)):
        if stored is None:
            continue
        if values is None or values.shape != stored.shape:
            raise EncoderError(
                f"{name} of the encoder: expected shape {stored.shape} by its card, "
                f"found {None if values is None else values.shape}."
            )
        with np.errstate(over="ignore"):  # What overflows float16 is reported as not finite, with its key.
            stored[...] = values
        if not all_finite(stored):
            finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
            wrong = [keys[row] for row in np.flatnonzero(~finite).tolist()]
            raise EncoderError(f"The encoder gave {name} that are not finite in float16 for {wrong}.")
