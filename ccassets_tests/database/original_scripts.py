"""Files as the original scripts leave them: growing, chunked, LZF, `split_counts` written once after the last split.

Every feature is a function of its image, so that an image that is encoded again gives the same row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ccassets.study.prompt_hash import texts_hash

DIM = 16
TOKENS = 3

LABELS = ["Lymphozyt", "单核细胞", "platelet"]
LABEL_TEMPLATES = ["a photo of {}", "ein Bild von {}"]
CONCEPTS = ["runder Kern", "颗粒", "vacuoles", "band nucleus"]
CONCEPT_TEMPLATES = ["a cell with {}", "有{}的细胞", "{}"]


def features_of(split: str, image: int) -> np.ndarray:
    """The unit-length feature of an image, float32."""
    vector = np.random.default_rng([image, *split.encode()]).standard_normal(DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def start(path: Path) -> h5py.File:
    file = h5py.File(path, "w")
    options = {"compression": "lzf"}
    file.create_dataset("image_features", (0, DIM), "f2", maxshape=(None, DIM), chunks=(64, DIM), **options)
    shape = (TOKENS, DIM)
    file.create_dataset(
        "image_token_features", (0, *shape), "f2", maxshape=(None, *shape), chunks=(4, *shape), **options
    )
    for name in ("ids", "labels"):
        file.create_dataset(name, (0,), "i8", maxshape=(None,), chunks=(4096,), **options)
    file.create_dataset("split", (0,), h5py.string_dtype("utf-8"), maxshape=(None,), chunks=(4096,), **options)
    file.create_group("templates")
    file.attrs.update({"D": DIM, "T_img": TOKENS, "created_at": "2026-11-24 06:13:11", "version": "1.0"})
    file.attrs["dataset"] = '"cells"'
    return file


def append(
    file: h5py.File,
    split: str,
    images: Sequence[int],
    *,
    noise: float = 0.0,
    labels: Sequence[int] | None = None,
    torn: bool = False,
) -> None:
    """Append a batch; `torn` leaves it as a refused batch is left: features, and neither label nor split."""
    first = len(file["ids"])
    last = first + len(images)
    for name in ("image_features", "image_token_features", "ids", "labels", "split"):
        file[name].resize(last, axis=0)
    if first == last:
        return
    features = np.stack([features_of(split, image) for image in images])
    disturbed = features * (1 + noise * np.random.default_rng(first).standard_normal(features.shape))
    file["image_features"][first:] = disturbed.astype(np.float16)
    file["image_token_features"][first:] = np.repeat(disturbed[:, None] * 3, TOKENS, axis=1).astype(np.float16)
    file["ids"][first:] = np.arange(first, last)
    if not torn:
        file["labels"][first:] = [1 + image % 2 for image in images] if labels is None else labels
        file["split"][first:] = [split] * len(images)


def token_count(texts: Sequence[str]) -> int:
    """T_txt of a template: the longest prompt's, so that it differs."""
    return 5 + len(texts[0]) % 3


def write_templates(file: h5py.File, templates: Mapping[str, Sequence[str]]) -> None:
    for template_id, texts in templates.items():
        group = file["templates"].require_group(template_id)
        group.clear()
        features = np.stack([features_of(text, 0) for text in texts])
        group.create_dataset("text_features", data=features, chunks=features.shape, compression="lzf")
        tokens = np.repeat(features[:, None], token_count(texts), axis=1)
        group.create_dataset("text_token_features", data=tokens, compression="lzf")
        group.create_dataset("texts", data=np.array(texts, object), dtype=h5py.string_dtype("utf-8"))
        group.attrs.update({"K": len(texts), "D": DIM, "T_txt": tokens.shape[1], "created_at": "2026-11-24 06:13:11"})
        group.attrs["texts_hash"] = texts_hash(texts)


def write_all_templates(
    file: h5py.File,
    concept_templates: Sequence[str] = tuple(CONCEPT_TEMPLATES),
    label_templates: Sequence[str] = tuple(LABEL_TEMPLATES),
) -> None:
    lists = {
        "concept_texts": CONCEPTS,
        "prompt_temp_for_concepts": concept_templates,
        "label_texts": LABELS,
        "prompt_temp_for_labels": label_templates,
    }
    for name, texts in lists.items():
        file.attrs[name] = json.dumps(list(texts), ensure_ascii=False)
    for kind, words, templates in (
        ("concept", CONCEPTS, concept_templates),
        ("label", LABELS, label_templates),
    ):
        write_templates(
            file,
            {
                f"{kind}_prompts_t{number:02d}": [template.format(word) for word in words]
                for number, template in enumerate(templates, start=1)
            },
        )


def finish(file: h5py.File, counts: Mapping[str, int]) -> None:
    """What the original writes after its last split; it escapes non-ASCII names here."""
    file.attrs["split_counts"] = json.dumps(dict(counts))


def write_runs(path: Path, runs: Sequence[Mapping[str, int]], counts: Mapping[str, int] | None, **options: Any) -> Path:
    """A file of several runs, each from the first image of its splits on; `counts` None where the last was stopped."""
    with start(path) as file:
        write_all_templates(file)
        for number, run in enumerate(runs):
            for split, rows in run.items():
                append(file, split, range(rows), **(options if number else {}))
        if counts is not None:
            finish(file, counts)
    return path
