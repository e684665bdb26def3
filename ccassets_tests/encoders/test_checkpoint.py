"""Names, shapes and strictness of ConceptCLIP checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ccassets.encoders.checkpoint import PUBLISHED, parameters, read_architecture
from ccassets.encoders.conceptclip import load_checkpoint
from ccassets.encoders.towers import ConceptClip
from ccassets.errors import EncoderError
from ccassets_tests.encoders.conftest import GOLDEN

Tensors = dict[str, torch.Tensor]

PIXELS = torch.linspace(-1, 1, 3 * 56 * 56).reshape(1, 3, 56, 56)
IDS = torch.tensor([[2, 57, 60, 3, 0, 0]])


@pytest.fixture
def authors() -> Tensors:
    tensors: Tensors = load_file(GOLDEN / "tiny_a.safetensors")
    return tensors


@pytest.fixture
def outputs(tmp_path: Path, config: dict[str, Any]) -> Callable[[Tensors], list[torch.Tensor]]:
    """What a model with these tensors gives for one image and one text."""

    def run(tensors: Tensors) -> list[torch.Tensor]:
        save_file(tensors, tmp_path / "given.safetensors")
        model = load_checkpoint(tmp_path / "given.safetensors", config)
        return [*model.encode_image(PIXELS), *model.encode_text(IDS)]

    return run


def test_the_published_dimensions_are_542868032_parameters_and_four_scalars_under_our_names() -> None:
    architecture = read_architecture(PUBLISHED)
    with torch.device("meta"):
        model = ConceptClip(architecture)
    expected = {parameter.name: parameter.shape for parameter in parameters(architecture)}

    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(map(prod, expected.values())) == architecture.parameter_count == 542_868_032 + 4
    assert architecture.token_count == 729


def test_the_golden_file_holds_exactly_the_tensors_that_its_dimensions_ask_for(
    authors: Tensors, config: dict[str, Any]
) -> None:
    expected = {piece.name: piece.shape for entry in parameters(read_architecture(config)) for piece in entry.pieces}

    assert {name: tuple(tensor.shape) for name, tensor in authors.items()} == expected
    assert read_architecture(config).parameter_count == config["parameters"]


def test_both_name_styles_load_to_equal_models(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors, config: dict[str, Any]
) -> None:
    own = load_checkpoint(GOLDEN / "tiny_a.safetensors", config).state_dict()
    older = {name.replace("vision.", "vision.vision_model.", 1): tensor for name, tensor in own.items()}

    for tensors in (own, older):
        for given, expected in zip(outputs(tensors), outputs(authors), strict=True):
            assert torch.equal(given, expected)


@pytest.mark.parametrize("wrapper", ["model.", "module.model."])
def test_a_wrapper_in_front_of_all_names_is_understood(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors, wrapper: str
) -> None:
    wrapped = {f"{wrapper}{name}": tensor for name, tensor in authors.items()}

    for given, expected in zip(outputs(wrapped), outputs(authors), strict=True):
        assert torch.equal(given, expected)


def test_position_ids_of_old_checkpoints_are_left_out(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors
) -> None:
    with_ids = {**authors, "text.transformer.embeddings.position_ids": torch.arange(80)[None]}

    assert torch.equal(outputs(with_ids)[2], outputs(authors)[2])


def test_every_tensor_that_does_not_fit_is_listed_in_one_error(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors
) -> None:
    del authors["visual.trunk.blocks.0.attn.qkv.bias"]
    del authors["text.transformer.encoder.layer.1.attention.self.key.bias"]
    authors["visual.trunk.patch_embed.proj.bias"] = torch.zeros(63)
    authors["text.transformer.pooler.dense.weight"] = torch.zeros(32, 32)
    authors["logit_bias"] = torch.tensor(-10)

    with pytest.raises(EncoderError) as caught:
        outputs(authors)

    assert str(caught.value).splitlines()[1:] == [
        "logit_bias: expected a floating dtype, found I64",
        "missing: text.transformer.encoder.layer.1.attention.self.key.bias (32)",
        "missing: visual.trunk.blocks.0.attn.qkv.bias (192)",
        "not part of the model: text.transformer.pooler.dense.weight (32, 32)",
        "visual.trunk.patch_embed.proj.bias: expected shape (64), found (63)",
    ]


def test_missing_tensors_are_named_in_the_style_of_the_file(
    outputs: Callable[[Tensors], list[torch.Tensor]], config: dict[str, Any]
) -> None:
    own = load_checkpoint(GOLDEN / "tiny_a.safetensors", config).state_dict()
    del own["vision.encoder.layers.1.self_attn.k_proj.bias"]

    with pytest.raises(EncoderError, match=r"missing: vision\.encoder\.layers\.1\.self_attn\.k_proj\.bias"):
        outputs(own)


def test_shards_are_read_as_one_checkpoint(tmp_path: Path, authors: Tensors, config: dict[str, Any]) -> None:
    from ccassets.encoders.checkpoint import match_tensors, read_headers
    from ccassets.encoders.towers import build, read_state

    names = sorted(authors)
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    save_file({name: authors[name] for name in names[::2]}, files[0])
    save_file({name: authors[name] for name in names[1::2]}, files[1])
    architecture = read_architecture(config)

    model = build(architecture, read_state(match_tensors(read_headers(files), architecture)))

    whole = load_checkpoint(GOLDEN / "tiny_a.safetensors", config)
    assert torch.equal(model.encode_image(PIXELS)[1], whole.encode_image(PIXELS)[1])
    with pytest.raises(EncoderError, match=r"stands in two files: 1\.safetensors and 1\.safetensors"):
        read_headers([files[0], files[0]])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_of_other_precision_become_float32(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors, dtype: torch.dtype
) -> None:
    given = outputs({name: tensor.to(dtype) for name, tensor in authors.items()})

    assert all(tensor.dtype == torch.float32 for tensor in given)
    for one, other in zip(given, outputs(authors), strict=True):
        assert torch.allclose(one, other, atol=0.2 if dtype == torch.bfloat16 else 0.02)


def test_a_cut_off_file_says_so(tmp_path: Path, config: dict[str, Any]) -> None:
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((GOLDEN / "tiny_a.safetensors").read_bytes()[:-100])

    with pytest.raises(EncoderError, match="not a whole safetensors file"):
        load_checkpoint(cut, config)


def test_weights_that_are_not_finite_are_refused(
    outputs: Callable[[Tensors], list[torch.Tensor]], authors: Tensors
) -> None:
    authors["visual.trunk.norm.bias"][3] = torch.nan

    with pytest.raises(EncoderError, match=r"not finite, in visual\.trunk\.norm\.bias"):
        outputs(authors)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("vision.hidden_act", "gelu_pytorch_tanh", "vision.hidden_act: Input should be 'gelu'"),
        ("text.pooling", "cls", "text.pooling: Input should be 'mean'"),
        ("vision.num_heads", 5, "must be a multiple of num_heads 5"),
        ("context_length", 81, "beyond text.max_position_embeddings 80"),
        ("embed_dim", 32, "must equal vision.hidden_size 64"),
    ],
)
def test_dimensions_that_this_architecture_does_not_have_are_named(
    config: dict[str, Any], key: str, value: Any, message: str
) -> None:
    section, _, last = key.rpartition(".")
    (config[section] if section else config)[last] = value

    with pytest.raises(EncoderError, match=message):
        read_architecture(config)


def test_every_missing_dimension_is_named(config: dict[str, Any]) -> None:
    del config["patch_size"], config["text"]["vocab_size"]

    with pytest.raises(EncoderError) as caught:
        read_architecture(json.loads(json.dumps(config)))

    assert "patch_size: Field required" in str(caught.value)
    assert "text.vocab_size: Field required" in str(caught.value)
