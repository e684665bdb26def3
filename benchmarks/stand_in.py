"""An encoder that costs nothing, for what is measured around one: features drawn from the pixels and from the words."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.encoders.encoder_contract import EncoderCard, FloatArray, ImageFeatures, TextFeatures

SIDE = 8
CONTEXT = 77


class StandIn:
    """Looks like ConceptCLIP to everything around it: `dim` numbers a vector, `tokens` patches an image."""

    device = "cpu"

    def __init__(self, dim: int, tokens: int) -> None:
        self.card = EncoderCard(
            kind="python",
            weights_digest="none: a stand-in for benchmarks",
            architecture={},
            preprocessing={},
            text_pooling="mean",
            tokenizer_digest="none",
            dim=dim,
            token_count=tokens,
            image_size=SIDE,
            dtype="float32",
            logit_scale=4.57,
            concept_logit_scale=4.51,
        )
        self._numbers = random_float16(np.random.default_rng(0), 2 * max(1, tokens) * dim)

    def preprocess(self, image: Image.Image) -> FloatArray:
        return np.asarray(image.resize((SIDE, SIDE)), np.float32).transpose(2, 0, 1) / np.float32(255)

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        seeds = [zlib.crc32(image.tobytes()) for image in pixels]
        tokens = np.stack([self._patches(seed) for seed in seeds]) if self.card.token_count else None
        return ImageFeatures(_unit([_vector(seed, self.card.dim) for seed in seeds]), tokens)

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        shape = (len(prompts), CONTEXT)
        ids, mask, offsets = np.zeros(shape, np.int32), np.zeros(shape, np.uint8), np.zeros((*shape, 2), np.int32)
        tokens = np.zeros((*shape, self.card.dim), np.float32)
        for row, prompt in enumerate(prompts):
            start = 0
            for position, word in enumerate(prompt.split(" ")[:CONTEXT]):
                seed = zlib.crc32(word.encode())
                ids[row, position], mask[row, position] = seed % 30_000, 1
                offsets[row, position] = start, start + len(word)
                tokens[row, position] = _vector(seed, self.card.dim)
                start += len(word) + 1
        features = _unit([_vector(zlib.crc32(prompt.encode()), self.card.dim) for prompt in prompts])
        return TextFeatures(features, tokens, ids, mask, offsets)

    def _patches(self, seed: int) -> npt.NDArray[np.float16]:
        """The patches of an image: a piece of one long row of numbers, cut where the seed says."""
        count = self.card.token_count * self.card.dim
        start = seed % (len(self._numbers) - count + 1)
        return self._numbers[start : start + count].reshape(self.card.token_count, self.card.dim)


def random_float16(rng: np.random.Generator, count: int) -> npt.NDArray[np.float16]:
    """Numbers of either sign from 1/8 to 2, from random bits: as hard to compress as token features are."""
    bits = np.frombuffer(rng.bytes(2 * count), np.uint16)
    sign_and_fraction, exponents_12_to_15 = np.uint16(0x8FFF), np.uint16(0x3000)
    return ((bits & sign_and_fraction) | exponents_12_to_15).view(np.float16)


def _vector(seed: int, dim: int) -> FloatArray:
    return np.random.default_rng(seed).standard_normal(dim, np.float32)


def _unit(vectors: Any) -> FloatArray:
    stacked = np.stack(vectors)
    unit: FloatArray = stacked / np.linalg.norm(stacked, axis=1, keepdims=True)
    return unit
