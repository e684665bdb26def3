"""The runner of a Ray cluster: actors that keep their encoder; Ray schedules and restarts them, and retries shards."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ccassets.datasets.manifest import Shard
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, FloatArray, ImageFeatures
from ccassets.errors import EncoderError, StorageError
from ccassets.extraction.image_shards import MOST_DECODERS, ImagePart, WorkerSetup, encode_shards
from ccassets.extraction.runners.in_process import Runner
from ccassets.progress import BatchListener, StageTimes

_SHARDS_PER_WORKER = 2
"""Shards a worker has at once: while one is encoded, the other is decoded or written."""
_RESTARTS = 3
_SHARED_SECONDS = 60.0


class RayWorkers(Runner):
    """The runner of an existing Ray cluster.

    Every node needs ccassets in the same version, and the same storage and images under the same paths.

    Args:
        workers: The number of actors, by default one for every GPU of the cluster.
        device: The torch device of all actors, by default CUDA where the cluster has a GPU.
    """

    def __init__(self, workers: int | None = None, device: str | None = None) -> None:
        self._workers = workers
        self._device = device

    def run(self, setup: WorkerSetup, shards: Iterable[Shard], listener: BatchListener) -> Iterator[ImagePart]:
        ray = _ray()
        connected = ray.is_initialized()
        if not connected:
            _connect(ray)
        actors: list[Any] = []
        try:
            actors += self._start(ray, setup)
            waiting = iter(shards)
            # An actor gets shards once it is up: one that Ray cannot schedule yet blocks no shard.
            running = {actor.ready.remote(): actor for actor in actors for _ in range(_SHARDS_PER_WORKER)}
            while running:
                [task], _ = ray.wait(list(running), num_returns=1)
                actor = running.pop(task)
                result = _result(ray, task)
                shard = next(waiting, None)
                if shard is not None:
                    running[actor.encode.remote(shard)] = actor
                if result is not None:
                    part, times = result
                    _require_shared(part.path)
                    listener(part.rows, times)
                    yield part
        finally:
            for actor in actors:
                ray.kill(actor)
            if not connected:
                ray.shutdown()

    def _start(self, ray: Any, setup: WorkerSetup) -> list[Any]:
        on_gpu = self._device is None or self._device.startswith("cuda")
        gpus = int(ray.cluster_resources().get("GPU", 0)) if on_gpu else 0
        count = self._workers or gpus or 1
        cores = _cores_each([int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]], count)
        if gpus:
            cores = min(cores, MOST_DECODERS)
        worker = ray.remote(_Worker).options(
            num_cpus=cores,
            num_gpus=1 if gpus else 0,
            max_restarts=_RESTARTS,
            max_task_retries=-1,  # As long as there is an actor: it is its deaths that are counted.
            max_concurrency=_SHARDS_PER_WORKER,
        )
        shared, device = ray.put(setup), "cuda" if gpus else self._device or "cpu"
        return [worker.remote(shared, device, cores) for _ in range(count)]


class _Worker:
    """The class of an actor: it keeps an encoder, and encodes the shards that it is given."""

    def __init__(self, setup: WorkerSetup, device: str, cores: int) -> None:
        self._setup = setup
        self._cores = cores
        self._lock = threading.Lock()
        self._encoder = load_encoder(setup.study, device=device, cache=setup.store.cache)

    def ready(self) -> None:
        """Answers once the encoder is loaded."""

    def encode(self, shard: Shard) -> tuple[ImagePart, StageTimes]:
        times = StageTimes()
        encoder = _LockedEncoder(self._encoder, self._lock)
        [part] = encode_shards(self._setup, encoder, [shard], lambda _, batch: times.add(batch), self._cores)
        times.encoding -= encoder.waited
        times.seconds -= encoder.waited
        return part, times


class _LockedEncoder:
    """An encoder that the shards of an actor share, one batch at a time; `waited` is how long this shard waited."""

    def __init__(self, encoder: Encoder, lock: threading.Lock) -> None:
        self.card = encoder.card
        self.device = encoder.device
        self.preprocess = encoder.preprocess
        self.encode_images = encoder.encode_images
        self.encode_texts = encoder.encode_texts
        self.waited = 0.0
        self._encoder = encoder
        self._lock = lock

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        start = time.perf_counter()
        with self._lock:
            self.waited += time.perf_counter() - start
            return self._encoder.encode_pixels(pixels)


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise EncoderError("The runner `ray` needs Ray: pip install 'ccassets[ray]', on every node.") from error
    return ray


def _connect(ray: Any) -> None:
    address = os.environ.get("RAY_ADDRESS", "auto")
    try:
        ray.init(address=address, log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"No Ray cluster was found (address {address!r}): start one with `ray start --head`, or name one in "
            "RAY_ADDRESS."
        ) from error


def _cores_each(nodes: list[int], workers: int) -> int:
    """The most cores that each of `workers` can have on one node; 1 if there are too many workers."""
    fitting = (
        cores for cores in range(max(nodes, default=1), 0, -1) if sum(node // cores for node in nodes) >= workers
    )
    return next(fitting, 1)


def _result(ray: Any, task: Any) -> Any:
    """The result of a task, or its own error; `EncoderError` when its actor died more often than Ray restarts it."""
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise EncoderError(
            f"A Ray worker died again and again: {error}\n"
            "If memory ran out, use fewer workers or a smaller extraction.batch_size."
        ) from error


def _require_shared(path: Path) -> None:
    """Wait until a part written on another node is seen here; a network file system may need a moment."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise StorageError(
                f"A Ray worker wrote {path}, and it is not there: all nodes need the same storage under the same path. "
                "Set CCASSETS_STORAGE to a folder that they share."
            )
        time.sleep(1)
