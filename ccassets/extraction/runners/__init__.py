"""Runners: who encodes the shards. Planning and locks are not theirs, and a part is the same whoever made it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import StudyError
from ccassets.extraction.image_shards import Part, Report, Shard, Work, encode_shards

VARIABLE = "CCASSETS_RUNNER"


class Runner(Protocol):
    """Encodes shards somewhere, in any order, and gives the parts as they are finished.

    Shards are taken one at a time, a few more than are being encoded. What a worker that died had taken is encoded by
    another. `report` is called in the process of the caller.
    """

    def run(self, work: Work, shards: Iterable[Shard], report: Report) -> Iterator[Part]: ...


class InThisProcess:
    """The runner of one device; `load` gives the encoder, by default the study's own."""

    def __init__(self, load: Callable[[], Encoder] | None = None) -> None:
        self._load = load

    def run(self, work: Work, shards: Iterable[Shard], report: Report) -> Iterator[Part]:
        encoder = self._load() if self._load else load_encoder(work.study, store_cache=work.store.cache)
        yield from encode_shards(work, encoder, shards, report)


def choose_runner(
    text: str | None = None, *, device: str | None = None, load: Callable[[], Encoder] | None = None
) -> Runner:
    """The runner that `local`, `local:N`, `ray` or `ray:N` names; by default what `CCASSETS_RUNNER` says, else `local`.

    N is the number of workers, by default one for every CUDA device that is there. One local worker is this process,
    with the encoder that `load` gives; others load their own. Raises `StudyError` for any other text.
    """
    chosen = text or os.environ.get(VARIABLE) or "local"
    kind, _, number = chosen.partition(":")
    if kind not in {"local", "ray"} or (number and not (number.isdecimal() and int(number))):
        raise StudyError(f"A runner is local, local:N, ray or ray:N with N workers; found {chosen!r}.")
    workers = int(number) if number else None
    if kind == "ray":
        from ccassets.extraction.runners.on_ray import RayWorkers

        return RayWorkers(workers, device)
    from ccassets.extraction.runners.local import LocalWorkers

    return LocalWorkers(workers, device, load)
