"""What a phantom encoder understands, measured on phantoms it has not seen: classes, concepts, and where they are.

    python training/phantom_evaluation.py ENCODER_FOLDER [--crops FOLDER]

With `--crops` also how it fares on real crops in the folders WBC, RBC and Platelets, which it was not made for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from phantom_prompts import PARTS, UNSEEN_CLASS_SENTENCES, UNSEEN_CONCEPT_SENTENCES
from PIL import Image
from sklearn.metrics import roc_auc_score
from tokenizers import BertWordPieceTokenizer
from torch.nn import functional

from ccassets.datasets.phantom import PhantomDataset
from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS
from ccassets.encoders.conceptclip import load_checkpoint
from ccassets.encoders.preprocessing import squash
from ccassets.encoders.towers import ConceptClip
from ccassets.study.loading import load_study
from ccassets.study.schema import PhantomDatasetConfig

Floats = npt.NDArray[np.float32]
Flags = npt.NDArray[np.bool_]

TOP_PATCHES = 128
CROPS = {"WBC": "white blood cell", "RBC": "red blood cell", "Platelets": "platelet"}


@torch.no_grad()
def evaluate(model: ConceptClip, tokenizer: BertWordPieceTokenizer, images: PhantomDataset) -> dict[str, float]:
    """Figures between 0 and 1; `..._unseen` with sentence forms that training never used.

    `zero_shot` is the global score, `zero_shot_combined` the authors' half and half of global and local.
    `auroc` is the mean over concepts of the global cosine, `auroc_within_classes` of the same inside each class.
    """
    rows = images.rows("train")
    examples = [images.example("train", row) for row in range(len(rows))]
    features, patches = image_features(model, [image for image, _ in examples])
    present = np.array([list(annotations.concepts.values()) for _, annotations in examples])
    vocabulary = load_study("demo").vocabulary
    report: dict[str, float] = {}
    for name, class_forms, concept_forms in (
        ("", vocabulary.labels.templates, vocabulary.concepts.templates),
        ("_unseen", UNSEEN_CLASS_SENTENCES, UNSEEN_CONCEPT_SENTENCES),
    ):
        classes, local_classes = word_features(model, tokenizer, CLASSES, class_forms)
        chances = softmax(float(model.logit_scale.exp()) * features @ classes.T)
        best = np.sort(patches @ local_classes.T, axis=1)[:, -TOP_PATCHES:].mean(axis=1)
        local_chances = softmax(float(model.concept_logit_scale.exp()) * best)
        report[f"zero_shot{name}"] = accuracy(chances, rows.labels)
        report[f"zero_shot_combined{name}"] = accuracy(chances + local_chances, rows.labels)
        concepts, local_concepts = word_features(model, tokenizer, CONCEPTS, concept_forms)
        scores = features @ concepts.T
        report[f"auroc{name}"] = float(np.mean(list(aurocs(scores, present).values())))
        if not name:
            within = [list(aurocs(scores[rows.labels == c], present[rows.labels == c]).values()) for c in range(8)]
            report["auroc_within_classes"] = float(np.mean(np.concatenate(within)))
            report |= {f"auroc {CONCEPTS[index]}": value for index, value in aurocs(scores, present).items()}
            nucleus = patch_shares(np.stack([annotations.nucleus for _, annotations in examples]))
            cytoplasm = patch_shares(np.stack([annotations.cytoplasm for _, annotations in examples]))
            report |= localisation(patches @ local_concepts.T, present, nucleus, cytoplasm)
    return {key: round(value, 4) for key, value in report.items()}


def localisation(maps: Floats, present: Flags, nucleus: Floats, cytoplasm: Floats) -> dict[str, float]:
    """Where the maps (N, T_img, concepts) of the concepts that are there are high, for cells with a nucleus.

    `inside` (`outside`): share of cells in whose nucleus (outside of which) the nuclear concept's mean is above
    (below) that of the cytoplasm's and the surroundings' concepts; `..._permuted` the same with every map taken
    for another part's concept. `pointing_…`: how often the highest patch lies in the part; `mass_nucleus`: the
    nucleus's share of the map above its mean; `area_…`: what both would be by chance.
    """
    parts = np.array(PARTS)
    permuted = np.roll(np.arange(len(CONCEPTS)), 5)
    figures: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        figures.setdefault(name, []).append(float(value))

    for scores, is_there, core, around in zip(maps, present, nucleus > 0.5, cytoplasm > 0.3, strict=True):
        if not core.any():
            continue
        nuclear = np.flatnonzero(is_there & (parts == "nucleus"))
        others = np.flatnonzero(is_there & ((parts == "cytoplasm") | (parts == "surroundings")))
        for suffix, order in (("", np.arange(len(CONCEPTS))), ("_permuted", permuted)):
            if len(others):
                lead = scores[:, order[nuclear]].mean(axis=1) - scores[:, order[others]].mean(axis=1)
                note(f"inside{suffix}", lead[core].mean() > 0)
                note(f"outside{suffix}", lead[~core].mean() < 0)
        for index in nuclear:
            above = np.clip(scores[:, index] - scores[:, index].mean(), 0, None)
            note("pointing_nucleus", core[scores[:, index].argmax()])
            note("mass_nucleus", above[core].sum() / above.sum())
            note("area_nucleus", core.mean())
        for index in np.flatnonzero(is_there & (parts == "cytoplasm")):
            note("pointing_cytoplasm", around[scores[:, index].argmax()])
            note("area_cytoplasm", around.mean())
    return {name: float(np.mean(values)) for name, values in figures.items()}


@torch.no_grad()
def evaluate_crops(model: ConceptClip, tokenizer: BertWordPieceTokenizer, folder: Path) -> dict[str, float]:
    """Zero-shot accuracy over the three kinds of real crops, and the recall of each."""
    words, _ = word_features(model, tokenizer, tuple(CROPS.values()), load_study("demo").vocabulary.labels.templates)
    recall = {}
    for number, kind in enumerate(CROPS):
        crops = [Image.open(file).convert("RGB") for file in sorted(folder.glob(f"{kind}/*.jpg"))]
        recall[kind] = float(((image_features(model, crops)[0] @ words.T).argmax(axis=1) == number).mean())
    return {"mean recall": float(np.mean(list(recall.values()))), **recall}


def image_features(model: ConceptClip, images: Sequence[Image.Image]) -> tuple[Floats, Floats]:
    """Image features (N, D) and token features (N, T_img, D), both of unit length."""
    size = model.architecture.image_size
    pixels = torch.from_numpy(np.stack([squash(image, size) for image in images]))
    encoded = [model.encode_image(batch) for batch in pixels.split(32)]
    patches = functional.normalize(torch.cat([tokens for _, tokens in encoded]), dim=-1)
    return torch.cat([features for features, _ in encoded]).numpy(), patches.numpy()


def word_features(
    model: ConceptClip, tokenizer: BertWordPieceTokenizer, words: Sequence[str], forms: Sequence[str]
) -> tuple[Floats, Floats]:
    """Per word the mean over sentence forms, unit length: of the text features, and of the word's token features."""
    whole, local = [], []
    for word in words:
        for form in forms:
            first = form.index("{}")
            encoding = tokenizer.encode(form.format(word))
            feature, tokens = model.encode_text(torch.tensor([encoding.ids]))
            span = [position for position, (a, b) in enumerate(encoding.offsets) if first <= a < b <= first + len(word)]
            whole.append(feature[0])
            local.append(tokens[0, span].mean(dim=0))
    shape = (len(words), len(forms), -1)
    means = [
        functional.normalize(torch.stack(vectors).reshape(shape).mean(dim=1), dim=-1) for vectors in (whole, local)
    ]
    return means[0].numpy(), means[1].numpy()


