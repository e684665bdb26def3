"""The page on one's own data, followed to the letter with real blood-cell crops."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ccassets
from ccassets.study.loading import load_study

PAGE = Path(__file__).parents[2] / "docs" / "own_data.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def shell(script: str, folder: Path) -> str:
    """Run lines of a shell in which `ccassets` is this one; every line has to end well."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    del environment["CCASSETS_HOME"]  # The page uses the home of a new user.
    command = ["bash", "-euo", "pipefail", "-c", script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, (script, result.stdout, result.stderr)
    return result.stdout


@pytest.mark.slow
def test_the_page_works_as_it_stands(test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "val", "test"):
        shutil.copytree(test_data / "data" / "bccd" / split, tmp_path / "crops" / split)
    said = []
    for language, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if language == "bash":
            said.append(shell(text, tmp_path))
        elif language == "yaml":
            study = tmp_path / "studies" / "cells" / "defs.yaml"
            before, _, _ = study.read_text(encoding="utf-8").partition("  vocabulary:\n")
            study.write_text(before + text, encoding="utf-8")
        elif language == "python":
            script = subprocess.run(
                [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True
            )
            said.append(script.stdout)
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
