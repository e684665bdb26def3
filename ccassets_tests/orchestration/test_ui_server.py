"""`ccassets ui` for real: who is answered, what listens, what ends with it, and which switches stay on."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import pytest
import yaml
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.ui_server import CODE_LOCATION, TOKEN_VARIABLE
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.cli.command_line import run
from ccassets_tests.made_studies import with_slow_encoder
from ccassets_tests.orchestration.test_exposure import tcp_sockets
from ccassets_tests.orchestration.ui_process import UiProcess, running, running_ui, wait_until

ROOT = Path(__file__).parents[2]
EVIL = "http://evil.example"
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ASSET = dg.AssetKey(["demo", "feature_database"])


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UiProcess]:
    folder = tmp_path_factory.mktemp("ui")
    with running_ui(folder / "home", folder / "ui.log") as ui:
        yield ui


@pytest.fixture
def run_id(ui: UiProcess, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run in the records of the UI's home, with a materialization of an asset of the demo."""
    monkeypatch.setenv("CCASSETS_HOME", str(ui.home))
    return materialize_by_hand()


def materialize_by_hand() -> str:
    """Record a run with a materialization of an asset of the demo in the home; the run's id."""

    @dg.asset(key=ASSET)
    def made_by_hand() -> None: ...

    with dagster_instance() as instance:
        return dg.materialize([made_by_hand], instance=instance).run_id


def mutations(run_id: str) -> list[str]:
    selector = f'repositoryLocationName: "{CODE_LOCATION}", repositoryName: "__repository__", jobName: "__ASSET_JOB"'
    assets = 'assetSelection: [{path: ["demo", "encoder"]}]'
    return [
        f'mutation {{ deletePipelineRun(runId: "{run_id}") {{ __typename }} }}',
        f"mutation {{ wipeAssets(assetPartitionRanges: [{{assetKey: {{path: {json.dumps(ASSET.path)}}}}}])"
        " { __typename } }",
        f"mutation {{ launchRun(executionParams: {{selector: {{{selector}, {assets}}}}}) {{ __typename }} }}",
    ]


def test_no_page_of_another_server_changes_anything(ui: UiProcess, run_id: str) -> None:
    foreign = {"Origin": EVIL, "Referer": f"{EVIL}/", "Sec-Fetch-Site": "cross-site"}
    answers = []
    for mutation in mutations(run_id):
        address, body = f"/graphql?query={quote(mutation)}", json.dumps({"query": mutation})
        answers += [
            ui.request("GET", address),
            ui.request("GET", address.replace("/graphql", "/graphql%0a")),
            ui.request("GET", address, foreign),
            ui.request("GET", address, {**foreign, "Host": "evil.example"}),
            ui.request("GET", address, {"Origin": f"http://{ui.host}"}),
            ui.request("POST", address, {**foreign, **FORM}, "a=b"),
            ui.request("POST", address, FORM, "a=b"),
            ui.request("POST", "/graphql", {**foreign, **JSON}, body),
            ui.request("POST", "/graphql", {**foreign, "Content-Type": "text/plain"}, body),
            ui.request("POST", "/graphql", {**JSON, "Host": "evil.example"}, body),
            ui.request("POST", "/graphql", {**JSON, "Host": f"evil.example:{ui.port}", "Origin": EVIL}, body),
            ui.request("POST", "/graphql", {**JSON, "Sec-Fetch-Site": "same-site"}, body),
        ]
    answers.append(ui.request("POST", "/report_asset_materialization/demo/encoder", {**foreign, **JSON}, "{}"))
    answers.append(ui.request("GET", "/", {"Host": "evil.example"}))
    assert {answer.status for answer in answers} == {400, 403, 405}
    with dagster_instance() as instance:
        assert instance.get_runs(limit=1)[0].run_id == run_id
        assert instance.get_latest_materialization_event(ASSET).run_id == run_id  # type: ignore[union-attr]
        assert instance.get_latest_materialization_event(dg.AssetKey(["demo", "encoder"])) is None


def test_its_own_pages_change_what_they_are_asked_to(ui: UiProcess, run_id: str) -> None:
    deletion, wiping, _ = mutations(run_id)
    assert ui.ask(wiping)["wipeAssets"]["__typename"] == "AssetWipeSuccess"
    assert ui.ask(deletion)["deletePipelineRun"]["__typename"] == "DeletePipelineRunSuccess"


