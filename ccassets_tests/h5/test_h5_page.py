"""The page of the original functions: its example runs, and its table leaves no function out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ccassets.h5
from ccassets.database.reader import open_database
from ccassets.encoders.conceptclip import PHANTOM

PAGE = (Path(__file__).parents[2] / "docs" / "h5.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None

    exec(compile(example[1], "docs/h5.md", "exec"), {"weights": PHANTOM})

    printed = capsys.readouterr().out
    assert "Findings:" in printed
    assert "• error" not in printed
    with open_database("features.h5") as database:
        assert dict(database.splits) == {"train": slice(0, 4), "patient 007": slice(4, 6)}


def test_the_table_names_every_function() -> None:
    named = set(re.findall(r"`(\w+)", "".join(line for line in PAGE.splitlines() if line.startswith("|"))))

    assert set(ccassets.h5.__all__) - named == {"DatasetBundle", "FeatureStoreSummary"}
