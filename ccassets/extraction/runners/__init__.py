"""Runners: they encode shards in this process, in local worker processes, or on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable

from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import StudyError
from ccassets.extraction.runners.in_process import InThisProcess, Runner
from ccassets.extraction.runners.local import LocalWorkers
from ccassets.extraction.runners.on_ray import RayWorkers

__all__ = ["InThisProcess", "LocalWorkers", "RayWorkers", "Runner", "choose_runner"]

VARIABLE = "CCASSETS_RUNNER"


def choose_runner(
    name: str | None = None, *, device: str | None = None, load: Callable[[], Encoder] | None = None
) -> Runner:
    """The runner of a name.

    Args:
        name: `local`, `local:N`, `ray` or `ray:N` with N workers, by default one for every CUDA device; by default
            what `CCASSETS_RUNNER` says, else `local`.
        device: The torch device of all workers, by default CUDA where there is one.
        load: Gives the encoder of a single local worker, which is this process; other workers load their own.

    Returns:
        The runner, nothing started yet.

    Raises:
        StudyError: There is no runner of that name.
    """
    chosen = name or os.environ.get(VARIABLE) or "local"
    kind, _, number = chosen.partition(":")
    if kind not in {"local", "ray"} or (number and not (number.isdecimal() and int(number))):
        raise StudyError(f"A runner is local, local:N, ray or ray:N with N workers; found {chosen!r}.")
    workers = int(number) if number else None
    return RayWorkers(workers, device) if kind == "ray" else LocalWorkers(workers, device, load)
