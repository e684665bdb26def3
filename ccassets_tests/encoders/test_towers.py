"""ConceptCLIP against the outputs of the authors' own code; the tolerances are those of the fixtures' page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ccassets.encoders.conceptclip import load_checkpoint
from ccassets.encoders.preprocessing import squash
from ccassets.encoders.towers import ConceptClip
from ccassets.errors import EncoderError
from ccassets_tests.encoders.conftest import GOLDEN

EXPECTED = np.load(GOLDEN / "tiny_a_io.npz")
TOLERANCE = {"features": 2e-6, "tokens": 2e-5, "unnormalized": 5e-5}


@pytest.fixture
def model(config: dict[str, Any]) -> ConceptClip:
    return load_checkpoint(GOLDEN / "tiny_a.safetensors", config)


def outputs(model: ConceptClip) -> dict[str, torch.Tensor]:
    pixels, ids = torch.from_numpy(EXPECTED["pixel_values"]), torch.from_numpy(EXPECTED["input_ids"])
    image_features, image_tokens = model.encode_image(pixels)
    text_features, text_tokens = model.encode_text(ids)
    trunk_tokens, image_pooled = model.image_tower(pixels)
    last_hidden, text_pooled = model.text_tower(ids)
    return {
        "image_features": image_features,
        "text_features": text_features,
        "image_token_features": image_tokens,
        "text_token_features": text_tokens,
        "image_trunk_tokens": trunk_tokens,
        "text_last_hidden_state": last_hidden,
        "image_features_unnormalized": image_pooled,
        "text_features_unnormalized": text_pooled,
    }


def tolerance(name: str) -> float:
    if name in {"image_features", "text_features"}:
        return TOLERANCE["features"]
    return TOLERANCE["unnormalized" if name.endswith("unnormalized") else "tokens"]


def test_features_tokens_and_hidden_states_are_the_authors(model: ConceptClip) -> None:
    for name, tensor in outputs(model).items():
        np.testing.assert_allclose(tensor.numpy(), EXPECTED[name], rtol=0, atol=tolerance(name), err_msg=name)


def test_the_logit_parameters_are_read_as_they_are(model: ConceptClip) -> None:
    for name in ("logit_scale", "logit_bias", "concept_logit_scale", "concept_logit_bias"):
        assert model.get_parameter(name).item() == EXPECTED[name]


@pytest.mark.parametrize("eps", ["vision", "text"])
def test_another_layer_norm_eps_would_be_seen(config: dict[str, Any], eps: str) -> None:
    config[eps]["layer_norm_eps"] = 1e-5
    changed = outputs(load_checkpoint(GOLDEN / "tiny_a.safetensors", config))

    image_or_text = "image_token_features" if eps == "vision" else "text_token_features"
    assert np.abs(changed[image_or_text].numpy() - EXPECTED[image_or_text]).max() > TOLERANCE["tokens"]


@pytest.mark.parametrize("swapped", ["visual.trunk.blocks.0.attn.qkv", "visual.trunk.attn_pool.kv"])
def test_swapped_attention_parts_would_be_seen(tmp_path: Path, config: dict[str, Any], swapped: str) -> None:
    tensors = load_file(GOLDEN / "tiny_a.safetensors")
    for tail in ("weight", "bias"):
        first, second, *rest = tensors[f"{swapped}.{tail}"].split(64)
        tensors[f"{swapped}.{tail}"] = torch.cat([second, first, *rest])
    save_file(tensors, tmp_path / "swapped.safetensors")

    changed = outputs(load_checkpoint(tmp_path / "swapped.safetensors", config))

    assert np.abs(changed["image_features"].numpy() - EXPECTED["image_features"]).max() > TOLERANCE["features"]


def test_pixels_are_the_authors_to_the_bit() -> None:
    golden = np.load(GOLDEN / "preprocess.npz")
    names = ("image_rgb_28x28", "image_rgb_50x37", "image_rgb_224x224", "image_gray_28x28")

    for name, expected in zip(names, golden["pixel_values"], strict=True):
        np.testing.assert_array_equal(squash(Image.fromarray(golden[name]), 56), expected, err_msg=name)


def test_pixels_at_the_published_size_are_the_authors_to_the_bit() -> None:
    golden = np.load(GOLDEN / "preprocess.npz")
    resized = golden["resized384_rgb_28x28_u8"].astype(np.float32) / np.float32(255)

    pixels = squash(Image.fromarray(golden["image_rgb_28x28"]), 384)

    np.testing.assert_array_equal(pixels, ((resized - np.float32(0.5)) / np.float32(0.5)).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "CMYK"])
def test_an_image_that_is_not_plain_rgb_is_not_guessed_at(mode: str) -> None:
    with pytest.raises(EncoderError, match=f"mode RGB, found {mode}"):
        squash(Image.new(mode, (8, 8)), 56)
