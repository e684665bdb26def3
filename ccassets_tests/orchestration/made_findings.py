"""Multi-label studies whose cosines are known: tables of small images that carry their own features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from PIL import Image

from ccassets.study.loading import load_study
from ccassets.study.schema import Study

Form = Literal["clip", "siglip", "conceptclip"]

FINDINGS = tuple(f"finding {letter}" for letter in "abcdefghijklmn")
PREVALENCE = 0.1
WITHOUT = 0.7
SEPARATION = 1.4
"""Distance of the mean cosines with and without a finding, in standard deviations: an AUC of 0.84."""

HEIGHTS = {"clip": (0.2, 0.03), "siglip": (0.05, 0.02), "conceptclip": (0.2, 0.03)}
"""Mean and standard deviation of the cosines without a finding."""

LOGITS: dict[str, dict[str, float]] = {
    "clip": {"logit_scale": float(np.log(100))},
    "siglip": {"logit_scale": float(np.log(117)), "logit_bias": -12.9},
    "conceptclip": {
        "logit_scale": 4.570648,
        "logit_bias": -11.16147,
        "concept_logit_scale": 4.511484,
        "concept_logit_bias": -11.0343,
    },
}

_ENCODER = '''
import re

import numpy as np
from ccassets.encoders import EncoderCard, ImageFeatures, TextFeatures

FINDINGS = {findings!r}
DIM = len(FINDINGS) + 1
TOKENS = 8


class Readable:
    """Reads the cosines that are written into the pixels; a prompt is the axis of the finding that it names."""

    device = "cpu"

    def __init__(self, logits):
        self.card = EncoderCard(
            kind="python", weights_digest="readable", architecture={{"logits": logits}}, preprocessing={{}},
            text_pooling="name", tokenizer_digest="words", dim=DIM, image_size=4, dtype="float32",
            token_count=4 if "concept_logit_scale" in logits else 0, **logits,
        )

    def preprocess(self, image):
        return np.asarray(image, np.float32).transpose(2, 0, 1).copy()

    def encode_pixels(self, pixels):
        flat = pixels.reshape(len(pixels), 3, -1)[:, :, : len(FINDINGS)]
        cosines = (flat[:, 0] * 256 + flat[:, 1]) / 65535
        rest = np.sqrt(1 - (cosines ** 2).sum(axis=1, keepdims=True))
        features = np.concatenate([cosines, rest], axis=1).astype(np.float32)
        return ImageFeatures(features, np.repeat(features[:, None], 4, axis=1) if self.card.token_count else None)

    def encode_images(self, images):
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts):
        named = [[name in prompt for name in FINDINGS].index(True) for prompt in prompts]
        features = np.eye(DIM, dtype=np.float32)[named]
        ids = np.zeros((len(prompts), TOKENS), np.int32)
        offsets = np.zeros((len(prompts), TOKENS, 2), np.int32)
        for row, prompt in enumerate(prompts):
            for position, word in enumerate(re.finditer(r"\\w+", prompt)):
                ids[row, position], offsets[row, position] = 1 + position, word.span()
        tokens = np.repeat(features[:, None], TOKENS, axis=1) if self.card.token_count else None
        return TextFeatures(features, tokens, ids, (ids > 0).astype(np.uint8), offsets)
'''


def made_cosines(rows: int, form: Form, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, 14), of which 70 % of rows have none, and the cosines of the findings, float64."""
    rng = np.random.default_rng(seed)
    some = rng.random(rows) >= WITHOUT
    labels = (rng.random((rows, len(FINDINGS))) < PREVALENCE / (1 - WITHOUT)) & some[:, None]
    mean, deviation = HEIGHTS[form]
    cosines = mean + deviation * (rng.standard_normal(labels.shape) + SEPARATION * labels)
    return labels.astype(np.uint8), np.clip(cosines, 0, 1)


def write_findings_study(folder: Path, form: Form, rows: dict[str, int], **attributes: Any) -> Study:
    """A `table` study of one label column a finding, and its images and encoder beside it."""
    labels, cosines = made_cosines(sum(rows.values()), form)
    columns = {name: own.tolist() for name, own in zip(FINDINGS, labels.T, strict=True)}
    splits = [split for split, count in rows.items() for _ in range(count)]
    return _write_study(folder, form, splits, columns, cosines, {"label": list(FINDINGS)}, attributes)


def write_classes_study(folder: Path, counts: dict[str, dict[str, int]], **attributes: Any) -> Study:
    """A `table` study of one class an image, which its cosines tell: `counts` are rows by split and class."""
    rng = np.random.default_rng(0)
    rows = [(split, name) for split, own in counts.items() for name, count in own.items() for _ in range(count)]
    mean, deviation = HEIGHTS["clip"]
    truth = np.array([[name == finding for finding in FINDINGS] for _, name in rows])
    cosines = mean + deviation * (rng.standard_normal(truth.shape) + 3 * truth)
    columns = {"class": [name for _, name in rows]}
    splits = [split for split, _ in rows]
    return _write_study(folder, "clip", splits, columns, np.clip(cosines, 0, 1), {"label": "class"}, attributes)


def _write_study(
    folder: Path,
    form: Form,
    splits: list[str],
    columns: dict[str, list[Any]],
    cosines: np.ndarray,
    roles: dict[str, Any],
    attributes: dict[str, Any],
) -> Study:
    folder.mkdir(parents=True)
    lines = [",".join(["path", "split", "patient", *columns])]
    for number, (split, own, values) in enumerate(
        zip(splits, zip(*columns.values(), strict=True), cosines, strict=True)
    ):
        written = np.round(values * 65535).astype(np.uint16)
        pixels = np.zeros((16, 3), np.uint8)
        pixels[: len(written), 0], pixels[: len(written), 1] = written >> 8, written & 255
        Image.fromarray(pixels.reshape(4, 4, 3)).save(folder / f"{number}.png")
        lines.append(",".join([f"{number}.png", split, f"{split} {number // 4}", *map(str, own)]))
    (folder / "findings.csv").write_text("\n".join(lines) + "\n")
    (folder / "readable.py").write_text(_ENCODER.format(findings=FINDINGS))
    content = {
        "dataset": {
            "kind": "table",
            "file": "findings.csv",
            "splits": list(dict.fromkeys(splits)),
            "columns": {**roles, "group": "patient"},
        },
        "encoder": {"kind": "python", "target": "readable:Readable", "options": {"logits": LOGITS[form]}},
        "vocabulary": {"labels": {"words": list(FINDINGS), "templates": ["an image of {}"]}},
        "extraction": {"batch_size": 256, "rows_per_shard": 1024},
        **attributes,
    }
    text = yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": content})
    (folder / "defs.yaml").write_text(text)
    return load_study(folder / "defs.yaml")
