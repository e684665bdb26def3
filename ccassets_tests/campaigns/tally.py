"""The tries of a campaign, told one by one as they end, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def tally(tries: Iterable[tuple[str, str]], title: str) -> Counter[str]:
    """Print the line of each try as soon as it has ended, then the title with how often each end was met."""
    ends: Counter[str] = Counter()
    for end, line in tries:
        ends[end] += 1
        print(line, flush=True)
    print(f"{title}: {dict(ends)}")
    return ends
