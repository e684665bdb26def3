"""Model, processor and device in the form of the original functions, and ConceptCLIP loaded in that form."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccassets.study.schema import ConceptClipConfig, PhantomDatasetConfig, Study

if TYPE_CHECKING:
    import torch


@dataclass
class ModelArtifacts:
    """A model, its processor and the device both use: ours (`load_conceptclip_model`) or your own.

    The model has `encode_image(pixel_values, normalize=True)` and `encode_text(input_ids, normalize=True)`, each
    giving features and token features (or None); where it has `image_proj` and `text_proj`, token features go through
    them. The processor takes `images=` or `text=` with `return_tensors="pt", padding=True, truncation=True`, and
    returns `pixel_values` or `input_ids`.

    Attributes:
        model: The model, on `device`.
        processor: Its preprocessing of images and texts.
        device: A torch device.
    """

    model: Any
    processor: Any
    device: Any


def load_conceptclip_model(
    *,
    hf_token: str | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    weights: str | os.PathLike[str] = "JerrryNie/ConceptCLIP",
    revision: str = "main",
) -> ModelArtifacts:
    """Load ConceptCLIP in float32, from the hub or from a folder with its checkpoint, tokenizer and dimensions.

    The published model is gated: accept its terms, and give a token here or in `HF_TOKEN`.

    Unlike the original: no code from the hub is run, `trust_remote_code=True` only warns that it does nothing; the
    weights are matched strictly by name; the token is used for this download and stored nowhere; images are resized
    by Pillow as the model's authors do, where the original's tensors differed in the last digits.

    Args:
        hf_token: A token of the hub; by default `HF_TOKEN`.
        device: A torch device; by default CUDA where available, else the CPU.
        trust_remote_code: Without effect: no remote code is run.
        weights: A hub id or a folder.
        revision: A branch, tag or commit of the hub.

    Returns:
        The model, its processor and the device.

    Raises:
        EncoderError: Weights, tokenizer or device are missing or do not fit.
    """
    from ccassets.encoders.conceptclip import load
    from ccassets.h5.model_adapter import OriginalModel, OriginalProcessor

    if trust_remote_code:
        warnings.warn("trust_remote_code: no remote code is run; this model is built from our own.", stacklevel=2)
    study = Study(
        name="conceptclip",
        folder=Path.cwd(),
        dataset=PhantomDatasetConfig(kind="phantom"),  # a study must name one; nothing is read from it
        encoder=ConceptClipConfig(kind="conceptclip", weights=os.fspath(weights), revision=revision),
    )
    encoder = load(study, device=None if device is None else str(device), cache=None, hf_token=hf_token)
    return ModelArtifacts(OriginalModel(encoder), OriginalProcessor(encoder), next(encoder.model.parameters()).device)
