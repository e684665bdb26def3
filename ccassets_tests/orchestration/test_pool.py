"""One encoder at a time, and no place taken for ever: between builds, runs of the UI, and killed processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import dagster as dg
import pytest
import yaml

import ccassets
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.dagster_diagnoses import diagnose_home
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import ENCODER_POOL, job_name
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.deploy.postgres_server import postgres_server
from ccassets_tests.made_studies import with_slow_encoder, write_study
from ccassets_tests.orchestration.test_daemon import Webserver, parts, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of a database on a PostgreSQL server that only this test reaches."""
    with postgres_server() as server:
        yield f"postgresql+psycopg2://dagster@/postgres?host={server.folder}&port={server.port}"


@pytest.fixture(params=["sqlite", "postgres"])
def records(request: pytest.FixtureRequest, home: Path) -> str:
    """Where Dagster keeps its records: in the home, or where a foreign home with a server says."""
    if request.param == "postgres":
        home.mkdir()
        storage = {"storage": {"postgres": {"postgres_url": request.getfixturevalue("postgres")}}}
        (home / "dagster.yaml").write_text(yaml.safe_dump(storage))
        said = diagnose_home()
        assert f"no limit for the pool {ENCODER_POOL}" in said.message
        merged = {**storage, **yaml.safe_load(said.advice.partition("\n")[2])}
        (home / "dagster.yaml").write_text(yaml.safe_dump(merged))
        assert diagnose_home().level == "ok"
        with dagster_instance() as instance:
            assert "Postgres" in type(instance.event_log_storage).__name__
    return str(request.param)


def start_build(study: Study) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ccassets.cli", "build", str(study.folder), "--split", "train"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def encoding_times() -> list[tuple[float, float, str]]:
    """When each step that encodes images began and ended, in order, and the job."""
    with dagster_instance() as instance:
        steps = [
            (step.start_time, step.end_time, run.job_name)
            for run in instance.get_runs()
            for step in instance.get_run_step_stats(run.run_id)
            if step.step_key.endswith("__image_features")
        ]
    return sorted((began, ended, job) for began, ended, job in steps if began and ended)


def test_a_build_and_a_run_of_the_ui_take_turns_at_the_encoder(
    records: str, study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    one = with_slow_encoder(study, 1.0)
    other = with_slow_encoder(write_study(study.folder.parent / "other", images=image_folder, encoder=weights), 1.0)
    with dagster_instance() as instance:
        for job, split in (("read_encoder", None), ("read_images", "train")):
            resolved = definitions_of(one).resolve_job_def(job_name(one, job))
            assert resolved.execute_in_process(instance=instance, partition_key=split).success
    server = Webserver(one, tmp_path / "ui.log")
    try:
        server.wait(180)
        build = start_build(other)
        run = server.launch("cells__extract_images", "train")
        assert build.wait(300) == 0
        wait_for(lambda: server.status(run) == "SUCCESS", 300)
    finally:
        server.stop()
    times = encoding_times()
    assert {name for *_, name in times} >= {"cells__extract_images", "other__extract_images"}
    for (_, ended, _), (began, _, _) in pairwise(times):
        assert began >= ended - 0.05, times


def test_a_killed_build_gives_its_place_back_to_the_next_one(records: str, study: Study) -> None:
    slow = with_slow_encoder(study, 1.0)
    killed = start_build(slow)
    wait_for(lambda: parts(Store.of(slow)), 120)
    killed.kill()
    killed.wait()
    with dagster_instance() as instance:
        assert instance.event_log_storage.get_concurrency_info(ENCODER_POOL).claimed_slots
    assert run_build(slow).path is not None, "no daemon runs here: the build itself frees the place"
    assert ccassets.validate_database(Store.of(slow).database, study=slow, deep=True) == []
    with dagster_instance() as instance:
        assert not instance.event_log_storage.get_concurrency_info(ENCODER_POOL).claimed_slots
        [failed] = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    assert failed.job_name == "cells__extract_images"
