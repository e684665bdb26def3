"""What a hostile case is: a file that somebody might hand us, made by code, and the sentence it is refused with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """`make` writes into an empty folder and gives the file; `sentence` is part of what the user is told."""

    name: str
    make: Callable[[Path], Path]
    sentence: str
