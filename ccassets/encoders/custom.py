"""A user's own encoder: imported by name, and held to the contract at every call."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from ccassets.encoders.contract_check import card_problems, image_problems, pixel_problems, text_problems
from ccassets.encoders.encoder_contract import Encoder, EncoderCard, FloatArray, ImageFeatures, TextFeatures
from ccassets.encoders.runtime import strict_facts
from ccassets.errors import CcassetsError, EncoderError
from ccassets.files import reading_refused
from ccassets.progress import Progress, silent
from ccassets.study.schema import PythonEncoderConfig, Study

MODULES_VARIABLE = "CCASSETS_ENCODER_MODULES"
"""Names the installed packages whose classes a study may name as its encoder, separated by commas."""


def inspect(
    study: Study, *, device: str | None, cache: Path | None, hf_token: str | None, progress: Progress = silent
) -> EncoderCard:
    """The card of a `python` study: the class is called with its options, nothing is encoded."""
    return load(study, device=device, cache=cache, hf_token=hf_token).card


def load(study: Study, *, device: str | None, cache: Path | None, hf_token: str | None) -> CustomEncoder:
    """The encoder of a `python` study; its files, its device and its token are its own matter, given as options."""
    config = study.encoder
    assert isinstance(config, PythonEncoderConfig)
    with _errors_of(config.target, "cannot be made"):
        encoder = _find_class(config.target, study.folder)(**config.options)
        card = encoder.card
    problems = card_problems(card)
    if not problems:
        problems = _disagreements(card, config)
    if problems:
        raise EncoderError(f"The card of {config.target} does not hold:\n" + "\n".join(problems))
    return CustomEncoder(encoder, replace(card, strict=strict_facts(study, device) or card.strict), config.target)


class CustomEncoder:
    """A user's encoder behind the contract: what breaks it is an `EncoderError` that names the class."""

    def __init__(self, encoder: Encoder, card: EncoderCard, target: str) -> None:
        self.card = card
        self.device = str(getattr(encoder, "device", "not declared"))
        self._encoder = encoder
        self._target = target

    def preprocess(self, image: Image.Image) -> FloatArray:
        with _errors_of(self._target, "failed in preprocess"):
            pixels = self._encoder.preprocess(image)
        self._require_none(pixel_problems(self.card, pixels))
        return pixels

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        with _errors_of(self._target, "failed in encode_pixels"):
            result = self._encoder.encode_pixels(pixels)
        self._require_none(image_problems(self.card, len(pixels), result))
        return result

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        with _errors_of(self._target, "failed in encode_images"):
            result = self._encoder.encode_images(images)
        self._require_none(image_problems(self.card, len(images), result))
        return result

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        if not self.card.has_text:
            raise EncoderError(f"{self._target} has no text tower: leave the templates out of the vocabulary.")
        with _errors_of(self._target, "failed in encode_texts"):
            result = self._encoder.encode_texts(prompts)
        self._require_none(text_problems(self.card, prompts, result))
        return result

    def _require_none(self, problems: list[str]) -> None:
        if problems:
            raise EncoderError(f"{self._target} breaks the encoder contract:\n" + "\n".join(problems))


# --- importing ---------------------------------------------------------------------------------------


def _find_class(target: str, folder: Path) -> type[Any]:
    """The class that `module:Class` names, of a module beside the study or one that the environment names.

    A study file alone must not make any installed function run: its options would be the arguments.
    """
    module_name, _, class_name = target.partition(":")
    package = module_name.partition(".")[0]
    _require_known(target, package, folder)
    _forget_other(package, folder)
    sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    finally:
        sys.path.remove(str(folder))
    if _own_files(package, folder) and not _lies_in(module, folder):
        raise EncoderError(f"{target}: another module is called {package} too; rename the one beside the study.")
    encoder_class = getattr(module, class_name)
    if not isinstance(encoder_class, type):
        raise EncoderError(
            f"{target} is not a class: expected a class of an encoder, found {type(encoder_class).__name__}."
        )
    if encoder_class.__module__.partition(".")[0] != package:
        _require_known(target, encoder_class.__module__.partition(".")[0], folder)
    return encoder_class


def _require_known(target: str, package: str, folder: Path) -> None:
    allowed = os.environ.get(MODULES_VARIABLE, "").replace(",", " ").split()
    if package not in allowed and not _own_files(package, folder):
        raise EncoderError(
            f"{target} cannot be made: expected a class of a module beside the study ({folder / package}.py), found "
            f"none. To allow an installed package, name it in {MODULES_VARIABLE}={package}."
        )


def _own_files(package: str, folder: Path) -> list[Path]:
    """The file that makes a module or package of that name beside the study; empty where there is none."""
    return [path for path in (folder / f"{package}.py", folder / package / "__init__.py") if path.is_file()]


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(folder.resolve())


def _forget_other(name: str, folder: Path) -> None:
    """Let a module of the study's folder be imported although another study's of the same name was."""
    importlib.invalidate_caches()
    own = _own_files(name, folder)
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None and own and Path(loaded) not in own:
        for other in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[other]


def _disagreements(card: EncoderCard, config: PythonEncoderConfig) -> list[str]:
    """The settings in which a study contradicts the card of a custom encoder, of those that it sets."""
    problems = []
    if "dtype" in config.model_fields_set and card.dtype != config.dtype:
        problems.append(f"the study says dtype {config.dtype}, card.dtype is {card.dtype}")
    if "compiled" in config.model_fields_set and card.compiled != config.compiled:
        problems.append(f"the study says compiled {config.compiled}, card.compiled is {card.compiled}")
    if "tokens" in config.model_fields_set and bool(card.token_count) != config.tokens:
        problems.append(f"the study says tokens {config.tokens}, card.token_count is {card.token_count}")
    return problems


@contextmanager
def _errors_of(target: str, what: str) -> Iterator[None]:
    """Name the class in whatever its code raises; our own errors say enough."""
    try:
        yield
    except CcassetsError:
        raise
    except Exception as error:
        raise reading_refused(error, target) or EncoderError(
            f"{target} {what}: {type(error).__name__}: {error}"
        ) from error
