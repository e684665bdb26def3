"""Fuzz the reader and the validator: `python -m ccassets_tests.campaigns.fuzz --iterations 10000 --seed 1`.

Every iteration damages a small good file, ours or one of the original scripts, and has a fork read it. What the fork
may do is answer, refuse, or die or go round inside HDF5 (that is what the child process for foreign files is for, whose
limits it has); it may not end in a traceback of ours, compute for longer than 5 s, or take more than a gigabyte.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np

from ccassets_tests.campaigns.examination import Outcome, examine
from ccassets_tests.campaigns.mutations import damage_bytes, damage_objects
from ccassets_tests.database.made_files import write_database, write_image_part, write_template_part
from ccassets_tests.made_studies import DATA

DEFECTS = {"traceback", "hung", "memory"}


def sources(folder: Path) -> list[Path]:
    """Small good files to damage: the three profiles, other layouts of HDF5, and files of the original scripts."""
    folder.mkdir()
    ours = write_database(folder / "database.h5")
    write_database(folder / "without_tokens.h5", tokens=0, matrix=True)
    write_image_part(folder / "image_part.h5")
    write_template_part(folder / "template_part.h5")
    _copied(ours, folder / "latest.h5", libver="latest")
    _copied(ours, folder / "chunked.h5", compression="gzip", chunks=True)
    for path in (DATA / "legacy").glob("*.h5"):
        shutil.copy(path, folder)
    return sorted(folder.glob("*.h5"))


def _copied(source: Path, path: Path, libver: str | None = None, **options: object) -> None:
    """The same content in another form of HDF5."""
    with h5py.File(source) as old, h5py.File(path, "w", libver=libver) as new:
        new.attrs.update(old.attrs)

        def copy(name: str, item: h5py.Dataset | h5py.Group) -> None:
            if isinstance(item, h5py.Group):
                made = new.create_group(name)
            else:
                made = new.create_dataset(name, data=item[...], dtype=item.dtype, **options)
            made.attrs.update(item.attrs)

        old.visititems(copy)


def iteration(seed: int, number: int, files: list[Path], target: Path) -> tuple[str, Outcome]:
    """One iteration, the same for the same seed and number: what was done to which file, and what came of it."""
    rng = np.random.default_rng([seed, number])
    source = files[int(rng.integers(len(files)))]
    damage: Callable[[Path, np.random.Generator], str] = damage_objects if rng.random() < 0.4 else damage_bytes
    shutil.copyfile(source, target)
    done = damage(target, rng)
    return f"{source.name}: {done}", examine(target)


def campaign(seed: int, iterations: int, start: int = 0) -> Mapping[str, int]:
    """Run iterations; prints every defect, and gives how often each end was met."""
    ends: Counter[str] = Counter()
    slowest, largest, began = 0.0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        files = sources(Path(scratch) / "sources")
        for number in range(start, start + iterations):
            done, outcome = iteration(seed, number, files, Path(scratch) / "damaged.h5")
            ends[outcome.end] += 1
            slowest, largest = max(slowest, outcome.seconds), max(largest, outcome.peak_bytes)
            if outcome.end not in {"findings", "refused"}:
                print(f"{outcome.end}: seed {seed}, iteration {number}: {done}\n{outcome.text}", flush=True)
    print(
        f"seed {seed}: {iterations} iterations from {start} in {time.monotonic() - began:.0f} s: {dict(ends)}; "
        f"slowest {slowest:.2f} s, largest {largest / 1e6:.0f} MB"
    )
    return ends


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first iteration, to repeat one")
    arguments = parser.parse_args()
    ends = campaign(arguments.seed, arguments.iterations, arguments.start)
    return 1 if DEFECTS & set(ends) else 0


if __name__ == "__main__":
    sys.exit(main())
