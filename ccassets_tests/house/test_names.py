"""Names: no riddle where the field has a word. `python -m ccassets_tests.house.test_names` lists what breaks this.

A module, class, function or parameter bears none of `PARTS` as a part of its name and none of `WHOLE` as its name;
nothing that is assigned is called like one of `ASSIGNED`. Names of test functions are sentences and may hold them.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ccassets_tests.house.source_tree import ROOT, python_files, syntax_tree

ASSIGNED = {
    "asked": "what it is: the query, the rows, the arguments",
    "elsewhere": "what it is: the path, the other storage",
    "found": "what it is: findings, rows, paths, matches",
    "lacking": "missing",
    "place": "what it is: store, path, row, position, device",
    "told": "what it is: message, snapshot",
    "wanted": "what it is: names, columns, rows",
}
"""Words that say nothing of what a variable holds, each with what to write."""

PARTS = {
    **ASSIGNED,
    "alive": "hold_run_lock",
    "claim": "shard lock",
    "claims": "shard locks",
    "foreign": "in a sandbox; or whose it is",
    "halves": "float16",
    "liveness": "run lock",
    "look": "status snapshot; evaluation on the holdout",
    "looks": "holdout log",
    "obstacle": "unavailable",
    "obstacles": "unavailable",
    "pictures": "images, contact sheet",
    "settling": "fail_dead_runs",
    "suspect": "label error",
    "suspects": "label errors",
    "truth": "annotations, labels, ground_truth",
}
WHOLE = {
    "cut": "take",
    "drift": "precision drift",
    "dual": "transformers_dual",
    "heaps": "hdf5_heap_guard; HDF5's own term is global heap",
    "losses": "missing files; log_losses where they are losses",
    "may_pass": "transient",
    "named": "a verb: what the function does",
    "overlap": "cuda_streams",
    "room": "what there is room for",
    "scaffold": "new_study",
    "states": "status",
    "states_of": "status",
    "study_states": "status",
}
FOLDERS = sorted(
    [
        *(path for name in ("ccassets", "ccassets_tests") for path in (ROOT / name).iterdir() if path.is_dir()),
        *(ROOT / name for name in ("benchmarks", "training")),
    ]
)
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def parts(name: str) -> set[str]:
    """The words of a snake-case or camel-case name, in lower case; `ground_truth` counts as one."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return set(snake.replace("ground_truth", "").split("_"))


def is_unclear(name: str) -> bool:
    """Whether a module, class, function or parameter must not be called like this."""
    return not parts(name).isdisjoint(PARTS) or name.strip("_").lower() in WHOLE


def definitions_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of every class, function and parameter; test functions left out, not their parameters."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, DEFINITIONS) and not node.name.startswith("test_"):
            yield node.lineno, node.name


def assignments_in(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of all that is bound: by assignment, loop, `with`, `except`, or as an attribute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.lineno, node.name


def unclear_names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a syntax tree that has to be called otherwise."""
    yield from ((line, name) for line, name in definitions_in(tree) if is_unclear(name))
    for line, name in assignments_in(tree):
        if name.strip("_") in ASSIGNED or name == "may_pass":
            yield line, name


def unclear_in(folder: Path) -> Iterator[tuple[str, str]]:
    """Where (`path:line`) and name of everything below a folder that has to be called otherwise."""
    for path in python_files(folder):
        where = path.relative_to(ROOT)
        if is_unclear(path.stem.removeprefix("test_")):
            yield f"{where}:1", path.stem
        yield from ((f"{where}:{line}", name) for line, name in unclear_names(syntax_tree(path)))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_names_say_what_they_stand_for(folder: Path) -> None:
    assert [f"{where}: {name}" for where, name in unclear_in(folder)] == []


def test_modules_beside_the_packages_have_clear_names() -> None:
    files = [path for name in ("ccassets", "ccassets_tests") for path in (ROOT / name).glob("*.py")]
    assert [(path, name) for path in files for _, name in unclear_names(syntax_tree(path))] == []


@pytest.mark.parametrize(
    "code",
    [
        "class LookLog: ...",
        "class _Claim: ...",
        "def validate_foreign(path): ...",
        "async def _losses(): ...",
        "def read(self, *, may_pass): ...",
        "key = lambda place: place.root",
        "def test_rows(pictures): ...",
        "_found = 1",
        "for told in events: ...",
        "rows = [wanted for wanted in columns]",
        "if (found := search()): ...",
        "self.asked = rows",
        "try: ...\nexcept OSError as found: ...",
        "with open(path) as place: ...",
    ],
)
def test_a_riddle_is_found(code: str) -> None:
    assert list(unclear_names(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        "def replace(lookup, founder, ground_truth): ...",
        "def log_loss(hidden_states): ...",
        "def test_what_was_found_stays_in_place(): ...",
        "class GlobalHeap: ...",
        "print(found)",
    ],
)
def test_a_clear_name_passes(code: str) -> None:
    assert list(unclear_names(ast.parse(code))) == []


if __name__ == "__main__":
    chosen = [ROOT / name for name in sys.argv[1:]] or FOLDERS
    for where, name in (line for folder in chosen for line in unclear_in(folder)):
        print(f"{where}: {name}  ({ ({**PARTS, **WHOLE}.get(name.strip('_').lower()) or 'a part of it') })")
