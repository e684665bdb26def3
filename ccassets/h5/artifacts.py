"""What the original functions call a model: a model, its processor and their device; and ours, loaded as such."""

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
    """A model, its processor and the device both work on: ours (`load_conceptclip_model`) or your own.

    The model has `encode_image(pixel_values, normalize=True)` and `encode_text(input_ids, normalize=True)`, each
    giving features and token features (or None); where it has `image_proj` and `text_proj`, token features go through
    them. The processor takes `images=` or `text=` with `return_tensors="pt", padding=True, truncation=True`, and
    gives `pixel_values` or `input_ids`.
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
    """ConceptCLIP in float32, from the hub or from a folder with its checkpoint, tokenizer and dimensions.

    The published model is gated: accept its terms, and give a token here or in `HF_TOKEN`. `device` is CUDA where
    there is one, else the CPU.

    Unlike the original: no code from the hub is run, `trust_remote_code=True` only warns that it does nothing; the
    weights are matched strictly by name; the token is used for this download and stored nowhere; images are resized
    by Pillow as the model's authors do, where the original's tensors differed in the last digits.

    Raises `EncoderError` saying what is missing and what to do.
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
