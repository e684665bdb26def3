"""Small valid files to break: a database and its parts, written by the one writer, features drawn from a seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.database.feature_digests import database_digest, feature_digests, split_digest, template_digest
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file
from ccassets.study.schema import Study, StudyConfig

DIM = 12
TOKENS = 4
SPLITS: Mapping[str, int] = {"train": 9, "val": 5, "test": 6}

VOCABULARY = {
    "labels": {"words": ["basophil", "plättchen", "monocyte"], "templates": ["a {} cell", "a smear of a {}"]},
    "concepts": {
        "words": [{"word": "round nucleus", "synonyms": ["圆形细胞核"]}, "granules"],
        "templates": ["a cell with {}", "{} in a cell", "a photo of {}"],
    },
    "custom": {"free_text": ["a healthy cell", "an ill cell"]},
}


def study(splits: Sequence[str] = tuple(SPLITS), **changes: Any) -> Study:
    """The study that `write_database` gives the result of."""
    attributes = {
        "dataset": {"kind": "folder", "root": "cells", "splits": list(splits)},
        "encoder": {"kind": "python", "target": "mine:Encoder"},
        "vocabulary": VOCABULARY,
        **changes,
    }
    return Study.from_config(StudyConfig.model_validate(attributes), folder=Path("cells"))


def unit_rows(rng: np.random.Generator, rows: int, dim: int = DIM) -> np.ndarray:
    values = rng.standard_normal((rows, dim)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def row_content(
    splits: Mapping[str, int], features: np.ndarray, tokens: np.ndarray | None, *, matrix: bool = False
) -> RowContent:
    names = [name for name, rows in splits.items() for _ in range(rows)]
    total = len(names)
    labels = np.arange(1, total + 1, dtype=np.int64) % 3
    digests = [hashlib.sha256(f"image {row}".encode()).digest() for row in range(total)]
    return RowContent(
        split=names,
        labels=labels,
        keys=[f"{name}/bild-{row}-细胞.png" for row, name in enumerate(names)],
        image_digest=np.frombuffer(b"".join(digests), np.uint8).reshape(total, 32),
        feature_digest=feature_digests(features, tokens),
        groups=[f"{name} patient {row // 2}" for row, name in enumerate(names)],
        label_matrix=np.eye(3, dtype=np.uint8)[labels] if matrix else None,
    )


def template_content(rng: np.random.Generator, prompts: Sequence[str], width: int, dim: int = DIM) -> TemplateContent:
    rows = len(prompts)
    lengths = rng.integers(4, width + 1, rows)
    return TemplateContent(
        texts=prompts,
        text_features=unit_rows(rng, rows, dim),
        text_token_features=rng.standard_normal((rows, width, dim)).astype(np.float32),
        input_ids=rng.integers(1, 90, (rows, width), dtype=np.int32),
        attention_mask=(np.arange(width) < lengths[:, None]).astype(np.uint8),
        subject_span=np.stack([np.ones(rows), lengths - 1], axis=1).astype(np.int32),
    )


def encoder_record(dim: int = DIM, tokens: int = TOKENS) -> dict[str, Any]:
    """An encoder as the provenance holds it, under its right identity."""
    card = {
        "kind": "python",
        "weights_digest": "ab" * 32,
        "architecture": {},
        "preprocessing": {"mean": [0.5, 0.5, 0.5]},
        "dim": dim,
        "token_count": tokens,
        "dtype": "float32",
        "extraction_version": 1,
    }
    text = json.dumps(card, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return {"identity": hashlib.sha256(text.encode()).hexdigest()[:32], **card, "recorded": {"weights": "mine"}}


def write_database(
    path: Path,
    splits: Mapping[str, int] = SPLITS,
    *,
    dim: int = DIM,
    tokens: int = TOKENS,
    templates: bool = True,
    matrix: bool = False,
    words: Mapping[str, Any] = VOCABULARY,
    patches_of: Sequence[int] | None = None,
) -> Path:
    """A database without a single finding (a warning apart where it has no rows).

    With `patches_of` only these rows have token features: those of the others are holes in the file, and digests are of
    image features alone.
    """
    rng = np.random.default_rng(7)
    total = sum(splits.values())
    features = unit_rows(rng, total, dim).astype(np.float16)
    stored = range(total) if patches_of is None else patches_of
    token_features = rng.standard_normal((len(stored), tokens, dim)).astype(np.float16) if tokens else None
    rows = row_content(splits, features, token_features if patches_of is None else None, matrix=matrix)
    vocabulary = study(list(splits), vocabulary=words).vocabulary
    filled = vocabulary.templates() if templates else {}
    contents = {
        name: template_content(rng, template.prompts, 6 + number, dim)
        for number, (name, template) in enumerate(filled.items())
    }
    texts = {
        "label_texts": list(vocabulary.labels.words),
        "prompt_temp_for_labels": list(vocabulary.labels.templates) if templates else [],
        "concept_texts": list(vocabulary.concepts.texts) if templates else [],
        "prompt_temp_for_concepts": list(vocabulary.concepts.templates) if templates else [],
    }
    attributes = {
        "split_counts": dict(splits),
        **texts,
        "logit_scale": 4.5,
        "logit_bias": -11.1,
        "concept_logit_scale": 4.6,
        "concept_logit_bias": -11.0,
        "logit_scale_space": "log",
        "provenance": _provenance(splits, rows, contents, texts, dim, tokens),
    }
    if templates:
        attributes["concepts"] = [concept.model_dump(mode="json") for concept in vocabulary.concepts.words]
    with new_file(path, FileContent("database", dim, tokens, rows, contents, attributes)) as writer:
        writer.write("image_features", 0, features)
        if token_features is not None:
            blocks = [(0, token_features)] if patches_of is None else zip(stored, token_features[:, None], strict=True)
            for first, values in blocks:
                writer.write("image_token_features", first, values)
    return path


def write_bloodmnist_shape(path: Path) -> Path:
    """A sparse file of BloodMNIST's shape with 12 templates, of which some patches are stored."""
    vocabulary = {
        "labels": {
            "words": [f"cell of type {number}" for number in range(8)],
            "templates": [f"photo {number} of a {{}}" for number in range(6)],
        },
        "concepts": {
            "words": [f"visible sign {number}" for number in range(31)],
            "templates": [f"photo {number} of a cell with {{}}" for number in range(6)],
        },
    }
    splits, stored = {"train": 11_959, "val": 1712, "test": 3421}, [0, 8000, 17_091]
    return write_database(path, splits, dim=1152, tokens=729, words=vocabulary, patches_of=stored)