def test_the_page_and_its_files_are_answered_and_forbid_frames(ui: UiProcess) -> None:
    page = ui.request("GET", "/", {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"})
    assert page.status == 200
    assert page.headers["x-frame-options"] == "DENY"
    assert "/_next/static/" in page.text
    assert ui.request("GET", "/favicon.png", {"Sec-Fetch-Site": "same-origin"}).status == 200
    assert ui.request("GET", "/graphql", {"Accept": "text/html"}).status == 200, "the playground"


def test_the_code_location_has_the_name_of_the_shipped_workspace(ui: UiProcess) -> None:
    workspace = yaml.safe_load((ROOT / "workspace.yaml").read_text(encoding="utf-8"))
    assert [entry["python_module"]["location_name"] for entry in workspace["load_from"]] == [CODE_LOCATION]
    entries = ui.ask("{ workspaceOrError { ... on Workspace { locationEntries { name loadStatus } } } }")
    assert entries["workspaceOrError"]["locationEntries"] == [{"name": CODE_LOCATION, "loadStatus": "LOADED"}]


def test_the_websocket_answers_its_own_pages_alone(ui: UiProcess, run_id: str) -> None:
    query = f'subscription {{ pipelineRunLogs(runId: "{run_id}") {{ __typename }} }}'
    address, protocols = f"ws://{ui.host}/graphql", ["graphql-ws"]
    with connect(address, origin=f"http://{ui.host}", subprotocols=protocols) as websocket:  # type: ignore[arg-type,list-item]
        websocket.send(json.dumps({"type": "connection_init"}))
        assert json.loads(websocket.recv(60)) == {"type": "connection_ack"}
        websocket.send(json.dumps({"type": "start", "id": "1", "payload": {"query": query}}))
        data = json.loads(websocket.recv(60))
        assert data["type"] == "data"
        assert data["payload"]["data"]["pipelineRunLogs"]["__typename"] == "PipelineRunLogsSubscriptionSuccess"
    for origin in (EVIL, "http://localhost:1", None):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, origin=origin, subprotocols=protocols)  # type: ignore[arg-type,list-item]


def test_nothing_but_its_port_listens_and_nobody_else_reaches_the_code_server(ui: UiProcess) -> None:
    ui.ask("{ version }")
    assert len(ui.processes()) == 4, "webserver, code server with its process for the definitions, daemon"
    assert {(address, port) for address, port, listens in tcp_sockets(ui.process.pid) if listens} == {
        ("127.0.0.1", ui.port)
    }
    sockets = code_server_sockets(ui)
    assert len(sockets) == 2
    for path in sockets:
        assert path.is_socket()
        assert path.parent.stat().st_mode & 0o777 == 0o700


def code_server_sockets(ui: UiProcess) -> list[Path]:
    """The sockets of the code server and of its process for the definitions, as their command lines name them."""
    commands = " ".join(ui.processes().values()).split()
    return [Path(word) for option, word in pairwise(commands) if option == "--socket"]


def test_a_taken_port_is_a_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = run("ui", "--port", taken.getsockname()[1])
    assert ended.code == 1
    assert "cannot be used (Address already in use); choose another with --port." in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGHUP, -1), (signal.SIGKILL, -9)]
)
def test_nothing_outlives_the_ui(home: Path, tmp_path: Path, number: int, code: int) -> None:
    with running_ui(home, tmp_path / "ui.log") as ui:
        folders = {path.parent for path in code_server_sockets(ui)}
        assert ui.end(number) == code
    assert len(folders) == 1
    assert not [folder for folder in folders if folder.exists()]
    assert "Traceback" not in (tmp_path / "ui.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_nothing_outlives_a_ui_that_is_ended_while_it_starts(home: Path, tmp_path: Path, number: int) -> None:
    ui = UiProcess(home, tmp_path / "ui.log")
    try:
        wait_until(lambda: len(ui.processes()) > 1, "no code server", ui)
        ui.end(number)
    finally:
        ui.kill_all()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_ends_with_the_ui_and_keeps_its_finished_shards(study: Study, tmp_path: Path, number: int) -> None:
    slow = with_slow_encoder(study, 1.0)
    store = Store.of(slow)
    home = tmp_path / "home"
    with running_ui(home, tmp_path / "ui.log", environment={"CCASSETS_STUDIES": str(slow.folder.parent)}) as ui:
        for job, split in (("read_encoder", None), ("read_images", "train"), ("extract_images", "train")):
            run_id = launch(ui, f"cells__{job}", split)
            if job != "extract_images":
                query = f'{{ runOrError(runId: "{run_id}") {{ ... on Run {{ status }} }} }}'
                wait_until(lambda query=query: ui.ask(query)["runOrError"]["status"] == "SUCCESS", job, ui)
        wait_until(lambda: list(store.root.glob("features/*/rows/*.h5")), "no shard was finished", ui)
        ui.end(number)
    with dagster_instance() as instance:
        run = instance.get_run_by_id(run_id)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.FAILURE
    assert list(store.root.glob("features/*/rows/*.h5"))
    assert not list(store.root.rglob("*.partial"))


def launch(ui: UiProcess, job: str, split: str | None) -> str:
    selector = f'{{repositoryLocationName: "{CODE_LOCATION}", repositoryName: "__repository__", jobName: "{job}"}}'
    tags = f'[{{key: "dagster/partition", value: "{split}"}}]' if split else "[]"
    launched = ui.ask(
        f"mutation {{ launchRun(executionParams: {{selector: {selector}, executionMetadata: {{tags: {tags}}}}})"
        " { ... on LaunchRunSuccess { run { runId } } } }"
    )
    run_id: str = launched["launchRun"]["run"]["runId"]
    return run_id


@pytest.mark.slow
def test_a_process_that_ends_takes_the_ui_with_it(home: Path, tmp_path: Path) -> None:
    with running_ui(home, tmp_path / "ui.log") as ui:
        [daemon] = [process for process, command in ui.processes().items() if "dagster-daemon" in command]
        os.kill(daemon, signal.SIGKILL)
        assert ui.process.wait(240) == 1
        wait_until(lambda: not ui.processes(), "processes are left", ui)
    assert "`dagster-daemon run` ended with exit code -9" in (tmp_path / "ui.log").read_text()


@pytest.mark.slow
def test_a_token_of_the_environment_is_asked_for_and_shown_to_nobody(home: Path, tmp_path: Path) -> None:
    token = "token0that0must0be0nowhere"
    with running_ui(home, tmp_path / "ui.log", environment={TOKEN_VARIABLE: token}) as ui:
        assert ui.query == f"/?token=${TOKEN_VARIABLE}"
        assert ui.request("GET", "/").status == 401
        assert ui.request("POST", "/graphql", JSON, json.dumps({"query": "{ version }"})).status == 401
        entered = ui.request("GET", f"/runs?token={token}")
        assert (entered.status, entered.headers["location"]) == (303, "/runs")
        cookie = entered.headers["set-cookie"].partition(";")[0]
        assert ui.ask("{ version }", {"Cookie": cookie})["version"]
        started = {pid: command + environment for pid, command, environment in running() if pid in ui.processes()}
        assert len(started) == 4
        del started[ui.process.pid]  # It was started with the variable; only its owner can read that.
        assert not [pid for pid, text in started.items() if token in text]
        assert ui.end(signal.SIGTERM) == 0
    assert token not in (tmp_path / "ui.log").read_text()
    assert not [path for path in home.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_new_token_is_printed_once_and_a_host_that_was_allowed_is_answered(home: Path, tmp_path: Path) -> None:
    with running_ui(home, tmp_path / "ui.log", "--token", "--allow-host", "ui.example.org") as ui:
        token = ui.query.removeprefix("/?token=")
        assert len(token) >= 32
        assert ui.request("GET", ui.query).status == 303
        assert ui.request("GET", "/", {"Authorization": f"Bearer {token}"}).status == 200
        assert ui.request("GET", "/", {"Authorization": f"Bearer {token}", "Host": "ui.example.org"}).status == 200
        assert ui.request("GET", "/", {"Authorization": f"Bearer {token}", "Host": "other.example.org"}).status == 403
        assert not [command for command in ui.processes().values() if token in command]
    assert (tmp_path / "ui.log").read_text().count(token) == 1
