"""Dependencies: whatever the package imports, setup.cfg declares."""

from __future__ import annotations

import re
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

import pytest

from ccassets_tests.house.source_tree import PACKAGE, ROOT, imported_modules, python_files, syntax_tree

DISTRIBUTIONS = metadata.packages_distributions()


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(config: Path) -> dict[str, set[str]]:
    """By section (`install_requires` or an extra): the names of the distributions that it asks for."""
    parser = ConfigParser()
    parser.read_string(config.read_text(encoding="utf-8"))
    sections = {"install_requires": parser["options"]["install_requires"], **parser["options.extras_require"]}
    return {
        section: {normalized(match[0]) for line in lines.splitlines() if (match := re.match(r"[\w.-]+", line.strip()))}
        for section, lines in sections.items()
    }


def imported_distributions() -> dict[str, set[str]]:
    """By distribution: the files of the package that import something of it, inside functions too."""
    users: dict[str, set[str]] = {}
    for path in python_files(PACKAGE):
        for module in imported_modules(syntax_tree(path)):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in {"ccassets", "_typeshed"}:
                continue
            name = normalized(DISTRIBUTIONS.get(top, [top])[0])
            users.setdefault(name, set()).add(path.relative_to(PACKAGE).as_posix())
    return users


needs_all_names = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="Python 3.10 does not tell the names of packages without a top_level.txt"
)


@needs_all_names
def test_everything_imported_is_declared() -> None:
    known = set().union(*declared(ROOT / "setup.cfg").values())
    assert {name: files for name, files in imported_distributions().items() if name not in known} == {}


@needs_all_names
def test_nothing_is_required_that_is_never_imported() -> None:
    started = {"dagster-webserver"}  # `ccassets ui` starts it as a process.
    required = declared(ROOT / "setup.cfg")["install_requires"]
    assert required - set(imported_distributions()) - started == set()


@pytest.mark.parametrize("name", ["pyproject.toml", "setup.cfg"])
def test_both_files_of_the_project_are_there(name: str) -> None:
    assert (ROOT / name).is_file()


def test_requirements_are_read_without_versions_and_comments(tmp_path: Path) -> None:
    config = tmp_path / "setup.cfg"
    lines = ["[options]", "install_requires =", "    # why", "    PyYAML >=6", "    a_b.c", "[options.extras_require]"]
    config.write_text("\n".join([*lines, "ray =", "    ray >=2,<3", ""]))
    assert declared(config) == {"install_requires": {"pyyaml", "a-b-c"}, "ray": {"ray"}}
