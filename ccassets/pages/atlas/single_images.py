"""The single images of the atlas: what the concept classifier makes of a typical image of each class, and errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccassets.analysis.classifiers import FloatArray, LinearClassifier, evaluate_on_holdout
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import concept_samples
from ccassets.pages.atlas.view import Shown, View, show

BARS = 6
ERRORS = 12


@dataclass(frozen=True, eq=False)
class Example:
    """One image with what the classifier makes of it; `own` is the probability of its label.

    `bars` are (concept, score, contribution), the largest contribution first, `rest` the sum of all others. They
    speak for the predicted class; in an error, for the predicted class and against the label.
    """

    shown: Shown
    predicted: str
    probability: float
    own: float
    bars: tuple[tuple[str, float, float], ...]
    rest: float


def single_images(
    view: View, model: LinearClassifier, split: str, log: HoldoutLog
) -> tuple[list[Example], list[Example]]:
    """A typical image of every class, that of the class's median confidence; and the most confident errors."""
    samples = concept_samples(view.database)
    probabilities = evaluate_on_holdout(model, samples, split, log, "concept atlas: single images")
    held = samples.of(split)
    predicted = probabilities.argmax(axis=1)
    own = probabilities[np.arange(len(held)), held.labels]
    contributions = model.contributions(held.features)

    def example(place: int, weighed: FloatArray) -> Example:
        row = int(held.ids[place])
        order = np.argsort(-np.abs(weighed), kind="stable")
        return Example(
            shown=show(view, row, 0),
            predicted=view.classes[predicted[place]],
            probability=float(probabilities[place, predicted[place]]),
            own=float(own[place]),
            bars=tuple((view.words[k], float(view.scores[row, k]), float(weighed[k])) for k in order[:BARS]),
            rest=float(weighed[order[BARS:]].sum()),
        )

    typical = []
    for label in np.unique(held.labels):
        members = np.flatnonzero(held.labels == label)
        place = int(members[np.argsort(own[members], kind="stable")[len(members) // 2]])
        typical.append(example(place, contributions[place, predicted[place]]))
    wrong = np.flatnonzero(predicted != held.labels)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:ERRORS]
    errors = [
        example(place, contributions[place, predicted[place]] - contributions[place, held.labels[place]])
        for place in worst.tolist()
    ]
    return typical, errors
