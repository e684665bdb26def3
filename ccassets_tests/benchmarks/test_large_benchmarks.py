"""The benchmarks of scale and of a GPU, at sizes that only show that every step works."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


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
def test_a_whole_extraction_is_compared_with_the_forward_pass_in_one_command(tmp_path: Path) -> None:
    arguments = ("--model", "phantom", "--images", "12", "--batch", "4", "--rounds", "1", "--device", "cpu")

    lines = run("benchmarks.gpu", *arguments, "--dtypes", "float32", "bfloat16", "--folder", str(tmp_path))

    assert [line.split()[0] for line in lines[-2:]] == ["float32", "bfloat16"]
    for line in lines[-2:]:
        forward, whole, ratio = map(float, line.split()[1:4])
        assert ratio == pytest.approx(whole / forward, abs=0.02)
        assert "encoder busy" in line
    assert list(tmp_path.iterdir()) == []
