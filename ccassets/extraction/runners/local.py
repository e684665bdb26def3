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

from ccassets.datasets.manifest import Shard
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import CcassetsError, EncoderError
from ccassets.extraction.image_shards import ImagePart, WorkerSetup, encode_shards
from ccassets.extraction.runners.in_process import InThisProcess, Runner
from ccassets.files import remove_leftovers
from ccassets.progress import BatchListener, available_cores

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_MOST_DEATHS = 3
_VISIBLE = "CUDA_VISIBLE_DEVICES"


class LocalWorkers(Runner):
    """The runner of one machine; a single worker is this process itself.

    Args:
        workers: The number of workers, by default one for every CUDA device, or one on the CPU.
        device: The torch device of all workers, by default a CUDA device each where there are any.
        load: Gives the encoder of a single worker; several load their own.
    """

    def __init__(
        self, workers: int | None = None, device: str | None = None, load: Callable[[], Encoder] | None = None
    ) -> None:
        self._workers = workers
        self._device = device
        self._load = load

    def run(self, setup: WorkerSetup, shards: Iterable[Shard], listener: BatchListener) -> Iterator[ImagePart]:
        devices = self._devices()
        if len(devices) == 1:
            runner = InThisProcess(self._load or (lambda: _load_encoder(setup, self._device)))
            yield from runner.run(setup, shards, listener)
        else:
            yield from _in_processes(setup, shards, listener, devices)

    def _devices(self) -> list[_WorkerDevice]:
        """The device of each worker, the cores shared between them."""
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
        return [_WorkerDevice(*devices[number % len(devices)], cores) for number in range(count)]


@dataclass(frozen=True)
class _WorkerDevice:
    """The device and cores of a worker; `visible` is the only CUDA device it may see, None without that limit."""

    name: str
    visible: str | None
    cores: int


@dataclass
class _Worker:
    device: _WorkerDevice
    process: SpawnProcess
    connection: Connection
    unfinished: deque[Shard] = field(default_factory=deque)
    """The shards that it was given and has not finished, in order."""


def _cuda_devices() -> list[str]:
    """The value of `CUDA_VISIBLE_DEVICES` for each device that is visible now."""
    import torch

    chosen = os.environ.get(_VISIBLE)
    numbers = chosen.split(",") if chosen else [str(number) for number in range(torch.cuda.device_count())]
    return numbers[: torch.cuda.device_count()]


def _load_encoder(setup: WorkerSetup, device: str | None) -> Encoder:
    return load_encoder(setup.study, device=device, cache=setup.store.cache)


# --- the caller's side -------------------------------------------------------------------------------


def _in_processes(
    setup: WorkerSetup, shards: Iterable[Shard], listener: BatchListener, devices: list[_WorkerDevice]
) -> Iterator[ImagePart]:
    waiting = iter(shards)
    retries: deque[Shard] = deque()
    deaths = 0
    workers = {worker.connection: worker for worker in (_start(setup, device) for device in devices)}
    try:
        while workers:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)
                worker = workers[connection]
                try:
                    message = connection.recv()
                    if message is None:
                        shard = retries.popleft() if retries else next(waiting, None)
                        if shard is not None:
                            worker.unfinished.append(shard)
                        connection.send(shard)
                except (EOFError, OSError):
                    del workers[connection]
                    worker.process.join()
                    if worker.process.exitcode == 0 and not worker.unfinished:
                        continue
                    deaths += 1
                    if deaths > _MOST_DEATHS * len(devices):
                        raise _worker_died(worker) from None
                    remove_leftovers(setup.store.image_parts(setup.card.identity))
                    retries.extend(worker.unfinished)
                    replacement = _start(setup, worker.device)
                    workers[replacement.connection] = replacement
                    continue
                if isinstance(message, ImagePart):
                    worker.unfinished.popleft()
                    deaths = 0
                    yield message
                elif isinstance(message, Exception):
                    raise message
                elif message is not None:
                    listener(*message)
    finally:
        for worker in workers.values():
            worker.process.kill()
        for worker in workers.values():
            worker.process.join()


def _start(setup: WorkerSetup, device: _WorkerDevice) -> _Worker:
    # Never by fork: neither CUDA nor the threads of the caller would survive it.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, setup, device), daemon=True)
    process.start()
    theirs.close()
    return _Worker(device, process, ours)


def _worker_died(worker: _Worker) -> EncoderError:
    code = worker.process.exitcode or 0
    how = f"killed by signal {-code}" if code < 0 else f"with exit code {code}"
    at = f" The last one was at {worker.unfinished[0].keys[0]!r}." if worker.unfinished else ""
    return EncoderError(
        f"Worker processes died one after the other and finished nothing, the last one {how}.{at} "
        "Signal 9 is most often a lack of memory: use fewer workers, or a smaller extraction.batch_size."
    )


# --- the worker's side -------------------------------------------------------------------------------


def _work(connection: Connection, setup: WorkerSetup, device: _WorkerDevice) -> None:
    """The main function of a worker: ask for shards until there are none; send parts, progress, or the error."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all of a terminal's processes; the caller ends us.
    # Before torch is imported: each worker has its share of the cores, and its threads sleep while they wait, unless
    # the user said otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(device.cores))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if device.visible is not None:
        os.environ[_VISIBLE] = device.visible

    def next_shard() -> Shard | None:
        connection.send(None)
        shard: Shard | None = connection.recv()
        return shard

    try:
        encoder = _load_encoder(setup, device.name)
        shards = iter(next_shard, None)
        for part in encode_shards(setup, encoder, shards, lambda *batch: connection.send(batch), device.cores):
            connection.send(part)
    except CcassetsError as error:
        connection.send(error)
    except Exception:
        connection.send(RuntimeError(f"A worker process failed:\n{traceback.format_exc()}"))


def _die_with_parent() -> None:
    """End this process when the caller ends: its lock is then free, and another build may encode the same shard."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
