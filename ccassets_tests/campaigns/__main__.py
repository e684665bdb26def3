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
    "kill": ("--kills 200", "--kills 9"),
    "faults": ("--faults 120 --disks 20", "--faults 12 --disks 4"),
    "corruption": ("--mutations 500", "--mutations 30"),
    "rows": ("--scenarios 500", "--scenarios 12"),
    "fuzz": ("--iterations 10000", "--iterations 250"),
}
"""How often, in a long run and in a short one. Nine kills meet every stage but Dagster, and every way to end."""

TESTS = ("-m", "not browser"), ("-m", "not slow and not browser and not campaign", "-n", "auto", "--dist", "loadfile")
"""How the tests run, in a long run and in a short one; `campaign` marks what the campaigns do themselves."""

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guarantees.md"


def named_tests() -> list[str]:
    """The tests that the page names: folders, files and functions."""
    return sorted(set(re.findall(r"ccassets_tests/[\w/]+(?:\.py(?:::\w+)?)?", PAGE.read_text(encoding="utf-8"))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    commands = {"tests": ["-m", "pytest", "-q", *TESTS[arguments.short], *named_tests()]}
    for name, options in CAMPAIGNS.items():
        count = options[arguments.short].split()
        commands[name] = ["-m", f"ccassets_tests.campaigns.{name}", *count, "--seed", str(arguments.seed)]
    return 1 if [name for name, command in commands.items() if not holds(name, command)] else 0


def holds(name: str, command: list[str]) -> bool:
    """Run a command and say how it ended."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, check=False
    )
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    minutes = (time.monotonic() - started) / 60
    print(f"{name}: {'held' if not done.returncode else 'BROKEN'} after {minutes:.1f} min: {lines[-1]}", flush=True)
    if done.returncode:
        path = Path(f"guarantees-{name}.log")
        path.write_text("\n".join(lines), encoding="utf-8")
        print(f"  all it said: {path}")
    return not done.returncode


if __name__ == "__main__":
    sys.exit(main())
