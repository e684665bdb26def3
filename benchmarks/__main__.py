"""`python -m benchmarks`: run the rows, each in processes of its own, and write the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.contest import Target, Times
from benchmarks.machine import describe
from benchmarks.rows import MODULES, ON_REQUEST, SAME_MEMORY
from benchmarks.sizes import SIZES, Size
from benchmarks.table import Result, page

RESULTS = Path(__file__).with_name("RESULTS.md")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    size = SIZES[options.size]
    rows = options.rows or [row for row in MODULES if row not in ON_REQUEST]
    output = options.output or (RESULTS if options.size == "real" and not options.rows else None)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        machine = describe(folder)
        results = []
        for row in rows:
            results.append(_run(row, folder, size))
            text = page(results, size.name, machine)
            if output is not None:  # After every row: what was measured does not depend on the last of them.
                output.write_text(text, encoding="utf-8")
    print(text)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="real", help="small tries that everything works")
    parser.add_argument("--rows", nargs="+", choices=MODULES, metavar="ROW", help=f"of {', '.join(MODULES)}")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    parser.add_argument("--output", type=Path, help=f"by default {RESULTS.name}, when all rows ran at the real size")
    return parser.parse_args(arguments)


def _run(row: str, folder: Path, size: Size) -> Result:
    started = time.perf_counter()
    facts = _child(row, folder, size, "contest")
    peak = _child(row, folder, size, "memory")["peak"]
    peaks = None
    if row in SAME_MEMORY:
        few = replace(size, rows=size.tenth, images=size.few_images)
        many = replace(size, rows=10 * size.tenth, images=10 * size.few_images, vectors=10 * size.vectors)
        peaks = _peak(row, folder / "few", few), _peak(row, folder / "many", many)
    print(f"{row}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    facts["target"], facts["times"] = Target(**facts["target"]), Times(**facts["times"])
    return Result(name=row, peak=peak, peaks=peaks, **facts)


def _peak(row: str, folder: Path, size: Size) -> int:
    """Peak memory of our side, where making the material is none of its business."""
    _child(row, folder, size, "material")
    peak: int = _child(row, folder, size, "memory")["peak"]
    return peak


def _child(row: str, folder: Path, size: Size, task: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.child", row, str(folder), json.dumps(asdict(size)), task]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


if __name__ == "__main__":
    main()
