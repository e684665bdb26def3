from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccassets.study import Study

GOLDEN = Path(__file__).parents[1] / "data" / "conceptclip"

MakeStudy = Callable[..., Study]


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """A study with this encoder section; `extraction` is optional."""

    def make(name: str = "tiny", extraction: dict[str, Any] | None = None, **encoder: Any) -> Study:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Study(
            name=name,
            folder=folder,
            dataset={"kind": "phantom"},  # type: ignore[arg-type]
            encoder={"kind": "conceptclip", **encoder},  # type: ignore[arg-type]
            extraction=extraction or {},  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def config() -> dict[str, Any]:
    """The golden model's dimensions."""
    loaded: dict[str, Any] = json.loads((GOLDEN / "tiny_a.json").read_text())
    return loaded


@pytest.fixture
def weights_folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    """The golden model as a user would keep it: weights, dimensions and vocabulary in one folder."""
    return write_weights_folder(tmp_path / "weights", config)


def write_weights_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copy(GOLDEN / "tiny_a.safetensors", folder / "model.safetensors")
    (folder / "architecture.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(config["text"]["vocab"]) + "\n")
    return folder


def images(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(7)
    return [Image.fromarray(noise.integers(0, 256, (40 + row, 60, 3), dtype=np.uint8)) for row in range(count)]
