"""Long work: the cores it may use, the callbacks that report its progress, and where its time goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

Progress = Callable[[int, int], None]
"""Called with (units done, units in all) after every unit of work; units are rows, or bytes of files."""

Listener = Callable[[str, int, int, str], None]
"""Called with (what, done, total, remark) while a step of a build works; several steps may take turns."""


def available_cores() -> int:
    """Count the cores that this process may use; a container or a batch system may allow fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def silent(done: int, total: int) -> None:
    """Report nothing."""


@dataclass
class StageTimes:
    """The times of the stages of encoding, in seconds, of all workers together.

    Attributes:
        seconds: The whole. Time spent neither encoding nor writing is waiting for images: `decoding`.
        encoding: While an encoder computed.
        writing: While the previous part was still being written to the disk.
    """

    seconds: float = 0.0
    encoding: float = 0.0
    writing: float = 0.0

    @property
    def decoding(self) -> float:
        """Seconds of waiting for images."""
        return max(0.0, self.seconds - self.encoding - self.writing)

    def add(self, other: StageTimes) -> None:
        """Add the times of other work.

        Args:
            other: The times to add to these, in place.
        """
        self.seconds += other.seconds
        self.encoding += other.encoding
        self.writing += other.writing

    def share(self, seconds: float) -> float:
        """Compute the share of a time in the time of all stages.

        Args:
            seconds: A part of `seconds`.

        Returns:
            The share, 0 to 1; 0 before anything was encoded.
        """
        return min(1.0, seconds / self.seconds) if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"encoder busy {self.share(self.encoding):.0%}, waiting for images {self.share(self.decoding):.0%}, "
            f"for the disk {self.share(self.writing):.0%}"
        )


BatchListener = Callable[[int, StageTimes], None]
"""Called after every batch with the rows encoded since the last call, and the time they took."""
