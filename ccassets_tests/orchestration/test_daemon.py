"""Dagster's webserver and daemon for real: a template is edited, the definitions are reloaded, the database follows."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest

import ccassets
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import ENCODER_POOL, job_name
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study, with_slow_encoder, write_study
from ccassets_tests.orchestration.graphql import stale

SELECTOR = {"repositoryLocationName": "ccassets", "repositoryName": "__repository__"}


class Webserver:
    """`ccassets ui` as a person starts it, spoken to as its pages do."""

    def __init__(self, study: Study, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ccassets.cli", "ui", "--port", str(self.port)],
            env={**os.environ, "CCASSETS_STUDIES": str(study.folder.parent)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, query: str, variables: dict[str, Any] | None = None) -> Any:
        body = json.dumps({"query": query, "variables": variables or {}}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)
        assert "errors" not in content, content
        return content["data"]

    def wait(self, seconds: float) -> float:
        """Wait until it answers; how long that took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            try:
                self.ask("{ version }")
                return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)
        raise AssertionError(f"no answer in {seconds} seconds")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)

    def launch(self, job: str, split: str | None = None) -> str:
        """Press Materialize; the run's id."""
        tags = [{"key": "dagster/partition", "value": split}] if split else []
        params = {"selector": {**SELECTOR, "jobName": job}, "executionMetadata": {"tags": tags}}
        launch = """mutation Launch($params: ExecutionParams!) {
          launchRun(executionParams: $params) {
            __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
          }
        }"""
        run_id: str = self.ask(launch, {"params": params})["launchRun"]["run"]["runId"]
        return run_id

    def switch_on(self, sensor: str) -> None:
        start = """mutation Start($selector: SensorSelector!) {
          startSensor(sensorSelector: $selector) { __typename ... on PythonError { message } }
        }"""
        selector = {**SELECTOR, "sensorName": sensor}
        assert self.ask(start, {"selector": selector})["startSensor"]["__typename"] == "Sensor"

    def status(self, run: str) -> str:
        query = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
        status: str = self.ask(query, {"run": run})["runOrError"]["status"]
        return status


