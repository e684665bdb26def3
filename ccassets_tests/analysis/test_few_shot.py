"""Few-shot curves: the number of images that is fitted on, draws by seed, and the access that is recorded."""

from __future__ import annotations

from collections import Counter

import numpy as np

from ccassets.analysis.classifiers import LinearClassifier, fit_logistic
from ccassets.analysis.few_shot import SEEDS, SHOTS, few_shot_curve
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import Samples
from ccassets_tests.analysis.made_cells import CLASSES, cells

CELLS = cells(720).samples


def test_more_images_of_a_class_make_a_better_classifier() -> None:
    log = HoldoutLog()
    curve = few_shot_curve(fit_logistic, CELLS, name="concepts", split="test", log=log)
    assert [point.shots for point in curve] == list(SHOTS)
    assert all(len(point.accuracy) == SEEDS and point.rows == len(CELLS.of("test")) for point in curve)
    assert curve[-1].mean > curve[0].mean + 0.1
    assert curve[-1].deviation < curve[0].deviation
    assert [(access.what, access.split) for access in log.accesses()] == [("few-shot curve, concepts", "test")]


def test_each_fit_sees_that_many_images_of_each_class_and_the_whole_of_val() -> None:
    seen: list[Samples] = []

    def fit(samples: Samples) -> LinearClassifier:
        seen.append(samples)
        return fit_logistic(samples)

    few_shot_curve(fit, CELLS, name="concepts", split="test", log=HoldoutLog(), shots=(1, 4), seeds=2)
    for samples, shots in zip(seen, (1, 4, 1, 4), strict=True):
        assert Counter(samples.of("train").labels.tolist()) == dict.fromkeys(range(len(CLASSES)), shots)
        assert len(samples.of("val")) == len(CELLS.of("val"))
    chosen = [set(samples.of("train").ids.tolist()) for samples in seen]
    assert chosen[0] < chosen[1]
    assert not chosen[1] & chosen[2] or chosen[0] != chosen[2]


def test_a_class_with_fewer_images_gives_all_it_has() -> None:
    kept = np.ones(len(CELLS), bool)
    kept[np.flatnonzero((CELLS.labels == 0) & (CELLS.split == "train"))[2:]] = False
    seen: list[Samples] = []

    def fit(samples: Samples) -> LinearClassifier:
        seen.append(samples)
        return fit_logistic(samples)

    few_shot_curve(fit, CELLS.take(kept), name="concepts", split="test", log=HoldoutLog(), shots=(8,), seeds=1)
    assert Counter(seen[0].of("train").labels.tolist()) == {0: 2, 1: 8, 2: 8, 3: 8}
