"""The doctor on machines and studies without problems, and for each reason why a build cannot start."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml

import ccassets
from ccassets.errors import CcassetsError, StorageError
from ccassets.files import DIGEST_CACHE
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store, storage_root
from ccassets.tools import doctor
from ccassets.tools.doctor import Diagnosis
from ccassets_tests.encoders.hub import TOKEN, Hub, hub_of
from ccassets_tests.made_studies import edit_study, write_study
from ccassets_tests.tools.doctor_lines import doctor_lines

FOREIGN_YAML = "concurrency:\n  runs:\n    max_concurrent_runs: 4\n"


def line(what: str, study: Study | None = None) -> Diagnosis:
    """The one line about something."""
    lines = [diagnosis for diagnosis in doctor_lines(study) if diagnosis.what == what]
    assert len(lines) == 1, lines
    return lines[0]


def run(study: Study, **environment: str) -> dict[str, dict[str, str]]:
    """What `ccassets doctor --json` says in a process of its own, by what it looked at."""
    result = subprocess.run(
        [sys.executable, "-m", "ccassets.cli", "doctor", str(study.folder), "--json"],
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in result.stdout + result.stderr
    content = json.loads(result.stdout)
    assert content["ok"] == (result.returncode == 0) == all(line["level"] != "problem" for line in content["lines"])
    return {line["what"]: line for line in content["lines"]}


def test_a_study_that_can_be_built_has_no_problem_before_and_after_it_was_built(study: Study) -> None:
    before = doctor_lines(study)
    assert {diagnosis.level for diagnosis in before} == {"ok", "warning"}, before
    assert [diagnosis.what for diagnosis in before if diagnosis.level == "warning"] == ["device"]
    assert "train 9, val 5, test 4" in line("data set", study).message
    assert "will take" in line("disk", study).message

    path = ccassets.build(study)
    assert path is not None
    assert re.fullmatch(r"\d+ built", line("assets", study).message)
    assert "nothing left to write" in line("disk", study).message

    path.unlink()
    lost = next(diagnosis.message for diagnosis in doctor_lines(study) if diagnosis.what == "assets")
    assert lost == "deleted or replaced by hand: feature_database"


def test_looking_makes_nothing(study: Study, home: Path) -> None:
    doctor_lines(study)
    assert not home.exists()


def test_a_torchvision_of_another_release_is_named_with_what_to_install(study: Study, tmp_path: Path) -> None:
    stub = tmp_path / "path" / "torchvision"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    diagnosis = run(study, PYTHONPATH=str(stub.parent))["libraries"]
    assert diagnosis["level"] == "problem"
    assert "torchvision::nms" in diagnosis["message"]
    assert "pip install --upgrade torch torchvision" in diagnosis["advice"]


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "file" / "home"))
    assert line("home").level == "problem"
    assert "is a file" in line("home").message
    assert line("disk").level == "problem"


def test_a_disk_without_locks_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for what in ("home", "disk"):
        assert line(what).level == "problem"
        assert "does not lock files" in line(what).message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_belongs_to_somebody_else_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs").mkdir(mode=0o555)
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "theirs"))
    assert "is not writable" in line("home").message


def test_a_foreign_home_without_a_limit_gets_lines_to_merge_and_no_edit(home: Path) -> None:
    home.mkdir()
    file = home / "dagster.yaml"
    file.write_text(FOREIGN_YAML)
    diagnosis = line("home")
    assert diagnosis.level == "warning"
    assert "no limit for the pool ccassets_encoder" in diagnosis.message
    assert file.read_text() == FOREIGN_YAML

    lines = yaml.safe_load(diagnosis.advice.partition("\n")[2])
    foreign = yaml.safe_load(FOREIGN_YAML)
    merged = {**lines, "concurrency": {**foreign["concurrency"], **lines["concurrency"]}}
    file.write_text(yaml.safe_dump(merged))
    assert line("home").level == "ok"


def test_a_home_with_records_and_without_settings_gets_lines_to_merge_and_no_settings(home: Path) -> None:
    home.mkdir()
    with dg.DagsterInstance.from_config(str(home)) as instance:  # As plain Dagster makes one without dagster.yaml.
        instance.add_dynamic_partitions("theirs", ["a"])
    assert not (home / "dagster.yaml").exists()
    diagnosis = line("home")
    assert diagnosis.level == "warning"
    assert "no limit for the pool ccassets_encoder" in diagnosis.message
    assert not (home / "dagster.yaml").exists()


def test_a_home_that_dagster_cannot_use_is_a_problem(home: Path, study: Study) -> None:
    home.mkdir()
    (home / "dagster.yaml").write_text("concurrency: {pools: {default_limit: many}}\n")
    assert line("home").level == "problem"
    assert "many" in line("home").message
    (home / "dagster.yaml").write_text("storage: {postgres: {postgres_url: 'nothing://a@b/c'}}\n")
    with pytest.raises(StorageError, match=r"Dagster cannot use the home [^:]+: .*\nCorrect .*dagster\.yaml"):
        ccassets.build(study)


def test_a_broken_study_file_is_named_since_the_ui_leaves_it_out(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    assert "cells" in line("studies").message
    shutil.copytree(study.folder, study.folder.parent / "other")
    (study.folder.parent / "other" / "defs.yaml").write_text("type: ccassets.FeatureDatabase\nattribute: {}\n")
    diagnosis = line("studies")
    assert diagnosis.level == "problem"
    assert "other/defs.yaml:2: attribute" in diagnosis.message
    assert "the UI leaves them out" in diagnosis.advice


def test_a_study_folder_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path / "nowhere"))
    assert line("studies").level == "problem"
    assert "nowhere, which is not a folder" in line("studies").message


def test_images_that_are_not_there_are_a_problem(study: Study, image_folder: Path) -> None:
    shutil.rmtree(image_folder / "val")
    assert line("data set", study).level == "problem"
    assert "no folder for the split 'val'" in line("data set", study).message


@pytest.mark.parametrize(("download", "level"), [(True, "warning"), (False, "problem")])
def test_an_archive_that_is_not_there_is_downloaded_or_missing(study: Study, download: bool, level: str) -> None:
    archive = {"kind": "medmnist", "name": "bloodmnist", "size": 224, "root": "archives", "download": download}
    edited = edit_study(study, lambda a: a.update(dataset=archive))
    diagnosis = line("data set", edited)
    assert diagnosis.level == level
    assert "bloodmnist_224.npz" in diagnosis.message
    assert "zenodo.org" in diagnosis.advice
    assert not (study.folder / "archives").exists()


def test_the_disk_for_the_published_model_is_told_before_anything_is_downloaded(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = {"kind": "medmnist", "name": "bloodmnist", "size": 224, "download": True}
    encoder = {"kind": "conceptclip", "weights": "nobody/nothing"}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    big = edit_study(study, lambda a: a.update(dataset=archive, encoder=encoder))
    assert "will take 57.5 GB" in line("disk", big).message

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("ccassets.tools.doctor.disk_usage", lambda path: usage(0, 0, 10**10))
    diagnosis = line("disk", big)
    assert diagnosis.level == "problem"
    assert "10.0 GB free" in diagnosis.message
    assert "CCASSETS_STORAGE" in diagnosis.advice


def test_weights_that_are_not_there_or_do_not_fit_are_a_problem(study: Study, weights: Path) -> None:
    (weights / "vocab.txt").unlink()
    assert "holds no tokenizer" in line("weights", study).message
    shutil.rmtree(weights)
    assert line("weights", study).level == "problem"
    assert "There is no folder" in line("weights", study).message


@pytest.mark.parametrize(
    "vocabulary",
    [
        {"concepts": {"words": ["Cell", "cell "], "templates": ["a {}"]}},
        {"labels": {"words": ["cell"], "templates": ["a photo of a {}", "A Photo of a {}"]}},
    ],
)
def test_prompts_that_the_model_reads_as_one_are_warned_of(study: Study, vocabulary: dict[str, object]) -> None:
    edited = edit_study(study, lambda a: a.update(encoder={"kind": "phantom"}, vocabulary=vocabulary))
    diagnosis = line("prompts", edited)
    assert diagnosis.level == "warning"
    assert "the model reads 'a" in diagnosis.message.lower()


@pytest.fixture
def hub(weights: Path) -> Iterator[Hub]:
    with hub_of(weights) as hub:
        yield hub


@pytest.mark.slow
def test_the_hub_is_asked_for_what_is_not_here_and_nothing_is_fetched(study: Study, hub: Hub, tmp_path: Path) -> None:
    hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN}

    def ask(weights: str, **environment: str) -> dict[str, dict[str, str]]:
        return run(edit_study(study, lambda a: a["encoder"].update(weights=weights)), **hf, **environment)

    gated = ask("lab/gated")
    assert gated["token"]["message"].startswith("set for")
    assert gated["weights"]["level"] == "problem"
    assert f"accept its terms at {hub.url}/lab/gated" in gated["weights"]["message"]
    open_one = ask("lab/tiny")
    assert open_one["weights"]["level"] == "ok"
    assert "will be downloaded by the first build" in open_one["weights"]["message"]
    assert not [path for path in hub.requested_paths if "/resolve/" in path]
    nobody = run(load_study(study.folder), **{**hf, "HF_ENDPOINT": "http://127.0.0.1:9"})
    assert "http://127.0.0.1:9 cannot be reached" in nobody["weights"]["message"]


def test_assets_that_failed_are_listed(study: Study, image_folder: Path) -> None:
    (image_folder / "val" / "white" / "002.png").write_bytes(b"no picture")
    with pytest.raises(CcassetsError):
        ccassets.build(study)
    failed = [line for line in doctor_lines(study) if (line.what, line.level) == ("assets", "warning")]
    assert failed[0].message == "failed when they were last run: images:val"


def test_a_storage_elsewhere_is_the_one_that_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STORAGE", str(tmp_path / "large"))
    assert str(storage_root()) in line("disk").message


def test_a_study_of_one_s_own_encoder_is_looked_at_too(study: Study, image_folder: Path) -> None:
    broken = write_study(study.folder, images=image_folder, encoder={"kind": "python", "target": "nowhere:Encoder"})
    assert line("weights", broken).level == "problem"
    assert "nowhere:Encoder cannot be made" in line("weights", broken).message


def test_digests_that_older_code_kept_are_compared_with_the_weights(
    study: Study, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a digest has none of its own, so nothing else can tell that it is damaged."""
    identity = ccassets.identify_encoder(study).identity
    cache = Store.of(study).cache / DIGEST_CACHE
    kept = {key: entry.partition(" ")[0] for key, entry in json.loads(cache.read_text()).items()}
    cache.write_text(json.dumps(kept))
    assert line("weights", study).level == "ok"

    cache.write_text(json.dumps({key: digest[::-1] for key, digest in kept.items()}))
    wrong = line("weights", study)
    assert (wrong.level, identity in wrong.message) == ("problem", True)
    assert wrong.advice == f"Remove {cache}: it is made again."

    monkeypatch.setattr(doctor, "_QUICK_BYTES", 1000)
    assert "`--deep` computes the digests of" in line("weights", study).message
    assert [line.level for line in doctor_lines(study, deep=True) if line.what == "weights"] == ["problem"]
    cache.unlink()
    assert identity in line("weights", study).message