def wait_for(there: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"not in {seconds} seconds"
        time.sleep(0.2)


def parts(store: Store) -> list[str]:
    return sorted(path.name for path in store.root.glob("features/*/rows/*.h5"))


@pytest.fixture
def webserver(study: Study, tmp_path: Path) -> Iterator[Webserver]:
    server = Webserver(study, tmp_path / "ui.log")
    server.wait(180)
    yield server
    server.stop()


SECONDS_A_BATCH = 3.0


@pytest.fixture
def slow(study: Study) -> Study:
    """A study whose encoder takes seconds a batch, with its sources read."""
    slow = with_slow_encoder(study, SECONDS_A_BATCH)
    with dagster_instance() as instance:
        for job, split in (("read_encoder", None), ("read_images", "train")):
            resolved = definitions_of(slow).resolve_job_def(job_name(slow, job))
            assert resolved.execute_in_process(instance=instance, partition_key=split).success
    return slow


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_terminate_stops_within_a_batch_and_keeps_every_finished_shard(slow: Study, tmp_path: Path) -> None:
    store = Store.of(slow)
    server = Webserver(slow, tmp_path / "ui.log")
    try:
        server.wait(180)
        run = server.launch("cells__extract_images", "train")
        wait_for(lambda: parts(store), 120)
        stop = """mutation Stop($run: String!) {
          terminateRun(runId: $run) { __typename ... on PythonError { message } }
        }"""
        assert server.ask(stop, {"run": run})["terminateRun"]["__typename"] == "TerminateRunSuccess"
        wait_for(lambda: server.status(run) == "CANCELED", 60)
    finally:
        server.stop()
    kept = parts(store)
    assert 1 <= len(kept) < 3
    assert not list(store.root.rglob("*.partial"))
    assert not list(store.runs.glob("*.lock"))
    with dagster_instance() as instance:
        assert not instance.event_log_storage.get_concurrency_info(ENCODER_POOL).claimed_slots
    assert run_build(slow, splits=["train"]).materialized[-1] == "image_features:train"
    assert len(parts(store)) == 3
    assert set(kept) <= set(parts(store)), "what was finished was not encoded again"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_a_killed_run_the_next_one_encodes_without_dagsters_default_wait(slow: Study, tmp_path: Path) -> None:
    store = Store.of(slow)
    server = Webserver(slow, tmp_path / "ui.log")
    try:
        server.wait(180)
        killed = server.launch("cells__extract_images", "train")
        wait_for(lambda: parts(store), 120)
        with dagster_instance() as instance:
            [slot] = instance.event_log_storage.get_concurrency_info(ENCODER_POOL).claimed_slots
            assert slot.run_id == killed
            monitoring = instance.run_monitoring_settings
        assert monitoring["poll_interval_seconds"] == monitoring["free_slots_after_run_end_seconds"] == 5
        os.kill(worker_of(server, killed), signal.SIGKILL)
        following = server.launch("cells__extract_images", "train")
        wait_for(lambda: server.status(killed) == "FAILURE", 120)
        wait_for(lambda: encoder_began(following), 300)
        wait_for(lambda: server.status(following) == "SUCCESS", 300)
    finally:
        server.stop()
    assert len(parts(store)) == 3


def worker_of(server: Webserver, run: str) -> int:
    """The process of a run, as Dagster's log names it."""
    query = """query Log($run: ID!) { logsForRun(runId: $run) { ... on EventConnection { events {
      ... on MessageEvent { message } } } } }"""
    events = server.ask(query, {"run": run})["logsForRun"]["events"]
    [pid] = {match[1] for event in events if (match := re.search(r"\(pid: (\d+)\)", event.get("message", "")))}
    return int(pid)


def encoder_began(run: str) -> bool:
    """Whether the step of a run that encodes has begun: until it has a slot of the pool, it waits."""
    with dagster_instance() as instance:
        return bool(instance.all_logs(run, of_type=dg.DagsterEventType.STEP_START))


TOKEN = "hf_marker0that0must0be0nowhere"
EVERYTHING = """{
  runsOrError { ... on Runs { results {
    status runConfigYaml tags { key value }
    eventConnection { events { ... on MessageEvent { message } ... on ErrorEvent { error { message stack } }
      ... on ExecutionStepFailureEvent { error { message stack causes { message stack } } failureMetadata { label } }
      ... on MaterializationEvent { metadataEntries { label ... on TextMetadataEntry { text }
        ... on JsonMetadataEntry { jsonString } ... on MarkdownMetadataEntry { mdStr } } } } }
    assets { key { path } }
  } } }
  assetNodes { assetKey { path } description opVersion configField { configTypeKey } }
  workspaceOrError { ... on Workspace { locationEntries { displayMetadata { key value } locationOrLoadError {
    ... on PythonError { message stack } ... on RepositoryLocation { repositories { allTopLevelResourceDetails {
      name configuredValues { key value type } configFields { name defaultValueAsJson } } } } } } } }
  instance { info daemonHealth { allDaemonStatuses { lastHeartbeatErrors { message } } } }
}"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_token_is_in_no_answer_log_or_file_after_a_failed_and_a_good_run(
    study: Study, weights: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    for name, value in hub.items():
        monkeypatch.setenv(name, value)
    encoder = {"kind": "conceptclip", "weights": "nobody/nothing"}
    write_study(study.folder.parent / "asking", images=image_folder, encoder=encoder)
    server = Webserver(study, tmp_path / "ui.log")
    try:
        server.wait(180)
        good, failed = server.launch("cells__read_encoder"), server.launch("asking__read_encoder")
        wait_for(lambda: server.status(good) == "SUCCESS", 120)
        # The hub may come back: the run says so and waits. We do not.
        wait_for(lambda: "tried again in 30 seconds" in json.dumps(server.ask(EVERYTHING)), 120)
        server.ask("mutation Stop($run: String!) { terminateRun(runId: $run) { __typename } }", {"run": failed})
        wait_for(lambda: server.status(failed) in {"CANCELED", "FAILURE"}, 60)
        refused = server.launch("asking__extract_text")
        wait_for(lambda: server.status(refused) == "FAILURE", 120)
        answer = json.dumps(server.ask(EVERYTHING))
    finally:
        server.stop()
    assert "cannot be reached" in answer
    assert "has not been identified yet" in answer
    assert TOKEN not in answer
    assert list((tmp_path / "home").rglob("*.db")), "Dagster's records are looked at"
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_materialize_all_on_a_fresh_home_gives_a_finished_study(
    webserver: Webserver, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [{"path": list(key.path)} for key in definitions_of(study).resolve_asset_graph().materializable_asset_keys]
    launch = """mutation Launch($params: LaunchBackfillParams!) {
      launchPartitionBackfill(backfillParams: $params) {
        __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message }
      }
    }"""
    launched = webserver.ask(launch, {"params": {"assetSelection": keys, "allPartitions": True}})
    backfill = launched["launchPartitionBackfill"]["backfillId"]
    query = """query State($id: String!) {
      partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } }
    }"""
    deadline = time.monotonic() + 600
    state = "REQUESTED"
    while state in {"REQUESTED", "COMPLETING"} and time.monotonic() < deadline:
        time.sleep(3)
        state = webserver.ask(query, {"id": backfill})["partitionBackfillOrError"]["status"]
    assert state == "COMPLETED_SUCCESS"
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    assert stale("cells") == {}
    assert ccassets.validate_database(Store.of(study).database, study=study, deep=True) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_daemon_follows_an_edited_template_and_encodes_no_image(webserver: Webserver, study: Study) -> None:
    path = ccassets.build(study)
    assert path is not None
    with ccassets.open_database(path) as database:
        before = np.array(database.image_features)
        written = database.attributes["created_at"]
    webserver.switch_on("cells__rebuild_stale")

    edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "an image of {}"))
    reload = """mutation { reloadRepositoryLocation(repositoryLocationName: "ccassets") { __typename } }"""
    webserver.ask(reload)

    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        with ccassets.open_database(path) as database:
            if database.templates["label_prompts_t02"].texts[0] == "an image of blood":
                break
        time.sleep(2)
    else:
        raise AssertionError(f"the database of {written} was not rebuilt")
    with ccassets.open_database(path) as database:
        assert np.array_equal(database.image_features, before)
    runs = webserver.ask("{ runsOrError { ... on Runs { results { tags { key } assetSelection { path } } } } }")[
        "runsOrError"
    ]["results"]
    by_daemon = [run for run in runs if "ccassets/started_by" not in [tag["key"] for tag in run["tags"]]]
    requested = {"/".join(key["path"][1:]) for run in by_daemon for key in run["assetSelection"]}
    assert {"template_features/label_prompts_t02", "feature_database"} <= requested
    assert not any(name.startswith(("images", "image_features", "encoder")) for name in requested)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_watch_makes_a_deleted_database_again_and_has_it_checked(webserver: Webserver, study: Study) -> None:
    path = ccassets.build(study)
    assert path is not None
    path.unlink()
    webserver.switch_on("cells__watch_sources")
    runs = "{ runsOrError { ... on Runs { results { runId status tags { key value } assetSelection { path } } } } }"

    def by_watch() -> list[dict[str, Any]]:
        tag = {"key": "dagster/sensor_name", "value": "cells__watch_sources"}
        return [run for run in webserver.ask(runs)["runsOrError"]["results"] if tag in run["tags"]]

    wait_for(lambda: [run for run in by_watch() if run["status"] == "SUCCESS"], 300)
    [run] = by_watch()
    assert run["assetSelection"] == [{"path": ["cells", "feature_database"]}]
    assert ccassets.validate_database(path, study=study, deep=True) == []
    with dagster_instance() as instance:
        checks = instance.all_logs(run["runId"], of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    assert len(checks) == 6
    query = """query Ticks($selector: SensorSelector!) {
      sensorOrError(sensorSelector: $selector) { ... on Sensor { sensorState { ticks(limit: 9) {
        status runIds logEvents { events { message } }
      } } } }
    }"""
    selector = {**SELECTOR, "sensorName": "cells__watch_sources"}
    said = json.dumps(webserver.ask(query, {"selector": selector}))
    assert "feature_database is lost, its file is gone: it is made again." in said
