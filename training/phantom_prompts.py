"""Sentences about phantom cells for training the encoder: words, paraphrases, and which images each is true of.

A prompt is a sentence with a subject; it is true of an image or not. Paraphrases and many sentence forms are there
so that the encoder understands words, not the demo study's few templates by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS

CLASS_WORDS: dict[str, tuple[str, ...]] = {
    "basophil": ("basophil", "basophils", "basophil granulocyte", "basophilic granulocyte"),
    "eosinophil": ("eosinophil", "eosinophils", "eosinophil granulocyte", "eosinophilic granulocyte"),
    "erythroblast": ("erythroblast", "erythroblasts", "normoblast", "nucleated red blood cell"),
    "immature granulocytes": (
        "immature granulocytes",
        "immature granulocyte",
        "immature white blood cell",
        "myelocyte",
        "metamyelocyte",
        "promyelocyte",
    ),
    "lymphocyte": ("lymphocyte", "lymphocytes", "small lymphoid cell"),
    "monocyte": ("monocyte", "monocytes", "large monocytic cell"),
    "neutrophil": ("neutrophil", "neutrophils", "neutrophil granulocyte", "polymorphonuclear neutrophil"),
    "platelet": ("platelet", "platelets", "thrombocyte", "thrombocytes"),
}

GROUP_WORDS: dict[str, tuple[str, ...]] = {
    "white blood cell": CLASSES[:2] + CLASSES[3:7],
    "leukocyte": CLASSES[:2] + CLASSES[3:7],
    "granulocyte": ("basophil", "eosinophil", "neutrophil", "immature granulocytes"),
    "mature granulocyte": ("basophil", "eosinophil", "neutrophil"),
    "mononuclear cell": ("lymphocyte", "monocyte"),
}
"""Wider words, and the classes they hold for."""

CONCEPT_WORDS: dict[str, tuple[str, ...]] = {
    "Segmented nucleus": ("lobed nucleus", "multilobed nucleus", "nucleus with several lobes", "segmented nuclei"),
    "Band nucleus (band form)": ("band nucleus", "band form", "band shaped nucleus", "u-shaped nucleus"),
    "Reniform / indented nucleus": (
        "reniform nucleus",
        "indented nucleus",
        "kidney shaped nucleus",
        "bean shaped nucleus",
    ),
    "Round nucleus": ("round nuclei", "circular nucleus", "nucleus that is round", "smooth round nucleus"),
    "Fine azurophilic granules": ("azurophilic granules", "fine granules", "fine purple granules"),
    "Eosinophilic granules": ("orange granules", "red granules", "large eosinophilic granules"),
    "Basophilic granules": ("dark granules", "dark blue granules", "coarse basophilic granules"),
    "Basophilic cytoplasm": ("blue cytoplasm", "deep blue cytoplasm", "basophilic blue cytoplasm"),
    "Cytoplasmic vacuoles": ("vacuoles", "vacuolated cytoplasm", "vacuoles in the cytoplasm"),
    "High nuclear-to-cytoplasmic ratio": (
        "high nucleus to cytoplasm ratio",
        "large nucleus and scant cytoplasm",
        "scant cytoplasm",
    ),
    "Pale cytoplasm": ("clear cytoplasm", "light cytoplasm", "pale clear cytoplasm"),
    "Nucleated erythrocyte (erythroblast)": ("nucleated erythrocyte", "nucleated red cell"),
    "Platelet fragments / clumps": ("platelet fragments", "platelet clumps", "platelets nearby"),
    "Stain precipitate (artifact)": ("stain precipitate", "stain deposit", "precipitated stain"),
    "Overlapping cell clumps (artifact)": ("overlapping cells", "clumped cells", "overlapping red cells"),
}
"""Paraphrases of every concept word, beside the word itself."""

PARTS = ("nucleus",) * 4 + ("cytoplasm",) * 5 + ("", "cytoplasm", "") + ("surroundings",) * 3
"""The part of the picture that each concept is about; "" where it is about several."""

CLASS_SENTENCES = (
    "a microscopic image of a {} cell",
    "a peripheral blood smear image of a {}",
    "a bloodcell of {}",
    "{}",
    "a {}",
    "an image of a {}",
    "a photo of one {} in blood",
    "a stained smear with a {}",
    "this cell is a {}",
    "microscopy of {}",
    "a single {} cell in a peripheral smear",
    "a picture that shows a {}",
    "the cell type is {}",
)

CONCEPT_SENTENCES = (
    "a cell photo with sign of {}",
    "a photo of a cell with {}",
    "a cell image indicating {}",
    "an image of a cell showing {}",
    "blood cell with {}",
    "a blood cell photo with sign of {}",
    "{}",
    "a cell with {}",
    "a smear image with {}",
    "the cell has {}",
    "a stained cell in which one sees {}",
    "microscopy of a cell with {}",
    "one can see {} here",
    "there is {} in this picture",
)

NEGATIONS = (
    "a cell without {}",
    "a photo of a cell with no {}",
    "no sign of {}",
    "an image of a cell that shows no {}",
    "a cell that does not have {}",
)

UNSEEN_CLASS_SENTENCES = (
    "the smear shows one {} here",
    "a blood image in which there is a {}",
    "a microscopic photo that shows a single {}",
)

UNSEEN_CONCEPT_SENTENCES = (
    "a photo of a blood cell with {}",
    "an image of blood cell showing {}",
    "a microscopic picture in which the cell has {}",
)
"""Sentence forms that training never uses, to see whether others than those by heart are understood."""

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """The annotations of a batch of images: `labels` (B,) and `concepts` (B, number of concepts)."""

    labels: npt.NDArray[np.int64]
    concepts: Flags

    def is_class(self, *names: str) -> Flags:
        return np.isin(self.labels, [CLASSES.index(name) for name in names])


@dataclass(frozen=True)
class Prompt:
    """A sentence, which images of the batch it is true of, and its subject's half-open character range.

    Only the presence of something has a place in a picture: `subject` is None for negations and whole captions.
    `part` names the part of the picture that it is about, "" where that is several or all. `is_class` says that
    the subject is a kind of cell, not a concept.
    """

    text: str
    is_true: Flags
    subject: tuple[int, int] | None = None
    part: str = ""
    is_class: bool = False


def draw_prompts(batch: Batch, rng: np.random.Generator) -> list[Prompt]:
    """Prompts for a batch: every class and concept once, a wider word, some negations, captions of some images."""
    group = _any(tuple(GROUP_WORDS), rng)
    return [
        *(_of_class(_word(name, CLASS_WORDS[name], rng), batch.is_class(name), rng) for name in CLASSES),
        _of_class(group, batch.is_class(*GROUP_WORDS[group]), rng),
        *(_of_concept(index, batch, rng) for index in range(len(CONCEPTS))),
        *(_negation(int(index), batch, rng) for index in rng.choice(len(CONCEPTS), 6, replace=False)),
        *(_caption(int(row), batch, rng) for row in rng.choice(len(batch.labels), 8, replace=False)),
    ]


def _of_class(word: str, is_true: Flags, rng: np.random.Generator) -> Prompt:
    sentence = _any(CLASS_SENTENCES, rng)
    return Prompt(sentence.format(word), is_true, _span(sentence, word), is_class=True)


def _of_concept(index: int, batch: Batch, rng: np.random.Generator) -> Prompt:
    sentence, word = _any(CONCEPT_SENTENCES, rng), _concept_word(index, rng)
    return Prompt(sentence.format(word), batch.concepts[:, index], _span(sentence, word), PARTS[index])


def _negation(index: int, batch: Batch, rng: np.random.Generator) -> Prompt:
    return Prompt(_any(NEGATIONS, rng).format(_concept_word(index, rng)), ~batch.concepts[:, index])


def _caption(row: int, batch: Batch, rng: np.random.Generator) -> Prompt:
    """A whole caption of one image: its class and one or two of its concepts; true wherever all of them hold."""
    name = CLASSES[batch.labels[row]]
    present = rng.permutation(np.flatnonzero(batch.concepts[row]))[: rng.integers(1, 3)]
    start = _any(CLASS_SENTENCES, rng).format(_word(name, CLASS_WORDS[name], rng))
    text = f"{start} with {' and '.join(_concept_word(index, rng) for index in present)}" if len(present) else start
    return Prompt(text, batch.is_class(name) & batch.concepts[:, present].all(axis=1))


def _span(sentence: str, word: str) -> tuple[int, int]:
    start = sentence.index("{}")
    return start, start + len(word)


def _concept_word(index: int, rng: np.random.Generator) -> str:
    return _word(CONCEPTS[index], CONCEPT_WORDS[CONCEPTS[index]], rng)


def _word(word: str, paraphrases: tuple[str, ...], rng: np.random.Generator) -> str:
    """Every other time the study's own word, else one of its paraphrases."""
    return word if rng.random() < 0.5 else _any(paraphrases, rng)


def _any(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]
