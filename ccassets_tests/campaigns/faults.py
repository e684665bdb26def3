"""Builds on a disk that refuses: `python -m ccassets_tests.campaigns.faults --faults 100 --seed 1`.

From a random moment on the kernel refuses what the build asks of the disk (`refusing`), or, where this process may
mount one, the storage lies on a file system that is too small. The build may succeed all the same, with the bits of an
undisturbed one, or end in one sentence that names the path; never in a traceback. The database that was
there stays what it was, and the next build, without the fault, gives the bits of the undisturbed one and leaves no
temporary file. One line per fault; exit 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ccassets.database import writer
from ccassets.encoders import load_encoder
from ccassets.errors import CcassetsError
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.refusals import FAULTS, Fault
from ccassets_tests.campaigns.tally import tally
from ccassets_tests.extraction.made_parts import build, differences
from ccassets_tests.made_studies import save_golden_weights, save_images, write_study

_EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.remove", "fcntl.flock"})
_PATIENCE = 120


class Campaign:
    """A study, its undisturbed storage, and states of a storage from which a build has something to do."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.study: Study = write_study(
            folder / "studies" / "cells",
            images=save_images(folder / "pictures"),
            encoder=save_golden_weights(folder / "weights"),
        )
        load_encoder(self.study)  # What is imported here is there in every process that is forked.
        self.reference = Store.of(self.study, folder / "undisturbed")
        build(self.study, store=self.reference)
        self.moments = {state: self._moments(state) for state in STATES}

    def _moments(self, state: str) -> int:
        """How many moments a build from that state has at which the disk could begin to refuse."""
        store = self._storage(state, "counted")
        code, text = build_in_a_fork(self.study, store, lambda: None, at=1 << 40)
        assert code == 0, text
        shutil.rmtree(store.root)
        return int(text)

    def _storage(self, state: str, name: str) -> Store:
        store = Store.of(self.study, self.folder / name)
        shutil.copytree(self.reference.root, store.root)
        STATES[state](store)
        return store

    def fault(self, number: int) -> tuple[str, str]:
        """One fault, the same for the same seed and number: its end, and a line about it."""
        rng = np.random.default_rng([self.seed, number])
        state = list(STATES)[int(rng.integers(len(STATES)))]
        fault: Fault = FAULTS[int(rng.integers(len(FAULTS)))]
        at = int(rng.integers(self.moments[state]))
        store = self._storage(state, f"storage-{number}")
        end, text = self._judged(store, *build_in_a_fork(self.study, store, fault.start, at))
        shutil.rmtree(store.root, ignore_errors=True)  # It may never have been made.
        return end, f"{number}: {state}, {fault.name} from moment {at} of {self.moments[state]}: {end} ({text})"

    def small_disk(self, number: int, share: float) -> tuple[str, str]:
        """A build on a file system that holds only a share of what it needs; mounted, so for root alone."""
        needed = sum(path.stat().st_size for path in self.reference.root.rglob("*") if path.is_file())
        folder = self.folder / f"disk-{number}"
        with mounted(folder, int(needed * share)):
            store = Store.of(self.study, folder / "storage")
            code, text = build_in_a_fork(self.study, store, lambda: None, at=1 << 40)
            if code == 0:
                wrong = differences(store.database, self.reference.database)
            else:
                subprocess.run(["mount", "-o", f"remount,size={needed * 3}", str(folder)], check=True)
                end, text = self._judged(store, code, text)
                wrong = [] if end == "refused" else [text]
        end = "WRONG" if wrong else "right" if code == 0 else "refused"
        return end, f"{number}: a disk of {share:.0%} of what is needed: {end} ({text}) {wrong or ''}".rstrip()

    def _judged(self, store: Store, code: int, text: str) -> tuple[str, str]:
        """Whether the end of a disturbed build is right, and the build after it."""
        if code == 2:
            return "WRONG", f"a traceback: {text}"
        if code == 1 and str(self.folder) not in text:
            return "WRONG", f"no path in: {text}"
        if code == 1 and store.database.exists() and differences(store.database, self.reference.database):
            return "WRONG", "the old database is not what it was"
        if code == 0 and differences(store.database, self.reference.database):
            return "WRONG", "a success with other bits"
        build(self.study, store=store)
        if left := differences(store.database, self.reference.database):
            return "WRONG", f"other bits after the fault was gone: {left}"
        if left := [path.name for path in store.root.rglob("*.partial")]:
            return "WRONG", f"left behind: {left}"
        return ("right", "it was not needed any more") if code == 0 else ("refused", text.replace(str(store.root), "…"))


