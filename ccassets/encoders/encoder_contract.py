"""The contract of encoders: an identity card, and images and texts turned into features."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.database.encoder_identity import compute_identity

EXTRACTION_VERSION = 1
"""Raised on purpose when our own preprocessing, pooling or tokenization changes what an encoder gives."""

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class EncoderCard:
    """Everything about an encoder that determines numbers, known without building the model.

    Args:
        kind: The kind of the study's encoder section.
        weights_digest: SHA-256 (hex) of the bytes of the weights.
        architecture: Dimensions and the like, as JSON values.
        preprocessing: From an RGB image to pixels, as JSON values.
        text_pooling: How tokens become one text vector; None without a text tower.
        tokenizer_digest: SHA-256 (hex) of the bytes of the tokenizer; None without a text tower.
        dim: D, the length of feature vectors.
        token_count: T_img, the number of image tokens; 0 without tokens.
        image_size: Height and width of the preprocessed image in pixels.
        dtype: The precision of the computation.
        compiled: Whether torch compiled the image tower.
        stored_dtype: The dtype of stored features.
        extraction_version: The version of our own preprocessing, pooling and tokenization.
        strict: With `extraction.strict`, batch size, device kind and library versions.
        logit_scale: The model's own factor of similarities, as a natural logarithm.
        logit_bias: The model's own summand.
        concept_logit_scale: The factor of patch and word similarities, as a natural logarithm.
        concept_logit_bias: The summand of patch and word similarities.
        recorded: Facts that are stored but not part of the identity: hub id, commit, number of parameters, …
    """

    kind: str
    weights_digest: str
    architecture: Mapping[str, Any]
    preprocessing: Mapping[str, Any]
    text_pooling: str | None
    tokenizer_digest: str | None
    dim: int
    token_count: int
    image_size: int
    dtype: str
    compiled: bool = False
    stored_dtype: str = "float16"
    extraction_version: int = EXTRACTION_VERSION
    strict: Mapping[str, Any] | None = None
    logit_scale: float | None = None
    logit_bias: float | None = None
    concept_logit_scale: float | None = None
    concept_logit_bias: float | None = None
    recorded: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_text(self) -> bool:
        """Whether the encoder encodes texts."""
        return self.text_pooling is not None

    @cached_property
    def identity(self) -> str:
        """32 hex digits that change with every declared field but `recorded`."""
        return compute_identity(self.declared())

    def declared(self) -> dict[str, Any]:
        """Every field by its name; `compiled` only where it is true, so that older identities stay.

        Returns:
            The fields, as JSON values.
        """
        fields = asdict(self)
        if not self.compiled:
            del fields["compiled"]
        return fields

    def to_json(self) -> str:
        """Format the card with its identity as JSON, as `encoder.json` holds it.

        Returns:
            The JSON object, which `from_json` reads.
        """
        return json.dumps({"identity": self.identity, **self.declared()}, indent=2, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> EncoderCard:
        """Read a card that `to_json` wrote.

        Args:
            text: The JSON object.

        Returns:
            The card.

        Raises:
            ValueError: This is no JSON, or the fields are not those of the identity beside them.
            KeyError: The identity is missing.
            TypeError: Fields are missing or unknown.
        """
        fields = json.loads(text)
        identity = fields.pop("identity")
        card = cls(**fields)
        if card.identity != identity:
            raise ValueError(
                f"expected a card with the identity {identity}, found fields with the identity {card.identity}"
            )
        return card


@dataclass(frozen=True)
class ImageFeatures:
    """The features of B images.

    Attributes:
        features: (B, D) float32, unit length.
        tokens: (B, T_img, D) float32 or float16, patches row by row; None without tokens.
    """

    features: npt.NDArray[np.floating[Any]]
    tokens: npt.NDArray[np.floating[Any]] | None


@dataclass(frozen=True)
class TextFeatures:
    """The features of K prompts.

    Attributes:
        features: (K, D) float32, unit length.
        tokens: (K, T, D) float32, or None without tokens.
        input_ids: (K, T) int32, the tokens as encoded.
        attention_mask: (K, T) uint8, 1 where a token is not padding.
        offsets: (K, T, 2) int32, the half-open character range of the prompt that each token covers; (0, 0) for special
            tokens.
    """

    features: FloatArray
    tokens: FloatArray | None
    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]


class Encoder(Protocol):
    """The contract of an encoder: a card, and four methods.

    `preprocess` runs in worker threads and must be safe there; the rest is called by one thread.

    Equal input gives equal bits on the same device kind, dtype and batch shape.
    """

    @property
    def card(self) -> EncoderCard:
        """The identity card."""

    @property
    def device(self) -> str:
        """The kind of device it computes on, such as `cpu` or `cuda`, for the provenance.

        A user's own class may leave it out; the record then says so.
        """

    def preprocess(self, image: Image.Image) -> FloatArray:
        """Turn an RGB image into the model's input.

        Args:
            image: Mode RGB, any size.

        Returns:
            (3, image_size, image_size) float32.
        """

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        """Encode a batch of preprocessed images.

        Args:
            pixels: (B, 3, image_size, image_size) float32, as `preprocess` gives it.

        Returns:
            Features of unit length, (B, D), and token features, (B, T_img, D) or None.
        """

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        """Encode RGB images: `preprocess` and `encode_pixels` in one call.

        Args:
            images: B images of mode RGB.

        Returns:
            Features and token features, as `encode_pixels` gives them.
        """

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        """Encode prompts.

        Args:
            prompts: K texts.

        Returns:
            Features of unit length, (K, D), with token features, token ids and mask.

        Raises:
            EncoderError: The encoder has no text tower (`card.has_text`).
        """
