"""The single images of the atlas: a typical image of each class, and the most confident errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ccassets.analysis.classifiers import FloatArray, LinearClassifier, evaluate_on_holdout
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import concept_samples
from ccassets.pages.atlas.atlas_view import AtlasView, Figure, make_figure
from ccassets.pages.atlas.concept_cards import Heat

MOST_BARS = 6
MOST_ERRORS = 12


@dataclass(frozen=True, eq=False)
class Example:
    """One image with what the classifier predicts for it; `own` is the probability of its label.

    `bars` are (concept, score, contribution), the largest contribution first, `rest` the sum of all others. They
    speak for the predicted class; in an error, for the predicted class and against the label. Of the concepts with a
    score above the mean, the first that speaks for it is `located`: its heat map lies over the image; None without one.
    """

    figure: Figure
    predicted: str
    probability: float
    own: float
    bars: tuple[tuple[str, float, float], ...]
    rest: float
    located: str | None


def single_images(
    view: AtlasView, classifier: LinearClassifier, split: str, log: HoldoutLog, heat: Heat | None
) -> tuple[list[Example], list[Example]]:
    """Choose the image of median confidence of every class, and the most confident errors; none of several labels."""
    samples = concept_samples(view.database)
    if samples.multilabel:
        return [], []
    probabilities = evaluate_on_holdout(classifier, samples, split, log, "concept atlas: single images")
    held_out = samples.of(split)
    predicted = probabilities.argmax(axis=1)
    own = probabilities[np.arange(len(held_out)), held_out.labels]
    contributions = classifier.contributions(held_out.features)

    def example(index: int, effects: FloatArray) -> Example:
        row = int(held_out.ids[index])
        order = np.argsort(-np.abs(effects), kind="stable")
        # A low score can speak for a class, too, but there is nothing to see of it.
        first = next((k for k in order.tolist() if effects[k] > 0 and view.scores[row, k] > 0), None)
        located = None if heat is None or view.read_thumbnail is None else first
        map_ = None if heat is None or located is None else heat(located, np.array([row]))[0]
        return Example(
            figure=make_figure(view, row, located or 0, map_),
            predicted=view.classes[predicted[index]],
            probability=float(probabilities[index, predicted[index]]),
            own=float(own[index]),
            bars=tuple((view.words[k], float(view.scores[row, k]), float(effects[k])) for k in order[:MOST_BARS]),
            rest=float(effects[order[MOST_BARS:]].sum()),
            located=None if located is None else view.words[located],
        )

    typical = []
    for label in np.unique(held_out.labels):
        members = np.flatnonzero(held_out.labels == label)
        index = int(members[np.argsort(own[members], kind="stable")[len(members) // 2]])
        typical.append(example(index, contributions[index, predicted[index]]))
    wrong = np.flatnonzero(predicted != held_out.labels)
    worst = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:MOST_ERRORS]
    errors = [
        example(index, contributions[index, predicted[index]] - contributions[index, held_out.labels[index]])
        for index in worst.tolist()
    ]
    return typical, errors
