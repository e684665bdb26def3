"""`python -m benchmarks.gpu`: extraction against the model's forward pass alone, on a GPU or what there is.

For every precision, compiled or not, and every batch size, in turns in one process: the forward pass with tensors ready
on the device; images from PNG files to features on the host; the same with parts written and synced. Beside them how
much of the device's peak is used, what is written, and how far the features are from those of float32.

Needs this checkout, torch, transformers, h5py, Pillow, pydantic, PyYAML and xxhash; no network, no installed ccassets.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.gpu_speeds import Setting, Speeds

NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "h5py": "h5py",
    "PIL": "Pillow",
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "xxhash": "xxhash",
}
"""The modules that this needs, and what installs them."""

BLOODMNIST = 17_092
"""Images of BloodMNIST."""

HEADER = (
    "| precision | batch | forward/s | pipeline/s | ÷ forward | written/s | ÷ forward | MFU | MB/s | encoder busy "
    "| BloodMNIST | smallest cosine: features, tokens |\n" + 12 * "|---" + "|"
)


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    if missing := [package for module, package in NEEDED.items() if find_spec(module) is None]:
        print(f"Missing: {', '.join(missing)}. Install them beside torch: pip install {' '.join(missing)}")
        return 2
    # What is missing can only be named before these are imported.
    from benchmarks.gpu_speeds import Model, device_name, measure, peak_tflops
    from benchmarks.machine import describe

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        facts = {**describe(folder), "device": device_name(options.device), "model": options.model}
        lines = [*(f"- {fact}: {value}" for fact, value in facts.items()), "", HEADER]
        print("\n".join(lines), flush=True)
        model = Model(folder, options.model, options.images, options.device)
        for setting, speeds in measure(model, _settings(options), options.rounds):
            peak = options.peak or peak_tflops(facts["device"], setting.dtype)
            lines.append(_line(setting, speeds, peak))
            print(lines[-1], flush=True)
            if options.output:
                options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", choices=["published", "phantom"], default="published", help="random weights of its dimensions"
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "tf32", "bfloat16", "float16"])
    parser.add_argument("--batches", nargs="+", type=int, default=[32, 64, 128, 256])
    parser.add_argument("--uncompiled", action="store_true", help="leave out what torch compiles")
    parser.add_argument("--images", type=int, default=1024, help="a multiple of every batch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", help="by default CUDA where there is one")
    parser.add_argument("--peak", type=float, help="peak TFLOP/s of the device, where its data sheet is not known here")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    parser.add_argument("--output", type=Path, help="a Markdown file for the table, such as benchmarks/RESULTS-gpu.md")
    options = parser.parse_args(arguments)
    if any(options.images % batch for batch in options.batches):
        parser.error(f"--images: expected a multiple of {options.batches}, found {options.images}")
    return options


def _settings(options: argparse.Namespace) -> Iterable[Setting]:
    from benchmarks.gpu_speeds import Setting

    for dtype in options.dtypes:
        for compiled in (False,) if options.uncompiled else (False, True):
            for batch in options.batches:
                yield Setting(dtype, compiled, batch)


def _line(setting: Setting, speeds: Speeds | str, peak: float | None) -> str:
    name = f"{setting.dtype}{' compiled' if setting.compiled else ''}"
    if isinstance(speeds, str):
        return f"| {name} | {setting.batch} | not measured: {speeds} |" + 9 * " |"
    used = f"{speeds.written * speeds.flop_per_image / peak / 1e12:.0%}" if peak else "-"
    drift = ", ".join(f"{distance.smallest:.6f}" for distance in (speeds.features, speeds.tokens))
    cells = (
        *(name, setting.batch, f"{speeds.forward:.1f}", f"{speeds.pipeline:.1f}"),
        *(f"{speeds.pipeline_of_forward:.2f}", f"{speeds.written:.1f}", f"{speeds.written_of_forward:.2f}"),
        *(used, f"{speeds.bytes_per_second / 1e6:.0f}", f"{speeds.times.share(speeds.times.encoding):.0%}"),
        *(f"{BLOODMNIST / speeds.written:.0f} s", drift),
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
