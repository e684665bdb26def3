"""Image extraction: rows that no part holds are divided into shards under a lock, and a runner encodes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import split_digest
from ccassets.database.reader import as_list
from ccassets.datasets.manifest import Manifest, Shard
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import DatasetError, StorageError, StudyError
from ccassets.extraction.image_shards import WorkerSetup, part_name
from ccassets.extraction.parts import RowIndex, VerifiedFiles, as_keys, held_rows, is_part, with_newer
from ccassets.extraction.plan import ImagePlan, divide, nothing_held, plan_images, row_bytes
from ccassets.extraction.runners import InThisProcess, Runner
from ccassets.extraction.shard_locks import ShardLocks
from ccassets.extraction.sources import identify_encoder, read_images, recorded_card, recorded_manifest
from ccassets.files import exclusive, fingerprint, remove_leftovers, require_space, shared
from ccassets.progress import BatchListener, Progress, StageTimes, silent
from ccassets.study.loading import command_argument
from ccassets.study.schema import Study
from ccassets.study.storage import Store

_Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SplitExtraction:
    """A split after its extraction.

    Attributes:
        split: The split.
        rows: Number of rows of the split.
        encoded: Number of rows that were encoded now.
        adopted: Number of rows whose features come from an imported file.
        digest: Digest (hex) over features, keys, labels and groups of all rows.
    """

    split: str
    rows: int
    encoded: int
    adopted: int
    digest: str


@dataclass(frozen=True)
class ImageExtraction:
    """The result of `extract_images`, for every split and for all of them together.

    Attributes:
        splits: The splits.
        seconds: Time from the first shard to the last part, in seconds.
        times: Where the time went.
        damaged: Names of parts that were not what was written; their rows were encoded again.
    """

    splits: Sequence[SplitExtraction]
    seconds: float
    times: StageTimes
    damaged: Sequence[str]

    @property
    def rows(self) -> int:
        """Number of rows of all splits."""
        return sum(split.rows for split in self.splits)

    @property
    def encoded(self) -> int:
        """Number of rows that were encoded now."""
        return sum(split.encoded for split in self.splits)

    @property
    def adopted(self) -> int:
        """Number of rows taken over from adopted files."""
        return sum(split.adopted for split in self.splits)

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every split by its name."""
        return {split.split: split.digest for split in self.splits}

    @property
    def rows_per_second(self) -> float:
        """Encoded rows a second; 0 when none was encoded."""
        return self.encoded / self.seconds if self.encoded else 0.0


def extract_images(
    study: Study,
    splits: str | Sequence[str] | None = None,
    *,
    encoder: Callable[[], Encoder] | None = None,
    runner: Runner | None = None,
    store: Store | None = None,
    fresh: bool = False,
    progress: Progress = silent,
    times: StageTimes | None = None,
) -> ImageExtraction:
    """Encode the rows of splits that no part holds, shard by shard.

    Sources that were not read yet are read first. A finished shard stays finished whatever happens afterwards.

    Args:
        study: The study.
        splits: A split, or several; by default all of the study.
        encoder: Gives the encoder, by default the study's own; called only when there is something to encode.
        runner: Encodes elsewhere than in this process, with encoders of its own.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        fresh: Encode all rows, also those that parts hold.
        progress: Called with the rows encoded so far and the rows to encode.
        times: Added to while the work goes on, for a caller that shows it.

    Returns:
        What was encoded of each split.

    Raises:
        StorageError: The disk is too small (before anything is encoded), or refuses.
        DatasetError: An image is no longer the one in the manifest.
        EncoderError: Features are not finite, or the encoder is not the recorded one.
    """
    store = store or Store.of(study)
    splits = as_list(study.splits if splits is None else splits)
    if not store.encoder_card.exists():
        identify_encoder(study, store=store)
    for split in splits:
        if not store.manifest(split).exists():
            read_images(study, split, store=store)
    card = recorded_card(study, store)
    manifests = [recorded_manifest(study, split, store) for split in splits]
    folder = store.image_parts(card.identity)
    times = StageTimes() if times is None else times
    with exclusive(folder):
        remove_leftovers(folder)
        held = held_rows(store, card.identity)
        index = nothing_held() if fresh else held
        plans = _plans(manifests, index, study.extraction.rows_per_shard)
        total = sum(plan.to_encode for plan in plans)
        require_space(folder, total * row_bytes(card), f"Encoding {total} images of {study.name}")
        shards = (manifest.take(rows) for manifest, plan in zip(manifests, plans, strict=True) for rows in plan.shards)
        seconds = 0.0
        if total:
            start = time.perf_counter()
            setup = WorkerSetup(study, card, store)
            parts = list((runner or InThisProcess(encoder)).run(setup, shards, _listener(progress, times, total)))
            seconds = time.perf_counter() - start
            # Workers recorded what they wrote; what this process read of that record before is old.
            index = with_newer(index, [part.path for part in parts], card.identity, VerifiedFiles(folder))
        extractions = [
            _split_extraction(manifest, index, plan.to_encode) for manifest, plan in zip(manifests, plans, strict=True)
        ]
        if fresh:
            with exclusive(store.encoder_parts(card.identity)):  # Another study may be copying from them.
                _remove_superseded(held_rows(store, card.identity))
    return ImageExtraction(extractions, seconds, times, held.damaged)


