"""A study in somebody else's Dagster project: the component of their `defs/` folder."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import signal
import smtplib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

import ccassets
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import job_name
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.study.schema import Study

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "dagster.md"


def blocks(heading: str) -> list[str]:
    """The Python blocks of a section of the page on Dagster."""
    section = PAGE.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
def project(tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of somebody else's, made as the page says, with an asset of their own downstream of our database."""
    root = tmp_path / "project"
    folder = root / "theirs" / "defs" / "my_study"
    folder.mkdir(parents=True)
    (root / "theirs" / "__init__.py").write_text("")
    (root / "theirs" / "definitions.py").write_text(
        "from pathlib import Path\nimport dagster as dg\n"
        "@dg.definitions\ndef defs():\n    return dg.load_from_defs_folder(path_within_project=Path(__file__).parent)\n"
    )
    (root / "pyproject.toml").write_text(
        '[project]\nname = "theirs"\nversion = "1"\n'
        '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "theirs"\n'
    )
    text = (study.folder / "defs.yaml").read_text(encoding="utf-8")
    (folder / "defs.yaml").write_text(text, encoding="utf-8")
    resources, downstream = blocks("In your own Dagster project")
    (root / "theirs" / "defs" / "resources.py").write_text(resources)
    (root / "theirs" / "defs" / "downstream.py").write_text(downstream)
    monkeypatch.syspath_prepend(str(root))
    yield root
    for name in [name for name in sys.modules if name.partition(".")[0] == "theirs"]:
        del sys.modules[name]