def build_in_a_fork(study: Study, store: Store, start: Callable[[], None], at: int) -> tuple[int, str]:
    """Build in a fork, with a fault from a moment on: 0 and the number of moments, 1 and the sentence, or 2."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _work(study, store, start, at, writing)
    os.close(writing)
    ending = threading.Timer(_PATIENCE, os.kill, (child, 9))
    ending.start()
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    ending.cancel()
    code = os.waitstatus_to_exitcode(status)
    return (code, text) if code in (0, 1) else (2, text or f"exit {code}")


def _work(study: Study, store: Store, start: Callable[[], None], at: int, answer: int) -> NoReturn:
    code = 2
    try:
        os.dup2(answer, 1)  # Which stays writable.
        moments = Moments(store.root, start, at)
        try:
            build(study, store=store)
            code, text = 0, str(moments.count)
        except CcassetsError as error:
            code, text = 1, str(error)
        except BaseException:
            text = traceback.format_exc()
        os.write(1, text.encode())
    finally:
        os._exit(code)


class Moments:
    """Counts what a build does with the files of a storage, and begins a fault at one of these moments."""

    def __init__(self, root: Path, start: Callable[[], None], at: int) -> None:
        self.count = 0
        self._root = str(root)
        self._start = start
        self._at = at
        sys.addaudithook(self._event)
        file_class = writer._DeferredErrorFile
        for owner, name in ((os, "pwrite"), (os, "copy_file_range"), (os, "fsync"), (file_class, "write")):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _event(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _EVENTS and (event == "fcntl.flock" or str(arguments[0]).startswith(self._root)):
            self._pass()

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self._pass()
            return function(*arguments)

        return counted

    def _pass(self) -> None:
        self.count += 1
        if self.count - 1 == self._at:
            self._start()


def _nothing(store: Store) -> None:
    shutil.rmtree(store.root)


def _no_database(store: Store) -> None:
    store.database.unlink()


def _old_database(store: Store) -> None:
    """A database that is there and valid, and has to be written again."""
    for path in store.folder.glob("verified*.jsonl"):
        path.unlink()


def _parts_missing(store: Store) -> None:
    store.database.unlink()
    for folder in ("rows", "templates"):
        next(store.root.glob(f"features/*/{folder}/*.h5")).unlink()


STATES: Mapping[str, Callable[[Store], None]] = {
    "from nothing": _nothing,
    "the database missing": _no_database,
    "an old database there": _old_database,
    "a part of each kind missing": _parts_missing,
}


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[None]:
    """A file system of that many bytes at a folder."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount() -> bool:
    if os.geteuid():
        return False
    with tempfile.TemporaryDirectory() as folder:
        try:
            with mounted(Path(folder) / "disk", 1 << 20):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


def campaign(folder: Path, seed: int, faults: int, start: int = 0, disks: int = 0) -> Counter[str]:
    """Run faults, and builds on small disks; a line for each, and how often each end was met."""
    work = Campaign(folder, seed)
    shares = np.random.default_rng(seed).uniform(0.02, 1.1, disks)
    tries = chain(
        (work.fault(number) for number in range(start, start + faults)),
        (work.small_disk(number, float(share)) for number, share in enumerate(shares)),
    )
    return tally(tries, f"seed {seed}: {faults} faults from {start} and {disks} small disks")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--disks", type=int, default=20, help="builds on small disks, where this process may mount one")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first fault, to repeat one")
    arguments = parser.parse_args()
    disks = arguments.disks if can_mount() else 0
    with tempfile.TemporaryDirectory() as folder:
        ends = campaign(Path(folder), arguments.seed, arguments.faults, arguments.start, disks)
    return 1 if ends["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
