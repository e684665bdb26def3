"""Dual encoders of other libraries behind the encoder contract: batches, precision, unit length and dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ccassets.encoders.encoder_contract import EncoderCard, FloatArray, ImageFeatures, TextFeatures
from ccassets.encoders.preprocessing import require_pixels, require_rgb
from ccassets.encoders.runtime import TEXT_BATCH, encode_batch, fixed_arithmetic, tower_dtype
from ccassets.encoders.tokenizer import Tokens
from ccassets.errors import EncoderError

if TYPE_CHECKING:
    import torch

    from ccassets.encoders.runtime import ImageTower


class Towers(Protocol):
    """The two towers of a library's model, with its preprocessing and tokenizer."""

    model: Any

    @property
    def embeddings(self) -> Any:
        """The module of the image tower that loses too much below float32: patch convolution, position embedding."""

    def preprocess(self, image: Image.Image) -> FloatArray:
        """An RGB image as pixels (3, S, S)."""

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Prompts as tokens; raises `EncoderError` naming those that are too long, and unknown words."""

    def encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (B, D) of any length, and patch tokens (B, T_img, D) where the card has them."""

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features (K, D) of any length, and text tokens (K, T, D) where the card has image tokens."""


class DualEncoder:
    """A dual encoder: the towers' own features, L2-normalised, and their tokens as they are.

    A card that says `compiled` has the image tower compiled for batches of `batch_size`.
    """

    def __init__(self, card: EncoderCard, towers: Towers, device: torch.device, batch_size: int) -> None:
        import torch

        self.card = card
        self.towers = towers
        self._device = device
        self.device = device.type
        self._dtype = tower_dtype(card.dtype)
        towers.model.to(device).eval().requires_grad_(False)
        self.image_tower: ImageTower = self._encode_image
        if card.compiled:
            from ccassets.encoders.compiling import compiled

            self.image_tower = compiled(self._encode_image, batch_size)
        if self._dtype != torch.float32:
            embeddings = towers.embeddings
            embeddings.forward = torch.autocast(device.type, enabled=False)(embeddings.forward)
        # The card's dimensions come from a configuration; one image and one text show that the model has them too.
        self.encode_pixels(np.zeros((1, 3, card.image_size, card.image_size), np.float32))
        self.encode_texts(["cell"])

    def preprocess(self, image: Image.Image) -> FloatArray:
        pixels = self.towers.preprocess(require_rgb(image))
        require_pixels(pixels[None], self.card.image_size)
        return pixels

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        require_pixels(pixels, self.card.image_size)
        return encode_batch(self.image_tower, pixels, self._device, self.card.dtype)

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        import torch

        text = self.towers.tokenize(prompts)
        features, tokens = [], []
        for start in range(0, len(prompts), TEXT_BATCH):
            batch = slice(start, start + TEXT_BATCH)
            ids = torch.from_numpy(text.input_ids[batch]).long().to(self._device)
            mask = torch.from_numpy(text.attention_mask[batch]).long().to(self._device)
            with fixed_arithmetic(self.card.dtype), self._precision():
                pooled, hidden = self.towers.encode_text(ids, mask)
                features.append(self._unit(pooled).cpu().numpy())
                if hidden is not None:
                    if hidden.shape[-1] != self.card.dim:
                        raise EncoderError(
                            f"Text tokens: expected size {self.card.dim}, found {hidden.shape[-1]}. "
                            "Set encoder.tokens: false."
                        )
                    tokens.append(hidden.float().cpu().numpy())
        return TextFeatures(
            np.concatenate(features),
            np.concatenate(tokens) if tokens else None,
            text.input_ids,
            text.attention_mask,
            text.offsets,
        )

    def _encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        count, dim = self.card.token_count, self.card.dim
        with self._precision():
            pooled, tokens = self.towers.encode_image(pixels)
            if tokens is None:
                return self._unit(pooled), None
            if tokens.shape[1:] != (count, dim):
                raise EncoderError(
                    f"Patch tokens: expected ({count}, {dim}) from the configuration, found "
                    f"{tuple(tokens.shape[1:])}. Set encoder.tokens: false."
                )
            return self._unit(pooled), tokens.float()

    def _unit(self, features: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if features.shape[-1] != self.card.dim:
            raise EncoderError(
                f"Features: expected size {self.card.dim} from the configuration, found {features.shape[-1]}."
            )
        return functional.normalize(features.float(), dim=-1)

    def _precision(self) -> Any:
        import torch

        mixed = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype if mixed else torch.bfloat16, enabled=mixed)
