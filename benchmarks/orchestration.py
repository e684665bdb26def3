"""`python -m benchmarks.orchestration`: runs, steps, loads of the model and CPU seconds of studies in Dagster.

Every study is built up to its database by the jobs that the UI has: each split a run, or all splits a run. Each
measurement is a process of its own; under the multiprocess executor its steps are processes, too. CPU seconds are those
of all of them, from the first run to the last. A load counts when it encodes for the first time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dagster as dg

from benchmarks import stand_in
from benchmarks.material import VOCABULARY, save_images, stand_in_encoder, write_study
from benchmarks.table import markdown_table
from ccassets.orchestration.component import FeatureDatabaseComponent
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import FIRST_PARTITION, LAST_PARTITION, PARTITION, job_name
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.study.loading import load_study
from ccassets.study.schema import Study

STUDIES = ("3x4", "50x4", "3x200")
"""Splits and templates."""
WAYS = ("split", "range")
EXECUTORS = {"in_process": dg.in_process_executor, "multiprocess": dg.multiprocess_executor}

_LOGGERS = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}

_COUNTED = '''

class Counted(StandIn):
    """Writes a line when it encodes for the first time."""

    counted = False

    def count(self):
        if not self.counted:
            self.counted = True
            with open({log!r}, "a") as file:
                file.write("loaded\\n")

    def encode_pixels(self, pixels):
        self.count()
        return super().encode_pixels(pixels)

    def encode_texts(self, prompts):
        self.count()
        return super().encode_texts(prompts)
'''


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.orchestration", description=__doc__)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=STUDIES)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--executors", nargs="+", choices=EXECUTORS, default=list(EXECUTORS))
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder, *options.studies, *options.ways, *options.executors)))
        return
    rows = []
    for study in options.studies:
        for way in options.ways:
            for executor in options.executors:
                rows.append((study, way, executor, *map(str, _child(study, way, executor).values())))
                print(*rows[-1], file=sys.stderr, flush=True)
    head = ("splits x templates", "a run is of a", "executor", "runs", "steps", "loads", "CPU seconds")
    print("\n".join(markdown_table(head, rows)))


def _child(study: str, way: str, executor: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        choice = ("--studies", study, "--ways", way, "--executors", executor, "--folder", folder)
        environment = {**os.environ, "CCASSETS_HOME": f"{folder}/home"}
        command = [sys.executable, "-m", "benchmarks.orchestration", *choice]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def measure(folder: Path, study: str, way: str, executor: str) -> dict[str, Any]:
    """Build a study; the numbers of a row."""
    splits, templates = map(int, study.split("x"))
    log = folder / "loads.txt"
    written = make_study(folder, [f"split_{number}" for number in range(splits)], templates, log)
    runs = steps = 0
    before = _cpu_seconds()
    with dagster_instance() as instance:
        for name, tags in jobs(written, way):
            arguments: Any = (str(written.folder / "defs.yaml"), name, executor)
            job = dg.build_reconstructable_job("benchmarks.orchestration", "study_job", arguments)
            with dg.execute_job(job, instance, tags=tags, run_config=_LOGGERS, raise_on_error=True) as result:
                runs += 1
                steps += sum(event.is_step_success for event in result.all_events)
    seconds = _cpu_seconds() - before
    return {"runs": runs, "steps": steps, "loads": len(log.read_text().split()), "cpu": round(seconds)}


def jobs(study: Study, way: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The runs of a build, each by its job and tags."""
    by_split = [{PARTITION: split} for split in study.splits]
    if way == "range":
        by_split = [{FIRST_PARTITION: study.splits[0], LAST_PARTITION: study.splits[-1]}]
    yield "read_encoder", {}
    yield from (("read_images", tags) for tags in by_split)
    yield "extract_text", {}
    yield from (("extract_images", tags) for tags in by_split)
    yield "build_database", {}


def study_job(file: str, name: str, executor: str) -> dg.JobDefinition:
    """A job of a study, as every process of a run makes it for itself."""
    study = load_study(file)
    resources = {"store": StoreResource(), "encoder": EncoderResource()}
    return dg.Definitions.merge(
        FeatureDatabaseComponent(study).definitions(),
        dg.Definitions(resources=resources, executor=EXECUTORS[executor]),
    ).resolve_job_def(job_name(study, name))


def make_study(folder: Path, splits: list[str], templates: int, log: Path) -> Study:
    """A study of six small images a split."""
    save_images(folder / "pictures", dict.fromkeys(splits, 6), stand_in.SIDE)
    concepts = {**VOCABULARY["concepts"], "templates": [f"photo {number} of {{}}" for number in range(templates - 1)]}
    study = write_study(
        folder / "studies" / "cells",
        {**stand_in_encoder(32, 9), "target": "counted:Counted"},
        folder / "pictures",
        dataset={"kind": "folder", "root": str(folder / "pictures"), "splits": splits},
        vocabulary={**VOCABULARY, "concepts": concepts},
    )
    counted = Path(stand_in.__file__).read_text() + _COUNTED.format(log=str(log))
    (study.folder / "counted.py").write_text(counted)
    return study


def _cpu_seconds() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


if __name__ == "__main__":
    main()
