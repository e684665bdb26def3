"""`python -m benchmarks.coverage`: how often 95 % intervals hold the truth, on made data of which the truth is known.

Every draw makes labels and scores anew, and asks for the intervals as any user does. The truth is the metric of a
population a thousand times as large. With 1,000 draws a coverage is known to about 1.4 points.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ccassets.analysis import intervals
from ccassets.analysis.intervals import Estimate, Groups
from ccassets.analysis.metrics import accuracy, auc, balanced_accuracy, macro_f1

Draw = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], Groups]
Metric = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64], Groups], Estimate]

METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "balanced accuracy": balanced_accuracy,
    "AUC": auc,
    "macro-F1": macro_f1,
}
_POPULATION = 200_000


@dataclass(frozen=True)
class Skill:
    """How well scores tell classes: by how much the own class leads, its spread between groups, and gross errors.

    `gross` is the share of rows whose scores are sure of a class drawn at random.
    """

    name: str
    lead: float
    spread: float = 0.0
    gross: float = 0.0


BY_IMAGE = (
    Skill("moderate", 2.3),
    Skill("good", 3.6),
    Skill("near-perfect", 5.2),
    Skill("sure, 2 % gross errors", 8.0, gross=0.02),
)
BY_GROUP = (Skill("moderate", 2.5, spread=1.5), Skill("good", 4.5, spread=1.8), Skill("near-perfect", 6.5, spread=1.5))


@dataclass(frozen=True)
class Design:
    """How many rows a class has, or how many groups of ten there are; `nested` gives all rows of a group one class."""

    name: str
    rows: tuple[int, ...]
    groups: int = 0
    nested: bool = False

    def draw(self, skill: Skill, rng: np.random.Generator, times: int = 1) -> Draw:
        """Labels, scores and groups; `times` as many rows for the truth."""
        classes = len(self.rows)
        if not self.groups:
            labels = np.repeat(np.arange(classes), np.array(self.rows) * times)
            return labels, _scores(labels, classes, skill, np.zeros((len(labels), classes + 1)), rng), None
        count, size = self.groups * times, 10
        member = np.repeat(np.arange(count), size)
        shares = np.array(self.rows) / sum(self.rows)
        if self.nested:
            labels = np.resize(np.arange(classes), count)[member]
        else:
            labels = rng.choice(classes, count * size, p=shares)
        own = rng.standard_normal((count, classes + 1)) * ([0.5] * classes + [skill.spread])
        return labels, _scores(labels, classes, skill, own[member], rng), member.astype(str).astype(object)


def _scores(
    labels: npt.NDArray[np.int64],
    classes: int,
    skill: Skill,
    shifts: npt.NDArray[np.float64],
    rng: np.random.Generator,
) -> npt.NDArray[np.float64]:
    """Log-probabilities: noise, a lead for the own class, and what a group adds to each class and to the lead."""
    believed = np.where(rng.random(len(labels)) < skill.gross, rng.integers(0, classes, len(labels)), labels)
    logits = rng.standard_normal((len(labels), classes)) + shifts[:, :classes]
    logits[np.arange(len(labels)), believed] += skill.lead + shifts[:, classes]
    return np.asarray(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))


IMAGES = (
    Design("64 rows, 8 classes of 8", (8,) * 8),
    Design("77 rows: 6, 18, 12, 41", (6, 18, 12, 41)),
    Design("200 rows: 112, 57, 23, 6, 2", (112, 57, 23, 6, 2)),
)
GROUPED = tuple(
    Design(f"{count} groups of 10{', one class each' if nested else ''}", (8, 23, 16, 53), count, nested)
    for nested in (False, True)
    for count in (3, intervals.FEWEST_GROUPS, 10, 20, 50)
)


@dataclass(frozen=True)
class Coverage:
    """Of one metric: the share of draws whose interval holds the truth, and the mean width of the intervals."""

    held: float
    width: float


def coverage(design: Design, skill: Skill, draws: int, seed: int = 0) -> dict[str, Coverage]:
    """Draw as often and count, by metric, the intervals that hold the truth."""
    truth = _true_values(design, skill)
    rng = np.random.default_rng(seed)
    held, widths = dict.fromkeys(METRICS, 0), dict.fromkeys(METRICS, 0.0)
    for _ in range(draws):
        drawn = design.draw(skill, rng)
        for name, metric in METRICS.items():
            estimate = metric(*drawn)
            held[name] += estimate.low <= truth[name] <= estimate.high
            widths[name] += estimate.high - estimate.low
    return {name: Coverage(held[name] / draws, widths[name] / draws) for name in METRICS}


def _true_values(design: Design, skill: Skill) -> dict[str, float]:
    size = design.groups * 10 or sum(design.rows)
    labels, scores, _ = design.draw(skill, np.random.default_rng(1), times=_POPULATION // size)
    return {name: metric(labels, scores, None).value for name, metric in METRICS.items()}


def table(draws: int, designs: Sequence[Design] = (*IMAGES, *GROUPED)) -> Iterator[str]:
    """Lines of Markdown, one a design and skill: coverage, and the mean width in brackets.

    Fewer groups than users get an interval for are measured as well.
    """
    intervals.FEWEST_GROUPS = 2
    yield "| rows | scores | " + " | ".join(METRICS) + " |"
    yield "|---|---|" + "---|" * len(METRICS)
    for design in designs:
        for skill in BY_GROUP if design.groups else BY_IMAGE:
            measured = coverage(design, skill, draws)
            cells = " | ".join(f"{one.held:.3f} ({one.width:.2f})" for one in measured.values())
            yield f"| {design.name} | {skill.name} | {cells} |"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.coverage", description=__doc__)
    parser.add_argument("--draws", type=int, default=1000, help="data sets made for each line of the table")
    options = parser.parse_args(arguments)
    started = time.perf_counter()
    for line in table(options.draws):
        print(line, flush=True)
    print(f"{options.draws} draws a line, {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
