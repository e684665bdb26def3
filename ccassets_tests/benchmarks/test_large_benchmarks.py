"""The benchmarks of scale and of a GPU, at sizes that only show that every step works."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks import gpu

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> list[str]:
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.slow
def test_planning_assembly_and_validation_are_timed_at_a_size(tmp_path: Path) -> None:
    lines = run("benchmarks.scale", "300", "--rows-per-shard", "64", "--folder", str(tmp_path))

    steps = [line.split() for line in lines[1:]]
    assert len(steps) == 9
    assert {(rows, parts) for rows, parts, *_ in steps} == {("300", "5")}
    assert all(float(seconds) > 0 and float(cpu) > 0 for *_, seconds, cpu, _ in steps)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_setting_is_compared_with_the_forward_pass_in_one_table(tmp_path: Path) -> None:
    page = tmp_path / "table.md"
    arguments = ("--model", "phantom", "--images", "8", "--batches", "4", "--rounds", "1", "--device", "cpu")
    (tmp_path / "files").mkdir()

    lines = run(
        "benchmarks.gpu",
        *(*arguments, "--dtypes", "float32", "bfloat16", "--peak", "0.001"),
        *("--folder", str(tmp_path / "files"), "--output", str(page)),
    )

    assert page.read_text(encoding="utf-8").splitlines() == lines
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[-4:]]
    assert [row[0] for row in rows] == ["float32", "float32 compiled", "bfloat16", "bfloat16 compiled"]
    for row in rows:
        forward, pipeline, of_forward, written = map(float, row[2:6])
        assert of_forward == pytest.approx(pipeline / forward, abs=0.01, rel=0.05)
        assert float(row[7].rstrip("%")) > 0
        assert float(row[10].rstrip(" s")) == pytest.approx(17_092 / written, rel=0.05)
        features, tokens = map(float, row[11].split(", "))
        assert min(features, tokens) == 1 if row[0] == "float32" else min(features, tokens) > 0.99
    assert list((tmp_path / "files").iterdir()) == []


def needed_distributions(names: Iterable[str]) -> set[str]:
    """The installed distributions that these need, themselves included."""
    needed: set[str] = set()
    todo = list(names)
    while todo:
        name = canonicalize_name(todo.pop())
        if name in needed or next(distributions(name=name), None) is None:
            continue
        needed.add(name)
        requirements = map(Requirement, distribution(name).requires or [])
        todo += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return needed


def bare_environment(folder: Path, names: Iterable[str]) -> str:
    """A folder of links to these distributions and what they need, for PYTHONPATH with the checkout before it."""
    folder.mkdir()
    for name in needed_distributions(names):
        for top in {Path(str(file)).parts[0] for file in distribution(name).files or []} - {"..", "__pycache__"}:
            link = folder / top
            if not link.exists():
                link.symlink_to(distribution(name).locate_file(top))
    return os.pathsep.join([str(ROOT), str(folder)])


def run_bare(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks.gpu` without the packages of this environment."""
    code = f"import sys; sys.path[:0] = {path.split(os.pathsep)!r}; import runpy; sys.argv[0] = 'gpu'; "
    code += "runpy.run_module('benchmarks.gpu', run_name='__main__')"
    command = [sys.executable, "-S", "-c", code, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_a_bare_machine_needs_what_the_benchmark_says_and_nothing_else(tmp_path: Path) -> None:
    path = bare_environment(tmp_path / "packages", gpu.NEEDED.values())
    assert not list((tmp_path / "packages").glob("dagster*"))

    done = run_bare(
        path,
        *("--model", "phantom", "--images", "4", "--batches", "4", "--rounds", "1", "--device", "cpu"),
        *("--dtypes", "float32", "--uncompiled", "--folder", str(tmp_path)),
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("| float32 | 4 |")


def test_what_a_bare_machine_lacks_is_named(tmp_path: Path) -> None:
    done = run_bare(bare_environment(tmp_path / "packages", ["pydantic", "pyyaml"]))

    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout.startswith("Missing: torch, transformers, h5py, Pillow, xxhash. Install them")
