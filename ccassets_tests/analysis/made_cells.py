"""Made-up cells whose concepts, classes and labels are known: as samples, and as a small database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.concept_annotations import ConceptAnnotations
from ccassets.analysis.samples import Samples
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file

CLASSES = ("basophil", "lymphocyte", "monocyte", "platelet")
CONCEPTS = (
    "Segmented nucleus",
    "Round nucleus",
    "Basophilic granules",
    "Pale cytoplasm",
    "Cytoplasmic vacuoles",
    "Giant platelets",
)
GROUPS = ("nucleus", "nucleus", "granules", "cytoplasm", "cytoplasm", "cell")
LEVELS = (1, 1, 2, 2, 3, 3)
ODDS = np.array(
    [
        [0.8, 0.1, 0.9, 0.5, 0.1, 0.0],
        [0.0, 0.9, 0.0, 0.7, 0.1, 0.0],
        [0.3, 0.1, 0.0, 0.2, 0.8, 0.0],
        [0.0, 0.0, 0.1, 0.5, 0.0, 0.95],
    ]
)
"""How often a class (row) shows a concept (column)."""

DIM = 16
IDENTITY = "0123456789abcdef0123456789abcdef"
TEMPLATES = ("a cell with {}", "an image of {}")


@dataclass(frozen=True)
class Cells:
    """Scores (N, K) that are the annotations (N, K) up to noise; rows split three to one to two, eight rows a group."""

    samples: Samples
    annotations: ConceptAnnotations


def cells(rows: int = 480, *, noise: float = 0.35, seed: int = 0, grouped: bool = False) -> Cells:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), rows)
    annotations = (rng.random((rows, len(CONCEPTS))) < ODDS[labels]).astype(np.float32)
    scores = (0.1 + 0.2 * (annotations + noise * rng.standard_normal(annotations.shape))).astype(np.float32)
    train, val = rows // 2, rows // 6
    split = np.array(["train"] * train + ["val"] * val + ["test"] * (rows - train - val), object)
    samples = Samples(
        features=scores,
        columns=CONCEPTS,
        labels=labels,
        split=split,
        classes=CLASSES,
        ids=np.arange(rows),
        groups=np.array([f"patient {row // 8}" for row in range(rows)], object) if grouped else None,
        keys=np.array([f"{name}/{row:04d}.png" for row, name in enumerate(split)], object),
    )
    return Cells(samples, annotations)


def wide(rows: int = 1200, columns: int = 40) -> Samples:
    """Samples of many columns, a few of which tell each of eight classes apart."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 8, rows)
    centres = np.zeros((8, columns))
    for label in range(8):
        centres[label, 3 * label : 3 * label + 3] = (1.6, 1.2, 0.8)
    features = (centres[labels] + rng.standard_normal((rows, columns))).astype(np.float32)
    split = np.array(
        ["train"] * (rows // 2) + ["val"] * (rows // 4) + ["test"] * (rows - rows // 2 - rows // 4), object
    )
    names = tuple(f"concept {number}" for number in range(columns))
    return Samples(features, names, labels, split, tuple("abcdefgh"), np.arange(rows))


def concept_vectors() -> npt.NDArray[np.float32]:
    """(K, D): one axis a concept."""
    return np.eye(len(CONCEPTS), DIM, dtype=np.float32)


def write_cells(
    path: Path,
    samples: Samples,
    *,
    identity: str | None = IDENTITY,
    concepts: tuple[str, ...] = CONCEPTS,
    templates: tuple[str, ...] = TEMPLATES,
    off_domain: int = 0,
    labels: str = "present",
    attributes: Mapping[str, Any] = {},
) -> Path:
    """A database whose cosine concept scores are those of the samples; the rest of each feature is noise.

    Prompts by another template than those of `TEMPLATES` have other vectors.
    """
    rng = np.random.default_rng(1)
    rest = rng.standard_normal((len(samples), DIM - len(CONCEPTS)))
    left = 1 - (np.asarray(samples.features, np.float64) ** 2).sum(axis=1, keepdims=True)
    rest *= np.sqrt(left) / np.linalg.norm(rest, axis=1, keepdims=True)
    features = np.concatenate([samples.features, rest], axis=1)
    vectors = concept_vectors()[[CONCEPTS.index(word) for word in concepts]]
    filled = {
        f"concept_prompts_t{number:02d}": TemplateContent(
            [template.format(word) for word in concepts], vectors if template in TEMPLATES else vectors[:, ::-1]
        )
        for number, template in enumerate(templates, start=1)
    }
    if off_domain:
        phrases = rng.standard_normal((off_domain, DIM)).astype(np.float32)
        phrases /= np.linalg.norm(phrases, axis=1, keepdims=True)
        filled["off_domain"] = TemplateContent([f"a photo of thing {number}" for number in range(off_domain)], phrases)
    content = FileContent(
        profile="database",
        dim=DIM,
        token_count=0,
        rows=RowContent(
            split=samples.split.tolist(),
            labels=samples.labels,
            keys=[] if samples.keys is None else samples.keys.tolist(),
            image_digest=np.zeros((len(samples), 32), np.uint8),
            feature_digest=np.zeros((len(samples), 16), np.uint8),
            groups=None if samples.groups is None else samples.groups.tolist(),
        ),
        templates=filled,
        attributes={
            "label_texts": list(samples.classes),
            "label_classes": list(samples.classes),
            "concept_texts": list(concepts),
            "prompt_temp_for_concepts": list(templates),
            "concepts": [
                {"word": word, "group": group, "level": level, "synonyms": []}
                for word, group, level in zip(CONCEPTS, GROUPS, LEVELS, strict=True)
                if word in concepts
            ],
            "provenance": {"encoder": {"identity": identity}, "dataset": {"labels": labels}},
            **attributes,
        },
    )
    with new_file(path, content) as rows:
        rows.write("image_features", 0, features.astype(np.float16))
    return path
