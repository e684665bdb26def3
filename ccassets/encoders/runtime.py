"""What an encoder runs with: the device, the library versions, and float32 that stays float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ccassets.errors import EncoderError
from ccassets.study.schema import Study

if TYPE_CHECKING:
    import torch

    from ccassets.encoders.encoder_contract import FloatArray, ImageFeatures, Started
    from ccassets.encoders.overlap import Compute

LIBRARIES = ("torch", "transformers", "tokenizers", "pillow", "numpy")

TEXT_BATCH = 32
"""Prompts encoded at once: fixed, so that a template's numbers depend on nothing but its prompts."""


def choose_device(requested: str | None) -> torch.device:
    """The device asked for, else CUDA where there is one, else the CPU.

    Raises `EncoderError` when the device asked for is not there: nothing falls back silently.
    """
    import torch

    if requested is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(requested)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            there.append("mps")
        raise EncoderError(f"The device {requested!r} is not there; this machine has {', '.join(there)}.") from error
    if device.type == "meta":
        raise EncoderError("The device 'meta' computes nothing; name cpu, cuda or mps.")
    return device


def strict_facts(study: Study, device: str | None) -> dict[str, Any] | None:
    """With `extraction.strict`, what also moves the last digits: batch size, device kind, library versions."""
    if not study.extraction.strict:
        return None
    return {
        "batch_size": study.extraction.batch_size,
        "device": choose_device(device).type,
        **{library: version(library) for library in LIBRARIES},
    }


@contextmanager
def memory_errors_named(images: int, device: torch.device) -> Iterator[None]:
    """Turn "out of memory" into an `EncoderError` that says what to change."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EncoderError(
            f"A batch of {images} images does not fit into the memory of {device}; set a smaller extraction.batch_size."
        ) from error


def to_host(tokens: torch.Tensor) -> npt.NDArray[np.floating[Any]]:
    """Token features on the host: float32 from the CPU, float16 from other devices.

    They are stored as float16 anyway; cast before they cross the bus, half as many bytes do, and the bits are equal.
    """
    return (tokens if tokens.device.type == "cpu" else tokens.half()).cpu().numpy()


def tower_dtype(dtype: str) -> torch.dtype:
    """What towers compute in under a study's `dtype`: `tf32` is float32, but for how CUDA multiplies."""
    import torch

    found: torch.dtype = getattr(torch, "float32" if dtype == "tf32" else dtype)
    return found


def starter(
    model: torch.nn.Module, dtype: str, compute: Compute, encode: Callable[[FloatArray], ImageFeatures]
) -> Callable[[FloatArray], Started] | None:
    """`start_pixels` of an encoder that can be at two batches: on CUDA, or a small one on several CPU threads.

    None for any other: there a batch is computed by who asks for it. `compute` is the model alone, `encode` the
    encoder's `encode_pixels`.
    """
    import torch

    device = next(model.parameters()).device
    if device.type == "cuda":
        from ccassets.encoders.overlap import OverlappedCopies

        copies = OverlappedCopies(device)

        def start(pixels: FloatArray) -> Started:
            with fixed_arithmetic(dtype), memory_errors_named(len(pixels), device):
                return copies.start(pixels, compute)

        return start
    from ccassets.encoders.side_by_side import MOST_PARAMETERS, SideBySide

    threads = torch.get_num_threads()
    is_small = sum(weights.numel() for weights in model.parameters()) <= MOST_PARAMETERS
    return SideBySide(encode, threads).start if device.type == "cpu" and threads > 1 and is_small else None


@contextmanager
def fixed_arithmetic(dtype: str = "float32") -> Iterator[None]:
    """No gradients and no algorithm chosen by timing; on CUDA no TensorFloat-32 but where `dtype` is `tf32`.

    Whatever the process has set is as it was when the last of those that are inside leaves.
    """
    import torch

    with _process.set_for(tf32=dtype == "tf32"), torch.inference_mode():
        yield


class _ProcessArithmetic:
    """What torch keeps for the whole process, which several threads may want fixed at once."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._as_it_was = ExitStack()

    @contextmanager
    def set_for(self, *, tf32: bool) -> Iterator[None]:
        import torch

        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._as_it_was.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
                self._as_it_was.enter_context(
                    torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32)
                )
                torch.set_float32_matmul_precision("high" if tf32 else "highest")
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._as_it_was.close()


_process = _ProcessArithmetic()
