"""The association of classes with concepts: shares that sum to one, the form of the authors, and a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ccassets.analysis.association_classifier import fit_association
from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.metrics import accuracy
from ccassets.analysis.samples import Samples
from ccassets.errors import AnalysisError
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, cells

MULTIPLIER = 96.6
CELLS = cells(720).samples
FITTED = fit_association(CELLS, MULTIPLIER)


def test_every_class_is_a_mixture_of_concepts() -> None:
    shares = FITTED.weights / MULTIPLIER
    assert (shares > 0).all()
    assert np.allclose(shares.sum(axis=1), 1)
    strongest = {name: CONCEPTS[int(row.argmax())] for name, row in zip(CLASSES, shares, strict=True)}
    assert strongest == {
        "basophil": "Basophilic granules",
        "lymphocyte": "Round nucleus",
        "monocyte": "Cytoplasmic vacuoles",
        "platelet": "Giant platelets",
    }
    assert FITTED.chosen["chosen_on"] == "val"


def test_it_is_what_the_authors_form_gives_when_it_is_trained_to_the_end() -> None:
    train = CELLS.of("train")
    scores, labels = torch.from_numpy(np.asarray(train.features, np.float64)), torch.from_numpy(train.labels)
    association = torch.zeros((len(CLASSES), len(CONCEPTS)), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([association], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        logits = MULTIPLIER * scores @ torch.softmax(association, dim=1).T
        penalty = (association**2).sum() / (2 * FITTED.chosen["C"])
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum") + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    expected = torch.softmax(association.detach(), dim=1).numpy()
    # The other penalties of the path come before it, so both are the same minimum only up to their tolerances.
    assert np.abs(FITTED.weights / MULTIPLIER - expected).max() < 2e-3


def test_it_finds_the_classes_and_positive_shares_alone_cost_little() -> None:
    test = CELLS.of("test")
    share_right = accuracy(test.labels, FITTED.probabilities(test.features)).value
    free = accuracy(test.labels, fit_logistic(CELLS).probabilities(test.features)).value
    assert 0.75 < share_right <= free + 0.02


def test_a_row_of_several_classes_is_refused() -> None:
    several = Samples(CELLS.features, CONCEPTS, np.ones((720, 4), np.int64), CELLS.split, CLASSES, CELLS.ids)
    with pytest.raises(AnalysisError, match="one class for every row"):
        fit_association(several, MULTIPLIER)
