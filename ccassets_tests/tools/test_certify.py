"""Certificates: an encoder is held to what is published of it, and the next assembly says so."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ccassets
from ccassets.encoders.checkpoint import read_architecture
from ccassets.encoders.conceptclip import PUBLISHED, load_checkpoint
from ccassets.encoders.tokenizer import BertTokenizer
from ccassets.errors import StorageError, StudyError
from ccassets.extraction import assemble_database, extract_images, extract_text, identify_encoder, read_images
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets.tools.certify import certify_study, load_published
from ccassets_tests.cli.command_line import run
from ccassets_tests.encoders.conftest import GOLDEN
from ccassets_tests.made_studies import edit_study

PROMPTS = ["a photo of a platelet", "red blood cell"]


@pytest.fixture
def golden(study: Study, weights: Path) -> dict[str, Any]:
    """What would be published of the golden model: the numbers of its file, and outputs of its bare module."""
    config = json.loads((GOLDEN / "tiny_a.json").read_text())
    model = load_checkpoint(GOLDEN / "tiny_a.safetensors", config)
    architecture = read_architecture(config)
    ids = BertTokenizer(weights / "vocab.txt", architecture)(PROMPTS).input_ids
    image = ccassets.load_encoder(study, device="cpu").preprocess(_first_image(study))
    with torch.inference_mode():
        texts, _ = model.encode_text(torch.from_numpy(ids).long())
        features, tokens = model.encode_image(torch.from_numpy(image[None]))
    published = np.load(GOLDEN / "tiny_a_io.npz")
    return {
        "parameters": architecture.parameter_count,
        **{name: float(published[name]) for name in load_published() if "logit" in name},
        "texts": {prompt: vector[:3].tolist() for prompt, vector in zip(PROMPTS, texts, strict=True)},
        "image": {
            "dataset": "pictures",
            "split": "train",
            "row": 0,
            "features": _ends(features[0]),
            "tokens": {patch: _ends(tokens[0, patch]) for patch in (0, 15)},
        },
    }


def _first_image(study: Study) -> Any:
    from ccassets.datasets import open_dataset

    dataset = open_dataset(study, Store.of(study))
    dataset.fetch(lambda done, total: None)
    return dataset.read("train", 0)


def _ends(vector: torch.Tensor) -> dict[str, list[float]]:
    return {"first": vector[:3].tolist(), "last": vector[-3:].tolist()}


def test_the_golden_model_passes_in_every_precision(study: Study, golden: dict[str, Any]) -> None:
    for dtype in ("float32", "bfloat16"):
        edited = edit_study(study, lambda a, dtype=dtype: a["encoder"].update(dtype=dtype))  # type: ignore[misc]
        certificate = certify_study(edited, published=golden, device="cpu")
        assert [check for check in certificate.checks if check.passed is not True] == []
        assert certificate.checks[-1].name == f"{dtype} against float32 on 18 images"
        assert certificate.checks[-1].deviation is not None
        assert (certificate.checks[-1].deviation < 1e-12) == (dtype == "float32")
        assert json.loads(Store.of(edited).certificate.read_text())["identity"] == certificate.identity


@pytest.mark.parametrize(
    ("change", "deviating"),
    [
        (lambda p: p.update(parameters=1), "parameters"),
        (lambda p: p.update(logit_bias=-11.2), "logit_bias"),
        (lambda p: p["texts"][PROMPTS[1]].__setitem__(1, 0.9), "'red blood cell'"),
        (lambda p: p["image"]["features"]["last"].__setitem__(2, 0.9), "image 0 of train of pictures: features"),
        (lambda p: p["image"]["tokens"][15]["first"].__setitem__(0, 9.0), "image 0 of train of pictures: patch 15"),
    ],
)
def test_a_deviation_is_named(study: Study, golden: dict[str, Any], change: Any, deviating: str) -> None:
    published = deepcopy(golden)
    change(published)
    certificate = certify_study(study, published=published, device="cpu")
    assert [check.name for check in certificate.checks if check.passed is False] == [deviating]
    assert not certificate.passed


def test_the_next_assembly_takes_the_certificate_into_the_provenance(study: Study, golden: dict[str, Any]) -> None:
    identify_encoder(study)
    for split in study.splits:
        read_images(study, split)
    extract_text(study)
    extract_images(study)
    before = assemble_database(study)
    certificate = certify_study(study, published=golden, device="cpu")
    after = assemble_database(study)
    with ccassets.open_database(after.path) as database:
        assert database.provenance is not None
        assert database.provenance["certificate"] == json.loads(json.dumps(certificate.facts()))
    assert ccassets.validate_database(after.path, study=study, deep=True) == []
    assert (after.digest, after.unchanged) == (before.digest, False)
    assert assemble_database(study).unchanged

    file = Store.of(study).certificate
    file.write_text(file.read_text().replace(certificate.identity, "0" * 32))
    assemble_database(study)
    with ccassets.open_database(after.path) as database:
        assert "certificate" not in (database.provenance or {})
    file.write_text("{")
    with pytest.raises(StorageError, match="Run `ccassets certify` again, or remove it"):
        assemble_database(study)


def test_random_weights_fail_plainly(study: Study, weights: Path, golden: dict[str, Any]) -> None:
    files = {"tokenizer": str(weights), "architecture": str(weights / "architecture.json")}
    edited = edit_study(study, lambda a: a["encoder"].update(weights="random", seed=0, **files))
    certificate = certify_study(edited, published=golden, device="cpu")
    checks = {check.name: check for check in certificate.checks}
    assert not certificate.passed
    assert (checks["weights"].passed, checks["weights"].measured) == (False, "random:0")
    assert (checks["parameters"].passed, checks["logit_scale"].passed) == (True, False)
    assert all(checks[repr(prompt)].passed is False for prompt in PROMPTS)


def test_another_model_deviates_and_another_data_set_is_not_measured(
    study: Study, golden: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command, with the prompts alone exchanged: the small vocabulary lacks the words of the published ones."""
    published = {**load_published(), "texts": golden["texts"]}
    monkeypatch.setattr("ccassets.tools.certify.load_published", lambda: published)
    result, facts = run("certify", study.folder), json.loads(run("certify", study.folder, "--json").out)
    assert result.code == 1
    assert "DEVIATES  parameters: expected 542,868,036, found 194,148" in result.out
    assert "-         image 41 of val of bloodmnist_224: expected its printed values, found not measured" in result.out
    assert "pass      length of 18 images" in result.out
    assert facts["passed"] is False
    assert facts["checks"][0]["deviation"] == 542868036 - 194148


def test_nothing_is_published_of_other_kinds(study: Study) -> None:
    phantom = edit_study(study, lambda a: a.update(encoder={"kind": "phantom"}))
    with pytest.raises(StudyError, match="numbers of conceptclip are published"):
        certify_study(phantom)
    assert run("certify", phantom.folder).code == 2


def test_what_is_published_fits_the_published_dimensions() -> None:
    published, architecture = load_published(), read_architecture(PUBLISHED)
    assert published["parameters"] == architecture.parameter_count
    assert max(published["image"]["tokens"]) == architecture.token_count - 1
