"""The README, in both languages: the same commands and links, and commands that the program knows; the citation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import ccassets
from ccassets.cli import app
from ccassets_tests.database.made_files import write_database

ROOT = Path(__file__).parents[2]
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")}
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


IN_CHINESE = ("format", "adopt", "h5")
"""Pages of docs/ in both languages."""


def blocks(page: str) -> list[tuple[str, list[str]]]:
    return blocks_of(PAGES[page])


def blocks_of(text: str) -> list[tuple[str, list[str]]]:
    """The language and the lines of every code block, without comments."""
    blocks = re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)
    return [(language, [re.sub(r"\s+# .*", "", line) for line in code.splitlines()]) for language, code in blocks]


def links(page: str) -> list[str]:
    return re.findall(r"\]\((.*?)\)", PAGES[page])


def test_both_languages_have_the_same_commands_and_headings() -> None:
    assert blocks("README.md") == blocks("README.zh.md")
    levels = [re.findall(r"^#+", text, re.MULTILINE) for text in PAGES.values()]
    assert levels[0] == levels[1]


def test_both_languages_have_the_same_links_each_to_its_own_pages() -> None:
    english = [re.sub(rf"docs/({'|'.join(IN_CHINESE)})\.md", r"docs/\1.zh.md", link) for link in links("README.md")]
    own = {"README.md", "README.zh.md"}
    assert set(english) - own == set(links("README.zh.md")) - own
    assert "README.zh.md" in links("README.md")
    assert "README.md" in links("README.zh.md")


def names_of(text: str) -> set[str]:
    """What stands between single backticks."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {" ".join(name.split()) for name in re.findall(r"`([^`]+)`", prose)}


@pytest.mark.parametrize("page", ["adopt", "h5"])
def test_pages_in_both_languages_name_the_same_and_point_at_each_other(page: str) -> None:
    texts = [(ROOT / "docs" / f"{page}{language}.md").read_text(encoding="utf-8") for language in ("", ".zh")]
    for facts in (
        blocks_of,
        names_of,
        lambda text: re.findall(r"^#+", text, re.MULTILINE),
        lambda text: len(re.findall(r"^\|", text, re.MULTILINE)),
        lambda text: len(re.findall(r"^- ", text, re.MULTILINE)),
    ):
        assert facts(texts[0]) == facts(texts[1])
    assert f"({page}.zh.md)" in texts[0]
    assert f"({page}.md)" in texts[1]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_the_program_takes(page: str) -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    lines = [shlex.split(line) for language, code in blocks(page) if language == "bash" for line in code]
    assert sum(line[0] == "ccassets" for line in lines) >= 6
    for program, *arguments in lines:
        assert program in {"ccassets", "make", "pip"}
        if program == "make":
            assert arguments[0] in targets
        if program == "ccassets":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_the_program_is_named(page: str) -> None:
    (named,) = re.findall(r"`ccassets ([a-z-]+ \|[^`]*)`", PAGES[page])
    assert re.findall(r"[a-z-]+", named) == list(COMMANDS)


@pytest.mark.parametrize("page", PAGES)
def test_the_example_reads_a_database(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_database(tmp_path / "conceptclip_features.h5")
    (code,) = [lines for language, lines in blocks(page) if language == "python"]
    names: dict[str, object] = {}
    exec(compile("\n".join(code), page, "exec"), names)
    assert names["patches"].shape == (3, 4, 12)  # type: ignore[attr-defined]
    assert capsys.readouterr().out.startswith("Database(")


def test_the_citation_is_of_this_version_and_licence() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ccassets.__version__
    assert citation["license"] in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
