"""How long work tells its caller where it stands, and nothing about how that is shown."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all) after every unit of work."""

Listener = Callable[[str, int, int, str], None]
"""Called with (what, done, total, remark) while a step of a build works; several steps may take turns."""


def silent(done: int, total: int) -> None:
    """The progress of a caller who does not want to know."""
