"""Conventions of the command line: help panels, one name for one option, JSON, completion."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer.main

from ccassets.cli import app
from ccassets_tests.cli.command_line import COMMANDS, run

PANELS = {
    "Build": ["build", "extract", "prune", "ui", "studies"],
    "Study": ["new-study", "encoders", "doctor", "bundle", "precision-drift", "certify"],
    "File": ["info", "validate", "adopt", "export", "publish", "explain"],
    "Analyse": ["explore", "search", "duplicates", "apply", "table", "compare"],
}
SHORT_NAMES = {"-o": "--output", "-k": "--top"}


def options() -> list[tuple[str, Any]]:
    """Every option with the name of its command."""
    return [
        (name, one) for name, command in COMMANDS.items() for one in command.params if one.param_type_name == "option"
    ]


def test_every_command_is_in_a_panel_of_the_help() -> None:
    assert {name: command.rich_help_panel for name, command in COMMANDS.items()} == {
        name: panel for panel, names in PANELS.items() for name in names
    }
    text = run("--help").out
    assert sorted(PANELS, key=text.index) == list(PANELS)


def test_a_short_name_means_the_same_option_in_every_command() -> None:
    for command, option in options():
        for short in set(option.opts) & set(SHORT_NAMES):
            assert SHORT_NAMES[short] in option.opts, command
        for short, long in SHORT_NAMES.items():
            assert (long in option.opts) == (short in option.opts), command
        assert [name for name in option.opts if not name.startswith("--")] in ([], *([short] for short in SHORT_NAMES))


def test_every_path_that_an_option_takes_is_an_output_or_is_known_to_be_read() -> None:
    for name, command in COMMANDS.items():
        hints = get_type_hints(inspect.unwrap(command.callback))
        paths = {
            option.name for option in command.params if Path in {hints[option.name], *get_args(hints[option.name])}
        }
        outputs = {path for path in paths if path.startswith("output")}
        assert paths - outputs <= {"home", "folder", "table", "file", "files", "model", "workspace"}, name


def test_every_command_that_prints_facts_prints_them_as_json() -> None:
    with_json = {command for command, option in options() if "--json" in option.opts}
    assert with_json == {*COMMANDS} - {"ui", "explore"}


def test_every_command_and_option_is_explained() -> None:
    assert all(command.help for command in COMMANDS.values())
    assert [(command, option.opts) for command, option in options() if not option.help] == []


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("ccassets bu", {"build", "bundle"}),
        ("ccassets build de", {"demo"}),
        ("ccassets validate a.h5 --study blood", {"bloodmnist", "bloodmnist_90"}),
    ],
)
def test_the_shell_completes_commands_and_studies(words: str, completions: set[str]) -> None:
    environment = {"_CCASSETS_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    code = "import sys; from ccassets.cli import main; sys.argv[0] = 'ccassets'; main()"
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert set(result.stdout.split()) == completions


def test_the_help_offers_to_install_completion() -> None:
    names = {name for one in typer.main.get_command(app).params for name in one.opts}
    assert {"--install-completion", "--show-completion"} <= names
