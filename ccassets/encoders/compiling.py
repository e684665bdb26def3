"""Image towers compiled by torch, at the one batch size of a study."""

from __future__ import annotations

import torch
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from ccassets.encoders.runtime import ImageTower
from ccassets.errors import EncoderError


def compiled(image_tower: ImageTower, batch_size: int) -> ImageTower:
    """`image_tower`, compiled for batches of `batch_size` images; any other batch is computed without compiling.

    So the result of a batch depends on its shape alone, and not on earlier shapes in the process, for which torch might
    compile differently. If torch cannot compile the whole tower, the first batch raises `EncoderError`; no part
    silently stays uncompiled.
    """
    try:
        # Kernels are still chosen by timing where that changes no number.
        fast: ImageTower = torch.compile(image_tower, fullgraph=True, dynamic=False, options={"deterministic": True})
    except RuntimeError as error:
        raise EncoderError(
            f"torch {torch.__version__} does not compile with the same numbers every time; a newer one does. "
            "Update torch, or leave out encoder.compiled."
        ) from error

    def encode(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        if len(pixels) != batch_size:
            return image_tower(pixels)
        try:
            return fast(pixels)
        except FailOnRecompileLimitHit as error:
            raise EncoderError(
                "torch compiles the image towers of a few encoders in one process, and this one is beyond its limit. "
                "Start another process, or leave out encoder.compiled."
            ) from error
        except TorchDynamoException as error:
            reason = str(error).strip().partition("\n")[0]
            raise EncoderError(
                f"torch could not compile the image tower: {reason}\nOn a CPU it needs a C++ compiler and Python's "
                "headers, on a GPU Triton. Without them leave out encoder.compiled."
            ) from error

    return encode
