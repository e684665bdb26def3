"""Real studies for tests: a folder of small pictures, the golden encoder, and a defs.yaml that names both."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from ccassets.study.loading import load_study
from ccassets.study.schema import Study

DATA = Path(__file__).parent / "data"
SPLITS = ("train", "val", "test")
CLASSES = ("blood", "platelet", "white")
VOCABULARY = {
    "labels": {"words": list(CLASSES), "templates": ["a photo of {} cell", "microscopy of {}"]},
    "concepts": {
        "words": ["pigment network", "red cell", "immature granulocytes"],
        "templates": ["a cell showing {}", "this is {}"],
    },
}


def picture(seed: int) -> Image.Image:
    """A picture that no other seed gives."""
    noise = np.random.default_rng(seed)
    height, width = noise.integers(20, 40, 2)
    return Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8))


def save_images(root: Path, rows: Mapping[str, int] = {"train": 9, "val": 5, "test": 4}) -> Path:
    """`<root>/<split>/<class>/<number>.png`, all different."""
    seed = 0
    for split, count in rows.items():
        for number in range(count):
            path = root / split / CLASSES[number % len(CLASSES)] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(seed).save(path)
            seed += 1
    return root


def save_golden_weights(folder: Path) -> Path:
    """The golden ConceptCLIP of small size as a user would keep it: weights, dimensions and vocabulary."""
    config = json.loads((DATA / "conceptclip" / "tiny_a.json").read_text())
    folder.mkdir(parents=True)
    shutil.copy(DATA / "conceptclip" / "tiny_a.safetensors", folder / "model.safetensors")
    (folder / "architecture.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(config["text"]["vocab"]) + "\n")
    return folder


def write_study(
    folder: Path,
    *,
    images: Path,
    encoder: Mapping[str, Any] | Path,
    splits: Sequence[str] = SPLITS,
    vocabulary: Mapping[str, Any] = VOCABULARY,
    extraction: Mapping[str, Any] | None = None,
    storage: Mapping[str, Any] | None = None,
) -> Study:
    """Write `<folder>/defs.yaml` and load it; `encoder` is its section, or the folder of ConceptCLIP weights."""
    if isinstance(encoder, Path):
        encoder = {"kind": "conceptclip", "weights": str(encoder)}
    attributes = {
        "dataset": {"kind": "folder", "root": str(images), "splits": list(splits)},
        "encoder": dict(encoder),
        "vocabulary": dict(vocabulary),
        "extraction": {"batch_size": 2, "rows_per_shard": 4, **(extraction or {})},
        "storage": dict(storage or {}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": attributes}, allow_unicode=True)
    (folder / "defs.yaml").write_text(text, encoding="utf-8")
    return load_study(folder / "defs.yaml")


def edit_study(study: Study, change: Callable[[dict[str, Any]], object]) -> Study:
    """Change the attributes of a study file on disk, and load it again."""
    path = study.folder / "defs.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    change(content["attributes"])
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    return load_study(path)


_SLOW_ENCODER = """
import time
from dataclasses import replace
from ccassets.encoders import load_encoder
from ccassets.study.loading import load_study

class Slow:
    def __init__(self, study, seconds, name):
        self.inner, self.seconds = load_encoder(load_study(study)), seconds
        self.card = replace(self.inner.card, kind="python", weights_digest=name)

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def encode_pixels(self, pixels):
        time.sleep(self.seconds)
        return self.inner.encode_pixels(pixels)
"""


def with_slow_encoder(study: Study, seconds: float) -> Study:
    """The study with an encoder that takes so long for every batch; its identity is of this study alone."""
    inner = study.folder.parent.parent / f"{study.name}_inner"
    inner.mkdir()
    shutil.copy(study.folder / "defs.yaml", inner)
    (study.folder / "slow.py").write_text(_SLOW_ENCODER)
    options = {"study": str(inner / "defs.yaml"), "seconds": seconds, "name": study.name}
    return edit_study(study, lambda a: a.update(encoder={"kind": "python", "target": "slow:Slow", "options": options}))