def run_in(project: Path, *command: str, home: Path | None = None) -> str:
    """The output of a program in the root of a project, by default with the home of that project; it has to succeed."""
    environment = {**os.environ, "PYTHONPATH": str(project), "DAGSTER_HOME": str(home or project / "home")}
    del environment["CCASSETS_HOME"]
    program = [str(Path(sys.executable).parent / command[0]), *command[1:]]
    result = subprocess.run(program, cwd=project, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_the_page_works_as_it_stands_in_their_home_and_under_their_executor(project: Path) -> None:
    (project / "home").mkdir()
    (project / "home" / "dagster.yaml").touch()
    assert "All definitions loaded successfully" in run_in(project, "dg", "check", "defs")
    run_in(project, "dg", "scaffold", "defs", "ccassets.FeatureDatabase", "another")
    scaffolded = project / "theirs" / "defs" / "another" / "defs.yaml"
    assert scaffolded.read_text(encoding="utf-8").startswith("type: ccassets.FeatureDatabase")
    shutil.rmtree(scaffolded.parent)

    launched = run_in(project, "dg", "launch", "--assets", "my_study/encoder")
    assert "Multiprocess executor" in launched
    assert (project / "home" / "storage" / "my_study" / "encoder.json").is_file()
    run_in(project, "ccassets", "build", "theirs/defs/my_study")
    assert "RUN_SUCCESS" in run_in(project, "dg", "launch", "--assets", "image_count")
    with dg.DagsterInstance.from_config(str(project / "home")) as instance:
        event = instance.get_latest_materialization_event(dg.AssetKey("image_count"))
    assert event is not None
    assert event.asset_materialization is not None
    assert event.asset_materialization.metadata["images"].value == 18
    assert (project / "home" / "dagster.yaml").read_text() == "", "their settings are never edited"


def test_a_project_without_components_loads_as_the_page_says(
    tmp_path: Path, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(study.folder, tmp_path / "my_study")
    (code,) = blocks("In a project without a `defs` folder")
    (tmp_path / "project_of_theirs.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    repository = importlib.import_module("project_of_theirs").defs.get_repository_def()
    assert (
        dg.AssetKey(["my_study", "feature_database"])
        in repository.asset_graph.get(dg.AssetKey("image_count")).parent_keys
    )
    assert repository.has_job("my_study__read_encoder")
    assert {"store", "encoder"} <= set(repository.get_top_level_resources())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_dg_lists_one_component_of_ours_under_the_name_in_study_files(tmp_path: Path) -> None:
    lines = run_in(ROOT, "dg", "list", "components", "--json", home=tmp_path).splitlines()
    listed = json.loads(next(line for line in lines if line.startswith("{")))
    keys = [item["key"] for item in listed["items"]]
    assert [key for key in keys if key.startswith("ccassets.")] == ["ccassets.FeatureDatabase"]


def test_dg_accepts_the_studies_that_ship(tmp_path: Path) -> None:
    assert "All component YAML validated successfully" in run_in(ROOT, "dg", "check", "yaml", home=tmp_path)


@contextmanager
def daemon(project: Path) -> Iterator[None]:
    """Dagster's daemon with the definitions and the home of a project."""
    environment = {**os.environ, "PYTHONPATH": str(project), "DAGSTER_HOME": str(project / "home")}
    del environment["CCASSETS_HOME"]
    program = str(Path(sys.executable).parent / "dagster-daemon")
    process = subprocess.Popen(
        [program, "run", "-m", "theirs.definitions"],
        cwd=project,
        env=environment,
        stdout=(project / "daemon.log").open("w"),
        stderr=subprocess.STDOUT,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_full_rebuild_from_the_schedule_uses_their_store(project: Path, study: Study) -> None:
    (project / "home").mkdir()
    (project / "home" / "dagster.yaml").touch()
    resources = project / "theirs" / "defs" / "resources.py"
    text = resources.read_text().replace("StoreResource()", f'StoreResource(root="{project / "their_store"}")')
    resources.write_text(text)
    assert "RUN_SUCCESS" in run_in(project, "dg", "launch", "--job", "my_study__rebuild_everything")
    with dg.DagsterInstance.from_config(str(project / "home")) as instance, daemon(project):
        [backfill] = instance.get_backfills()
        deadline = time.monotonic() + 1200
        while backfill.status.value in {"REQUESTED", "COMPLETING"}:
            assert time.monotonic() < deadline, (project / "daemon.log").read_text()
            time.sleep(2)
            [backfill] = instance.get_backfills()
        assert backfill.status.value == "COMPLETED_SUCCESS"
        runs = instance.get_runs(dg.RunsFilter(tags={"dagster/backfill": backfill.backfill_id}))
        assert all(run.tags["ccassets/fresh"] == "true" and run.remote_job_origin for run in runs)
    database = project / "their_store" / "my_study" / "conceptclip_features.h5"
    assert ccassets.validate_database(database, study=study) == []
    assert not (project / "home" / "storage" / "my_study").exists()


def test_a_failed_run_is_mailed_with_its_sentence(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    mails: list[EmailMessage] = []

    class Server(smtplib.SMTP):
        """A mail server that answers to any name and keeps what it is given."""

        def __init__(self, host: str) -> None:
            self.sock = None

        def __exit__(self, *_: object) -> None: ...

        def send_message(self, mail: EmailMessage) -> None:  # type: ignore[override]
            mails.append(mail)

    monkeypatch.setattr(smtplib, "SMTP", Server)
    page: dict[str, Any] = {}
    exec(blocks("When something fails")[0], page)
    with dagster_instance() as instance:
        job = definitions_of(study).resolve_job_def(job_name(study, "extract_text"))
        failed = job.execute_in_process(instance=instance, raise_on_error=False)
        event = next(event for event in failed.all_events if event.is_failure and not event.is_step_event)
        context = dg.build_run_status_sensor_context("mail_failures", event, instance, failed.dagster_run)
        page["mail_failures"](context.for_run_failure())
    [mail] = mails
    assert mail["Subject"] == "cells__extract_text failed"
    sentence = mail.get_content().strip()
    assert "The encoder of cells has not been identified yet." in sentence
    assert sentence.endswith("/cells`.")


def test_their_component_has_the_values_of_environment_variables(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project / "theirs" / "defs" / "my_study" / "defs.yaml"
    written = yaml.safe_load(path.read_text(encoding="utf-8"))
    written["attributes"]["owners"] = ["{{ env.OWNER }}"]
    path.write_text(yaml.safe_dump(written), encoding="utf-8")
    monkeypatch.setenv("OWNER", "team:cells")
    graph = dg.load_from_defs_folder(path_within_project=project / "theirs").resolve_asset_graph()
    assert graph.get(dg.AssetKey(["my_study", "feature_database"])).owners == ["team:cells"]


def test_three_studies_load_from_a_foreign_defs_folder_beside_an_asset_of_theirs(project: Path) -> None:
    for name in ("second", "third"):
        shutil.copytree(project / "theirs" / "defs" / "my_study", project / "theirs" / "defs" / name)
    definitions = dg.load_from_defs_folder(path_within_project=project / "theirs")
    dg.Definitions.validate_loadable(definitions)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().materializable_asset_keys}
    databases = {f"{name}/feature_database" for name in ("my_study", "second", "third")}
    assert {"image_count", *databases} <= keys


def test_a_wrong_key_is_named_with_file_and_line(project: Path) -> None:
    path = project / "theirs" / "defs" / "my_study" / "defs.yaml"
    text = path.read_text(encoding="utf-8").replace("batch_size:", "batchsize:")
    path.write_text(text, encoding="utf-8")
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "batchsize" in row)
    with pytest.raises(Exception, match="my_study") as caught:
        dg.load_from_defs_folder(path_within_project=project / "theirs")
    shown = "".join(traceback.format_exception(caught.value))
    assert f"defs.yaml:{line}" in shown
    assert "batchsize" in shown


def test_a_foreign_store_is_used(study: Study, tmp_path: Path) -> None:
    store = StoreResource(root=str(tmp_path / "elsewhere"))
    assert store.of(study).database == tmp_path / "elsewhere" / "cells" / "conceptclip_features.h5"
    assert EncoderResource().device is None
