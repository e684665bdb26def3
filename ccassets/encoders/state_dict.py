"""State dicts: the tensors of a checkpoint by name, from safetensors or pickled files, without running any code."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from ccassets.encoders.checkpoint import read_headers, read_scalar
from ccassets.errors import EncoderError
from ccassets.files import reading_refused

if TYPE_CHECKING:
    import torch

PICKLED = ".bin"

_WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes that distributed training and `torch.compile` put before every name."""

_SCALES = ("logit_scale", "logit_bias")


@dataclass(frozen=True)
class CheckpointFacts:
    """What a card says of a checkpoint: number of parameters, logit parameters, and the prefix of all names."""

    parameters: int
    logit_scale: float | None
    logit_bias: float | None
    wrapper: str


def checkpoint_facts(files: Sequence[Path]) -> CheckpointFacts:
    """Read the facts of a checkpoint from its headers; tensors stay on the disk."""
    if files[0].suffix == PICKLED:
        state = read_state_dict(files)
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        wrapper = wrapper_of(state)
        scales = {name: float(state[wrapper + name].item()) for name in _SCALES if wrapper + name in state}
    else:
        tensors = read_headers(files)
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        wrapper = wrapper_of(tensors)
        scales = {name: read_scalar(tensors[wrapper + name]) for name in _SCALES if wrapper + name in tensors}
    return CheckpointFacts(
        sum(prod(shape) for shape in shapes.values()), scales.get("logit_scale"), scales.get("logit_bias"), wrapper
    )


def wrapper_of(names: Collection[str]) -> str:
    """The prefix of a training wrapper that all names share; empty without one."""
    wrapper = ""
    while longer := next(
        (wrapper + word for word in _WRAPPERS if names and all(name.startswith(wrapper + word) for name in names)), ""
    ):
        wrapper = longer
    return wrapper


def read_state_dict(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Read tensors by name, mapped from the files where their format allows it.

    Raises `EncoderError` where a pickled file holds more than tensors, since reading it would run code.
    """
    if files[0].suffix != PICKLED:
        from safetensors.torch import load_file

        return {name: tensor for file in files for name, tensor in load_file(file).items()}
    return {name: tensor for file in files for name, tensor in _read_pickled(file).items()}


def unwrapped(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without the prefix of a training wrapper."""
    wrapper = wrapper_of(state)
    return {name.removeprefix(wrapper): tensor for name, tensor in state.items()}


def require_finite(model: Any, name: str) -> None:
    """Raise `EncoderError` naming the parameters of a model that hold NaN or infinity."""
    import torch

    broken = [key for key, parameter in model.named_parameters() if not torch.isfinite(parameter).all()]
    if broken:
        raise EncoderError(
            f"The weights of {name} hold NaN or infinity in {len(broken)} tensors, the first is {broken[0]}. "
            "Fetch them again, or take another checkpoint of the training."
        )


def _read_pickled(file: Path) -> Mapping[str, torch.Tensor]:
    import torch

    def read(mapped: bool) -> Any:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)

    try:
        try:
            content = read(mapped=True)
        except RuntimeError:  # The format before torch 1.6 cannot be mapped.
            content = read(mapped=False)
    except UnpicklingError as error:
        raise EncoderError(
            f"{file.name} holds more than tensors, and reading it would run code. Convert it where you trust it: "
            "save its tensors with safetensors.torch.save_file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise reading_refused(error, str(file)) or EncoderError(
            f"{file} is not a whole checkpoint ({error}). Was a copy or download cut off? Fetch it again."
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content or not all(isinstance(t, torch.Tensor) for t in content.values()):
        raise EncoderError(f"{file.name}: expected tensors by name, found {type(content).__name__}.")
    return content
