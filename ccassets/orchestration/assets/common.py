"""What the assets of a study share: keys, versions, progress in the log, and errors as sentences."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import dagster as dg
from pydantic import BaseModel

from ccassets.encoders.encoder_contract import EXTRACTION_VERSION
from ccassets.errors import CcassetsError
from ccassets.progress import Progress
from ccassets.study.schema import Study

GPU_POOL = "ccassets_encoder"
"""Steps that run an encoder take a slot of this pool; `dagster.yaml` gives it one."""

ANALYSIS_VERSION = 1
"""Raised on purpose when an analysis says something else of the same database; part of its assets' code versions."""

MOST_PARTITIONS = 50
"""Dagster stops seeing changes of 100 upstream partitions: studies with more splits than this have none."""

RETRY_SECONDS = (30, 120, 600)
"""How long a step waits, time after time, before it tries again what may pass by itself."""

STARTED_BY, BUILD = "ccassets/started_by", "build"
"""The tag of runs that are steps of a whole build, and its value where `ccassets build` started them."""

_LOG_SECONDS = 15.0

Listener = Callable[[str, int, int, str], None]
"""Called with (what, done, total, what else there is to say) while an asset works."""

progress_listener: ContextVar[Listener | None] = ContextVar("progress_listener", default=None)
"""Who listens to the assets that work in this process: the command line draws its bars with it."""


class ExtractionRun(dg.Config):
    """What can be asked of one run of an encoder: `fresh` encodes again even what parts already hold."""

    fresh: bool = False


def asset_key(study: Study, *parts: str) -> dg.AssetKey:
    return dg.AssetKey([study.name, *parts])


def is_partitioned(study: Study) -> bool:
    """Whether the study's splits are Dagster partitions: as it says itself, else when there are not too many."""
    if study.extraction.partitioned is not None:
        return study.extraction.partitioned
    return len(study.splits) <= MOST_PARTITIONS


def split_partitions(study: Study) -> dg.StaticPartitionsDefinition | None:
    return dg.StaticPartitionsDefinition(list(study.splits)) if is_partitioned(study) else None


def splits_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, study: Study) -> tuple[str, ...]:
    """The split of this run, or all splits of a study that has no partitions."""
    if not is_partitioned(study):
        return study.splits
    if isinstance(context, dg.AssetCheckExecutionContext):
        return (context.partition_key,) if context.has_partition_key else study.splits
    return (context.partition_key,)


def code_version(*parts: object) -> str:
    """A version that changes with what is given and with our own extraction code."""
    text = "|".join(part.model_dump_json() if isinstance(part, BaseModel) else str(part) for part in parts)
    return hashlib.sha256(f"{EXTRACTION_VERSION}|{text}".encode()).hexdigest()[:16]


def combined(digests: dict[str, str]) -> str:
    """One data version for several splits."""
    return next(iter(digests.values())) if len(digests) == 1 else hashlib.sha256(repr(digests).encode()).hexdigest()


def logged(context: dg.AssetExecutionContext, what: str, note: Callable[[], str] | None = None) -> Progress:
    """Progress that goes to the run's log a few times a minute, with rate and time left, and to the listener always.

    `note` gives what else should be said then.
    """
    started = time.monotonic()
    last = started

    def report(done: int, total: int) -> None:
        nonlocal last
        listener = progress_listener.get()
        said = note() if note else ""
        if listener is not None:
            listener(what, done, total, said)
        now = time.monotonic()
        if now - last < _LOG_SECONDS or not done:
            return
        last = now
        rate = done / (now - started)
        left = time.strftime("%H:%M:%S", time.gmtime((total - done) / rate))
        told = f"{what}: {done} of {total}, {rate:.1f} per second, {left} left"
        context.log.info(f"{told}; {said}" if said else told)

    return report


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Our own errors are written for the user: show their text as the step's failure.

    What may pass by itself is tried again, unless `ccassets build` started the run: there somebody reads the sentence.
    """
    try:
        yield
    except CcassetsError as error:
        failure = dg.Failure(description=str(error), allow_retries=False)
        context = dg.OpExecutionContext.get()
        waits = RETRY_SECONDS[context.retry_number :]
        if not (error.transient and waits) or context.run.tags.get(STARTED_BY) == BUILD:
            raise failure from error
        failure.__cause__ = error
        context.log.warning(f"{error}\nThis may pass by itself: it is tried again in {waits[0]} seconds.")
        time.sleep(waits[0])  # Not left to Dagster, whose own wait is deaf to Terminate.
        raise dg.RetryRequested(max_retries=len(RETRY_SECONDS)) from failure
