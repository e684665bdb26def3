"""Few-shot curves: how accurate a classifier is that was fitted on a handful of images of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ccassets.analysis.classifiers import LinearClassifier
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import Samples

SHOTS = (1, 2, 4, 8, 16)
"""Images of every class that a classifier is fitted on (Yang et al. 2023, arXiv 2211.11158)."""

SEEDS = 5


@dataclass(frozen=True)
class FewShot:
    """Accuracy on a held-out split after a few images of each class.

    Attributes:
        shots: Images of every class; of a class with fewer, all.
        accuracy: One value for each seed, each with other images.
        rows: Images of the held-out split.
    """

    shots: int
    accuracy: tuple[float, ...]
    rows: int

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.accuracy))

    @property
    def deviation(self) -> float:
        """Standard deviation between the seeds."""
        return float(np.std(self.accuracy, ddof=1)) if len(self.accuracy) > 1 else 0.0


def few_shot_curve(
    fit: Callable[[Samples], LinearClassifier],
    samples: Samples,
    *,
    name: str,
    split: str,
    log: HoldoutLog,
    shots: Sequence[int] = SHOTS,
    seeds: int = SEEDS,
    train: str = "train",
) -> list[FewShot]:
    """Fit on a few images of each class, drawn anew for every seed, and measure accuracy.

    Args:
        fit: Fits a classifier on the split `train` of samples, and may choose on another split.
        samples: The rows.
        name: What is fitted, for the log.
        split: The held-out split.
        log: Records the access.
        shots: Numbers of images.
        seeds: Number of draws.
        train: The split that images are drawn from.

    Returns:
        One point for each number of images.

    Raises:
        AnalysisError: A split has no rows, a class has none in `train`, or a row can have several classes.
    """
    samples.require_single("A few-shot curve")
    held_out = samples.of(split)
    log.record(f"few-shot curve, {name}", model="", split=split, rows=len(held_out))
    accuracy: dict[int, list[float]] = {count: [] for count in shots}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(samples))
        order = order[samples.split[order] == train]
        # Position of every image among those of its class: a larger draw contains the smaller ones.
        position = np.zeros(len(order), np.int64)
        for label in range(len(samples.classes)):
            of_class = samples.labels[order] == label
            position[of_class] = np.arange(of_class.sum())
        for count in shots:
            kept = samples.split != train
            kept[order[position < count]] = True
            classifier = fit(samples.take(np.flatnonzero(kept)))
            predicted = classifier.probabilities(held_out.features).argmax(axis=1)
            accuracy[count].append(float(np.mean(predicted == held_out.labels)))
    return [FewShot(count, tuple(values), len(held_out)) for count, values in accuracy.items()]
