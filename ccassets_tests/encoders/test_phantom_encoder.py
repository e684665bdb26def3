"""The phantom encoder as shipped: it knows held-out phantoms, their concepts, and where in the picture they are."""

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from ccassets.datasets.phantom import PhantomDataset
from ccassets.encoders import load_encoder, token_spans
from ccassets.encoders.conceptclip import PHANTOM
from ccassets.study.loading import load_study
from ccassets.study.schema import PhantomDatasetConfig

ROWS = 160
HELD_OUT_SEED = 10_002

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """Scores of images no training has seen: (N, classes), (N, concepts), by patch (N, T_img, concepts); the labels."""

    classes: Floats
    concepts: Floats
    patches: Floats
    labels: npt.NDArray[np.int64]
    is_present: npt.NDArray[np.bool_]
    nucleus: npt.NDArray[np.bool_]


@pytest.fixture(scope="module")
def held_out() -> HeldOut:
    study = load_study("demo")
    encoder = load_encoder(study, device="cpu")
    images = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"test": ROWS}, seed=HELD_OUT_SEED))
    examples = [images.example("test", row) for row in range(ROWS)]
    encoded = [encoder.encode_images([image for image, _ in examples[at : at + 32]]) for at in range(0, ROWS, 32)]
    features = np.concatenate([batch.features for batch in encoded])
    tokens = unit(np.concatenate([batch.tokens for batch in encoded if batch.tokens is not None]))

    words: dict[str, list[Floats]] = {"label": [], "concept": [], "local": []}
    for name, template in study.vocabulary.templates().items():
        kind = name.split("_")[0]
        if kind not in words:
            continue
        text = encoder.encode_texts(template.prompts)
        words[kind].append(text.features)
        if kind == "concept" and text.tokens is not None:
            spans = token_spans(text.offsets, text.attention_mask, template.subjects)
            words["local"].append(
                np.stack([row[a:b].mean(axis=0) for row, (a, b) in zip(text.tokens, spans, strict=True)])
            )
    label, concept, local = (unit(np.mean(words[kind], axis=0)) for kind in ("label", "concept", "local"))
    masks = np.stack([cell.nucleus for _, cell in examples]).reshape(ROWS, 12, 8, 12, 8)
    return HeldOut(
        classes=features @ label.T,
        concepts=features @ concept.T,
        patches=tokens @ local.T,
        labels=images.rows("test").labels,
        is_present=np.array([list(cell.concepts.values()) for _, cell in examples]),
        nucleus=masks.mean(axis=(2, 4)).reshape(ROWS, -1) > 0.5,
    )


def unit(vectors: Floats) -> Floats:
    result: Floats = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return result


def auroc(scores: Floats, is_present: npt.NDArray[np.bool_]) -> float:
    return float((scores[is_present][:, None] > scores[~is_present][None, :]).mean())


def test_held_out_phantoms_are_classified_by_their_names_alone(held_out: HeldOut) -> None:
    assert (held_out.classes.argmax(axis=1) == held_out.labels).mean() >= 0.85


def test_concept_scores_tell_which_concepts_are_there(held_out: HeldOut) -> None:
    values = [
        auroc(scores, is_present) for scores, is_present in zip(held_out.concepts.T, held_out.is_present.T, strict=True)
    ]
    assert np.mean(values) >= 0.85
    assert min(values) > 0.6


def leads(held_out: HeldOut, order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Per cell: do its nuclear concepts lead in the nucleus, and its other concepts outside it?"""
    groups = np.array([concept.group for concept in load_study("demo").vocabulary.concepts.words])
    leading = []
    for scores, is_present, nucleus in zip(held_out.patches, held_out.is_present, held_out.nucleus, strict=True):
        nuclear = order[np.flatnonzero(is_present & (groups == "nucleus"))]
        others = order[np.flatnonzero(is_present & np.isin(groups, ["granules", "cytoplasm", "surroundings"]))]
        if nucleus.any() and len(others):
            lead = scores[:, nuclear].mean(axis=1) - scores[:, others].mean(axis=1)
            leading.append((lead[nucleus].mean() > 0, lead[~nucleus].mean() < 0))
    return np.array(leading)


def test_nuclear_concepts_are_seen_in_the_nucleus_and_the_others_outside_it(held_out: HeldOut) -> None:
    inside, outside = leads(held_out, np.arange(held_out.is_present.shape[1])).mean(axis=0)
    assert inside >= 0.9
    assert outside >= 0.9


def test_permuted_concepts_are_not_seen_there(held_out: HeldOut) -> None:
    order = np.roll(np.arange(held_out.is_present.shape[1]), 5)
    assert leads(held_out, order).all(axis=1).mean() < 0.5


def test_the_digest_in_the_readme_is_the_shipped_weights() -> None:
    digest = hashlib.sha256((PHANTOM / "model.safetensors").read_bytes()).hexdigest()
    assert digest in (PHANTOM / "README.md").read_text(encoding="utf-8")
