"""A dual encoder of six colours of stained blood, for real crops where no real weights are: made by hand, not trained.

A study takes it as `kind: python`. A patch is the shares of its pixels that look like each colour; a word that names a
part of a cell is the colour of that part, any other word all of them alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.encoders import EncoderCard, ImageFeatures, TextFeatures

GRID, SIDE = 12, 96
PARTS = ("background", "red cell", "nucleus", "cytoplasm", "granules")
COLOURS = {
    (202, 203, 200): "background",
    (182, 162, 166): "red cell",
    (168, 140, 140): "red cell",
    (125, 98, 200): "nucleus",
    (178, 160, 200): "cytoplasm",
    (170, 120, 160): "granules",
}
"""RGB as the microscope of these crops shows the parts: chosen by looking at pixels, with no label of a cell's type."""
WIDTH = 8
"""How far from its colour a pixel may be, in grey values."""
WORDS = {
    **dict.fromkeys(("background", "plasma"), "background"),
    **dict.fromkeys(("erythrocyte", "haemoglobin"), "red cell"),
    **dict.fromkeys(("nucleus", "nuclei", "chromatin"), "nucleus"),
    **dict.fromkeys(("cytoplasm",), "cytoplasm"),
    **dict.fromkeys(("granules", "eosinophilic", "eosinophil", "orange"), "granules"),
}

Floats = npt.NDArray[np.float32]


class StainColours:
    """The encoder; it is called with no options."""

    device = "cpu"

    def __init__(self) -> None:
        self.card = EncoderCard(
            kind="python",
            weights_digest="none",
            architecture={"name": "stain-colours", "colours": [[*colour, part] for colour, part in COLOURS.items()]},
            preprocessing={"resize": "squash", "side": SIDE, "width": WIDTH},
            text_pooling="mean",
            tokenizer_digest="none",
            dim=len(PARTS),
            token_count=GRID * GRID,
            image_size=SIDE,
            dtype="float32",
            recorded={"tokens_for_words": True, "geometry": {"rule": "squash"}},
        )

    def preprocess(self, image: Image.Image) -> Floats:
        small = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(small, np.float32).transpose(2, 0, 1))

    def encode_pixels(self, pixels: Floats) -> ImageFeatures:
        tokens = np.stack([self._patches(image) for image in pixels])
        return ImageFeatures(_unit(tokens.mean(axis=1)), tokens)

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        words = [list(re.finditer(r"\w+", prompt)) for prompt in prompts]
        length = max(map(len, words))
        shape = (len(prompts), length)
        tokens = np.full((*shape, len(PARTS)), len(PARTS) ** -0.5, np.float32)
        ids, mask, offsets = np.zeros(shape, np.int32), np.zeros(shape, np.uint8), np.zeros((*shape, 2), np.int32)
        features = np.zeros((len(prompts), len(PARTS)), np.float32)
        for row, matches in enumerate(words):
            for column, word in enumerate(matches):
                part = WORDS.get(word.group().lower())
                ids[row, column], mask[row, column] = 1 + PARTS.index(part) if part else len(PARTS) + 1, 1
                offsets[row, column] = word.span()
                if part:
                    tokens[row, column] = np.eye(len(PARTS))[PARTS.index(part)]
                    features[row] += tokens[row, column]
        features[~features.any(axis=1)] = 1
        return TextFeatures(_unit(features), tokens, ids, mask, offsets)

    def _patches(self, pixels: Floats) -> Floats:
        """The share of every part in every patch, (GRID * GRID, parts)."""
        colours = np.array([*COLOURS], np.float32)
        distances = ((pixels.transpose(1, 2, 0)[:, :, None] - colours) ** 2).sum(axis=-1)
        likeness = np.exp(-distances / (2 * WIDTH**2)) + 1e-6
        belongs = np.array([[part == name for name in PARTS] for part in COLOURS.values()], np.float32)
        shares = (likeness / (likeness.sum(axis=-1, keepdims=True) + 1e-3)) @ belongs
        step = SIDE // GRID
        patches = shares.reshape(GRID, step, GRID, step, len(PARTS)).mean(axis=(1, 3))
        return np.ascontiguousarray(patches.reshape(GRID * GRID, len(PARTS)), np.float32)


def _unit(vectors: npt.NDArray[Any]) -> Floats:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32)
