"""Training of the phantom encoder from nothing: phantom images, sentences about them, and the two sigmoid losses.

    OMP_NUM_THREADS=1 python training/train_phantom.py OUTPUT_FOLDER

The global loss tells for every image and every sentence whether the sentence is true of the image: SigLIP's sigmoid
loss, with as many positives as there are. The local one does the same with the image's patches and the tokens of the
sentence's subject: the best patches must say whether the subject is to be seen. Where it is to be seen is told to the
encoder nowhere; masks serve the evaluation alone. Two things make the patches honest about it instead: a patch shows
one part of the picture at most (nucleus, cytoplasm or surroundings), and it shows the same when the rest of the
picture is exchanged for another picture's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch
from phantom_evaluation import evaluate
from phantom_prompts import Batch, Prompt, draw_prompts
from safetensors.torch import save_file
from tokenizers import BertWordPieceTokenizer
from torch import Tensor
from torch.nn import functional

from ccassets.datasets.phantom import PhantomDataset
from ccassets.encoders.checkpoint import read_architecture
from ccassets.encoders.conceptclip import PHANTOM
from ccassets.encoders.preprocessing import squash
from ccassets.encoders.towers import ConceptClip
from ccassets.study.schema import PhantomDatasetConfig

TRAINING_SEED = 20_000
HELD_OUT_SEED = 10_000


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result.

    `concept_patches` and `class_patches` are how many of the best patches are averaged for a concept and for a
    class (the authors' zero-shot score takes 128). `mixed` images a batch are checked for steadiness.
    """

    seed: int = 0
    steps: int = 2600
    batch: int = 32
    learning_rate: float = 1e-3
    warm_up: int = 200
    weight_decay: float = 0.02
    concept_patches: int = 12
    class_patches: int = 128
    mixed: int = 16
    steadiness: float = 0.3


@dataclass(frozen=True)
class Sentences:
    """Prompts as tensors: ids (M, T), which of them have a subject (M,), and for those P its tokens (P, T).

    `is_true` (B, M) says which sentence is true of which image; `rivals` (P, P) which subjects are about different
    parts of the picture; `patches` (P,) over how many patches each is averaged.
    """

    ids: Tensor
    placed: Tensor
    subjects: Tensor
    is_true: Tensor
    rivals: Tensor
    patches: list[int]


