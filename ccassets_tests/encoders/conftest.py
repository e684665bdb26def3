from __future__ import annotations

import json
import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from ccassets.study.schema import Study

GOLDEN = Path(__file__).parents[1] / "data" / "conceptclip"

MakeStudy = Callable[..., Study]

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None or not Path(sysconfig.get_path("include"), "Python.h").is_file(),
    reason="compiling on a CPU needs a C++ compiler and Python's headers",
)

TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION_TOWER = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT_TOWER = {**TOWER, "vocab_size": 200, "max_position_embeddings": 16}


@pytest.fixture
def make_study(tmp_path: Path) -> MakeStudy:
    """A study with this encoder section; `extraction` is optional."""

    def make(name: str = "tiny", extraction: dict[str, Any] | None = None, **encoder: Any) -> Study:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Study(
            name=name,
            folder=folder,
            dataset={"kind": "phantom"},  # type: ignore[arg-type]
            encoder={"kind": "conceptclip", **encoder},  # type: ignore[arg-type]
            extraction=extraction or {},  # type: ignore[arg-type]
        )

    return make


@pytest.fixture
def config() -> dict[str, Any]:
    """The golden model's dimensions."""
    loaded: dict[str, Any] = json.loads((GOLDEN / "tiny_a.json").read_text())
    return loaded


@pytest.fixture
def weights_folder(tmp_path: Path, config: dict[str, Any]) -> Path:
    """The golden model as a user would keep it: weights, dimensions and vocabulary in one folder."""
    return write_weights_folder(tmp_path / "weights", config)


def write_weights_folder(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    shutil.copy(GOLDEN / "tiny_a.safetensors", folder / "model.safetensors")
    (folder / "architecture.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(config["text"]["vocab"]) + "\n")
    return folder


def images(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(7)
    return [Image.fromarray(noise.integers(0, 256, (40 + row, 60, 3), dtype=np.uint8)) for row in range(count)]


def save_model(folder: Path, model: Any, processor: Any, config: dict[str, Any], model_input_names: list[str]) -> Path:
    folder.mkdir()
    vocabulary = folder / "words.txt"
    vocabulary.write_text("\n".join(config["text"]["vocab"]) + "\n")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=BertWordPieceTokenizer(str(vocabulary), lowercase=True)._tokenizer,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
        model_max_length=12,
        model_input_names=model_input_names,
    )
    vocabulary.unlink()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path, config: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            vision_config=VISION_TOWER,
            text_config={**TEXT_TOWER, "eos_token_id": 3, "bos_token_id": 2, "pad_token_id": 0},
            projection_dim=24,
        )
    )
    with torch.no_grad():
        model.vision_model.post_layernorm.bias.normal_()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return save_model(tmp_path / "clip", model, processor, config, ["input_ids", "attention_mask"])


@pytest.fixture
def siglip(tmp_path: Path, config: dict[str, Any]) -> Path:
    torch.manual_seed(0)
    model = SiglipModel(SiglipConfig(vision_config=VISION_TOWER, text_config={**TEXT_TOWER, "projection_size": 32}))
    with torch.no_grad():
        model.logit_scale.fill_(4.5)
        model.logit_bias.fill_(-11.0)
    processor = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    return save_model(tmp_path / "siglip", model, processor, config, ["input_ids"])
