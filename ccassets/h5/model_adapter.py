"""ConceptCLIP in the form of the original functions: a model that encodes tensors, and its processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional
from transformers import BatchFeature

from ccassets.database.layout import LOGIT_PARAMETERS
from ccassets.encoders.conceptclip import ConceptClipEncoder
from ccassets.h5.exceptions import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence


class OriginalModel(nn.Module):
    """The towers of an encoder, with the projection heads of token features beside them."""

    def __init__(self, encoder: ConceptClipEncoder) -> None:
        super().__init__()
        self.card = encoder.card
        self._towers = encoder.model
        self.image_proj = encoder.model.image_proj
        self.text_proj = encoder.model.text_proj
        for name in LOGIT_PARAMETERS:
            self.register_parameter(name, getattr(encoder.model, name))

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) float32 → features (B, D) and, before `image_proj`, token features (B, T_img, D)."""
        tokens, pooled = self._towers.image_tower(pixel_values)
        return _features(pooled, normalize), tokens

    def encode_text(self, input_ids: torch.Tensor, normalize: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, T) integer → features (K, D) and, before `text_proj`, token features (K, T, text size)."""
        tokens, pooled = self._towers.text_tower(input_ids)
        return _features(pooled, normalize), tokens


class ImageSettings:
    """The settings of the original image processor; they hold what its notebook sets, and cannot be changed."""

    do_rescale = False
    do_normalize = True

    def __setattr__(self, name: str, value: object) -> None:
        if getattr(self, name, None) is not value:
            raise ArgumentError(
                f"image_processor.{name} = {value!r}: expected do_rescale = False and do_normalize = True. Images are "
                "preprocessed as in every build: give them with values in 0…1, or of dtype uint8."
            )


class OriginalProcessor:
    """Images and prompts as the model's tensors, preprocessed as in every build of ours."""

    def __init__(self, encoder: ConceptClipEncoder) -> None:
        self._encoder = encoder
        self.image_processor = ImageSettings()

    def __call__(self, text: Any = None, images: Any = None, **_options: Any) -> BatchFeature:
        """`input_ids`, `attention_mask` and `offset_mapping` of texts, padded to the context length; `pixel_values`.

        Images are tensors (B, 3, H, W) with values in 0…1, which are rounded to 8 bits, or of dtype uint8, or PIL
        images. Padding, truncation and the kind of tensors are always those that the model needs; a prompt that is
        too long is refused.
        """
        inputs: dict[str, Any] = {}
        if text is not None:
            tokens = self._encoder.tokenizer([text] if isinstance(text, str) else list(text))
            inputs["input_ids"] = torch.from_numpy(tokens.input_ids).long()
            inputs["attention_mask"] = torch.from_numpy(tokens.attention_mask).long()
            inputs["offset_mapping"] = torch.from_numpy(tokens.offsets)
        if images is not None:
            pil_images = [_as_image(image) for image in _image_list(images)]
            inputs["pixel_values"] = torch.from_numpy(
                np.stack([self._encoder.preprocess(image) for image in pil_images])
            )
        return BatchFeature(inputs)


def _features(pooled: torch.Tensor, normalize: bool) -> torch.Tensor:
    return functional.normalize(pooled.float(), dim=-1) if normalize else pooled.float()


def _image_list(images: Any) -> Sequence[Any]:
    if isinstance(images, Image.Image) or (hasattr(images, "ndim") and images.ndim == 3):
        return [images]
    return list(images)


def _as_image(image: Any) -> Image.Image:
    """An image, or a tensor (C, H, W) as an 8-bit image."""
    if isinstance(image, Image.Image):
        return image
    values = torch.as_tensor(image).detach().cpu()
    if values.ndim != 3 or values.shape[0] not in (1, 3):
        raise ArgumentError(f"Expected images of shape (1 or 3, height, width), found {tuple(values.shape)}.")
    if values.dtype != torch.uint8:
        low, high = float(values.min()), float(values.max())
        if not values.is_floating_point() or low < 0 or high > 1:
            raise ArgumentError(
                f"Expected image values in 0…1, or of dtype uint8, found {values.dtype} from {low:.4g} to "
                f"{high:.4g}. Normalising is done here: give the image as `ToTensor()` makes it."
            )
        values = (values * 255).round().to(torch.uint8)
    pixels = values.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
