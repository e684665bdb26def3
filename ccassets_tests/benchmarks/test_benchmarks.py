"""Every row of `python -m benchmarks`, at the size that only shows that it works; nothing is timed against anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.contest import Target, Times
from benchmarks.rows import MODULES, ON_REQUEST, contest
from benchmarks.sizes import SIZES
from benchmarks.table import Result, page

SMALL = SIZES["small"]
SLOW = {"empty_build"}
"""Rows that build through Dagster before they start."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("benchmarks")


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=pytest.mark.slow if row in SLOW else ())
        for row in MODULES
        if row not in ON_REQUEST  # At published dimensions whatever the size: minutes and gigabytes.
    ],
)
def test_a_row_runs_at_the_small_size(row: str, folder: Path) -> None:
    made = contest(row, folder, SMALL)
    for run in (made.ours, made.limit.run, *([made.usual.run] if made.usual else [])):
        made.reset()
        run()


def test_the_command_prints_and_writes_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page_file = tmp_path / "table.md"
    main(["--size", "small", "--rows", "validation", "--folder", str(tmp_path), "--output", str(page_file)])
    text = page_file.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text + "\n"
    assert "| validation | " in text
    assert "## Memory at N and 10 N" in text
    assert str(tmp_path) not in text


def test_a_miss_is_printed_as_a_miss() -> None:
    def result(target: Target) -> Result:
        times = Times(ours=[2.0, 2.2, 1.9], limit=[1.0, 1.1, 1.0], usual=[4.0])
        return Result("row", "work", "limit", "usual", target, times, peak=10)

    text = page([result(Target(of_limit=0.5, of_usual=3, seconds=1)), result(Target(of_limit=0.5))], "small", {})
    missed, reached = (line for line in text.splitlines() if line.startswith("| row | 2 s"))
    assert "| 0.50 | 2.0 |" in missed
    assert "missed: usual, seconds" in missed
    assert "missed" not in reached