def aurocs(scores: Floats, present: Flags) -> dict[int, float]:
    """By concept, of those that are there in some images and not in others."""
    both = np.flatnonzero(present.any(axis=0) & ~present.all(axis=0))
    return {int(index): float(roc_auc_score(present[:, index], scores[:, index])) for index in both}


def accuracy(scores: Floats, labels: npt.NDArray[np.int64]) -> float:
    return float((scores.argmax(axis=1) == labels).mean())


def softmax(logits: Floats) -> Floats:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: Floats = powers / powers.sum(axis=1, keepdims=True)
    return result


def patch_shares(masks: Flags) -> Floats:
    """Masks (N, 96, 96) as the share of every 8 × 8 patch, (N, 144)."""
    return masks.reshape(len(masks), 12, 8, 12, 8).mean(axis=(2, 4), dtype=np.float32).reshape(len(masks), -1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--crops", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dimensions = json.loads((arguments.folder / "architecture.json").read_text())
    trained = load_checkpoint(arguments.folder / "model.safetensors", dimensions)
    pieces = BertWordPieceTokenizer(str(arguments.folder / "vocab.txt"), lowercase=True)
    held_out = PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": 800}, seed=10_001))
    print(json.dumps(evaluate(trained, pieces, held_out), indent=1))
    if arguments.crops:
        print(json.dumps(evaluate_crops(trained, pieces, arguments.crops), indent=1))