def _provenance(
    splits: Mapping[str, int],
    rows: RowContent,
    templates: Mapping[str, TemplateContent],
    words: Mapping[str, Sequence[str]],
    dim: int,
    tokens: int,
) -> dict[str, Any]:
    digests = {}
    first = 0
    for name, number in splits.items():
        chosen = slice(first, first + number)
        first += number
        digests[name] = split_digest(
            rows.feature_digest[chosen],
            keys=rows.keys[chosen],
            labels=rows.labels[chosen],
            groups=rows.groups[chosen] if rows.groups is not None else None,
            label_matrix=None if rows.label_matrix is None else rows.label_matrix[chosen],
        )
    database = database_digest(digests, {name: template_digest(content) for name, content in templates.items()}, words)
    return {
        "origin": "extracted",
        "encoder": encoder_record(dim, tokens),
        "dataset": {
            "kind": "folder",
            "name": "cells",
            "labels": "present",
            "classes": ["basophil", "plättchen", "monocyte"],
            "splits": {name: {"rows": number, "skipped": [], "blank": []} for name, number in splits.items()},
        },
        "extraction": {"batch_size": 4},
        "libraries": {"numpy": "2"},
        "created": {"at": "2026-01-01T00:00:00Z"},
        "digests": {"splits": digests, "database": database},
    }


def write_image_part(path: Path, rows: int = 7, *, split: str = "train") -> Path:
    rng = np.random.default_rng(3)
    features = unit_rows(rng, rows).astype(np.float16)
    tokens = rng.standard_normal((rows, TOKENS, DIM)).astype(np.float16)
    attributes = {"provenance": {"origin": "extracted", "encoder": encoder_record()}}
    content = FileContent(
        "image-part", DIM, TOKENS, row_content({split: rows}, features, tokens), attributes=attributes
    )
    with new_file(path, content) as writer:
        writer.write("image_features", 0, features)
        writer.write("image_token_features", 0, tokens)
    return path


def write_template_part(path: Path) -> Path:
    template = study().vocabulary.templates()["concept_prompts_t01"]
    content = template_content(np.random.default_rng(5), template.prompts, 8)
    attributes = {"provenance": {"origin": "extracted", "encoder": encoder_record()}}
    with new_file(path, FileContent("template-part", DIM, 0, None, {template.template_id: content}, attributes)):
        pass
    return path
