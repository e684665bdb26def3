"""Precision drift: what lower precisions and compiling cost and gain, compared with float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ccassets.errors import DatasetError, StudyError
from ccassets.study.schema import Study
from ccassets.tools.precision_drift import Distance, measure_precision_drift
from ccassets_tests.encoders.conftest import needs_compiler
from ccassets_tests.extraction.made_parts import COLOURS
from ccassets_tests.made_studies import write_study


def test_float32_does_not_differ_from_itself_and_lower_precisions_do_a_little(study: Study) -> None:
    drifts = {drift.dtype: drift for drift in measure_precision_drift(study, 7)}

    assert list(drifts) == ["float32", "tf32", "bfloat16", "float16"]
    assert {drift.images for drift in drifts.values()} == {7}
    assert all(drift.images_per_second > 0 for drift in drifts.values())
    for exact in ("float32", "tf32"):  # On a CPU, TF32 is float32.
        assert drifts[exact].tokens is not None
        assert drifts[exact].features.largest_difference == drifts[exact].tokens.largest_difference == 0
        assert drifts[exact].agreement == 1
    for dtype in ("bfloat16", "float16"):
        features, tokens = drifts[dtype].features, drifts[dtype].tokens
        assert tokens is not None
        assert 0.99 < features.smallest <= features.mean < 1
        assert 0 < features.largest_difference < 0.02
        assert 0.99 < tokens.smallest <= tokens.mean < 1
    assert drifts["bfloat16"].features.mean < drifts["float16"].features.mean
    accuracies = {drift.accuracy for drift in drifts.values()}
    assert None not in accuracies


@needs_compiler
@pytest.mark.slow
def test_compiled_towers_are_compared_too(study: Study) -> None:
    drifts = measure_precision_drift(study, 4, precisions=["bfloat16"], compiled=True)

    assert [(drift.dtype, drift.compiled) for drift in drifts] == [
        ("float32", False), ("bfloat16", False), ("float32", True), ("bfloat16", True)
    ]  # fmt: skip
    compiled = drifts[2]
    assert compiled.facts()["compiled"] is True
    assert compiled.tokens is not None
    assert 0 < compiled.tokens.largest_difference < 1e-5


def test_a_distance_is_that_of_the_vectors_taken_in() -> None:
    distance = Distance()
    reference = np.array([[1.0, 0.0], [0.0, 2.0]])

    distance.add(np.array([[1.0, 0.0], [0.0, 3.0]]), reference)
    distance.add(np.array([[[1.0, 1.0]]]), np.array([[[1.0, 0.0]]]))

    assert distance.smallest == pytest.approx(0.5**0.5)
    assert distance.mean == pytest.approx((1 + 1 + 0.5**0.5) / 3)
    assert distance.largest_difference == 1.0


def test_what_cannot_be_measured_is_left_out(image_folder: Path, weights: Path, tmp_path: Path) -> None:
    encoder = {"kind": "conceptclip", "weights": str(weights), "tokens": False}
    wordless = write_study(tmp_path / "wordless", images=image_folder, encoder=encoder, vocabulary={})

    [reference, lower] = measure_precision_drift(wordless, 1000, precisions=["bfloat16"])

    assert (reference.images, lower.tokens, lower.agreement, lower.accuracy) == (18, None, None, None)


def test_an_encoder_of_ones_own_and_a_study_without_images_are_refused(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "empty" / "train").mkdir(parents=True)
    empty = write_study(tmp_path / "none", images=tmp_path / "empty", encoder=weights, splits=["train"])
    with pytest.raises(DatasetError, match="has no images"):
        measure_precision_drift(empty)

    own = {"kind": "python", "target": "colours:Colours"}
    custom = write_study(tmp_path / "own", images=tmp_path / "empty", encoder=own, splits=["train"], vocabulary={})
    (custom.folder / "colours.py").write_text(COLOURS)
    with pytest.raises(StudyError, match="an encoder of your own"):
        measure_precision_drift(custom)
