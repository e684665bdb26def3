"""Image extraction: rows that no part holds are cut into shards under a lock, and a runner encodes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import split_digest
from ccassets.datasets.manifest import Manifest
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import DatasetError, StorageError, StudyError
from ccassets.extraction.image_shards import Part, Report, Shard, StageTimes, Work, cut, part_name
from ccassets.extraction.parts import RowIndex, VerifiedFiles, held_rows, with_newer
from ccassets.extraction.plan import ImagePlan, nothing_held, plan_images, row_bytes
from ccassets.extraction.runners import InThisProcess, Runner
from ccassets.extraction.shard_locks import ShardLocks
from ccassets.extraction.sources import identify_encoder, read_images, recorded_card, recorded_manifest
from ccassets.files import exclusive, fingerprint, remove_leftovers, require_space, shared
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class ImageExtraction:
    """What `extract_images` did for a split.

    `digest` is the split's: features, keys, labels and groups of all its rows, encoded now or before. `adopted` counts
    the rows whose features come from an adopted file. `seconds` is the time until the split's last part was there;
    `times` is where the time went of all splits that were asked for together.
    """

    split: str
    rows: int
    encoded: int
    adopted: int
    digest: str
    seconds: float
    times: StageTimes
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
    runner: Runner | None = None,
    store: Store | None = None,
    fresh: bool = False,
    progress: Progress = silent,
) -> ImageExtraction:
    """Encode the rows of a split that no part holds (all of them if `fresh`), shard by shard.

    Sources that were not read yet are read first; `encoder` is called only when there is something to encode. A
    `runner` encodes elsewhere than in this process, with encoders of its own. A finished shard stays finished whatever
    happens afterwards.
    Raises `StorageError` when the disk is too small before anything is encoded, `DatasetError` when an image is
    no longer the one in the manifest, `EncoderError` when features are not finite.
    """
    return extract_splits(study, [split], encoder=encoder, runner=runner, store=store, fresh=fresh, progress=progress)[
        0
    ]


def extract_splits(
    study: Study,
    splits: Sequence[str],
    *,
    encoder: Callable[[], Encoder] | None = None,
    runner: Runner | None = None,
    store: Store | None = None,
    fresh: bool = False,
    progress: Progress = silent,
    times: StageTimes | None = None,
) -> list[ImageExtraction]:
    """`extract_images` for several splits, with one look at the parts and one start of the runner.

    `times` is added to while the work goes on, for whoever shows it.
    """
    store = store or Store.of(study)
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
        shards = (cut(manifest, rows) for manifest, plan in zip(manifests, plans, strict=True) for rows in plan.shards)
        started = time.perf_counter()
        finished: list[tuple[Part, float]] = []
        if total:
            work = Work(study, card, store)
            for part in (runner or InThisProcess(encoder)).run(work, shards, _reporting(progress, times, total)):
                finished.append((part, time.perf_counter() - started))
            # Workers remembered what they wrote; what this process read of that record before is old.
            paths = [part.path for part, _ in finished]
            index = with_newer(index, paths, card.identity, VerifiedFiles(folder))
        done = [
            _told_of(manifest, index, plan.to_encode, seconds, times, held.damaged)
            for manifest, plan, seconds in zip(manifests, plans, _seconds_by_split(splits, finished), strict=True)
        ]
        if fresh:
            _remove_superseded(held_rows(store, card.identity))
    return done


def _told_of(
    manifest: Manifest, index: RowIndex, encoded: int, seconds: float, times: StageTimes, damaged: Sequence[str]
) -> ImageExtraction:
    entries = held_entries(manifest, index)
    return ImageExtraction(
        split=manifest.split,
        rows=len(manifest.keys),
        encoded=encoded,
        adopted=int(index.is_adopted[index.source[entries]].sum()),
        digest=split_digest(
            index.feature_digest[entries],
            keys=manifest.keys,
            labels=manifest.labels,
            groups=manifest.groups,
            label_matrix=manifest.label_matrix,
        ),
        seconds=seconds,
        times=times,
        damaged=damaged,
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


# --- one job of many ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardsExtraction:
    """What `extract_shards` did: shards and images it encoded, and the shards that other processes were faster at."""

    shards: int
    encoded: int
    elsewhere: int
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
    """Encode the shards of job `number` (from 1) of `count` jobs that share a study, on any number of machines.

    Each takes every `count`-th shard of the plan from nothing, which is the same for all of them whatever is finished
    already, and leaves out what is held. A shard that another process is at is left to it, so a job that was started
    twice does nothing twice. Builds wait for the jobs, and the jobs for a build. Raises `DatasetError` when images or
    encoder were not read yet, and whatever `extract_images` raises.
    """
    if not 1 <= number <= count:
        raise StudyError(f"Shards are i/n with 1 <= i <= n; found {number}/{count}.")
    store = store or Store.of(study)
    if not all(path.exists() for path in (store.encoder_card, *map(store.manifest, study.splits))):
        raise DatasetError(
            f"Images and encoder of {study.name} were not read yet, and no job should do that for the others: "
            f"run `ccassets build {study.name} --plan` once before. It encodes nothing."
        )
    card = recorded_card(study, store)
    manifests = [recorded_manifest(study, split, store) for split in study.splits]
    folder = store.image_parts(card.identity)
    times = StageTimes() if times is None else times
    encoded = shards = 0
    with shared(folder), ShardLocks(folder) as locks:
        index = held_rows(store, card.identity)
        canonical = _plans(manifests, nothing_held(), study.extraction.rows_per_shard)
        every = [(manifest, rows) for manifest, plan in zip(manifests, canonical, strict=True) for rows in plan.shards]
        claims = [_Claim.of(manifest, rows, index, folder) for manifest, rows in every[number - 1 :: count]]
        claims = [claim for claim in claims if len(claim.missing)]
        total = sum(len(claim.missing) for claim in claims)
        require_space(folder, total * row_bytes(card), f"Encoding {total} images of {study.name}")
        mine = (claim.shard() for claim in claims if claim.take(locks))
        if claims:
            work = Work(study, card, store)
            for part in (runner or InThisProcess()).run(work, mine, _reporting(progress, times, total)):
                encoded, shards = encoded + part.rows, shards + 1
                locks.release(part.path.name)
    return ShardsExtraction(shards, encoded, len(claims) - shards, times)


@dataclass(frozen=True)
class _Claim:
    """A shard of the plan from nothing that a job may encode: the rows that are missing of it, and where they go.

    `seen` is what was at the part's place when it was planned: nothing, or a part that is damaged.
    """

    manifest: Manifest
    rows: npt.NDArray[np.int64]
    missing: npt.NDArray[np.int64]
    part: Path
    seen: str | None

    @classmethod
    def of(cls, manifest: Manifest, rows: npt.NDArray[np.int64], index: RowIndex, folder: Path) -> _Claim:
        images = manifest.image_digest[rows]
        is_missing = index.find(images) < 0
        part = folder / part_name(images[is_missing])
        return cls(manifest, rows, rows[is_missing], part, _seen(part))

    def take(self, locks: ShardLocks) -> bool:
        """Whether the shard is ours now: nobody is at it, and nobody finished it since."""
        if not locks.take(part_name(self.manifest.image_digest[self.rows]), held_for=self.part.name):
            return False
        if _seen(self.part) == self.seen:
            return True
        locks.release(self.part.name)
        return False

    def shard(self) -> Shard:
        return cut(self.manifest, self.missing)


def _seen(path: Path) -> str | None:
    return fingerprint(path) if path.exists() else None


# --- planning and reporting --------------------------------------------------------------------------


def _plans(manifests: Sequence[Manifest], index: RowIndex, rows_per_shard: int) -> list[ImagePlan]:
    """A plan for every split; an image that several hold is in the first one's."""
    plans = [plan_images(manifest, index, rows_per_shard) for manifest in manifests]
    rows = [np.concatenate([np.empty(0, np.int64), *plan.shards]) for plan in plans]
    images = np.concatenate([manifest.image_digest[of] for manifest, of in zip(manifests, rows, strict=True)])
    _, first = np.unique(images.view("S32").ravel(), return_index=True)
    if len(first) == len(images):
        return plans
    is_first = np.zeros(len(images), np.bool_)
    is_first[first] = True
    kept = np.split(is_first, np.cumsum([len(of) for of in rows])[:-1])
    return [
        replace(plan, shards=[left[start : start + rows_per_shard] for start in range(0, len(left), rows_per_shard)])
        for plan, left in zip(plans, (of[keep] for of, keep in zip(rows, kept, strict=True)), strict=True)
    ]


def _reporting(progress: Progress, times: StageTimes, total: int) -> Report:
    """A runner's report as progress of all rows, with the times added up."""
    done = 0

    def report(rows: int, spent: StageTimes) -> None:
        nonlocal done
        done += rows
        times.add(spent)
        if rows:
            progress(done, total)

    return report


def _seconds_by_split(splits: Sequence[str], finished: Sequence[tuple[Part, float]]) -> list[float]:
    """The seconds from the last part of the split before to the last part of each split."""
    last = {part.split: at for part, at in finished}
    ends = np.maximum.accumulate([0.0, *(last.get(split, 0.0) for split in splits)])
    return np.diff(ends).tolist()  # type: ignore[no-any-return]


def _remove_superseded(index: RowIndex) -> None:
    """Remove image parts none of whose rows is used any more, all being held by newer parts."""
    winners = np.unique(index.source[index.find(index.image_digest)])
    for number, path in enumerate(index.sources):
        if number not in winners and path.parent.name == "rows":
            path.unlink(missing_ok=True)
