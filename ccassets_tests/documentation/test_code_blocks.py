"""The Python on pages about analyses, run block by block on the demo's database."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccassets import load_study, open_database
from ccassets_tests.database.made_files import write_database
from ccassets_tests.extraction.made_parts import build

DOCS = Path(__file__).parents[2] / "docs"


def code_of(page: str) -> list[str]:
    return re.findall(
        r"^```python\n(.*?)^```$", (DOCS / f"{page}.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )


def run(page: str, blocks: list[str], **names: Any) -> dict[str, Any]:
    for block in blocks:
        exec(compile(block, f"{page}.md", "exec"), names)
    return names


@pytest.mark.slow
def test_the_code_of_the_pages_runs_on_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build(load_study("demo")).assembly.path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conceptclip_features.h5").symlink_to(path)

    scores = code_of("scores")
    several_labels = [block for block in scores if "thresholds = " in block]
    names = run("scores", [block for block in scores if block not in several_labels])
    assert names["maps"].shape == (2, len(load_study("demo").vocabulary.concepts.texts), 144)
    database = open_database(write_database(tmp_path / "several.h5", matrix=True))
    run("scores", [scores[0].replace("conceptclip_features.h5", "several.h5"), scores[1], *several_labels])
    database.close()

    run("search", code_of("search"))
    assert len(list((tmp_path / "hits").iterdir())) == 20
    run("exports", code_of("exports")[:1], path=path)
    assert (tmp_path / "demo.parquet").is_file()
    run("lineage", code_of("lineage"), path=path)
    run("atlas", code_of("atlas"))
    run("phantom", code_of("phantom")[:1])
    labels = np.arange(24) % 3
    run("intervals", code_of("intervals"), labels=labels, scores=np.eye(3)[labels], groups=None)
    assert os.environ["CCASSETS_HOME"]
