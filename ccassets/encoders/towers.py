"""ConceptCLIP as a torch module: transformers' towers and our heads, filled by name. All its arithmetic is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from math import prod, sqrt
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.nn import functional
from transformers import BertConfig, BertModel, SiglipVisionConfig, SiglipVisionModel

from ccassets.database.layout import LOGIT_PARAMETERS
from ccassets.encoders.checkpoint import (
    RANDOM_LOGITS,
    Architecture,
    Fill,
    Piece,
    Tensor,
    parameters,
)
from ccassets.errors import EncoderError, StorageError
from ccassets.files import reading_refused

State = Mapping[str, torch.Tensor]


class ConceptClip(nn.Module):
    """Two towers and two concept heads.

    D is `embed_dim`, T_img the number of patches, T the length of `input_ids`. With a `compute_dtype` below
    float32 the towers run under autocast; patch and position embedding stay float32, which they need.
    """

    def __init__(self, architecture: Architecture, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.architecture = architecture
        self.compute_dtype = compute_dtype
        size, text_size = architecture.embed_dim, architecture.text.hidden_size
        self.vision = SiglipVisionModel(_vision_config(architecture))
        self.text = BertModel(_text_config(architecture), add_pooling_layer=False)
        self.text_projection = nn.Linear(text_size, size, bias=False)
        self.image_proj = _concept_head(size, size)
        self.text_proj = _concept_head(text_size, size)
        for name in LOGIT_PARAMETERS:
            self.register_parameter(name, nn.Parameter(torch.zeros(())))

    def encode_image(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, 3, S, S) float32 → features (B, D) of unit length, token features (B, T_img, D) not normalised."""
        tokens, pooled = self.image_tower(pixel_values)
        with self._precision(tokens):
            token_features = self.image_proj(tokens)
        return functional.normalize(pooled.float(), dim=-1), token_features.float()

    def encode_text(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(K, T) integer → features (K, D) of unit length, token features (K, T, D) at all positions, pads too."""
        tokens, pooled = self.text_tower(input_ids)
        with self._precision(tokens):
            token_features = self.text_proj(tokens)
        return functional.normalize(pooled.float(), dim=-1), token_features.float()

    def image_tower(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tower alone: normed tokens (B, T_img, D) and the attention-pooled vector (B, D), not normalised."""
        hidden = self.vision.embeddings(pixel_values)
        with self._precision(hidden):
            tokens = self.vision.post_layernorm(self.vision.encoder(inputs_embeds=hidden).last_hidden_state)
            return tokens, self.vision.head(tokens)

    def text_tower(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The tower alone: last hidden states (K, T, text size) and their projected mean over `ids != 0` (K, D)."""
        mask = input_ids != 0
        with self._precision(input_ids):
            tokens = self.text(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state
            weights = mask.unsqueeze(-1).to(tokens.dtype)
            return tokens, self.text_projection((tokens * weights).sum(dim=1) / weights.sum(dim=1))

    def _precision(self, tensor: torch.Tensor) -> AbstractContextManager[object]:
        mixed = self.compute_dtype != torch.float32
        return torch.autocast(tensor.device.type, self.compute_dtype if mixed else torch.bfloat16, enabled=mixed)


def build(architecture: Architecture, state: State, *, compute_dtype: torch.dtype = torch.float32) -> ConceptClip:
    """The model with these parameters, in evaluation mode and without gradients; `state` is taken, not copied."""
    with torch.device("meta"):
        model = ConceptClip(architecture, compute_dtype)
    model.load_state_dict(dict(state), strict=True, assign=True)
    _fill_buffers(model)
    return model.eval().requires_grad_(False)


def read_state(fills: Sequence[Fill]) -> dict[str, torch.Tensor]:
    """Parameters by name, in float32 whatever the file holds; one tensor at a time is held twice."""
    with ExitStack() as stack:
        files = {
            file: stack.enter_context(_opened(file))
            for file in {tensor.file for fill in fills for tensor in fill.tensors}
        }

        def read(piece: Piece, tensor: Tensor) -> torch.Tensor:
            if piece.third is None:
                return files[tensor.file].get_tensor(tensor.name)  # type: ignore[no-any-return]
            rows = tensor.shape[0] // 3
            return files[tensor.file].get_slice(tensor.name)[piece.third * rows : (piece.third + 1) * rows]  # type: ignore[no-any-return]

        state = {}
        for fill in fills:
            pieces = [read(piece, tensor) for piece, tensor in zip(fill.parameter.pieces, fill.tensors, strict=True)]
            joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
            # A copy, so that the model does not change under us when the mapped file does.
            value = joined.to(torch.float32, copy=True).reshape(fill.parameter.shape)
            if not bool(torch.isfinite(value).all()):
                raise EncoderError(f"The weights hold values that are not finite, in {fill.tensors[0].name}.")
            state[fill.parameter.name] = value
        return state


def _opened(file: Path) -> AbstractContextManager[Any]:
    """A file of weights whose header was read already; `StorageError` when the system cannot read it now."""
    try:
        file.open("rb").close()  # Whatever the reason, safetensors calls a file that it cannot open missing.
        return safe_open(file, framework="pt")
    except (OSError, RuntimeError) as error:  # torch maps the file, and calls every refusal a RuntimeError.
        raise reading_refused(error, str(file)) or StorageError(f"{file} cannot be read: {error}") from error


def random_state(architecture: Architecture, seed: int) -> dict[str, torch.Tensor]:
    """Normal parameters drawn from a generator of their own; matrices keep the variance of what they multiply.

    The logit parameters are those that SigLIP starts training from: log 10 and -10.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if not shape:
            return torch.tensor(RANDOM_LOGITS[name])
        noise = torch.randn(shape, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            return 1 + 0.02 * noise
        if len(shape) == 1 or ("embedding" in name and "patch" not in name):
            return 0.02 * noise
        return noise / sqrt(prod(shape[1:]))

    return {parameter.name: draw(parameter.name, parameter.shape) for parameter in parameters(architecture)}


def _vision_config(architecture: Architecture) -> SiglipVisionConfig:
    tower = architecture.vision
    return SiglipVisionConfig(
        image_size=architecture.image_size,
        patch_size=architecture.patch_size,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.mlp_size,
        num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.num_heads,
        layer_norm_eps=tower.layer_norm_eps,
        hidden_act=tower.hidden_act,
        attn_implementation="sdpa",
    )


def _text_config(architecture: Architecture) -> BertConfig:
    tower = architecture.text
    return BertConfig(
        vocab_size=tower.vocab_size,
        hidden_size=tower.hidden_size,
        intermediate_size=tower.mlp_size,
        num_hidden_layers=tower.num_layers,
        num_attention_heads=tower.num_heads,
        max_position_embeddings=tower.max_position_embeddings,
        type_vocab_size=tower.type_vocab_size,
        layer_norm_eps=tower.layer_norm_eps,
        hidden_act=tower.hidden_act,
        pad_token_id=tower.pad_token_id,
        attn_implementation="sdpa",
    )


def _concept_head(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.GELU(), nn.Linear(outputs, outputs, bias=False))


def _fill_buffers(model: ConceptClip) -> None:
    """Fill the buffers that are in no checkpoint; those of a model built on the meta device are empty."""
    patches, positions = model.architecture.token_count, model.architecture.text.max_position_embeddings
    model.vision.embeddings.position_ids = torch.arange(patches).expand((1, -1))
    model.text.embeddings.position_ids = torch.arange(positions).expand((1, -1))
    model.text.embeddings.token_type_ids = torch.zeros((1, positions), dtype=torch.long)
    empty = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    if empty:
        raise EncoderError(f"This release of transformers has buffers we do not know: {', '.join(empty)}.")
