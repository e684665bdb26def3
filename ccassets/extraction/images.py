"""Image extraction: shards are decoded by workers, encoded in whole batches, and written as parts, all at once."""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.database.digests import feature_digests, split_digest
from ccassets.database.halves import all_finite
from ccassets.database.layout import BULK, STORED_IMAGE_DTYPE
from ccassets.database.writer import FileContent, RowContent, new_file
from ccassets.datasets import open_dataset
from ccassets.datasets.images import image_digest
from ccassets.datasets.manifest import Manifest, read_image
from ccassets.encoders import load_encoder
from ccassets.encoders.contract import Encoder, EncoderCard, FloatArray
from ccassets.errors import DatasetError, EncoderError, StorageError
from ccassets.extraction.parts import RowIndex, VerifiedFiles, held_rows, with_newer
from ccassets.extraction.plan import nothing_held, plan_images, row_bytes
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.sources import identify_encoder, read_images, recorded_card, recorded_manifest
from ccassets.extraction.text import require_identity
from ccassets.files import exclusive, remove_leftovers, require_space
from ccassets.progress import Progress, silent
from ccassets.storage import Store
from ccassets.study import Study

DECODERS = max(1, min(8, (os.cpu_count() or 1)))
_BATCHES_AHEAD = 2


@dataclass(frozen=True)
class ImageExtraction:
    """What `extract_images` did for a split.

    `digest` is the split's: features, keys, labels and groups of all its rows, encoded now or before. `adopted` counts
    the rows whose features come from an adopted file. `busy` is the share of the time in which the encoder was at
    work, the rest it waited for decoding or writing.
    """

    split: str
    rows: int
    encoded: int
    adopted: int
    digest: str
    seconds: float
    busy: float
    damaged: Sequence[str]
    """Parts that were not what was written; their rows were encoded again."""

    @property
    def rows_per_second(self) -> float:
        return self.encoded / self.seconds if self.seconds and self.encoded else 0.0