def _split_extraction(manifest: Manifest, index: RowIndex, encoded: int) -> SplitExtraction:
    entries = held_entries(manifest, index)
    return SplitExtraction(
        split=manifest.split,
        rows=len(manifest),
        encoded=encoded,
        adopted=int(index.is_adopted[index.source[entries]].sum()),
        digest=split_digest(
            index.feature_digest[entries],
            keys=manifest.keys,
            labels=manifest.labels,
            groups=manifest.groups,
            label_matrix=manifest.label_matrix,
        ),
    )


def held_entries(manifest: Manifest, index: RowIndex) -> _Ints:
    """The entry of the index that holds each row of a manifest; `StorageError` when rows are missing."""
    entries = index.find(manifest.image_digest)
    missing = np.flatnonzero(entries < 0)
    if len(missing):
        raise StorageError(
            f"{len(missing)} of {len(entries)} images of split {manifest.split!r} are not encoded yet "
            f"(the first is {manifest.keys[missing[0]]!r}). Materialize `image_features` for {manifest.split!r} first."
        )
    return entries


# --- one job of many ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardsExtraction:
    """The result of `extract_shards`.

    Attributes:
        shards: Number of shards that were encoded.
        encoded: Number of images in them.
        left_to_others: Number of shards that other processes were encoding.
        times: Where the time went.
    """

    shards: int
    encoded: int
    left_to_others: int
    times: StageTimes


def extract_shards(
    study: Study,
    number: int,
    count: int,
    *,
    runner: Runner | None = None,
    store: Store | None = None,
    progress: Progress = silent,
    times: StageTimes | None = None,
) -> ShardsExtraction:
    """Encode the shards of one of many jobs that share a study, on any number of machines.

    A job takes every `count`-th shard of the plan for an empty storage, which is the same for all jobs no matter what
    is finished, and skips the rows that parts hold. It also leaves out a shard that another process has locked, so a
    job that was started twice does nothing twice. Builds wait for the jobs, and the jobs for a build.

    Args:
        study: The study; its images and encoder must have been read.
        number: The number of this job, from 1.
        count: The number of jobs.
        runner: As in `extract_images`.
        store: As in `extract_images`.
        progress: As in `extract_images`.
        times: As in `extract_images`.

    Returns:
        What was encoded, and how many shards were left to others.

    Raises:
        StudyError: There is no job of that number.
        DatasetError: Images or encoder were not read yet, or an image is no longer the one in the manifest.
        StorageError: As in `extract_images`.
        EncoderError: As in `extract_images`.
    """
    if not 1 <= number <= count:
        raise StudyError(f"Shards are i/n with 1 <= i <= n; found {number}/{count}.")
    store = store or Store.of(study)
    if not all(path.exists() for path in (store.encoder_card, *map(store.manifest, study.splits))):
        raise DatasetError(
            f"Images and encoder of {study.name} have not been read yet, and no job should do that for the others: "
            f"run `ccassets build {command_argument(study)} --plan` once before. It encodes nothing."
        )
    card = recorded_card(study, store)
    manifests = [recorded_manifest(study, split, store) for split in study.splits]
    folder = store.image_parts(card.identity)
    times = StageTimes() if times is None else times
    encoded = shards = 0
    with shared(folder), ShardLocks(folder) as locks:
        index = held_rows(store, card.identity)
        plans = _plans(manifests, nothing_held(), study.extraction.rows_per_shard)
        planned = [(manifest, rows) for manifest, plan in zip(manifests, plans, strict=True) for rows in plan.shards]
        open_shards = [_OpenShard.of(manifest, rows, index, folder) for manifest, rows in planned[number - 1 :: count]]
        open_shards = [shard for shard in open_shards if len(shard.missing)]
        total = sum(len(shard.missing) for shard in open_shards)
        require_space(folder, total * row_bytes(card), f"Encoding {total} images of {study.name}")
        locked = (shard.rows_to_encode() for shard in open_shards if shard.lock(locks))
        if open_shards:
            setup = WorkerSetup(study, card, store)
            for part in (runner or InThisProcess()).run(setup, locked, _listener(progress, times, total)):
                encoded, shards = encoded + part.rows, shards + 1
                locks.release(part.path.name)
    return ShardsExtraction(shards, encoded, len(open_shards) - shards, times)


