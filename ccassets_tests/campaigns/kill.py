"""Builds killed at random moments and built on: `python -m ccassets_tests.campaigns.kill --kills 10 --seed 0`.

Every kill is a SIGKILL while text is encoded, images are encoded or the database is assembled, at least two of each.
The build that goes on may encode only what no finished part holds, and must give the bits and digests of a build
that nobody disturbed. One line per kill; exit 1 when one of them differs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ccassets.database.reader import open_database
from ccassets.encoders import load_encoder
from ccassets.storage import Store
from ccassets.study import Study
from ccassets_tests.building import CLASSES, save_golden_weights, save_pictures, write_study
from ccassets_tests.extraction.building import build, differences

STAGES = ("text", "images", "database")
ROWS = {"train": 41, "val": 10, "test": 9}
VOCABULARY = {
    "labels": {"words": list(CLASSES), "templates": [f"photo {number} of {{}} cell" for number in range(5)]},
    "concepts": {
        "words": ["red cell", "pigment"],
        "templates": [f"cell {number} showing {{}}" for number in range(5)],
    },
}


@dataclass(frozen=True)
class Held:
    """What a killed build left: finished templates, rows of finished image parts, and files that are neither."""

    templates: int
    rows: int
    unfinished: int


class Campaign:
    """The study, its undisturbed build, and how long each stage of that took."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.study: Study = write_study(
            folder / "studies" / "cells",
            images=save_pictures(folder / "pictures", ROWS),
            encoder=save_golden_weights(folder / "weights"),
            vocabulary=VOCABULARY,
        )
        load_encoder(self.study)  # What is imported here is there in every process that is forked.
        self.templates, self.rows = len(self.study.vocabulary.templates()), sum(ROWS.values())
        self.reference = Store.of(self.study, folder / "undisturbed")
        self._run(self.reference)
        timed = Store.of(self.study, folder / "timed")
        self.seconds = self._run(timed)
        if differences(timed.database, self.reference.database):
            raise SystemExit("Two undisturbed builds differ: nothing can be said about killed ones.")
        shutil.rmtree(timed.root)

    def kill(self, number: int, stage: str) -> tuple[str, bool]:
        """Kill a build in a stage and build on; a line that says what came of it, and whether all was right."""
        for attempt in range(20):
            store = Store.of(self.study, self.folder / f"killed-{number}-{attempt}")
            part = self.random.random()
            self._run(store, kill_in=stage, after=part * self.seconds[stage])
            held = what_is_held(store)
            if stage_of(store) == stage and self._is_at_work(stage, held):
                break
            shutil.rmtree(store.root)  # It came too early or too late.
        else:
            raise SystemExit(f"No kill of 20 hit the stage {stage!r}.")
        self._run(store)
        counts = json.loads((store.root / "encoded.json").read_text())
        wrong = differences(store.database, self.reference.database)
        if counts["images"] != self.rows - held.rows:
            wrong.append(f"{self.rows - held.rows} rows were missing")
        if counts["templates"] != self.templates - held.templates:
            wrong.append(f"{self.templates - held.templates} templates were missing")
        if what_is_held(store).unfinished:
            wrong.append("an unfinished file is still there")
        line = (
            f"kill {number}: {stage}, {held.templates} of {self.templates} templates and {held.rows} of {self.rows} "
            f"rows held, {held.unfinished} unfinished; built on: {counts['templates']} templates and "
            f"{counts['images']} rows encoded, {'equal to the bit' if not wrong else f'DIFFERENT: {wrong}'}"
        )
        shutil.rmtree(store.root)
        return line, not wrong

    def _is_at_work(self, stage: str, held: Held) -> bool:
        return {"text": held.templates < self.templates, "images": held.rows < self.rows}.get(stage, True)

    def _run(self, store: Store, kill_in: str | None = None, after: float = 0.0) -> dict[str, float]:
        """A build in a process of its own, killed some seconds into a stage; when each stage took how long."""
        process = multiprocessing.get_context("fork").Process(target=_build, args=(self.study, store))
        process.start()
        begun: dict[str, float] = {}
        while process.is_alive():
            stage = stage_of(store)
            begun.setdefault(stage, time.monotonic())
            if stage == kill_in and time.monotonic() - begun[stage] >= after:
                process.kill()
                break
            time.sleep(0.001)
        process.join()
        if kill_in is None and process.exitcode:
            raise SystemExit(f"A build failed with exit code {process.exitcode}.")
        begun.setdefault("finished", time.monotonic())
        ends = [begun.get(stage, begun["finished"]) for stage in (*STAGES, "finished")]
        return {stage: end - start for stage, start, end in zip(STAGES, ends, ends[1:], strict=False)}


def _build(study: Study, store: Store) -> None:
    built = build(study, store=store)
    counts = {"templates": len(built.prompts_encoded), "images": built.encoded}
    (store.root / "encoded.json").write_text(json.dumps(counts))


def stage_of(store: Store) -> str:
    """What a build is at, by the files that are there."""
    if store.database.exists():
        return "finished"
    if any(store.folder.glob(f".{store.database.name}.*.partial")):
        return "database"
    if any(store.root.glob("features/*/rows/*.h5")) or any(store.root.glob("features/*/rows/.*.partial")):
        return "images"
    return "text" if any(store.root.glob("features/*/templates/*")) else "sources"


def what_is_held(store: Store) -> Held:
    rows = 0
    for part in store.root.glob("features/*/rows/*.h5"):
        with open_database(part) as opened:
            rows += len(opened)
    templates = len(list(store.root.glob("features/*/templates/*.h5")))
    return Held(templates, rows, len(list(store.root.rglob("*.partial"))))


def stages(kills: int, chance: random.Random) -> Iterator[str]:
    """Two of every stage, then any, in random order."""
    chosen = [*STAGES * 2, *chance.choices(STAGES, k=max(0, kills - 6))][:kills]
    yield from chance.sample(chosen, len(chosen))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), arguments.seed)
        took = ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in campaign.seconds.items())
        print(f"undisturbed: {campaign.templates} templates, {campaign.rows} rows; {took}", flush=True)
        results = []
        for number, stage in enumerate(stages(arguments.kills, campaign.random), start=1):
            line, right = campaign.kill(number, stage)
            print(line, flush=True)
            results.append(right)
    print(f"{len(results)} kills, {results.count(False)} different")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