def extract_images(
    study: Study,
    split: str,
    *,
    encoder: Callable[[], Encoder] | None = None,
    store: Store | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> ImageExtraction:
    """Encode the rows of a split that no part holds (all of them if `fresh`), shard by shard.

    Sources that were not read yet are read first; `encoder` is called only when there is something to encode.
    A finished shard stays finished whatever happens afterwards.
    Raises `StorageError` when the disk is too small before anything is encoded, `DatasetError` when an image is
    no longer the one in the manifest, `EncoderError` when features are not finite.
    """
    return extract_splits(study, [split], encoder=encoder, store=store, fresh=fresh, progress=progress)[0]


def extract_splits(
    study: Study,
    splits: Sequence[str],
    *,
    encoder: Callable[[], Encoder] | None = None,
    store: Store | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> list[ImageExtraction]:
    """`extract_images` for several splits, with one look at the parts and at the data set."""
    store = store or Store.of(study)
    if not store.encoder_card.exists():
        identify_encoder(study, store=store)
    for split in splits:
        if not store.manifest(split).exists():
            read_images(study, split, store=store)
    card = recorded_card(study, store)
    manifests = [recorded_manifest(study, split, store) for split in splits]
    folder = store.image_parts(card.identity)
    with exclusive(folder):
        remove_leftovers(folder)
        held = held_rows(store, card.identity)
        index = nothing_held() if fresh else held
        plans = [plan_images(manifest, index, study.extraction.rows_per_shard) for manifest in manifests]
        total = sum(plan.to_encode for plan in plans)
        require_space(folder, total * row_bytes(card), f"Encoding {total} images of {study.name}")
        work = _Extraction(study, card, store, encoder)
        done: list[ImageExtraction] = []
        for manifest in manifests:
            before = sum(part.encoded for part in done)
            extraction, index = work.split(manifest, index, _counted(progress, before, total))
            done.append(replace(extraction, damaged=held.damaged))
        if fresh:
            _remove_superseded(held_rows(store, card.identity))
    return done


def manifest_split_digest(manifest: Manifest, index: RowIndex) -> str:
    """The digest of a split as the parts hold it; `StorageError` when rows are missing."""
    return split_digest(
        index.feature_digest[held_entries(manifest, index)],
        keys=manifest.keys,
        labels=manifest.labels,
        groups=manifest.groups,
        label_matrix=manifest.label_matrix,
    )


def held_entries(manifest: Manifest, index: RowIndex) -> npt.NDArray[np.int64]:
    """The entry of the index that holds each row of a manifest; `StorageError` when rows are missing."""
    found = index.find(manifest.image_digest)
    missing = np.flatnonzero(found < 0)
    if len(missing):
        raise StorageError(
            f"{len(missing)} of {len(found)} images of split {manifest.split!r} are not encoded yet "
            f"(the first is {manifest.keys[missing[0]]!r}). Materialize `image_features` for {manifest.split!r} first."
        )
    return found


class _Extraction:
    """The work on one data set with one encoder, which is loaded when the first image has to be encoded."""

    def __init__(self, study: Study, card: EncoderCard, store: Store, encoder: Callable[[], Encoder] | None) -> None:
        self.study = study
        self.card = card
        self.folder = store.image_parts(card.identity)
        self.dataset = open_dataset(study, store)
        self.verified = VerifiedFiles(self.folder)
        self._load = encoder or (lambda: load_encoder(study, store_cache=store.cache))

    @cached_property
    def encoder(self) -> Encoder:
        loaded = self._load()
        require_identity(loaded, self.card)
        return loaded

    def split(self, manifest: Manifest, index: RowIndex, progress: Progress) -> tuple[ImageExtraction, RowIndex]:
        """Encode what the index does not hold of a split; what was done, and the index with the new parts."""
        started = time.perf_counter()
        plan = plan_images(manifest, index, self.study.extraction.rows_per_shard)
        busy = 0.0
        if plan.shards:
            parts, busy = self._run(manifest, plan.shards, progress)
            index = with_newer(index, parts, self.card.identity, self.verified)
        seconds = time.perf_counter() - started
        return (
            ImageExtraction(
                split=manifest.split,
                rows=len(manifest.keys),
                encoded=plan.to_encode,
                adopted=int(index.is_adopted[index.source[held_entries(manifest, index)]].sum()),
                digest=manifest_split_digest(manifest, index),
                seconds=seconds,
                busy=busy / seconds if seconds else 0.0,
                damaged=(),
            ),
            index,
        )

    def _run(
        self, manifest: Manifest, shards: Sequence[npt.NDArray[np.int64]], progress: Progress
    ) -> tuple[list[Path], float]:
        """Encode and write shards: decoding, encoding and writing overlap, memory holds two shards at most.

        Gives the parts and the seconds in which the encoder was at work.
        """
        encoder = self.encoder
        total = sum(len(shard) for shard in shards)
        done = 0
        busy = 0.0
        parts: list[Path] = []
        writing: Future[Path] | None = None
        with ThreadPoolExecutor(DECODERS) as decoders, ThreadPoolExecutor(1) as writer:
            batches = _prefetched(decoders, partial(self._decode, manifest), self._batches(shards))
            for shard in shards:
                started = time.perf_counter()
                features = np.empty((len(shard), self.card.dim), STORED_IMAGE_DTYPE)
                tokens = self._token_array(len(shard))
                for first in range(0, len(shard), self.study.extraction.batch_size):
                    pixels = next(batches)
                    rows = slice(first, first + len(pixels))
                    begun = time.perf_counter()
                    keys = [manifest.keys[row] for row in shard[rows]]
                    _encode(encoder, pixels, keys, features[rows], None if tokens is None else tokens[rows])
                    busy += time.perf_counter() - begun
                    done += len(pixels)
                    progress(done, total)
                if writing is not None:
                    parts.append(writing.result())
                seconds = time.perf_counter() - started
                writing = writer.submit(self._write, manifest, shard, features, tokens, seconds)
            if writing is not None:
                parts.append(writing.result())
        return parts, busy

    def _batches(self, shards: Iterable[npt.NDArray[np.int64]]) -> Iterator[npt.NDArray[np.int64]]:
        size = self.study.extraction.batch_size
        return (shard[first : first + size] for shard in shards for first in range(0, len(shard), size))

    def _decode(self, manifest: Manifest, row: int) -> FloatArray:
        """One image as the encoder's input; `DatasetError` when it is not the image of the manifest any more."""
        image = read_image(self.dataset, manifest, row)
        if image_digest(image) != manifest.image_digest[row].tobytes():
            raise DatasetError(
                f"{manifest.keys[row]} is not the image that was read for the manifest of "
                f"{manifest.split!r}: it changed since. Materialize `images` again."
            )
        try:
            return self.encoder.preprocess(image)
        except EncoderError as error:
            raise EncoderError(f"{manifest.keys[row]}: {error}") from error

    def _token_array(self, rows: int) -> npt.NDArray[np.float16] | None:
        if not self.card.token_count:
            return None
        return np.empty((rows, self.card.token_count, self.card.dim), STORED_IMAGE_DTYPE)

    def _write(
        self,
        manifest: Manifest,
        shard: npt.NDArray[np.int64],
        features: npt.NDArray[np.float16],
        tokens: npt.NDArray[np.float16] | None,
        seconds: float,
    ) -> Path:
        provenance = part_provenance(self.study, self.encoder, seconds)
        path = write_image_part(self.folder, manifest, shard, features, tokens, provenance)
        self.verified.add(path)
        return path


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
    # The name only has to be the same for the same rows; which rows a part holds is written in it.
    path = folder / f"{hashlib.sha256(images.tobytes()).hexdigest()[:32]}.h5"
    with new_file(path, content) as rows:
        rows.write(BULK[0], 0, features)
        if tokens is not None:
            rows.write(BULK[1], 0, tokens)
    return path


def _encode(
    encoder: Encoder,
    pixels: FloatArray,
    keys: Sequence[str],
    features: npt.NDArray[np.float16],
    tokens: npt.NDArray[np.float16] | None,
) -> None:
    """Encode a batch into the arrays that will be stored; `EncoderError` for a wrong shape or what is not finite."""
    try:
        encoded = encoder.encode_pixels(pixels)
    except EncoderError as error:
        raise EncoderError(f"{error}\nIt was encoding {keys[0]!r} to {keys[-1]!r}.") from error
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
        if not all_finite(stored):
            finite = np.isfinite(stored).reshape(len(stored), -1).all(axis=1)
            wrong = [keys[row] for row in np.flatnonzero(~finite).tolist()]
            raise EncoderError(f"The encoder gave {name} that are not finite in float16 for {wrong}.")


def _counted(progress: Progress, before: int, total: int) -> Progress:
    """Progress of one split as progress of all."""
    return lambda done, _: progress(before + done, total)


def _prefetched(
    decoders: ThreadPoolExecutor, decode: Callable[[int], FloatArray], batches: Iterator[npt.NDArray[np.int64]]
) -> Iterator[FloatArray]:
    """Batches of decoded images in order, the next ones being decoded while one is used."""
    ahead: deque[list[Future[FloatArray]]] = deque()
    try:
        for rows in batches:
            ahead.append([decoders.submit(decode, row) for row in rows.tolist()])
            if len(ahead) > _BATCHES_AHEAD:
                yield np.stack([image.result() for image in ahead.popleft()])
        while ahead:
            yield np.stack([image.result() for image in ahead.popleft()])
    finally:
        for batch in ahead:
            for image in batch:
                image.cancel()


def _remove_superseded(index: RowIndex) -> None:
    """Remove image parts none of whose rows is used any more, all being held by newer parts."""
    winners = np.unique(index.source[index.find(index.image_digest)])
    for number, path in enumerate(index.sources):
        if number not in winners and path.parent.name == "rows":
            path.unlink(missing_ok=True)
