"""A process of its own for one row: it runs the contest, or our side alone for its memory, and prints JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks.contest import run_contest
from benchmarks.rows import contest
from benchmarks.sizes import Size


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # As the command line has it, for all contestants.
    row, folder, size, task = sys.argv[1], Path(sys.argv[2]), Size(**json.loads(sys.argv[3])), sys.argv[4]
    made = contest(row, folder, size)
    result = {}
    if task == "memory":
        made.reset()
        made.ours()
        result["peak"] = peak_memory()
    if task == "contest":
        result = {
            "work": made.work,
            "limit": made.limit.what,
            "usual": made.usual.what if made.usual else None,
            "target": asdict(made.target),
            "times": asdict(run_contest(made, size.rounds, size.seconds)),
        }
    print(json.dumps(result))


def peak_memory() -> int:
    """The most bytes that this process, or one it started, ever held; mapped pages count (Linux counts in KiB)."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


if __name__ == "__main__":
    main()
