"""Compiled image towers: near the numbers of the others, the same every time, and an identity of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ccassets
from ccassets.encoders import inspect_encoder, load_encoder
from ccassets.errors import EncoderError
from ccassets.study.schema import Study
from ccassets_tests.encoders.conftest import MakeStudy, images, needs_compiler
from ccassets_tests.extraction.made_parts import (
    COLOURS,
    arrays,
    build,
    build_in_storage,
    deep_errors,
    differences,
    parts,
    read_sources,
)
from ccassets_tests.made_studies import edit_study, write_study


def compiled(study: Study) -> Study:
    return edit_study(study, lambda attributes: attributes["encoder"].update(compiled=True))


def test_an_encoder_that_is_not_compiled_keeps_its_identity_and_one_that_is_has_its_own(study: Study) -> None:
    card = inspect_encoder(study)

    assert card.identity == "e91c4f93c8908bc1bf5f4d209c0386d8"
    assert inspect_encoder(compiled(study)).identity != card.identity
    assert inspect_encoder(compiled(study)).compiled is True


@needs_compiler
@pytest.mark.slow
def test_a_compiled_study_is_built_with_the_same_bytes_again_and_near_those_of_the_other(
    study: Study, tmp_path: Path
) -> None:
    usual = arrays(build(study).path)
    study = compiled(study)

    built = build(study)

    assert built.encoded == 18
    assert deep_errors(built, study) == []
    stored = arrays(built.path)
    assert not np.array_equal(stored["image_token_features"], usual["image_token_features"])
    for name in ("image_features", "image_token_features"):
        np.testing.assert_allclose(stored[name], usual[name], atol=2e-3)
    for lost in (built.path, parts(study)[0]):
        lost.unlink()
    again = build(study)
    assert again.encoded == 4
    assert differences(again.path, build_in_storage(study, tmp_path / "alone").path) == []


@needs_compiler
@pytest.mark.parametrize(("name", "dtype"), [("clip", "float32"), ("siglip", "bfloat16")])
@pytest.mark.slow
def test_the_towers_of_transformers_compile_too(
    request: pytest.FixtureRequest, make_study: MakeStudy, name: str, dtype: str
) -> None:
    settings = {"kind": "transformers", "weights": str(request.getfixturevalue(name)), "dtype": dtype}
    usual = load_encoder(make_study(**settings), device="cpu")
    fast = load_encoder(
        make_study(extraction={"batch_size": 4, "rows_per_shard": 4}, **settings, compiled=True), device="cpu"
    )
    many, few = images(4), images(3)

    expected, features = usual.encode_images(many), fast.encode_images(many)

    assert features.tokens is not None
    assert expected.tokens is not None
    atol = {"float32": 1e-5, "bfloat16": 0.05}[dtype]
    np.testing.assert_allclose(features.tokens, expected.tokens, atol=atol)
    np.testing.assert_allclose(features.features, expected.features, atol=atol)
    assert np.array_equal(fast.encode_images(few).features, usual.encode_images(few).features)


@pytest.mark.slow
def test_without_a_compiler_an_extraction_says_what_is_missing(study: Study, tmp_path: Path) -> None:
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "no")}
    study = compiled(study)
    read_sources(study)
    command = [sys.executable, "-m", "ccassets.cli", "extract", str(study.folder / "defs.yaml")]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    assert done.returncode == 1
    assert "torch could not compile the image tower" in done.stderr
    assert "needs a C++ compiler" in done.stderr
    assert "It was encoding 'train/" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_encoder_of_ones_own_is_compiled_if_its_card_says_so(tmp_path: Path, image_folder: Path) -> None:
    own: dict[str, Any] = {"kind": "python", "target": "colours:Colours", "compiled": True}
    study = write_study(tmp_path / "own", images=image_folder, encoder=own, vocabulary={})
    (study.folder / "colours.py").write_text(COLOURS)

    with pytest.raises(EncoderError, match=r"says compiled True, card\.compiled is False"):
        ccassets.load_encoder(study)
