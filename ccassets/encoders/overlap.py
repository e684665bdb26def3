"""Batches on a CUDA device: while one is computed, the next is copied there and the last one's results are copied back.

Written after CUDA's rules and not run yet: there was no GPU to try it on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ccassets.encoders.encoder_contract import FloatArray, ImageFeatures

Compute = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""Pixels on the device to features (B, D) and token features (B, T_img, D) or None."""


@dataclass(frozen=True)
class Started:
    """A batch under way, as the contract has it; the device's own clock tells `seconds`."""

    _results: tuple[torch.Tensor, torch.Tensor | None]
    _begun: torch.cuda.Event
    _computed: torch.cuda.Event
    _copied: torch.cuda.Event

    def features(self) -> ImageFeatures:
        self._copied.synchronize()
        features, tokens = self._results
        return ImageFeatures(features.numpy(), None if tokens is None else tokens.numpy())

    @property
    def seconds(self) -> float:
        milliseconds: float = self._begun.elapsed_time(self._computed)
        return milliseconds / 1000


class OverlappedCopies:
    """Two streams beside the one that computes. All methods are for one thread."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._inwards = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._outwards = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, pixels: FloatArray, compute: Compute) -> Started:
        """Have a batch copied, computed and copied back; returns before any of it is done.

        Token features come back as float16, as they are stored: half as many bytes cross the bus.
        """
        main = torch.cuda.current_stream(self._device)
        # Pinned memory is given back to torch's cache only when the copies from or to it are over.
        waiting = torch.from_numpy(pixels).pin_memory()
        with torch.cuda.stream(self._inwards):
            inputs = waiting.to(self._device, non_blocking=True)
        main.wait_stream(self._inwards)
        inputs.record_stream(main)  # Made on one stream, used on another: not to be freed before that is done.
        begun, computed, copied = (torch.cuda.Event(enable_timing=True) for _ in range(3))  # type: ignore[no-untyped-call]
        begun.record(main)
        features, tokens = compute(inputs)
        if tokens is not None:
            tokens = tokens.half()
        computed.record(main)
        self._outwards.wait_stream(main)
        with torch.cuda.stream(self._outwards):
            results = self._to_host(features), None if tokens is None else self._to_host(tokens)
            copied.record(self._outwards)
        return Started(results, begun, computed, copied)

    def _to_host(self, values: torch.Tensor) -> torch.Tensor:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        values.record_stream(self._outwards)
        return host
