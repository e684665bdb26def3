"""Encoders: a study's model as an identity card, and as an object that turns images and texts into features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from os import PathLike
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
    "open_clip": "open_clip_dual",
    "python": "custom",
}


def inspect_encoder(
    study: Study,
    *,
    device: str | None = None,
    cache: str | PathLike[str] | None = None,
    hf_token: str | None = None,
    progress: Progress = silent,
) -> EncoderCard:
    """Find or fetch the files of a study's encoder, verify and hash them, and make its card; no model is built.

    Args:
        study: The study.
        device: A torch device; it matters to a strict study alone.
        cache: A folder where digests of files are kept between calls.
        hf_token: The access token of the hub, by default `HF_TOKEN`.
        progress: Called with the bytes hashed so far and the bytes of all files.

    Returns:
        The identity card.

    Raises:
        EncoderError: Files are missing, gated, unreadable, or do not fit each other.
    """
    card: EncoderCard = _module(study).inspect(
        study, device=device, cache=_path(cache), hf_token=hf_token, progress=progress
    )
    return card


def load_encoder(
    study: Study,
    *,
    device: str | None = None,
    cache: str | PathLike[str] | None = None,
    hf_token: str | None = None,
) -> Encoder:
    """Load a study's encoder, with the card that `inspect_encoder` gives.

    Args:
        study: The study.
        device: A torch device, by default CUDA where there is one, else the CPU.
        cache: A folder where digests of files are kept between calls.
        hf_token: The access token of the hub, by default `HF_TOKEN`.

    Returns:
        The encoder, ready to work.

    Raises:
        EncoderError: As `inspect_encoder`, and where the device does not exist.
    """
    encoder: Encoder = _module(study).load(study, device=device, cache=_path(cache), hf_token=hf_token)
    return encoder


def encoder_files(study: Study, *, hf_token: str | None = None) -> dict[str, Path]:
    """Find every file that a study's encoder is read from, and fetch those that are on the hub.

    Args:
        study: The study.
        hf_token: The access token of the hub, by default `HF_TOKEN`.

    Returns:
        Paths by their names in a model folder; none for an encoder that ships with ccassets.

    Raises:
        EncoderError: Files are missing or gated, or the encoder is the user's own, which alone knows its files.
    """
    if study.encoder.kind == "python":
        raise EncoderError(f"{study.name} has an encoder of its own, and only that knows which files it reads.")
    files: dict[str, Path] = _module(study).files(study, hf_token=hf_token)
    return files


def load_tokenizer(study: Study, *, hf_token: str | None = None) -> Callable[[Sequence[str]], Tokens] | None:
    """Load the tokenizer of a study's encoder; no model is built.

    Args:
        study: The study.
        hf_token: The access token of the hub, by default `HF_TOKEN`.

    Returns:
        A function from prompts to their tokens; None for an encoder of the user's own.

    Raises:
        EncoderError: As `inspect_encoder`.
    """
    if study.encoder.kind == "python":
        return None
    tokenize: Callable[[Sequence[str]], Tokens] = _module(study).tokenizer(study, hf_token=hf_token)
    return tokenize


def _module(study: Study) -> Any:
    """The module of the study's kind of encoder; torch and transformers are imported with some of them."""
    return import_module(f"ccassets.encoders.{_MODULES[study.encoder.kind]}")


def _path(cache: str | PathLike[str] | None) -> Path | None:
    return None if cache is None else Path(cache)
