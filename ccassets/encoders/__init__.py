"""Encoders: a study's model as an identity card, and as something that turns images and texts into features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ccassets.encoders.contract_check import check_encoder
from ccassets.encoders.encoder_contract import Encoder, EncoderCard, ImageFeatures, TextFeatures
from ccassets.encoders.spans import token_spans
from ccassets.errors import EncoderError
from ccassets.files import digest_files
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study

if TYPE_CHECKING:
    from ccassets.encoders.tokenizer import Tokens

__all__ = [
    "Encoder",
    "EncoderCard",
    "ImageFeatures",
    "TextFeatures",
    "check_encoder",
    "digest_files",
    "encoder_files",
    "inspect_encoder",
    "load_encoder",
    "load_tokenizer",
    "token_spans",
]

_MODULES = {
    "conceptclip": "conceptclip",
    "phantom": "conceptclip",
    "transformers": "transformers_dual",
    "python": "custom",
}


def inspect_encoder(
    study: Study,
    *,
    device: str | None = None,
    cache: Path | None = None,
    hf_token: str | None = None,
    progress: Progress = silent,
) -> EncoderCard:
    """The identity card of a study's encoder: its files found or fetched, verified and hashed, the model not built.

    `cache` is a folder where file digests are kept between calls; `progress` counts hashed bytes; `device`
    matters to a strict study alone. Raises `EncoderError`.
    """
    card: EncoderCard = _kind(study).inspect(study, device=device, cache=cache, hf_token=hf_token, progress=progress)
    return card


def load_encoder(
    study: Study,
    *,
    device: str | None = None,
    cache: Path | None = None,
    hf_token: str | None = None,
) -> Encoder:
    """A study's encoder, ready to work, with the card that `inspect_encoder` gives.

    `device` is a torch device, by default CUDA where there is one, else the CPU. Raises `EncoderError`.
    """
    encoder: Encoder = _kind(study).load(study, device=device, cache=cache, hf_token=hf_token)
    return encoder


def encoder_files(study: Study, *, hf_token: str | None = None) -> dict[str, Path]:
    """Every file a study's encoder is read from, by its name in a model folder; fetched where it is on the hub.

    Nothing for an encoder that ships with ccassets. Raises `EncoderError`, also for an encoder of the user's own:
    what that reads only it knows.
    """
    if study.encoder.kind == "python":
        raise EncoderError(f"{study.name} has an encoder of its own, and only that knows which files it reads.")
    files: dict[str, Path] = _kind(study).files(study, hf_token=hf_token)
    return files


def load_tokenizer(study: Study, *, hf_token: str | None = None) -> Callable[[Sequence[str]], Tokens] | None:
    """What turns prompts into a study's `Tokens`, the model not built; None for an encoder of the user's own.

    Raises `EncoderError`.
    """
    if study.encoder.kind == "python":
        return None
    tokenize: Callable[[Sequence[str]], Tokens] = _kind(study).tokenizer(study, hf_token=hf_token)
    return tokenize


def _kind(study: Study) -> Any:
    return import_module(f"ccassets.encoders.{_MODULES[study.encoder.kind]}")
