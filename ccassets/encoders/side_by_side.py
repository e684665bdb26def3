"""Batches of a small model on the CPU: two at a time, each on half of the threads.

The operations of a small model are so short that threads which share one mostly wait for each other. Two batches side
by side were 1.2 to 1.35 times as fast on two cores with up to 6 million parameters, 1.05 times with 23 million and 1.02
with 93 million, where the memory for a second batch is better kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from threading import Barrier

import torch

from ccassets.encoders.encoder_contract import FloatArray, ImageFeatures

MOST_PARAMETERS = 32_000_000

Encode = Callable[[FloatArray], ImageFeatures]


@dataclass(frozen=True)
class _Computed:
    features: ImageFeatures
    begun: float
    ended: float


class Started:
    """A batch under way, as the contract has it."""

    def __init__(self, pair: SideBySide, computed: Future[_Computed]) -> None:
        self._pair = pair
        self._computed = computed
        self.seconds = 0.0

    def features(self) -> ImageFeatures:
        computed = self._computed.result()
        self.seconds = self._pair.counted(computed.begun, computed.ended)
        return computed.features


class SideBySide:
    """Two threads that encode. Batches are started, and their features fetched, in order and by one thread."""

    def __init__(self, encode: Encode, threads: int) -> None:
        self._encode = encode
        self._threads = threads
        self._counted_until = 0.0

    def start(self, pixels: FloatArray) -> Started:
        """Have a batch encoded; returns before it is done."""
        return Started(self, self._pool.submit(self._compute, pixels))

    def counted(self, begun: float, ended: float) -> float:
        """How much of this time was not counted for a batch before: both together are busy only once."""
        begun, self._counted_until = max(begun, self._counted_until), max(ended, self._counted_until)
        return max(0.0, ended - begun)

    def _compute(self, pixels: FloatArray) -> _Computed:
        begun = time.perf_counter()
        features = self._encode(pixels)
        return _Computed(features, begun, time.perf_counter())

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        both_there = Barrier(2)

        def take_half() -> None:
            torch.set_num_threads(self._threads // 2)
            torch.get_num_threads()  # Only a thread that was asked for its number keeps it.
            both_there.wait()

        pool = ThreadPoolExecutor(2, "encode", take_half)
        for ready in [pool.submit(int) for _ in range(2)]:
            ready.result()
        torch.set_num_threads(self._threads)  # What other threads of the process have, and the two have changed.
        return pool
