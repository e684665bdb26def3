"""The docs site: its navigation holds every page, and the generated pages leave out no name, key, command or option."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml
from pydantic import BaseModel

from ccassets.study.schema import StudyConfig
from ccassets_tests.house.test_public_api import PUBLIC_MODULES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def load_generator() -> Any:
    """The module that MkDocs calls, as MkDocs loads it: by its path."""
    spec = spec_from_file_location("generated_pages", DOCS / "generated_pages.py")
    assert spec
    assert spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return dict(GENERATOR.generated_pages())


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Every model in a type, inside unions and tuples too."""
    if get_origin(annotation) is None and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from models_of(inner)


def all_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for field in model.model_fields.values():
        for inner in models_of(field.annotation):
            yield from all_models(inner)


class AnyTag(yaml.SafeLoader):
    """Reads the YAML of MkDocs, whose tags name Python objects."""


AnyTag.add_multi_constructor("", lambda loader, suffix, node: None)


def navigation() -> list[str]:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), AnyTag)

    def leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            yield from leaves(inner)

    return list(leaves(config["nav"]))


def test_the_navigation_holds_every_page_once(pages: dict[str, str]) -> None:
    written = [path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")]
    assert sorted(navigation()) == sorted([*written, *pages])


@pytest.mark.parametrize("module", sorted(PUBLIC_MODULES))
def test_the_reference_shows_every_public_name(module: str, pages: dict[str, str]) -> None:
    page = pages[f"reference/{module.removeprefix('ccassets.')}.md"]
    shown = re.findall(r"^::: (.+)$", page, re.MULTILINE)
    assert shown == [f"{module}.{name}" for name in import_module(module).__all__]


def test_every_key_of_a_study_is_shown_with_its_meaning(pages: dict[str, str]) -> None:
    assert set(GENERATOR.study_sections().values()) == set(all_models(StudyConfig))
    sections = pages["reference/study_keys.md"].split("\n## ")[1:]
    for section, model in zip(sections, GENERATOR.study_sections().values(), strict=True):
        rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", section, re.MULTILINE))
        assert list(rows) == list(model.model_fields)
        assert [key for key, meaning in rows.items() if not meaning and key != "kind"] == []


def test_every_command_and_option_is_shown(pages: dict[str, str]) -> None:
    sections = dict(section.split("\n", 1) for section in pages["reference/commands.md"].split("\n## ")[1:])
    assert list(sections) == list(GENERATOR.commands())
    for name, command in GENERATOR.commands().items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert [option for option in options if option not in sections[name]] == []
    assert "Images in &lt;split>/&lt;class>/" in sections["new-study"], "a browser would take these for tags"


def test_the_tree_of_errors_names_each_of_them(pages: dict[str, str]) -> None:
    (tree,) = re.findall(r"```text\n(CcassetsError\n.*?)```", pages["reference/errors.md"], re.DOTALL)
    assert [name for name in import_module("ccassets.errors").__all__ if name not in tree] == []


def commands_on(page: Path) -> list[list[str]]:
    """The `ccassets` commands in the code blocks of a page, without comments, pipes and redirections."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "\n".join(code for language, code in blocks if language in {"", "bash"}).replace("\\\n", " ").splitlines()
    commands = [re.split(r"\s(?:[|>&;]|#)|\$\(", line)[0] for line in lines if line.startswith("ccassets ")]
    return [shlex.split(command)[1:] for command in commands]


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.stem)
def test_every_command_of_a_page_is_one_that_the_program_takes(page: Path) -> None:
    for name, *arguments in commands_on(page):
        if name not in {"--help", "--version"} and "…" not in arguments:
            GENERATOR.commands()[name].make_context(name, arguments)


def test_commands_are_found_on_pages() -> None:
    assert ["build", "STUDY"] in commands_on(DOCS / "dagster.md")
    assert len(commands_on(DOCS / "own_data.md")) >= 6


def test_the_page_on_installation_names_every_extra() -> None:
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    table = "".join(re.findall(r"^\| (`.*?) \|", (DOCS / "install.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"`([\w-]+)`", table)) == set(config["options.extras_require"])
