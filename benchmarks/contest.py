"""What a row of the table is, and how it is run: in turns, in one process, timed by the wall clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Run = Callable[[], object]

MOST_ROUNDS = 101


@dataclass(frozen=True)
class Contestant:
    """Somebody else's way of doing the same work; `what` ends the sentence "compared with …"."""

    what: str
    run: Run


@dataclass(frozen=True)
class Target:
    """What the project holds itself to: `of_limit` and `of_usual` are speeds, ours ÷ theirs.

    `seconds` is the most that ours may take, `beyond_limit` the most that it may take longer than the limit.
    """

    of_limit: float | None = None
    of_usual: float | None = None
    seconds: float | None = None
    beyond_limit: float | None = None


@dataclass(frozen=True)
class Contest:
    """One row: the same work done by us, by what cannot be beaten, and as it is usually done.

    `reset` makes the ground even again before every run, and is not timed.
    """

    work: str
    ours: Run
    limit: Contestant
    usual: Contestant | None = None
    target: Target = field(default_factory=Target)
    reset: Run = lambda: None


@dataclass(frozen=True)
class Times:
    """Seconds of every run, in the order of the rounds; `usual` is shorter, or empty."""

    ours: Sequence[float]
    limit: Sequence[float]
    usual: Sequence[float] = ()


def run_contest(contest: Contest, rounds: int, seconds: float) -> Times:
    """Run the contestants in turns, each round in another order; a first run of each, not counted, warms up.

    There are at least `rounds` rounds, and more (an odd number up to `MOST_ROUNDS`) until `seconds` have passed: where
    a run takes milliseconds, whatever else the machine does disturbs single rounds and not the median. The usual way
    may be many times slower: it takes part until it alone has had so many seconds.
    """
    runs = {"ours": contest.ours, "limit": contest.limit.run}
    if contest.usual is not None:
        runs["usual"] = contest.usual.run
    for run in runs.values():
        _seconds(run, contest.reset)
    times: dict[str, list[float]] = {name: [] for name in ("ours", "limit", "usual")}
    end = time.monotonic() + seconds
    for turn in range(MOST_ROUNDS):
        if turn >= rounds and turn % 2 and time.monotonic() > end:
            break
        present = [name for name in runs if name != "usual" or turn == 0 or sum(times[name]) < seconds]
        start = turn % len(present)
        for name in present[start:] + present[:start]:
            times[name].append(_seconds(runs[name], contest.reset))
    return Times(**times)


def speed_of(times: Sequence[float], ours: Sequence[float]) -> float:
    """Our speed as a share of theirs: the median, over rounds, of their time divided by ours in the same round."""
    return statistics.median(theirs / own for theirs, own in zip(times, ours, strict=False))


def _seconds(run: Run, reset: Run) -> float:
    reset()
    started = time.perf_counter()
    run()
    return time.perf_counter() - started