def train(recipe: Recipe, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("architecture.json", "vocab.txt"):
        copyfile(PHANTOM / name, folder / name)
    tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = ConceptClip(read_architecture(json.loads((folder / "architecture.json").read_text())))
    model.eval()  # evaluation mode: nothing here is in need of BERT's dropout
    start_logits(model)
    size = model.architecture.image_size
    images = phantoms(recipe.steps * recipe.batch, TRAINING_SEED + recipe.seed, size)
    optimiser = torch.optim.AdamW(parameter_groups(model, recipe), betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step, recipe))
    began = time.process_time()
    recent: list[tuple[float, ...]] = []
    with (folder / "training.jsonl").open("w", encoding="utf-8") as log:

        def tell(**line: object) -> None:
            text = json.dumps(line)
            log.write(text + "\n")
            print(text, flush=True)

        tell(recipe=asdict(recipe), parameters=model.architecture.parameter_count)
        for step in range(1, recipe.steps + 1):
            pixels, batch = draw_batch(images, (step - 1) * recipe.batch, recipe.batch)
            sentences = as_tensors(draw_prompts(batch, rng), tokenizer, recipe)
            losses = compute_losses(model, pixels, sentences, recipe, rng)
            optimiser.zero_grad(set_to_none=True)
            (losses[0] + losses[1] + recipe.steadiness * losses[2]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            scheduler.step()
            recent.append(tuple(loss.item() for loss in losses))
            if step % 100 == 0:
                names = ("global_loss", "local_loss", "unsteadiness")
                means = (round(float(mean), 4) for mean in np.mean(recent, axis=0))
                tell(step=step, **dict(zip(names, means, strict=True)), seconds=round(time.process_time() - began, 1))
                recent.clear()
            if step % 500 == 0 or step == recipe.steps:
                rows = 800 if step == recipe.steps else 160
                tell(step=step, held_out=evaluate(model, tokenizer, phantoms(rows, HELD_OUT_SEED, size)))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")


def phantoms(rows: int, seed: int, size: int) -> PhantomDataset:
    return PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": rows}, size=size, seed=seed))


def draw_batch(images: PhantomDataset, first: int, count: int) -> tuple[Tensor, Batch]:
    """Images never seen before, (B, 3, S, S), and their annotations."""
    rows = range(first, first + count)
    examples = [images.example("train", row) for row in rows]
    pixels = np.stack([squash(image, image.width) for image, _ in examples])
    labels = np.array([images.label("train", row) for row in rows])
    return torch.from_numpy(pixels), Batch(
        labels, np.array([list(annotations.concepts.values()) for _, annotations in examples])
    )


def as_tensors(prompts: list[Prompt], tokenizer: BertWordPieceTokenizer, recipe: Recipe) -> Sentences:
    encodings = tokenizer.encode_batch([prompt.text for prompt in prompts])
    length = max(len(encoding.ids) for encoding in encodings)
    ids, subjects = torch.zeros(len(prompts), length, dtype=torch.long), torch.zeros(len(prompts), length)
    for row, (encoding, prompt) in enumerate(zip(encodings, prompts, strict=True)):
        ids[row, : len(encoding.ids)] = torch.tensor(encoding.ids)
        if prompt.subject is not None:
            first, last = prompt.subject
            for position, (start, stop) in enumerate(encoding.offsets):
                subjects[row, position] = float(first <= start < stop <= last)
    with_subject = [prompt for prompt in prompts if prompt.subject is not None]
    parts = [prompt.part for prompt in with_subject]
    placed = torch.tensor([prompt.subject is not None for prompt in prompts])
    return Sentences(
        ids=ids,
        placed=placed,
        subjects=subjects[placed],
        is_true=torch.from_numpy(np.stack([prompt.is_true for prompt in prompts], axis=1)).float(),
        rivals=torch.tensor([[float(bool(a and b) and a != b) for b in parts] for a in parts]),
        patches=[recipe.class_patches if prompt.is_class else recipe.concept_patches for prompt in with_subject],
    )


def compute_losses(
    model: ConceptClip, pixels: Tensor, sentences: Sentences, recipe: Recipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The global loss, the local loss, and how unsteady the patches are."""
    images, patches = model.encode_image(pixels)
    texts, tokens = model.encode_text(sentences.ids)
    scores = model.logit_scale.exp() * images @ texts.T + model.logit_bias
    subjects = functional.normalize((tokens[sentences.placed] * sentences.subjects[:, :, None]).sum(dim=1), dim=-1)

    def logits_of(patches: Tensor) -> Tensor:
        """(B, T_img, P): the log odds of every patch to show every subject."""
        similarity = functional.normalize(patches, dim=-1) @ subjects.T
        return model.concept_logit_scale.exp() * similarity + model.concept_logit_bias

    logits = logits_of(patches)
    exchanged, window = exchange(pixels[: recipe.mixed], model.architecture.patch_size, rng)
    expected = torch.where(window[:, None], logits[: recipe.mixed].roll(1, dims=0), logits[: recipe.mixed])
    actual = logits_of(model.encode_image(exchanged)[1])
    return (
        functional.binary_cross_entropy_with_logits(scores, sentences.is_true),
        local_loss(logits, sentences),
        functional.smooth_l1_loss(actual, expected),
    )


def local_loss(logits: Tensor, sentences: Sentences) -> Tensor:
    """Whether a subject is to be seen, from its best patches.

    Of the subjects that are there, a patch shows one part of the picture at most: what is left of a subject's log
    odds is against the patch showing nothing or any of its rivals.
    """
    is_true = sentences.is_true[:, sentences.placed]
    rivalry = torch.log1p((logits.exp() * is_true[:, None]) @ sentences.rivals)
    left = logits - rivalry * is_true[:, None]
    ranked = left.sort(dim=1, descending=True).values
    best = [ranked[:, :count, subject].mean(dim=1) for subject, count in enumerate(sentences.patches)]
    return functional.binary_cross_entropy_with_logits(torch.stack(best, dim=1), is_true)


def exchange(pixels: Tensor, patch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Every picture with the same random window of whole patches from the picture before it; the window (T_img,)."""
    side = pixels.shape[-1] // patch
    height, width = rng.integers(side // 4, 3 * side // 4 + 1, 2)
    top, left = rng.integers(0, side - height + 1), rng.integers(0, side - width + 1)
    window = torch.zeros(side, side, dtype=torch.bool)
    window[top : top + height, left : left + width] = True
    area = window.repeat_interleave(patch, dim=0).repeat_interleave(patch, dim=1)
    return torch.where(area, pixels.roll(1, dims=0), pixels), window.flatten()


def start_logits(model: ConceptClip) -> None:
    """Scales as SigLIP starts; biases for about one true sentence in eight, not for one in a large batch."""
    with torch.no_grad():
        for scale in (model.logit_scale, model.concept_logit_scale):
            scale.fill_(math.log(10))
        for bias in (model.logit_bias, model.concept_logit_bias):
            bias.fill_(-2.0)


def parameter_groups(model: ConceptClip, recipe: Recipe) -> list[dict[str, object]]:
    """Matrices decay, biases, norms and logit parameters do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [
        {"params": matrices, "lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
        {"params": others, "lr": recipe.learning_rate, "weight_decay": 0.0},
    ]


def pace(step: int, recipe: Recipe) -> float:
    """The learning rate's factor: up in a line, then down in half a cosine to a hundredth."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the encoder and its training log are written")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train(Recipe(seed=arguments.seed, steps=arguments.steps), arguments.folder)
