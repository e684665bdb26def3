"""Commands on files of unknown origin: a sentence within limits, and no file that commands terminal or spreadsheet."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ccassets.analysis.concept_models import MAX_MODEL_BYTES
from ccassets.database.reader import open_database
from ccassets.errors import DatabaseError
from ccassets.exports import export
from ccassets.pages.explorer.explorer_state import Explorer
from ccassets_tests.cli.command_line import run, run_in_process
from ccassets_tests.database.made_files import write_database


def _replaced(name: str, **options: object) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return edit


def _nested(file: h5py.File) -> None:
    group = file
    for _ in range(3000):
        group = group.create_group("deeper")


HOSTILE = {
    "keys of 16 GB": _replaced("keys", shape=(1 << 28,), dtype="S64", chunks=(1 << 20,), compression="gzip"),
    "labels of 16 GB": _replaced("labels", shape=(1 << 31,), dtype="<i8", chunks=(1 << 20,), compression="gzip"),
    "features of 512 TB": _replaced("image_features", shape=(1 << 40, 256), dtype="<f2", chunks=(1024, 256)),
    "features of one value": _replaced("image_features", data=np.float16(1)),
    "fewer labels than images": _replaced("labels", data=np.zeros(3, np.int64)),
}


@pytest.mark.parametrize("command", [["search", "--row", "0"], ["duplicates"]], ids=lambda command: command[0])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_a_sentence(name: str, command: list[str], tmp_path: Path) -> None:
    path = write_database(tmp_path / "hostile.h5")
    with h5py.File(path, "r+") as file:
        HOSTILE[name](file)

    result = run(*command[:1], path, *command[1:])

    assert result.code == 2, result
    assert str(path) in result.err
    assert "Unexpected" not in result.err


@pytest.mark.parametrize("name", ["keys of 16 GB", "features of 512 TB", "features of one value"])
def test_a_hostile_file_is_not_exported(name: str, tmp_path: Path) -> None:
    path = write_database(tmp_path / "hostile.h5")
    with h5py.File(path, "r+") as file:
        HOSTILE[name](file)
    with open_database(path) as database, pytest.raises(DatabaseError, match=re.escape(str(path))):
        export(database, tmp_path / "scores.csv")
    assert not (tmp_path / "scores.csv").exists()


ODD_PROVENANCES = {
    "texts": dict.fromkeys(("encoder", "dataset", "created", "digests", "extraction", "parts"), "odd"),
    "splits of texts": {
        "dataset": {"license": "mit", "splits": {"train": "odd"}},
        "parts": [1, {"order": "unverified"}],
    },
    "lists of texts": {
        "dataset": {
            "license": "mit",
            "splits": {"train": {"skipped": "odd", "blank": ["odd", -1], "overridden": "odd"}},
        },
        "encoder": {"recorded": "odd", "identity": "0" * 32},
        "digests": {"splits": "odd"},
    },
}
"""Provenances that are JSON objects, and hold something else where the format has objects and lists."""


@pytest.mark.parametrize("name", ODD_PROVENANCES)
def test_an_odd_provenance_is_no_defect_of_ours(name: str, tmp_path: Path) -> None:
    path = write_database(tmp_path / "odd.h5")
    with h5py.File(path, "r+") as file:
        file.attrs["provenance"] = json.dumps(ODD_PROVENANCES[name])
        key = file["keys"][0].decode()
    for command in (
        ["search", path, "--row", "0"],
        ["duplicates", path],
        ["explain", path, key],
        ["publish", path, tmp_path / "published"],
    ):
        result = run(*command)
        assert "Unexpected" not in result.err, (command, result)
    with open_database(path) as database:
        explorer = Explorer(database)
        assert explorer.info()["rows"] == len(database)
        assert explorer.left_out() == {"skipped": [], "rows": [], "total": 0}


def test_groups_in_groups_do_not_keep_a_search(tmp_path: Path) -> None:
    path = write_database(tmp_path / "nested.h5")
    with h5py.File(path, "r+") as file:
        _nested(file)
    result = run("search", path, "--row", "0")
    assert result.code == 0 or str(path) in result.err


@pytest.mark.parametrize("kind", ["device", "pipe", "large"])
def test_what_is_no_stored_classifier_is_not_opened(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    if kind == "device":
        model.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(model)
    else:
        model.touch()
        os.truncate(model, MAX_MODEL_BYTES + 1)
    result = run("apply", model, write_database(tmp_path / "a.h5"))
    assert result.code == 2
    expected = {"device": "it is a device", "pipe": "it is a named pipe", "large": "more than the 67,108,864"}[kind]
    assert expected in result.err


HOSTILE_KEY = "=cmd|' /C calc'!A0\x1b]0;owned\x07\n\x9b31m\u202egnp.png"


def _with_hostile_keys(path: Path) -> Path:
    write_database(path)
    with h5py.File(path, "r+") as file:
        keys = file["keys"]
        for row in range(len(keys)):
            keys[row] = f"{HOSTILE_KEY}{row}"
    return path


@pytest.mark.slow
def test_no_name_of_a_file_commands_the_terminal(tmp_path: Path) -> None:
    path = _with_hostile_keys(tmp_path / "a\x1b[31m.h5")
    for command in (
        ["search", path, "--row", "0"],
        ["search", path, "--row", "0", "--json"],
        ["duplicates", path, "--similarity", "-1"],
        ["duplicates", path, "--similarity", "-1", "--json"],
        ["info", path],
        ["validate", path],
        ["search", path, "--concept", "none\x1b[2J"],
        ["info", tmp_path / "no\x1b[2J.h5"],
    ):
        result = run_in_process(*command)
        said = result.out + result.err
        assert said
        assert not set(said) & set("\x1b\x07\x9b\u202e"), command
    lines = run("search", path, "--row", "0").out.splitlines()
    assert all("row " in line for line in lines)
    hits = json.loads(run("search", path, "--row", "0", "--json").out)
    assert hits[0]["key"].startswith(HOSTILE_KEY)


def test_no_cell_is_a_formula(tmp_path: Path) -> None:
    path = _with_hostile_keys(tmp_path / "a.h5")
    run("search", path, "--row", "0", "--output", tmp_path / "hits.csv")
    run("duplicates", path, "--similarity", "-1", "--output", tmp_path / "pairs.csv")
    for name in ("hits.csv", "pairs.csv"):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        for row in rows:
            assert row["key"].startswith(f"'{HOSTILE_KEY}")
