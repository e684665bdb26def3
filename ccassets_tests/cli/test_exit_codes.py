"""Exit codes: 2 with one message on stderr for wrong use and unreadable input, in every command."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ccassets.study.schema import Study
from ccassets_tests.cli.command_line import COMMANDS, Result, run
from ccassets_tests.database.made_files import write_database
from ccassets_tests.made_studies import DATA, edit_study

Command = tuple[str, ...]
"""The words of a command; FILE, STUDY and DIR stand for paths."""

FILE_COMMANDS: list[Command] = [
    ("info", "FILE"),
    ("info", "FILE", "--json"),
    ("validate", "FILE"),
    ("validate", "FILE", "--json"),
    ("adopt", "FILE", "STUDY"),
    ("search", "FILE", "--row", "0"),
    ("duplicates", "FILE"),
    ("apply", "FILE", "FILE"),
    ("compare", "FILE", "FILE"),
    ("export", "FILE", "DIR", "--format", "csv"),
    ("publish", "FILE", "DIR"),
    ("explain", "FILE", "train/0"),
    ("explore", "FILE", "--no-browser"),
]
STUDY_COMMANDS: list[Command] = [
    ("build", "STUDY"),
    ("build", "STUDY", "--plan"),
    ("extract", "STUDY"),
    ("prune", "STUDY"),
    ("doctor", "STUDY"),
    ("bundle", "STUDY", "--output", "DIR"),
    ("precision-drift", "STUDY"),
    ("certify", "STUDY"),
    ("table", "STUDY", "--output", "DIR"),
    ("compare", "FILE", "FILE", "--study", "STUDY"),
    ("validate", "FILE", "--study", "STUDY"),
    ("adopt", "FILE", "STUDY"),
    ("search", "FILE", "--text", "a cell", "--study", "STUDY"),
    ("search", "FILE", "--row", "0", "--output-images", "DIR", "--study", "STUDY"),
    ("explore", "STUDY", "--no-browser"),
]
IMAGE_COMMANDS: list[Command] = [
    ("build", "STUDY"),
    ("build", "STUDY", "--plan"),
    ("bundle", "STUDY", "--output", "DIR"),
    ("precision-drift", "STUDY"),
    ("certify", "STUDY"),
    ("adopt", "FILE", "STUDY"),
]
WEIGHTS_COMMANDS: list[Command] = [*IMAGE_COMMANDS, ("search", "FILE", "--text", "a cell", "--study", "STUDY")]


def fill(command: Command, folder: Path, *, file: Path | None = None, study: object = "demo") -> list[object]:
    """The words of a command with paths for FILE, STUDY and DIR."""
    file = file or DATA / "legacy" / "legacy_good.h5"
    paths = {"FILE": file, "STUDY": study, "DIR": folder / "output"}
    return [paths.get(word, word) for word in command]


def names_of(commands: list[Command]) -> list[str]:
    return [" ".join(command) for command in commands]


def assert_refused(result: Result, *parts: str) -> None:
    """The command ended with 2, printed nothing, and wrote one message with the given parts to stderr."""
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("ccassets: "), result.err
    assert "Traceback" not in result.err
    assert [part for part in parts if part not in result.err] == [], result.err


def test_the_tables_cover_every_command_that_takes_a_file_or_a_study() -> None:
    files = {
        name
        for name, command in COMMANDS.items()
        if any("FILE" in (one.metavar or "").split("|") for one in command.params)
    }
    studies = {
        name for name, command in COMMANDS.items() if any("STUDY" in (one.metavar or "") for one in command.params)
    }
    assert {command[0] for command in FILE_COMMANDS} == files
    assert {command[0] for command in STUDY_COMMANDS} == studies


# --- files -------------------------------------------------------------------------------------------


def cut_in_half(path: Path) -> None:
    whole = (DATA / "legacy" / "legacy_good.h5").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "a text": lambda path: path.write_text("no HDF5 file"),
    "without bytes": Path.touch,
    "cut in half": cut_in_half,
    "an empty folder": Path.mkdir,
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("command", FILE_COMMANDS, ids=names_of(FILE_COMMANDS))
def test_an_unreadable_file_is_one_clear_sentence(tmp_path: Path, command: Command, kind: str) -> None:
    path = tmp_path / "file.h5"
    UNREADABLE[kind](path)
    result = run(*fill(command, tmp_path, file=path))
    assert_refused(result, "file.h5")
    assert len(result.err.splitlines()) == 1


# --- studies -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", STUDY_COMMANDS, ids=names_of(STUDY_COMMANDS))
@pytest.mark.parametrize("kind", ["an unknown name", "a missing path", "an empty folder"])
def test_an_unknown_study_is_answered_with_those_there_are(tmp_path: Path, command: Command, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    study = {"an unknown name": "nothing", "a missing path": "no/defs.yaml", "an empty folder": tmp_path / "empty"}[
        kind
    ]
    result = run(*fill(command, tmp_path, study=study))
    assert_refused(result, f"There is no study '{study}'. Known studies: bloodmnist")
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("kind", ["missing", "an empty folder"])
@pytest.mark.parametrize("command", IMAGE_COMMANDS, ids=names_of(IMAGE_COMMANDS))
def test_images_that_are_missing_are_named(
    study: Study, image_folder: Path, tmp_path: Path, command: Command, kind: str
) -> None:
    shutil.rmtree(image_folder)
    if kind == "an empty folder":
        image_folder.mkdir()
    assert_refused(run(*fill(command, tmp_path, study=study.folder)), str(image_folder))


@pytest.mark.parametrize("command", WEIGHTS_COMMANDS, ids=names_of(WEIGHTS_COMMANDS))
def test_weights_that_are_missing_are_named(study: Study, weights: Path, tmp_path: Path, command: Command) -> None:
    shutil.rmtree(weights)
    assert_refused(run(*fill(command, tmp_path, study=study.folder)), f"There is no folder {weights}")


def test_an_extraction_before_the_images_were_read_says_what_to_run_first(study: Study) -> None:
    assert_refused(run("extract", study.folder), "--plan` once")


@pytest.mark.parametrize("option", [[], ["--plan"]])
def test_a_split_that_a_study_does_not_have_is_wrong_use(study: Study, option: list[str]) -> None:
    assert_refused(
        run("build", study.folder, "--split", "dev", *option), "cells has no split 'dev'; it has train, val, test"
    )


def test_a_table_that_is_missing_or_broken_is_unreadable_input(study: Study, tmp_path: Path) -> None:
    table = tmp_path / "cells.csv"
    edit_study(study, lambda a: a.update(dataset={"kind": "table", "file": str(table), "splits": ["train"]}))
    assert_refused(run("build", study.folder, "--plan"), f"The table {table}")
    table.write_text("a;b\n1;2\n")
    assert_refused(run("build", study.folder, "--plan"), "cells.csv")


# --- new studies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "option", "value", "message"),
    [
        ("mine", "--folder", "nowhere", "There is no folder"),
        ("mine", "--folder", "file", "There is no folder"),
        ("mine", "--folder", "empty", "holds no images"),
        ("mine", "--medmnist", "retinamnst", "no 2D set 'retinamnst'"),
        ("my study", "--medmnist", "bloodmnist", "'my study' cannot name a study"),
    ],
)
def test_a_new_study_of_nothing_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, option: str, value: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert_refused(run("new-study", name, option, value), message)
    assert not (tmp_path / "studies").exists()


# --- classifiers and options -------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "no JSON", "{}"])
def test_a_classifier_that_cannot_be_read_is_named(tmp_path: Path, text: str | None) -> None:
    model = tmp_path / "model.json"
    if text is not None:
        model.write_text(text)
    assert_refused(run("apply", model, write_database(tmp_path / "a.h5")), "model.json")


def test_a_database_in_the_place_of_the_classifier_is_noticed(tmp_path: Path) -> None:
    database = write_database(tmp_path / "a.h5")
    assert_refused(run("apply", database, tmp_path / "model.json"), "a.h5: expected a stored classifier", "first")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--concept", "nothing"], "no concepts ['nothing']"),
        (["--row", "99"], "has 20 rows"),
        (["--row", "0", "--split", "dev"], "no split 'dev'"),
        (["--row", "0", "--label", "nothing"], "no label 'nothing'"),
        (["--row", "0", "--label", "7"], "no label 7"),
        (["--row", "0", "--group", "nobody"], "no group 'nobody'"),
    ],
)
def test_what_a_file_does_not_have_cannot_be_searched(tmp_path: Path, options: list[str], message: str) -> None:
    assert_refused(run("search", write_database(tmp_path / "a.h5"), *options), message)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "a.h5", "--row", "0", "--top", "0"], "'--top'"),
        (["search", "a.h5", "--row", "0", "-k", "many"], "'--top'"),
        (["search", "a.h5", "--row", "0", "--output", "empty"], "'--output'"),
        (["search", "a.h5", "--row", "0", "--output-images", "file", "--study", "demo"], "'--output-images'"),
        (["duplicates", "a.h5", "--similarity", "2"], "'--similarity'"),
        (["duplicates", "a.h5", "--top", "0"], "'--top'"),
        (["apply", "model.json", "a.h5", "-o", "empty"], "'--output'"),
        (["ui", "--port", "-1"], "'--port'"),
        (["ui", "--port", "70000"], "'--port'"),
        (["precision-drift", "demo", "--image-count", "0"], "'--image-count'"),
        (["build", "demo", "-o", "empty"], "'--output'"),
        (["build", "demo", "--home", "file"], "'--home'"),
        (["bundle", "demo", "-o", "file"], "'--output'"),
        (["bundle", "demo", "-o", "."], "is not empty"),
        (["new-study", "mine", "--medmnist", "bloodmnist", "-o", "file"], "'--output'"),
    ],
)
def test_a_value_that_an_option_cannot_take_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    result = run(*command)
    assert (result.code, result.out) == (2, "")
    assert message in result.err


# --- failures ----------------------------------------------------------------------------------------


def test_an_output_that_the_disk_refuses_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("search", write_database(tmp_path / "a.h5"), "--row", "0", "--output", tmp_path / "file" / "hits.csv")
    assert (result.code, "Traceback" in result.err) == (1, False)
    assert "hits.csv" in result.err


DEFECT = """
import sys
from ccassets.cli import app, main

@app.command()
def broken() -> None:
    1 / 0

main()
"""


@pytest.mark.parametrize("debug", [False, True])
def test_a_defect_is_one_message_and_a_failure(debug: bool) -> None:
    command = [sys.executable, "-c", DEFECT, *(["--debug"] if debug else []), "broken"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("ccassets: Unexpected ZeroDivisionError: division by zero\n") is not debug
    assert ("Traceback" in result.stderr) is debug
