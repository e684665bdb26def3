"""Measurements of `benchmarks.gpu`: forward pass, pipeline, and pipeline with writing, in one setting."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import ccassets.encoders.conceptclip as conceptclip
from benchmarks.material import save_images, write_study
from ccassets.datasets import open_dataset
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Shard
from ccassets.encoders import load_encoder
from ccassets.encoders.compiling import compiled
from ccassets.encoders.encoder_contract import ImageFeatures
from ccassets.encoders.runtime import choose_device, fixed_arithmetic
from ccassets.errors import EncoderError
from ccassets.extraction.image_shards import Clock, WorkerSetup, encode_shards, encoded_shards
from ccassets.progress import StageTimes
from ccassets.study.schema import Dtype
from ccassets.study.storage import Store
from ccassets.tools.precision_drift import Distance, with_precision

SIDE = 224
"""Pixels of a picture's side."""
COMPARED = 32
"""Images whose features are compared with those of float32."""

PEAK_TFLOPS: dict[str, dict[str, float]] = {
    "H200": {"float32": 67, "tf32": 494, "bfloat16": 989, "float16": 989},
    "H100": {"float32": 67, "tf32": 494, "bfloat16": 989, "float16": 989},
    "A100": {"float32": 19.5, "tf32": 156, "bfloat16": 312, "float16": 312},
}
"""Peak TFLOP/s without sparsity, from NVIDIA's data sheets of the SXM cards."""


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    dtype: Dtype
    compiled: bool
    batch: int


@dataclass
class Speeds:
    """Images a second in every round, and what else is measured of a setting."""

    flop_per_image: int
    forward_rounds: list[float] = field(default_factory=list)
    pipeline_rounds: list[float] = field(default_factory=list)
    written_rounds: list[float] = field(default_factory=list)
    bytes_rounds: list[float] = field(default_factory=list)
    times: StageTimes = field(default_factory=StageTimes)
    features: Distance = field(default_factory=Distance)
    tokens: Distance = field(default_factory=Distance)

    @property
    def forward(self) -> float:
        """Images a second of the forward pass alone."""
        return statistics.median(self.forward_rounds)

    @property
    def pipeline(self) -> float:
        """Images a second from files to features on the host."""
        return statistics.median(self.pipeline_rounds)

    @property
    def written(self) -> float:
        """Images a second from files to parts that are synced."""
        return statistics.median(self.written_rounds)

    @property
    def pipeline_of_forward(self) -> float:
        return _ratio(self.pipeline_rounds, self.forward_rounds)

    @property
    def written_of_forward(self) -> float:
        return _ratio(self.written_rounds, self.forward_rounds)

    @property
    def bytes_per_second(self) -> float:
        """Bytes of parts a second."""
        return statistics.median(self.bytes_rounds)


class Model:
    """A study of random pictures, and its encoder in the precision that a setting needs."""

    def __init__(self, folder: Path, name: str, images: int, device: str | None) -> None:
        save_images(folder / "pictures", {"train": images}, SIDE)
        encoder: dict[str, Any] = {"kind": "phantom"}
        if name == "published":
            tokenizer = str(conceptclip.PHANTOM)
            encoder = {"kind": "conceptclip", "weights": "random", "seed": 0, "tokenizer": tokenizer}
        self.study = write_study(folder / "studies" / "cells", encoder, folder / "pictures")
        self.store = Store.of(self.study, folder / "storage")
        self.device = device
        self.dataset = open_dataset(self.study, self.store)
        self.rows = self._rows()

    def load(self, setting: Setting) -> Any:
        study = with_precision(self.study, setting.dtype, False, setting.batch)
        return load_encoder(study, device=self.device)

    def shards(self, batch: int) -> Iterator[Shard]:
        """All rows in shards of two batches."""
        for first in range(0, len(self.rows), 2 * batch):
            rows = slice(first, first + 2 * batch)
            yield Shard(
                split=self.rows.split,
                keys=self.rows.keys[rows],
                rows=self.rows.rows[rows],
                labels=self.rows.labels[rows],
                image_digest=self.rows.image_digest[rows],
                blank=self.rows.blank[rows],
            )

    def pixels(self, encoder: Any, count: int) -> Any:
        """The first images as the encoder's input (count, 3, S, S)."""
        return np.stack([encoder.preprocess(self.dataset.read("train", row)) for row in range(count)])

    def _rows(self) -> Shard:
        rows = self.dataset.rows("train")
        digests = [image_digest(self.dataset.read("train", row)) for row in range(len(rows))]
        return Shard(
            split="train",
            keys=rows.keys,
            rows=np.arange(len(rows)),
            labels=rows.labels,
            image_digest=np.frombuffer(b"".join(digests), np.uint8).reshape(len(rows), -1),
            blank=np.zeros(len(rows), np.bool_),
        )


