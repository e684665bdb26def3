"""The page on one's own data, followed to the letter with real blood-cell crops."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ccassets
from ccassets.study.loading import load_study
from ccassets_tests.documentation.page_blocks import blocks_of, run_shell, runnable_script


@pytest.mark.slow
def test_the_page_works_as_it_stands(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(test_data / "data" / "bccd" / split, tmp_path / "crops" / split)
    said = []
    for block in blocks_of("own_data.md"):
        if block.language == "bash" and (script := runnable_script(block)):
            said.append(run_shell(script, tmp_path))
        elif block.language == "yaml":
            study = tmp_path / "studies" / "cells" / "defs.yaml"
            before, _, _ = study.read_text(encoding="utf-8").partition("  vocabulary:\n")
            study.write_text(before + block.text, encoding="utf-8")
        elif block.language == "python":
            command = [sys.executable, "-c", block.text]
            said.append(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    assert said[0].startswith("studies/cells/defs.yaml: 600 images of 3 classes in 3 splits\n")
    assert "is valid" in said[1]
    assert said[2].splitlines()[0] == "{'train': 360, 'val': 120, 'test': 120}"
    assert "(4, " in said[2].splitlines()[1]
    assert said[2].splitlines()[2].startswith("train/Platelets/")
    assert said[2].splitlines()[2].endswith(" platelet")

    database = tmp_path / ".ccassets" / "storage" / "cells" / "conceptclip_features.h5"
    assert ccassets.validate_database(database, study=load_study(tmp_path / "studies" / "cells"), deep=True) == []
    assert load_study(tmp_path / "studies" / "retina").dataset.kind == "medmnist"
    assert (tmp_path / "bundle" / "bundle.json").is_file()
