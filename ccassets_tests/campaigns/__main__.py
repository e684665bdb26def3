"""All that tries to break a promise of docs/guarantees.md, one after another: `python -m ccassets_tests.campaigns`.

`--short` takes minutes instead of hours. Prints a line for each: how it ended, the last line it said, and how long it
took; what a campaign said on the way goes to a file in the working folder when it ended badly.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

CAMPAIGNS = {
    "kill": ("--kills", 200, 20),
    "faults": ("--faults", 120, 12),
    "corruption": ("--mutations", 500, 30),
    "rows": ("--scenarios", 500, 12),
    "fuzz": ("--iterations", 10_000, 250),
}
"""What says how often, and how often, in a long run and in a short one."""

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"


def named_tests() -> list[str]:
    """The tests that the page names."""
    return sorted(set(re.findall(r"ccassets_tests/[\w/]+(?:\.py)?", PAGE.read_text(encoding="utf-8"))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    marked = "not slow and not browser" if arguments.short else "not browser"
    commands = {"tests": ["-m", "pytest", "-q", "-m", marked, *named_tests()]}
    for name, (option, many, few) in CAMPAIGNS.items():
        count = str(few if arguments.short else many)
        commands[name] = ["-m", f"ccassets_tests.campaigns.{name}", option, count, "--seed", str(arguments.seed)]
    return 1 if [name for name, command in commands.items() if not holds(name, command)] else 0


def holds(name: str, command: list[str]) -> bool:
    """Run a command and say how it ended."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, check=False
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    minutes = (time.monotonic() - started) / 60
    print(f"{name}: {'held' if not done.returncode else 'BROKEN'} after {minutes:.0f} min: {lines[-1]}", flush=True)
    if done.returncode:
        path = Path(f"guarantees-{name}.log")
        path.write_text("\n".join(lines), encoding="utf-8")
        print(f"  all it said: {path}")
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
