"""The runner of one machine: a worker process for every device, fed one shard at a time over a pipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import CcassetsError, EncoderError
from ccassets.extraction.image_shards import Part, Report, Shard, Work, available_cores, encode_shards
from ccassets.extraction.runners import InThisProcess
from ccassets.files import remove_leftovers

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_MOST_DEATHS = 3
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalWorkers:
    """One worker for every CUDA device, or as many as asked for; a single one is this process itself.

    `device` makes all of them work there, as it has to be for several workers on one CPU.
    """

    def __init__(
        self, workers: int | None = None, device: str | None = None, load: Callable[[], Encoder] | None = None
    ) -> None:
        self._workers = workers
        self._device = device
        self._load = load

    def run(self, work: Work, shards: Iterable[Shard], report: Report) -> Iterator[Part]:
        places = self._places()
        if len(places) == 1:
            runner = InThisProcess(self._load or (lambda: _load_encoder(work, self._device)))
            yield from runner.run(work, shards, report)
        else:
            yield from _in_processes(work, shards, report, places)

    def _places(self) -> list[_Place]:
        """Where each worker computes, the cores shared between them."""
        count = self._workers
        devices: list[tuple[str, str | None]]
        if self._device is not None:
            devices = [(self._device, None)]
        else:
            # With one worker asked for, torch chooses the device: nothing has to be counted.
            devices = [("cuda", number) for number in _cuda_devices()] if count != 1 else []
            devices = devices or [("cpu", None)]
        count = count or len(devices)
        cores = max(1, available_cores() // count)
        return [_Place(*devices[number % len(devices)], cores) for number in range(count)]


@dataclass(frozen=True)
class _Place:
    """Where a worker computes: `visible` is the one CUDA device it is allowed to see, None where that is no matter."""

    device: str
    visible: str | None
    cores: int


@dataclass
class _Worker:
    place: _Place
    process: SpawnProcess
    connection: Connection
    taken: deque[Shard] = field(default_factory=deque)
    """The shards it was given and has not finished, in order."""


def _cuda_devices() -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` would have to say for each device that is visible now."""
    import torch

    chosen = os.environ.get(_VISIBLE)
    numbers = chosen.split(",") if chosen else [str(number) for number in range(torch.cuda.device_count())]
    return numbers[: torch.cuda.device_count()]


def _load_encoder(work: Work, device: str | None) -> Encoder:
    return load_encoder(work.study, device=device, store_cache=work.store.cache)


# --- the caller's side -------------------------------------------------------------------------------


def _in_processes(work: Work, shards: Iterable[Shard], report: Report, places: list[_Place]) -> Iterator[Part]:
    waiting = iter(shards)
    again: deque[Shard] = deque()
    deaths = 0
    workers = {worker.connection: worker for worker in (_start(work, place) for place in places)}
    try:
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    message = connection.recv()
                    if message is None:
                        shard = again.popleft() if again else next(waiting, None)
                        if shard is not None:
                            worker.taken.append(shard)
                        connection.send(shard)
                except (EOFError, OSError):
                    del workers[connection]
                    worker.process.join()
                    if worker.process.exitcode == 0 and not worker.taken:
                        continue
                    deaths += 1
                    if deaths > _MOST_DEATHS * len(places):
                        raise _worker_died(worker) from None
                    remove_leftovers(work.store.image_parts(work.card.identity))
                    again.extend(worker.taken)
                    replacement = _start(work, worker.place)
                    workers[replacement.connection] = replacement
                    continue
                if isinstance(message, Part):
                    worker.taken.popleft()
                    deaths = 0
                    yield message
                elif isinstance(message, Exception):
                    raise message
                elif message is not None:
                    report(*message)
    finally:
        for worker in workers.values():
            worker.process.kill()
        for worker in workers.values():
            worker.process.join()


def _start(work: Work, place: _Place) -> _Worker:
    # Never by fork: neither CUDA nor the threads of the caller would survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, work, place), daemon=True)
    process.start()
    theirs.close()
    return _Worker(place, process, ours)


def _worker_died(worker: _Worker) -> EncoderError:
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
    at = f" The last one was at {worker.taken[0].keys[0]!r}." if worker.taken else ""
    return EncoderError(
        f"Worker processes died one after the other and finished nothing, the last one {how}.{at} "
        "Signal 9 is most often a lack of memory: use fewer workers, or a smaller extraction.batch_size."
    )


# --- the worker's side -------------------------------------------------------------------------------


def _work(connection: Connection, work: Work, place: _Place) -> None:
    """A worker's whole life: it asks for shards until there are none, and tells of parts, progress, or its error."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the caller ends us.
    # Before torch is imported: each worker has its share of the cores, and its threads sleep while they wait, unless
    # the user said otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(place.cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if place.visible is not None:
        os.environ[_VISIBLE] = place.visible

    def next_shard() -> Shard | None:
        connection.send(None)
        shard: Shard | None = connection.recv()
        return shard

    try:
        encoder = _load_encoder(work, place.device)
        shards = iter(next_shard, None)
        for part in encode_shards(work, encoder, shards, lambda *said: connection.send(said), place.cores):
            connection.send(part)
    except CcassetsError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"A worker process failed:\n{traceback.format_exc()}"))


def _die_with_parent() -> None:
    """End at once when the caller is gone, whose lock is gone with it: another build may be at the same shard."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