def measure(model: Model, settings: Iterable[Setting], rounds: int) -> Iterator[tuple[Setting, Speeds | str]]:
    """Measure each setting; where it cannot be, the reason stands for its speeds."""
    reference = _reference(model)
    dtype = encoder = eager = None
    flop = 0
    for setting in settings:
        if setting.dtype != dtype:
            encoder = None  # The one before leaves the device first.
            encoder = model.load(setting)
            dtype, eager = setting.dtype, encoder.image_tower
            flop = _flop(model, encoder)
        torch.compiler.reset()  # It compiles one function for a few settings only.
        encoder.image_tower = compiled(eager, setting.batch) if setting.compiled else eager
        try:
            yield setting, _measure(model, encoder, setting, rounds, reference, flop)
        except EncoderError as error:
            yield setting, str(error).partition("\n")[0]


def _measure(model: Model, encoder: Any, setting: Setting, rounds: int, reference: ImageFeatures, flop: int) -> Speeds:
    speeds = Speeds(flop)
    result = _first_features(model, encoder)
    speeds.features.add(result.features, reference.features)
    speeds.tokens.add(result.tokens, reference.tokens)
    study = with_precision(model.study, setting.dtype, False, setting.batch)
    setup = WorkerSetup(study, encoder.card, model.store)
    count = min(len(model.rows), 4 * setting.batch)  # A few batches are as good as all.
    device = next(encoder.model.parameters()).device
    pixels = model.pixels(encoder, count)
    batches = [
        torch.from_numpy(pixels[first : first + setting.batch]).to(device) for first in range(0, count, setting.batch)
    ]
    for turn in range(rounds + 1):
        forward = count / _seconds_of_forward(encoder, batches)
        pipeline = len(model.rows) / _seconds_of_pipeline(setup, encoder, model.shards(setting.batch))
        times = StageTimes()
        seconds, size = _seconds_and_bytes(setup, encoder, model.shards(setting.batch), times)
        if turn:  # In the first, which is not counted, memory is set up and towers are compiled.
            speeds.forward_rounds.append(forward)
            speeds.pipeline_rounds.append(pipeline)
            speeds.written_rounds.append(len(model.rows) / seconds)
            speeds.bytes_rounds.append(size / seconds)
            speeds.times.add(times)
    return speeds


def _seconds_of_forward(encoder: Any, batches: list[torch.Tensor]) -> float:
    with fixed_arithmetic(encoder.card.dtype):
        encoder.image_tower(batches[0])
        _wait(encoder)
        started = time.perf_counter()
        for batch in batches:
            encoder.image_tower(batch)
        _wait(encoder)
    return time.perf_counter() - started


def _seconds_of_pipeline(setup: WorkerSetup, encoder: Any, shards: Iterator[Shard]) -> float:
    started = time.perf_counter()
    for _ in encoded_shards(setup, encoder, shards, lambda rows, times: None, Clock()):
        pass
    return time.perf_counter() - started


def _seconds_and_bytes(
    setup: WorkerSetup, encoder: Any, shards: Iterator[Shard], times: StageTimes
) -> tuple[float, int]:
    shutil.rmtree(setup.store.image_parts(setup.card.identity), ignore_errors=True)
    started = time.perf_counter()
    parts = list(encode_shards(setup, encoder, shards, lambda rows, batch_times: times.add(batch_times)))
    return time.perf_counter() - started, sum(part.path.stat().st_size for part in parts)


def _wait(encoder: Any) -> None:
    if encoder.device == "cuda":
        torch.cuda.synchronize(next(encoder.model.parameters()).device)


def _reference(model: Model) -> ImageFeatures:
    return _first_features(model, model.load(Setting("float32", compiled=False, batch=COMPARED)))


def _first_features(model: Model, encoder: Any) -> ImageFeatures:
    features: ImageFeatures = encoder.encode_pixels(model.pixels(encoder, min(len(model.rows), COMPARED)))
    return features


def _flop(model: Model, encoder: Any) -> int:
    """Floating-point operations of one image in a tower that is not compiled, as torch counts them."""
    pixels = torch.from_numpy(model.pixels(encoder, 1)).to(next(encoder.model.parameters()).device)
    with FlopCounterMode(display=False) as counter, fixed_arithmetic():
        encoder.image_tower(pixels)
    return int(counter.get_total_flops())


def device_name(requested: str | None) -> str:
    """The device in words."""
    device = choose_device(requested)
    if device.type != "cuda":
        return f"no GPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def peak_tflops(device: str, dtype: str) -> float | None:
    """The peak of a known card in a precision; None for others."""
    return next((peaks[dtype] for card, peaks in PEAK_TFLOPS.items() if card in device), None)


def _ratio(speeds: list[float], limits: list[float]) -> float:
    return statistics.median(speed / limit for speed, limit in zip(speeds, limits, strict=True))
