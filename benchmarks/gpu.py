"""`python -m benchmarks.gpu`: a whole extraction against the model's forward pass alone, on a GPU or what there is.

Random weights of the published dimensions (or the phantom, to try it on a CPU), pictures of 224 px as PNG files. For
every precision: images a second with tensors ready on the device and nothing stored, and from files to parts that are
synced; both in one process, in turns. Model FLOP utilisation needs the device's peak, from its data sheet.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ccassets.encoders.conceptclip as conceptclip
from benchmarks.machine import describe
from benchmarks.material import save_images, write_study
from ccassets.datasets import open_dataset
from ccassets.encoders import load_encoder
from ccassets.encoders.runtime import fixed_arithmetic
from ccassets.extraction import extract_images, identify_encoder, read_images
from ccassets.progress import StageTimes
from ccassets.study.schema import Study
from ccassets.study.storage import Store

SIDE = 224
TFLOP_AN_IMAGE = {"published": 0.67}
BLOODMNIST = 17_092


@dataclass
class Speeds:
    """Images a second in every round, and where the time of extraction went."""

    forward: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    times: StageTimes = field(default_factory=StageTimes)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=["published", "phantom"], default="published")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--compiled", action="store_true", help="each precision compiled by torch as well")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="by default CUDA where there is one")
    parser.add_argument("--peak", type=float, nargs="*", default=[], help="peak TFLOP/s of each precision, in order")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for fact, value in {**describe(folder), "device": _device(options.device)}.items():
            print(f"{fact}: {value}")
        save_images(folder / "pictures", {"train": options.images}, SIDE)
        print("precision            forward/s   whole/s   whole ÷ forward    MFU   BloodMNIST   where the time went")
        for compiled in (False, True) if options.compiled else (False,):
            for number, dtype in enumerate(options.dtypes):
                name = f"{dtype} compiled" if compiled else dtype
                peak = options.peak[number] if number < len(options.peak) else None
                speeds = _measure(folder, {"dtype": dtype, "compiled": compiled}, options)
                print(_line(name, speeds, TFLOP_AN_IMAGE.get(options.model), peak), flush=True)


def _measure(folder: Path, arithmetic: dict[str, Any], options: argparse.Namespace) -> Speeds:
    encoder: dict[str, Any] = {"kind": "phantom", **arithmetic}
    if options.model == "published":
        tokenizer = str(conceptclip.PHANTOM)
        encoder = {"kind": "conceptclip", "weights": "random", "seed": 0, "tokenizer": tokenizer, **arithmetic}
    study = write_study(
        folder / "studies" / "cells",
        encoder,
        folder / "pictures",
        extraction={"batch_size": options.batch, "rows_per_shard": 2 * options.batch},
    )
    store = Store.of(study, folder / "storage")
    card = identify_encoder(study, store=store)
    read_images(study, "train", store=store)
    loaded: Any = load_encoder(study, device=options.device)
    batches = _tensors(study, store, loaded, min(options.images, 4 * options.batch), options.batch)
    speeds = Speeds()
    for turn in range(options.rounds + 1):
        forward = _forward(loaded, batches)
        shutil.rmtree(store.image_parts(card.identity), ignore_errors=True)
        started = time.perf_counter()
        done = extract_images(study, "train", encoder=lambda: loaded, store=store)
        if turn:  # In the first, which is not counted, memory is set up and towers are compiled.
            speeds.forward.append(forward)
            speeds.whole.append(done.encoded / (time.perf_counter() - started))
            speeds.times.add(done.times)
    shutil.rmtree(store.root)
    return speeds


def _tensors(study: Study, store: Store, encoder: Any, images: int, batch: int) -> list[Any]:
    """Batches on the device; a few are as good as all."""
    import torch

    dataset = open_dataset(study, store)
    device = next(encoder.model.parameters()).device
    pixels = [encoder.preprocess(dataset.read("train", row)) for row in range(images)]
    return [torch.from_numpy(np.stack(pixels[first : first + batch])).to(device) for first in range(0, images, batch)]


def _forward(encoder: Any, batches: list[Any]) -> float:
    with fixed_arithmetic(encoder.card.dtype):
        encoder.image_tower(batches[0])
        _wait(encoder)
        started = time.perf_counter()
        for batch in batches:
            encoder.image_tower(batch)
        _wait(encoder)
    return sum(len(batch) for batch in batches) / (time.perf_counter() - started)


def _wait(encoder: Any) -> None:
    import torch

    if encoder.device == "cuda":
        torch.cuda.synchronize(next(encoder.model.parameters()).device)


def _device(device: str | None) -> str:
    import torch

    if not torch.cuda.is_available() or device == "cpu":
        return f"no GPU, {torch.get_num_threads()} threads"
    return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"


def _line(name: str, speeds: Speeds, tflop: float | None, peak: float | None) -> str:
    forward, whole = statistics.median(speeds.forward), statistics.median(speeds.whole)
    ratio = statistics.median(b / a for a, b in zip(speeds.forward, speeds.whole, strict=True))
    used = f"{whole * tflop / peak:.0%}" if tflop and peak else "-"
    length = f"{BLOODMNIST / whole / 60:.1f} min"
    return f"{name:<18} {forward:>11.2f} {whole:>9.2f} {ratio:>17.2f} {used:>6} {length:>12}   {speeds.times}"


if __name__ == "__main__":
    main()