@dataclass(frozen=True)
class _OpenShard:
    """A planned shard that a job may encode: all its rows, those that are missing, and the part they become.

    `planned_over` is the fingerprint of what stood at the part's path when it was planned: nothing, or a damaged part.
    """

    manifest: Manifest
    rows: _Ints
    missing: _Ints
    part: Path
    planned_over: str | None

    @classmethod
    def of(cls, manifest: Manifest, rows: _Ints, index: RowIndex, folder: Path) -> _OpenShard:
        images = manifest.image_digest[rows]
        is_missing = index.find(images) < 0
        part = folder / part_name(images[is_missing])
        return cls(manifest, rows, rows[is_missing], part, _fingerprint_or_none(part))

    def lock(self, locks: ShardLocks) -> bool:
        """Lock the shard; False when another process has it, or has finished it since it was planned."""
        if not locks.take(part_name(self.manifest.image_digest[self.rows]), held_for=self.part.name):
            return False
        if _fingerprint_or_none(self.part) == self.planned_over:
            return True
        locks.release(self.part.name)
        return False

    def rows_to_encode(self) -> Shard:
        return self.manifest.take(self.missing)


def _fingerprint_or_none(path: Path) -> str | None:
    return fingerprint(path) if path.exists() else None


# --- planning and reporting --------------------------------------------------------------------------


def _plans(manifests: Sequence[Manifest], index: RowIndex, rows_per_shard: int) -> list[ImagePlan]:
    """A plan for every split; an image of several splits is in the plan of the first."""
    plans = [plan_images(manifest, index, rows_per_shard) for manifest in manifests]
    rows = [plan.missing for plan in plans]
    images = np.concatenate([manifest.image_digest[missing] for manifest, missing in zip(manifests, rows, strict=True)])
    _, first = np.unique(as_keys(images), return_index=True)
    if len(first) == len(images):
        return plans
    is_first = np.zeros(len(images), np.bool_)
    is_first[first] = True
    is_first_by_split = np.split(is_first, np.cumsum([len(missing) for missing in rows])[:-1])
    return [
        replace(plan, shards=divide(missing[is_kept], rows_per_shard))
        for plan, missing, is_kept in zip(plans, rows, is_first_by_split, strict=True)
    ]


def _listener(progress: Progress, times: StageTimes, total: int) -> BatchListener:
    """A runner's batches as progress of all rows, with the times added up."""
    done = 0

    def listen(rows: int, batch_times: StageTimes) -> None:
        nonlocal done
        done += rows
        times.add(batch_times)
        if rows:
            progress(done, total)

    return listen


def _remove_superseded(index: RowIndex) -> None:
    """Remove image parts whose every row is held by newer parts."""
    used = np.unique(index.source[index.find(index.image_digest)])
    for number, path in enumerate(index.sources):
        if number not in used and is_part(path):
            path.unlink(missing_ok=True)
