"""Hostile HDF5 files: refused with a sentence, nothing beside them opened, memory and time bounded."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import h5py
import pytest

from ccassets.database.sandbox import summarize_in_sandbox
from ccassets.database.validation import validate_database
from ccassets.errors import DatabaseError
from ccassets_tests.campaigns.examination import MEMORY, examine
from ccassets_tests.database.made_files import study, write_database
from ccassets_tests.hostile.case import Case
from ccassets_tests.hostile.hdf5 import CASES, OUTSIDE
from ccassets_tests.hostile.limited_process import opened_in


def made(name: str, folder: Path) -> Path:
    return next(case for case in CASES if case.name == name).make(folder)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_hostile_file_gets_its_sentence_and_nothing_beside_it_is_opened(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    outside = tmp_path / OUTSIDE
    outside.mkdir(exist_ok=True)
    with opened_in(outside) as opened:
        outcome = examine(path)
    assert outcome.end in {"findings", "refused", "died", "stuck"}, outcome.text
    assert case.sentence in outcome.text
    assert opened == []
    assert outcome.peak_bytes < MEMORY


def test_the_watch_sees_what_hdf5_opens_when_it_follows_a_link(tmp_path: Path) -> None:
    path = made("external link for a data set", tmp_path)
    with opened_in(tmp_path / OUTSIDE) as opened, h5py.File(path) as file:
        file["image_features"][:]
    assert opened == ["other.h5"]


# --- in a child process -------------------------------------------------------------------------------


def test_a_file_that_brings_hdf5_down_is_a_finding(tmp_path: Path) -> None:
    path = made("groups that are their own children", tmp_path)
    assert [(finding.check, finding.severity) for finding in validate_database(path, sandbox=True)] == [
        ("unreadable", "error")
    ]
    with pytest.raises(DatabaseError, match="cannot be read"):
        summarize_in_sandbox(path)


def test_a_chunk_that_inflates_without_end_is_a_finding(tmp_path: Path) -> None:
    findings = validate_database(made("chunk that inflates to 16 GB", tmp_path), sandbox=True)
    assert ("unreadable", "/labels") in [(finding.check, finding.where) for finding in findings]


def test_the_child_finds_what_the_validator_finds(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["labels"][3] = 77
        file["image_features"][5] = 0
    expected = validate_database(path, study=study(), deep=True)
    assert len(expected) > 2
    assert validate_database(path, study=study(), deep=True, sandbox=True) == expected
    labels = [finding for finding in expected if finding.check == "labels"]
    assert len(labels) == 1
    assert validate_database(path, sandbox=True, only={"labels"}) == labels
    assert summarize_in_sandbox(path)["rows"] == 20


def test_a_file_that_is_no_hdf5_is_refused_as_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_text("no")
    for read in (partial(validate_database, sandbox=True), summarize_in_sandbox, validate_database):
        with pytest.raises(DatabaseError, match="cannot be opened as HDF5"):
            read(path)


_LOADED_BY = """
import runpy, sys
before = set(sys.modules)
runpy.run_module(sys.argv[1], run_name="__main__")
print("", *(set(sys.modules) - before), sep="\\n")
"""


_NEEDED = {"ccassets", "h5py", "numkong", "numpy", "xxhash", "yaml"}
_OF_PYDANTIC = {"annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"}


@pytest.mark.parametrize(("with_study", "allowed"), [(False, _NEEDED), (True, _NEEDED | _OF_PYDANTIC)])
def test_the_child_loads_nothing_but_what_reading_a_file_needs(
    tmp_path: Path, with_study: bool, allowed: set[str]
) -> None:
    attributes = study().model_dump(mode="json") if with_study else None
    request = {"task": "validate", "path": str(write_database(tmp_path / "a.h5")), "deep": True}
    child = subprocess.run(
        [sys.executable, "-c", _LOADED_BY, "ccassets.database.sandbox_worker"],
        input=json.dumps({**request, "study": attributes, "only": None}),
        capture_output=True,
        text=True,
        check=True,
    )
    answer, *modules = child.stdout.splitlines()
    assert json.loads(answer) == {"answer": []}
    loaded = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    libraries = {name for name in loaded if not name.startswith(("_", "cython"))}
    assert libraries <= allowed
    assert ("pydantic" in libraries) == with_study


# --- on the command line ------------------------------------------------------------------------------


def ccassets(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ccassets.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_line_survives_a_file_that_brings_hdf5_down(tmp_path: Path) -> None:
    path = made("groups that are their own children", tmp_path)
    validated = ccassets("validate", str(path), "--json")
    assert validated.returncode == 1
    answer = json.loads(validated.stdout)
    assert not answer["ok"]
    assert [finding["check"] for finding in answer["findings"]] == ["unreadable"]
    shown = ccassets("info", str(path))
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"ccassets: {path}")
    assert "cannot be read" in shown.stderr
    assert "Traceback" not in validated.stderr + shown.stderr
