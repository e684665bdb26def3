"""Builds that end at random moments and are built on: `python -m ccassets_tests.campaigns.kill --kills 200 --seed 1`.

A process ends by SIGKILL, by SIGTERM, or with the power (`power`) while text is encoded, images are encoded, the
database is assembled, a file is adopted, the report or the analyses are written, or anywhere in a build through
Dagster; from nothing, or while a database of an older vocabulary with fewer rows is there. Two readers look at that
one all the time: it, or the new one, is all they may ever find. What has its own name afterwards is whole. The build
that goes on encodes only what no finished part holds, gives the bits, digests, reports and files of a build that
nobody disturbed, and leaves no other file. One line per kill; exit 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ccassets
from ccassets.analysis.bottleneck import write_bottleneck
from ccassets.analysis.zero_shot_scores import write_zero_shot
from ccassets.database.hdf5 import READ_ERRORS
from ccassets.database.reader import open_database
from ccassets.encoders import load_encoder
from ccassets.errors import CcassetsError
from ccassets.exports.tables import write_concept_scores
from ccassets.extraction.adoption import adopt
from ccassets.files import digest_files
from ccassets.orchestration.build import run_build
from ccassets.pages.atlas import write_atlas
from ccassets.pages.report_page import write_validation_report
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.faults import Moments
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.mutations import Rng
from ccassets_tests.campaigns.power import FINISHED, Disk, SyncRecord, carry_fingerprints, cut_power, lost
from ccassets_tests.campaigns.tally import tally
from ccassets_tests.campaigns.watched_process import Readers, digest_of
from ccassets_tests.extraction.made_parts import differences
from ccassets_tests.made_studies import CLASSES, edit_study, save_golden_weights, save_images, write_study

STAGES = ("text", "images", "database", "adoption", "report", "analysis")
ROUND = (*STAGES * 3, "dagster")  # Which takes ten times as long.
ENDS = ("SIGKILL", "SIGTERM", "power cut")
ROWS = {"train": 16, "val": 6, "test": 5}
MORE_ROWS = {"train": 25, "val": 8, "test": 5}
PICTURES = ("photo", "image", "picture")
VOCABULARY = {
    "labels": {"words": list(CLASSES), "templates": [f"{picture} of {{}} cell" for picture in PICTURES]},
    "concepts": {"words": ["red cell", "pigment"], "templates": [f"{picture} with {{}}" for picture in PICTURES]},
}
_LOCKS = {".lock", ".shards"}


@dataclass(frozen=True)
class Way:
    """The steps of a build up to the stage that is broken off, and the storage they begin with."""

    steps: tuple[str, ...]
    start: str


def way(stage: str, start: str) -> Way:
    if stage == "adoption":
        return Way(("adoption", "text", "images", "database"), start)
    if stage in {"report", "analysis"}:
        return Way(("report", "analysis"), "finished")
    return Way(("dagster",) if stage == "dagster" else ("sources", "text", "images", "database"), start)


@dataclass(frozen=True)
class Undisturbed:
    """What a way gives when nobody breaks it off, how many moments each of its steps has, and what readers may find."""

    home: Path
    answer: Mapping[str, Any]
    files: frozenset[str]
    known: Mapping[str, str]


@dataclass(frozen=True)
class Kill:
    """When a process ends in a stage, and how: at a moment, or some seconds after it."""

    stage: str
    end: str
    at: int
    after: float


@dataclass(frozen=True)
class Held:
    """What a killed build left: finished templates, rows of finished image parts, files that have no name yet."""

    templates: int
    rows: int
    unfinished: int


class Campaign:
    """The study, homes to begin with, and what undisturbed builds give from each.

    `due` are the stages in which processes will be killed; those through Dagster cost most before the first.
    """

    def __init__(self, folder: Path, seed: int, stages: Sequence[str], due: Set[str]) -> None:
        self.folder, self.seed, self.stages = folder, seed, stages
        older = write_study(
            folder / "studies" / "cells",
            images=save_images(folder / "pictures", ROWS),
            encoder=save_golden_weights(folder / "weights"),
            vocabulary={**VOCABULARY, "concepts": {"words": ["red cell"], "templates": ["photo with {}"]}},
        )
        load_encoder(older)
        (folder / "nothing").mkdir()
        self.starts = {"nothing": folder / "nothing", "old": folder / "old", "finished": folder / "finished"}
        steps = ("dagster",) if "dagster" in due else ("sources", "text", "images", "database")
        self._finish(older, self.starts["old"], steps)
        save_images(folder / "pictures", MORE_ROWS)
        self.study = edit_study(older, lambda attributes: attributes.update(vocabulary=VOCABULARY))
        self._finish(self.study, self.starts["finished"], ("sources", "text", "images", "database"))
        warm = self._copy("finished", "warm")
        analysed(self.study, self.store(warm))  # What is imported here is there in every process that is forked.
        self._undisturbed: dict[Way, Undisturbed] = {}

    def store(self, home: Path) -> Store:
        return Store(home / "storage", "cells", "conceptclip_features.h5")

    def _finish(self, study: Study, home: Path, steps: Sequence[str]) -> Mapping[str, Any]:
        code, answer = Fork(lambda: self._work(study, home, steps)).end()
        if code:
            raise SystemExit(f"A build that nobody disturbed failed: {answer}")
        return answer

    def undisturbed(self, chosen: Way) -> Undisturbed:
        if chosen not in self._undisturbed:
            home = self._copy(chosen.start, f"undisturbed-{len(self._undisturbed)}")
            answer = self._finish(self.study, home, chosen.steps)
            old, new = (digest_of(self.store(root).database) for root in (self.starts["old"], home))
            known = {old: "old", new: "new"}
            self._undisturbed[chosen] = Undisturbed(home, answer, files_of(self.store(home)), known)
        return self._undisturbed[chosen]

    def _copy(self, start: str, name: str) -> Path:
        home = self.folder / name
        shutil.copytree(self.starts[start], home)
        carry_fingerprints(self.starts[start], home)
        return home

    # --- one kill -------------------------------------------------------------------------------------

    def kill(self, number: int) -> tuple[str, str]:
        """One kill, much the same for the same seed and number: `right` or `WRONG`, and a line about it."""
        rng = np.random.default_rng([self.seed, number])
        stage = self.stages[number % len(self.stages)]
        end = "SIGTERM" if stage == "dagster" and rng.random() < 0.5 else ENDS[int(rng.integers(len(ENDS)))]
        if stage == "dagster" and end == "power cut":
            end = "SIGKILL"  # Dagster's records are synced by SQLite, which we do not watch.
        chosen = way(stage, ("nothing", "old")[int(rng.integers(2))])
        for attempt in range(20):
            home = self._copy(chosen.start, f"killed-{number}/{attempt}")
            moments = self.undisturbed(chosen).answer["moments"][stage]
            after = float(rng.uniform(0, 0.01)) if rng.random() < 0.3 else 0.0
            line, wrong = self._killed(home, chosen, Kill(stage, end, int(rng.integers(moments)), after), rng)
            if line:
                break
        else:
            return "WRONG", f"kill {number}: {end} in {stage}: 20 kills came too late"
        shutil.rmtree(self.folder / f"killed-{number}")
        line = f"kill {number}: {end} in {stage}, start: {chosen.start}; {line}"
        return ("WRONG", f"{line}; WRONG: {'; '.join(wrong)}") if wrong else ("right", f"{line}; equal to the bit")

    def _killed(self, home: Path, chosen: Way, kill: Kill, rng: Rng) -> tuple[str, list[str]]:
        """Kill and build on: a line, empty when the kill came too late, and what is wrong."""
        record = home.with_name(f"{home.name}-synced")
        before = Disk.of(home)
        readers = self._readers(home, chosen)
        code, answer = Fork(lambda: self._work(self.study, home, chosen.steps, kill, record)).end()
        if code == 0:
            readers.stop() if readers else None
            return "", []
        wrong = [] if code in {-signal.SIGKILL, -signal.SIGTERM} else ended_badly(answer)
        seen: Counter[str] = Counter()
        if kill.end == "power cut":
            seen, wrong = self._stopped(readers, wrong)
            sure = before.synced(record)
            image = home.with_name(f"{home.name}-afterwards")
            damaged = [path for path in cut_power(home, image, sure, rng) if not_half(path)]
            wrong += [f"{path} is not whole" for path in damaged]
            wrong += [f"{path} was synced and is lost" for path in lost(image, sure)]
            home = image
            readers = self._readers(home, chosen)
        held = what_is_held(self.store(home))
        code, answer = Fork(lambda: self._work(self.study, home, chosen.steps)).end()
        more, wrong = self._stopped(readers, wrong)
        seen += more
        wrong += [f"building on failed: {answer}"] if code else self._differences(home, chosen, held, answer)
        counts = ", ".join(f"{answer[name]} {name} made" for name in ("templates", "rows") if name in answer) or "done"
        line = (
            f"moment {kill.at}{f' + {kill.after * 1000:.0f} ms' if kill.after else ''}: {held.templates} templates, "
            f"{held.rows} rows held, {held.unfinished} unfinished; built on: {counts}; readers: {dict(seen) or 'none'}"
        )
        return line, wrong

    def _readers(self, home: Path, chosen: Way) -> Readers | None:
        database = self.store(home).database
        return Readers(database, self.undisturbed(chosen).known) if database.exists() else None

    def _stopped(self, readers: Readers | None, wrong: list[str]) -> tuple[Counter[str], list[str]]:
        seen, more = readers.stop() if readers else (Counter(), [])
        return seen, [*wrong, *more]

    def _differences(self, home: Path, chosen: Way, held: Held, answer: Mapping[str, Any]) -> list[str]:
        """What a build that went on has otherwise than an undisturbed one."""
        store, expected = self.store(home), self.undisturbed(chosen)
        wrong = differences(store.database, self.store(expected.home).database)
        if "rows" in answer and held.rows + answer["rows"] != sum(MORE_ROWS.values()):
            wrong.append(f"{held.rows} rows were held and {answer['rows']} made")
        if "templates" in answer and held.templates + answer["templates"] != expected.answer["parts"]:
            wrong.append(f"{held.templates} templates were held and {answer['templates']} made")
        if answer["found"] != expected.answer["found"]:
            wrong.append(f"other results: {answer['found']}")
        if changed := files_of(store) ^ expected.files:
            wrong.append(f"left or missing: {sorted(changed)}")
        return wrong

    # --- in a fork ------------------------------------------------------------------------------------

    def _work(
        self, study: Study, home: Path, steps: Sequence[str], kill: Kill | None = None, record: Path | None = None
    ) -> dict[str, Any]:
        """Take the steps, and end in one of them if there is a `kill`."""
        os.environ["CCASSETS_HOME"] = str(home)
        answer: dict[str, Any] = {"found": {}, "moments": {}}
        SyncRecord(home, record or Path(os.devnull))
        for step in steps:
            ends_here = kill is not None and step == kill.stage
            moments = Moments(home, lambda: _end(kill), kill.at if kill is not None and ends_here else 1 << 40)
            self._step(step, study, self.store(home), answer)
            answer["moments"][step] = moments.count
        answer["parts"] = len(list(self.store(home).root.glob("features/*/templates/*.h5")))
        return answer

    def _step(self, step: str, study: Study, store: Store, answer: dict[str, Any]) -> None:
        counts: Counter[str] = Counter()
        match step:
            case "sources":
                ccassets.identify_encoder(study, store=store)
                for split in study.splits:
                    ccassets.read_images(study, split, store=store)
            case "text":
                counts["templates"] = sum(part.encoded > 0 for part in ccassets.extract_text(study, store=store))
            case "images":
                counts["rows"] = sum(ccassets.extract_images(study, s, store=store).encoded for s in study.splits)
            case "database":
                answer["found"]["database"] = ccassets.assemble_database(study, store=store).digest
            case "adoption":
                taken = adopt(self.store(self.starts["finished"]).database, study, store=store)
                counts["rows"], counts["templates"] = sum(split.taken for split in taken.splits), len(taken.templates)
            case "report":
                answer["found"]["report"] = write_validation_report(study, store).digest
            case "analysis":
                answer["found"] |= analysed(study, store)
            case "dagster":
                run_build(study)
                answer["found"]["database"] = ccassets.assemble_database(study, store=store).digest
        for name, count in counts.items():
            answer[name] = answer.get(name, 0) + count


def analysed(study: Study, store: Store) -> dict[str, str]:
    table = store.analysis / "concept_scores.parquet"
    with open_database(store.database) as database:
        write_concept_scores(database, table)
    return {
        "concept_scores": digest_files([table]),
        "zero_shot": write_zero_shot(store).digest,
        "concept_bottleneck": write_bottleneck(study, store).digest,
        "concept_atlas": write_atlas(study, store).digest,
    }


def _end(kill: Kill | None) -> None:
    assert kill is not None
    number = signal.SIGTERM if kill.end == "SIGTERM" else signal.SIGKILL
    if kill.after:
        threading.Timer(kill.after, os.kill, (os.getpid(), number)).start()
    else:
        os.kill(os.getpid(), number)


def ended_badly(answer: Mapping[str, Any]) -> list[str]:
    """What is wrong with the end of a process that was asked to end, and did so by itself."""
    said = answer.get("sentence", "")
    return [] if "interrupted" in said and "Error" not in said else [f"it ended with {answer}"]


def not_half(path: str) -> bool:
    """Whether a file has a name of its own, which only a whole one may have; records are lines that may be torn."""
    return not path.endswith(".partial") and path.endswith(FINISHED)


def files_of(store: Store) -> frozenset[str]:
    """The files of a storage, without locks, and records that tell every build apart."""
    files = {path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file()}
    records = {path for path in files if path.suffix == ".jsonl" or path.name in _LOCKS or "compute_logs" in path.parts}
    return frozenset(path.as_posix() for path in files - records)


def what_is_held(store: Store) -> Held:
    rows = 0
    for part in store.root.glob("features/*/rows/*.h5"):
        try:
            with open_database(part) as opened:
                rows += len(opened)
        except (CcassetsError, *READ_ERRORS):
            continue  # A part that is not whole is reported by `cut_power`, or differs afterwards.
    templates = len(list(store.root.glob("features/*/templates/*.h5")))
    return Held(templates, rows, len(list(store.root.rglob("*.partial"))))


def campaign(folder: Path, seed: int, kills: int, start: int = 0, stages: Sequence[str] = ROUND) -> Counter[str]:
    """Run kills, stage after stage in turn; a line for each, and how often each end was met."""
    numbers = range(start, start + kills)
    work = Campaign(folder, seed, stages, due={stages[number % len(stages)] for number in numbers})
    tries = (work.kill(number) for number in numbers)
    return tally(tries, f"seed {seed}: {kills} kills from {start}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first kill, to repeat one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = campaign(Path(folder), arguments.seed, arguments.kills, arguments.start)
    return 1 if ends["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
