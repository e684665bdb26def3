"""The runner of an existing Ray cluster: actors that keep their encoder; Ray places them, restarts them and retries."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, FloatArray, ImageFeatures
from ccassets.errors import EncoderError, StorageError
from ccassets.extraction.image_shards import MOST_DECODERS, Part, Report, Shard, StageTimes, Work, encode_shards

_SHARDS_PER_WORKER = 2
"""Shards a worker has at once: while one is encoded, the other is decoded or written."""
_RESTARTS = 3
_SHARED_SECONDS = 60.0


class RayWorkers:
    """Actors on a Ray cluster, by default one for every GPU it has.

    Every node needs ccassets in the same version, and the same storage and images under the same paths.
    """

    def __init__(self, workers: int | None = None, device: str | None = None) -> None:
        self._workers = workers
        self._device = device

    def run(self, work: Work, shards: Iterable[Shard], report: Report) -> Iterator[Part]:
        ray = _ray()
        connected = ray.is_initialized()
        if not connected:
            _connect(ray)
        actors: list[Any] = []
        try:
            actors += self._start(ray, work)
            waiting = iter(shards)
            # An actor gets shards once it is up: one that finds no place yet holds nothing up.
            under_way = {actor.ready.remote(): actor for actor in actors for _ in range(_SHARDS_PER_WORKER)}
            while under_way:
                [done], _ = ray.wait(list(under_way), num_returns=1)
                actor = under_way.pop(done)
                finished = _result(ray, done)
                shard = next(waiting, None)
                if shard is not None:
                    under_way[actor.encode.remote(shard)] = actor
                if finished is not None:
                    part, times = finished
                    _require_shared(part.path)
                    report(part.rows, times)
                    yield part
        finally:
            for actor in actors:
                ray.kill(actor)
            if not connected:
                ray.shutdown()

    def _start(self, ray: Any, work: Work) -> list[Any]:
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
        shared, device = ray.put(work), "cuda" if gpus else self._device or "cpu"
        return [worker.remote(shared, device, cores) for _ in range(count)]


class _Worker:
    """What an actor is: an encoder, and the shards it is given."""

    def __init__(self, work: Work, device: str, cores: int) -> None:
        self._work = work
        self._cores = cores
        self._lock = threading.Lock()
        self._encoder = load_encoder(work.study, device=device, store_cache=work.store.cache)

    def ready(self) -> None:
        """Answers once the encoder is loaded."""

    def encode(self, shard: Shard) -> tuple[Part, StageTimes]:
        times = StageTimes()
        encoder = _InTurn(self._encoder, self._lock)
        [part] = encode_shards(self._work, encoder, [shard], lambda _, spent: times.add(spent), self._cores)
        times.encoding -= encoder.waited
        times.seconds -= encoder.waited
        return part, times


class _InTurn:
    """An encoder that several shards share, one batch at a time; `waited` is how long this one waited for its turns."""

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
        asked = time.perf_counter()
        with self._lock:
            self.waited += time.perf_counter() - asked
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
    """The most cores that each of so many workers can have when none is spread over nodes; 1 if they are too many."""
    fitting = (
        cores for cores in range(max(nodes, default=1), 0, -1) if sum(node // cores for node in nodes) >= workers
    )
    return next(fitting, 1)


def _result(ray: Any, done: Any) -> Any:
    """What an actor gave, or its own error; `EncoderError` when it died more often than Ray restarts it."""
    try:
        return ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayActorError as error:
        raise EncoderError(
            f"A Ray worker died again and again: {error}\n"
            "If memory ran out, use fewer workers or a smaller extraction.batch_size."
        ) from error


def _require_shared(path: Path) -> None:
    """Wait until a part written elsewhere is seen here, too; a network file system may need a moment."""
    deadline = time.monotonic() + _SHARED_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise StorageError(
                f"A Ray worker wrote {path}, and it is not there: all nodes need the same storage under the same path. "
                "Set CCASSETS_STORAGE to a folder that they share."
            )
        time.sleep(1)
