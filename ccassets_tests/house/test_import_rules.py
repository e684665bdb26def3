"""Import rules: the contracts of pyproject.toml, no import circle, and where Dagster and its private names stand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

from ccassets_tests.house.source_tree import PACKAGE, ROOT, imported_modules, python_files, syntax_tree

DAGSTER_FILES = ("orchestration", "definitions.py")
"""The entries of the package that may import Dagster."""
DAGSTER_INTERNALS = PACKAGE / "orchestration" / "dagster_internals.py"
HEAVY = {"matplotlib", "scipy", "sklearn", "torch", "torchvision", "transformers"}


def import_graph(package: str) -> dict[str, set[str]]:
    """By module: the modules of the same package that it imports when it runs, inside functions too."""
    graph = grimp.build_graph(package, exclude_type_checking_imports=True, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def find_circle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """The modules of one import circle, the first again at the end; empty when there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle[::-1]
    return []


@pytest.fixture
def sample_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two modules; `upper` imports `lower`, which imports nothing."""
    folder = tmp_path / "sample_house"
    folder.mkdir()
    for name, text in {"__init__": "", "lower": "", "upper": "import sample_house.lower\n"}.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


def test_the_contracts_of_the_import_linter_are_kept() -> None:
    script = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([script, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = import_graph("ccassets")
    assert len(graph) > 100
    assert find_circle(graph) == []


def test_a_circle_through_a_function_is_found(sample_package: Path) -> None:
    assert find_circle(import_graph("sample_house")) == []
    (sample_package / "lower.py").write_text("def late():\n    from sample_house import upper\n")
    circle = find_circle(import_graph("sample_house"))
    assert set(circle) == {"sample_house.lower", "sample_house.upper"}


def test_an_import_for_type_checkers_alone_is_no_circle(sample_package: Path) -> None:
    lines = ["from typing import TYPE_CHECKING", "if TYPE_CHECKING:", "    from sample_house import upper"]
    (sample_package / "lower.py").write_text("\n".join(lines))
    assert find_circle(import_graph("sample_house")) == []


def test_dagster_is_imported_in_orchestration_and_definitions_alone() -> None:
    importers = {
        path.relative_to(PACKAGE).parts[0]
        for path in python_files(PACKAGE)
        if any(name.startswith("dagster") for name in imported_modules(syntax_tree(path)))
    }
    assert importers == set(DAGSTER_FILES)


def test_private_names_of_dagster_stand_in_one_file() -> None:
    importers = {path for path in python_files(PACKAGE) if "dagster._" in path.read_text(encoding="utf-8")}
    assert importers == {DAGSTER_INTERNALS}


def test_heavy_libraries_load_neither_with_the_definitions_nor_with_the_help() -> None:
    code = "import sys, ccassets.definitions, ccassets.cli; ccassets.definitions.defs(); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(result.stdout.split())
