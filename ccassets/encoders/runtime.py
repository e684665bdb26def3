"""The runtime of encoders: device, arithmetic of torch, library versions, copies between host and device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ccassets.encoders.encoder_contract import FloatArray, ImageFeatures
from ccassets.errors import EncoderError
from ccassets.study.schema import Study

if TYPE_CHECKING:
    import torch

ImageTower: TypeAlias = "Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]"
"""Pixels (B, 3, S, S) on the device to features (B, D) and token features (B, T_img, D) or None, both on the device."""

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")

TEXT_BATCH = 32
"""Prompts encoded at once: fixed, so that a template's numbers depend on nothing but its prompts."""


def choose_device(requested: str | None) -> torch.device:
    """The requested device, else CUDA where there is one, else the CPU.

    Raises `EncoderError` when the requested device does not exist: nothing falls back silently.
    """
    import torch

    if requested is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        available = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            available.append("mps")
        raise EncoderError(f"There is no device {requested!r}; this machine has {', '.join(available)}.") from error
    if device.type == "meta":
        raise EncoderError("The device 'meta' computes nothing; name cpu, cuda or mps.")
    return device


def strict_facts(study: Study, device: str | None, libraries: Sequence[str] = ()) -> dict[str, Any] | None:
    """With `extraction.strict`, the facts that move the last digits: batch size, device kind, library versions.

    `libraries` are those that this kind of encoder needs in addition to the common ones.
    """
    if not study.extraction.strict:
        return None
    return {
        "batch_size": study.extraction.batch_size,
        "device": choose_device(device).type,
        **{library: version(library) for library in (*LIBRARIES, *libraries)},
    }


@contextmanager
def _memory_errors(images: int, device: torch.device) -> Iterator[None]:
    """Turn "out of memory" into an `EncoderError` that says what to change."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EncoderError(
            f"A batch of {images} images does not fit into the memory of {device}; set a smaller extraction.batch_size."
        ) from error


def encode_batch(image_tower: ImageTower, pixels: FloatArray, device: torch.device, dtype: str) -> ImageFeatures:
    """Run an image tower on preprocessed pixels (B, 3, S, S) of the host, and bring its results back.

    Raises `EncoderError` when the batch does not fit into the memory of the device.
    """
    with fixed_arithmetic(dtype), _memory_errors(len(pixels), device):
        features, tokens = image_tower(_to_device(pixels, device))
        return ImageFeatures(features.cpu().numpy(), None if tokens is None else to_host(tokens))


def _to_device(pixels: FloatArray, device: torch.device) -> torch.Tensor:
    import torch

    batch = torch.from_numpy(pixels)
    if device.type == "cuda":
        # CUDA reads pinned memory at the full speed of the bus, and the host does not wait for the copy.
        return batch.pin_memory().to(device, non_blocking=True)
    return batch.to(device)


def to_host(tokens: torch.Tensor) -> npt.NDArray[np.floating[Any]]:
    """Token features on the host: float32 from the CPU, float16 from other devices.

    They are stored as float16 anyway: cast before the copy, half as many bytes cross the bus, and the bits are equal.
    """
    import torch

    if tokens.device.type == "cpu":
        return tokens.numpy()
    half = tokens.half()
    if half.device.type != "cuda":
        return half.cpu().numpy()
    host = torch.empty(half.shape, dtype=half.dtype, pin_memory=True)
    host.copy_(half, non_blocking=True)
    torch.cuda.current_stream(half.device).synchronize()
    return host.numpy()


def tower_dtype(dtype: str) -> torch.dtype:
    """The dtype of the towers for a study's `dtype`: `tf32` is float32 with another product on CUDA."""
    import torch

    compute_dtype: torch.dtype = getattr(torch, "float32" if dtype == "tf32" else dtype)
    return compute_dtype


@contextmanager
def fixed_arithmetic(dtype: str = "float32") -> Iterator[None]:
    """No gradients, no algorithm chosen by timing, and on CUDA TensorFloat-32 only where `dtype` is `tf32`.

    The settings of the process are restored afterwards.
    """
    import torch

    tf32 = dtype == "tf32"
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
