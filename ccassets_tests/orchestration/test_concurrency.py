"""Several processes at one storage: every reader finds a whole database, and no work is done twice or lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import h5py
import pytest

import ccassets
from ccassets.database.reader import open_database
from ccassets.errors import StorageError
from ccassets.extraction.adoption import adopt
from ccassets.h5 import clear_all_templates
from ccassets.orchestration.instance import dagster_instance
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.watched_process import Readers, digest_of
from ccassets_tests.extraction.made_parts import build, build_in_storage, deep_errors, differences, parts
from ccassets_tests.made_studies import DATA, edit_study, save_images


def rows_held(study: Study) -> int:
    held = 0
    for part in parts(study):
        with open_database(part) as opened:
            held += len(opened)
    return held


@pytest.mark.slow
def test_ten_readers_find_the_old_database_until_they_find_the_new_one(study: Study, image_folder: Path) -> None:
    path = build(study).path
    old = digest_of(path)
    readers = [Readers(path, {old: "old"}, others="new") for _ in range(10)]
    save_images(image_folder, {"train": 30})
    edited = edit_study(study, lambda a: a["vocabulary"]["concepts"]["templates"].append("sign of {}"))

    code, answer = Fork(lambda: {"encoded": build(edited).encoded}).end()

    assert (code, answer) == (0, {"encoded": 12})
    for reader in readers:
        answers, wrong = reader.stop()
        assert wrong == []
        assert answers["old"] > 0
        assert answers["new"] > 0
    assert digest_of(path) != old


def test_a_build_and_an_adoption_at_once_take_every_row_once(study: Study, tmp_path: Path) -> None:
    finished = build_in_storage(study, tmp_path / "finished").path

    def adopted() -> dict[str, int]:
        return {"rows": sum(split.taken for split in adopt(finished, study).splits)}

    works = [Fork(lambda: {"rows": build(study).encoded}), Fork(adopted)]
    answers = [work.end() for work in works]

    assert [code for code, _ in answers] == [0, 0], answers
    assert sum(answer["rows"] for _, answer in answers) == rows_held(study) == 18
    built = build(study)
    assert (built.encoded, built.prompts_encoded) == (0, {})
    assert deep_errors(built, study) == []
    assert differences(built.path, finished) == []


def test_templates_are_not_cleared_under_a_reader_of_a_growing_file(tmp_path: Path) -> None:
    path = tmp_path / "growing.h5"
    path.write_bytes((DATA / "legacy" / "legacy_good.h5").read_bytes())
    before = path.read_bytes()
    with h5py.File(path) as held:
        names = sorted(held["templates"])
        with pytest.raises(StorageError, match="is open elsewhere"):
            clear_all_templates(path, confirm=True)
        assert sorted(held["templates"]) == names
    assert path.read_bytes() == before
    clear_all_templates(path, confirm=True)
    with h5py.File(path) as file:
        assert list(file["templates"]) == []


UI = """
import sys
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.names import job_name
from ccassets.orchestration.instance import dagster_instance
from ccassets.study.loading import load_study

study = load_study(sys.argv[1])
for job, split in [
    ("read_encoder", None), *(("read_images", split) for split in study.splits), ("extract_text", None),
    *(("extract_images", split) for split in study.splits), ("build_database", None), ("analyse", None),
]:
    with dagster_instance() as instance:
        resolved = definitions_of(study).resolve_job_def(job_name(study, job))
        assert resolved.execute_in_process(instance=instance, partition_key=split).success
"""


@pytest.mark.slow
def test_a_build_by_command_and_one_by_dagster_do_the_work_once(study: Study, tmp_path: Path) -> None:
    commands = [["-m", "ccassets.cli", "build", str(study.folder)], ["-c", UI, str(study.folder)]]
    # Into files: one that waits for its pipe to be read would keep the other one waiting for its lock.
    logs = [tmp_path / "command.log", tmp_path / "dagster.log"]
    processes = []
    for command, log in zip(commands, logs, strict=True):
        with log.open("wb") as said:
            started = subprocess.Popen([sys.executable, *command], env=os.environ, stdout=said, stderr=said)
            processes.append(started)

    assert [process.wait() for process in processes] == [0, 0], [log.read_text() for log in logs]
    assert rows_held(study) == 18
    path = Store.of(study).database
    assert ccassets.validate_database(path, study=study, deep=True) == []
    assert differences(path, build_in_storage(study, tmp_path / "alone").path) == []
    assert list(Store.of(study).root.rglob("*.partial")) == []
    with dagster_instance() as instance:
        assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])) == []
