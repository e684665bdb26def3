"""The files of `deploy/`: what they name exists; where PostgreSQL is, the services run together as processes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccassets.orchestration.instance import SHIPPED_DAGSTER_YAML, dagster_instance
from ccassets.orchestration.names import CODE_LOCATION
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.deploy.postgres_server import free_port, postgres_server
from ccassets_tests.house.source_tree import PACKAGE, ROOT, python_files
from ccassets_tests.orchestration.test_daemon import wait_for

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OWN_SERVICES = {name: service for name, service in COMPOSE["services"].items() if service["image"] == "ccassets"}
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
VARIABLE = re.compile(r"\$\{(\w+)")
TOKEN = "a-token-of-the-test"


def command_of(service: str) -> list[str]:
    """The command of a service, run by the Python of this test."""
    name, *arguments = OWN_SERVICES[service]["command"]
    return [str(Path(sys.executable).parent / name), *arguments]


@pytest.mark.parametrize("service", OWN_SERVICES)
def test_commands_and_their_options_exist(service: str) -> None:
    command = command_of(service)
    options = {part.partition("=")[0] for part in command if part.startswith("--")}
    plain = [part for part in command if not part.startswith("--")]
    text = subprocess.run([*plain, "--help"], capture_output=True, text=True, check=True).stdout
    assert {option for option in options if option not in text} == set()


def test_every_variable_is_named_in_the_example_and_read_by_somebody() -> None:
    example = set(re.findall(r"^(\w+)=", (DEPLOY / ".env.example").read_text(), re.MULTILINE))
    assert set(VARIABLE.findall((DEPLOY / "compose.yaml").read_text())) == example

    instance = yaml.safe_load((DEPLOY / "dagster.yaml").read_text())
    asked_for = set(re.findall(r"\{env: (\w+)\}", (DEPLOY / "dagster.yaml").read_text()))
    for service in OWN_SERVICES.values():
        assert asked_for <= set(service["environment"])
    assert instance.pop("storage")
    assert instance == yaml.safe_load(SHIPPED_DAGSTER_YAML.read_text())

    sources = "".join(path.read_text(encoding="utf-8") for path in python_files(PACKAGE))
    set_by_image = set(re.findall(r"(\w+)=/srv", DOCKERFILE))
    given = set_by_image | {name for service in OWN_SERVICES.values() for name in service["environment"]}
    assert {name for name in given - asked_for if name not in sources} == set()


def test_everything_that_is_copied_or_mounted_is_there() -> None:
    [copied] = re.findall(r"^COPY (.+) \./$", DOCKERFILE, re.MULTILINE)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().split()
    for name in (*copied.split(), PACKAGE.name):
        assert (ROOT / name).exists()
        assert f"!{name}" in ignored
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).is_file()
            elif not source.startswith("$"):
                assert source in COMPOSE["volumes"]
    assert OWN_SERVICES["code"]["build"] == {"context": "..", "dockerfile": "deploy/Dockerfile"}
    assert yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"].keys() <= OWN_SERVICES.keys()


def test_the_ui_shows_the_code_server_and_is_alone_in_being_reached_from_outside() -> None:
    [entry] = yaml.safe_load((DEPLOY / "workspace.yaml").read_text())["load_from"]
    [server] = entry.values()
    assert server["location_name"] == CODE_LOCATION
    assert f"--port={server['port']}" in OWN_SERVICES[server["host"]]["command"]
    published = {name: service["ports"] for name, service in COMPOSE["services"].items() if "ports" in service}
    assert published == {"ui": ["127.0.0.1:3000:3000"]}


# --- the services as processes of this machine --------------------------------------------------------


@contextmanager
def running(command: list[str], log: Path, environment: dict[str, str]) -> Iterator[None]:
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ask(port: int, query: str) -> Any:
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
    body = json.dumps({"query": query}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, headers)) as answer:
        return json.load(answer)["data"]


def answers(port: int) -> bool:
    try:
        return bool(ask(port, "{ version }"))
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_services_run_a_job_with_records_on_postgresql(
    study: Study, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.mkdir()
    code_port, ui_port = free_port(), free_port()
    (home / "dagster.yaml").write_text((DEPLOY / "dagster.yaml").read_text())
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(
        (DEPLOY / "workspace.yaml").read_text().replace("host: code", "host: 127.0.0.1").replace("4000", str(code_port))
    )
    moved = {
        "--host=0.0.0.0": "--host=127.0.0.1",
        "--port=4000": f"--port={code_port}",
        "--port=3000": f"--port={ui_port}",
        "--workspace=/srv/ccassets/workspace.yaml": f"--workspace={workspace}",
    }
    with ExitStack() as stack:
        server = stack.enter_context(postgres_server(with_port=True))
        server.create_database(COMPOSE["services"]["postgres"]["environment"]["POSTGRES_DB"])
        variables = {"POSTGRES_HOST": "127.0.0.1", "POSTGRES_PORT": str(server.port), "POSTGRES_PASSWORD": "any"}
        for name, value in (*variables.items(), ("CCASSETS_STUDIES", str(study.folder.parent))):
            monkeypatch.setenv(name, value)
        with dagster_instance() as instance:
            assert "Postgres" in type(instance.run_storage).__name__
        environment = {**os.environ, "DAGSTER_HOME": str(home), "CCASSETS_UI_TOKEN": TOKEN}
        logs = {name: tmp_path / f"{name}.log" for name in OWN_SERVICES}
        for name in OWN_SERVICES:
            command = [moved.get(part, part) for part in command_of(name)]
            stack.enter_context(running(command, logs[name], environment))
            if name == "code":
                health = [*command_of("code")[:1], *OWN_SERVICES["code"]["healthcheck"]["test"][2:]]
                health = [moved.get(part, part) for part in health]
                wait_for(lambda health=health: subprocess.run(health, capture_output=True).returncode == 0, 180)
        wait_for(lambda: answers(ui_port), 180)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{ui_port}/")
        selector = f'repositoryLocationName: "{CODE_LOCATION}", repositoryName: "__repository__"'
        launched = ask(
            ui_port,
            f'mutation {{ launchRun(executionParams: {{selector: {{{selector}, jobName: "cells__read_encoder"}}}}) '
            "{ __typename ... on LaunchRunSuccess { run { runId } } } }",
        )["launchRun"]
        assert launched["__typename"] == "LaunchRunSuccess", launched
        with dagster_instance() as instance:
            run_id = launched["run"]["runId"]
            wait_for(lambda: (run := instance.get_run_by_id(run_id)) is not None and run.is_finished, 300)
            run = instance.get_run_by_id(run_id)
            assert run is not None
            assert run.is_success
    assert Store.of(study).encoder_card.is_file()
