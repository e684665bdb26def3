"""ConceptCLIP checkpoints: dimensions, the tensors that a file must hold, and their names in both styles. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import log, prod
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from ccassets.database.layout import LOGIT_PARAMETERS
from ccassets.errors import EncoderError
from ccassets.files import reading_refused

Shape = tuple[int, ...]

RANDOM_LOGITS = {name: log(10) if name.endswith("scale") else -10.0 for name in LOGIT_PARAMETERS}
"""The logit parameters of random weights: those that SigLIP's training starts from."""

PUBLISHED: Mapping[str, Any] = {
    "image_size": 384,
    "patch_size": 14,
    "embed_dim": 1152,
    "context_length": 77,
    "vision": {
        "hidden_size": 1152,
        "num_layers": 27,
        "num_heads": 16,
        "mlp_size": 4304,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu",
        "pool": "map",
    },
    "text": {
        "vocab_size": 30522,
        "hidden_size": 768,
        "num_layers": 12,
        "num_heads": 12,
        "mlp_size": 3072,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
        "pad_token_id": 0,
        "cls_token_id": 2,
        "sep_token_id": 3,
        "pooling": "mean",
    },
}
"""The dimensions of the published model: SigLIP so400m at 384 px with PubMedBERT, 542,868,032
parameters and the four logit parameters."""

_FLOATING = {"F64", "F32", "F16", "BF16"}
_AUTHORS_PREFIXES = ("visual.trunk.", "text.transformer.")


# --- dimensions --------------------------------------------------------------------------------------


class _Section(BaseModel):
    # Keys that say nothing about the computation (a vocabulary, a count of parameters) may stand beside the others.
    model_config = ConfigDict(extra="ignore", frozen=True)


class _Tower(_Section):
    hidden_size: PositiveInt
    num_layers: PositiveInt
    num_heads: PositiveInt
    mlp_size: PositiveInt
    layer_norm_eps: PositiveFloat
    hidden_act: Literal["gelu"]

    @model_validator(mode="after")
    def _heads_divide(self) -> _Tower:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of num_heads {self.num_heads}")
        return self


class VisionTower(_Tower):
    """A SigLIP vision transformer with attention pooling ("map") and no projection."""

    pool: Literal["map"]


class TextTower(_Tower):
    """A BERT encoder; its mask is `ids != 0`, so padding is id 0."""

    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    type_vocab_size: PositiveInt
    pad_token_id: Literal[0]
    cls_token_id: int
    sep_token_id: int
    pooling: Literal["mean"]


class Architecture(_Section):
    """ConceptCLIP's dimensions. `untrained` marks weights without meaning; it is recorded, but no dimension."""

    image_size: PositiveInt
    patch_size: PositiveInt
    embed_dim: PositiveInt
    context_length: PositiveInt
    vision: VisionTower
    text: TextTower
    untrained: bool = Field(default=False, exclude=True)

    @model_validator(mode="after")
    def _parts_fit(self) -> Architecture:
        if self.embed_dim != self.vision.hidden_size:
            raise ValueError(
                f"embed_dim {self.embed_dim} must equal vision.hidden_size {self.vision.hidden_size}: "
                "the image tower has no projection"
            )
        if self.patch_size > self.image_size:
            raise ValueError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        if self.context_length > self.text.max_position_embeddings:
            raise ValueError(
                f"context_length {self.context_length} is beyond text.max_position_embeddings "
                f"{self.text.max_position_embeddings}"
            )
        return self

    @property
    def token_count(self) -> int:
        """T_img: patches of an image; pixels beyond the last whole patch are not seen."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def parameter_count(self) -> int:
        return sum(prod(parameter.shape) for parameter in parameters(self))


def read_architecture(config: Mapping[str, Any], *, where: str = "the architecture") -> Architecture:
    """The dimensions that a mapping with the keys of `PUBLISHED` describes.

    Raises `EncoderError` naming every key that is missing or has a value this architecture does not know.
    """
    try:
        return Architecture.model_validate(config)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise EncoderError(f"{where} does not describe a ConceptCLIP:\n" + "\n".join(lines)) from error


# --- tensors and their names -------------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """A tensor of a checkpoint, or with `third` one of the three equal parts of its first axis (q, k, v)."""

    name: str
    shape: Shape
    third: int | None = None


@dataclass(frozen=True)
class Parameter:
    """A parameter of our model; its pieces, joined along the first axis and reshaped, are its value.

    `pieces` carry the authors' names.
    """

    name: str
    shape: Shape
    pieces: tuple[Piece, ...]


def parameters(architecture: Architecture) -> list[Parameter]:
    """Every parameter of the model, with the tensors of the authors' checkpoint that it is made of."""
    return [*_vision(architecture), *_text(architecture), *_heads(architecture)]


def _vision(architecture: Architecture) -> Iterator[Parameter]:
    tower, patch = architecture.vision, architecture.patch_size
    size, mlp = tower.hidden_size, tower.mlp_size
    trunk = "visual.trunk"

    positions = (architecture.token_count, size)
    yield _same("vision.embeddings.patch_embedding.weight", f"{trunk}.patch_embed.proj.weight", (size, 3, patch, patch))
    yield _same("vision.embeddings.patch_embedding.bias", f"{trunk}.patch_embed.proj.bias", (size,))
    yield Parameter(
        "vision.embeddings.position_embedding.weight", positions, (Piece(f"{trunk}.pos_embed", (1, *positions)),)
    )
    for number in range(tower.num_layers):
        ours, theirs = f"vision.encoder.layers.{number}", f"{trunk}.blocks.{number}"
        yield from _layer_norm(f"{ours}.layer_norm1", f"{theirs}.norm1", size)
        for third, letter in enumerate("qkv"):
            for tail, shape in (("weight", (size, size)), ("bias", (size,))):
                fused = Piece(f"{theirs}.attn.qkv.{tail}", (3 * size, *shape[1:]), third)
                yield Parameter(f"{ours}.self_attn.{letter}_proj.{tail}", shape, (fused,))
        yield from _linear(f"{ours}.self_attn.out_proj", f"{theirs}.attn.proj", size, size)
        yield from _layer_norm(f"{ours}.layer_norm2", f"{theirs}.norm2", size)
        yield from _linear(f"{ours}.mlp.fc1", f"{theirs}.mlp.fc1", mlp, size)
        yield from _linear(f"{ours}.mlp.fc2", f"{theirs}.mlp.fc2", size, mlp)
    yield from _layer_norm("vision.post_layernorm", f"{trunk}.norm", size)

    pool = f"{trunk}.attn_pool"
    yield _same("vision.head.probe", f"{pool}.latent", (1, 1, size))
    for tail, rest in (("weight", (size,)), ("bias", ())):
        query, key_value = Piece(f"{pool}.q.{tail}", (size, *rest)), Piece(f"{pool}.kv.{tail}", (2 * size, *rest))
        yield Parameter(f"vision.head.attention.in_proj_{tail}", (3 * size, *rest), (query, key_value))
    yield from _linear("vision.head.attention.out_proj", f"{pool}.proj", size, size)
    yield from _layer_norm("vision.head.layernorm", f"{pool}.norm", size)
    yield from _linear("vision.head.mlp.fc1", f"{pool}.mlp.fc1", mlp, size)
    yield from _linear("vision.head.mlp.fc2", f"{pool}.mlp.fc2", size, mlp)


def _text(architecture: Architecture) -> Iterator[Parameter]:
    tower = architecture.text
    size, mlp = tower.hidden_size, tower.mlp_size

    def both(name: str) -> tuple[str, str]:
        return f"text.{name}", f"text.transformer.{name}"

    yield _same(*both("embeddings.word_embeddings.weight"), (tower.vocab_size, size))
    yield _same(*both("embeddings.position_embeddings.weight"), (tower.max_position_embeddings, size))
    yield _same(*both("embeddings.token_type_embeddings.weight"), (tower.type_vocab_size, size))
    yield from _layer_norm(*both("embeddings.LayerNorm"), size)
    for number in range(tower.num_layers):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            yield from _linear(*both(f"{layer}.attention.self.{part}"), size, size)
        yield from _linear(*both(f"{layer}.attention.output.dense"), size, size)
        yield from _layer_norm(*both(f"{layer}.attention.output.LayerNorm"), size)
        yield from _linear(*both(f"{layer}.intermediate.dense"), mlp, size)
        yield from _linear(*both(f"{layer}.output.dense"), size, mlp)
        yield from _layer_norm(*both(f"{layer}.output.LayerNorm"), size)


def _heads(architecture: Architecture) -> Iterator[Parameter]:
    size, text_size = architecture.embed_dim, architecture.text.hidden_size
    yield _same("text_projection.weight", "text.proj.weight", (size, text_size))
    for head, inputs in (("image_proj", size), ("text_proj", text_size)):
        yield _same(f"{head}.0.weight", f"{head}.0.weight", (size, inputs))
        yield _same(f"{head}.2.weight", f"{head}.2.weight", (size, size))
    for name in LOGIT_PARAMETERS:
        yield _same(name, name, ())


def _same(ours: str, theirs: str, shape: Shape) -> Parameter:
    return Parameter(ours, shape, (Piece(theirs, shape),))


def _linear(ours: str, theirs: str, outputs: int, inputs: int) -> Iterator[Parameter]:
    yield _same(f"{ours}.weight", f"{theirs}.weight", (outputs, inputs))
    yield _same(f"{ours}.bias", f"{theirs}.bias", (outputs,))


def _layer_norm(ours: str, theirs: str, size: int) -> Iterator[Parameter]:
    yield _same(f"{ours}.weight", f"{theirs}.weight", (size,))
    yield _same(f"{ours}.bias", f"{theirs}.bias", (size,))


# --- files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tensor:
    """A tensor as a safetensors header describes it; `dtype` is the format's own word, for example "F32"."""

    name: str
    file: Path
    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Fill:
    """A parameter, and the tensor of each of its pieces."""

    parameter: Parameter
    tensors: tuple[Tensor, ...]


def read_headers(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files by name, read from the headers only.

    Raises `EncoderError` when a file is not whole, or a name stands in two files.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        with _opened(file, "np") as opened:
            for name in opened.keys():  # noqa: SIM118  (not a mapping)
                if name in tensors:
                    raise EncoderError(f"{name} stands in two files: {tensors[name].file.name} and {file.name}")
                part = opened.get_slice(name)
                tensors[name] = Tensor(name, file, tuple(part.get_shape()), part.get_dtype())
    return tensors


def match_tensors(tensors: Mapping[str, Tensor], architecture: Architecture) -> list[Fill]:
    """Assign every tensor of a checkpoint to a parameter of the model, and every parameter to its tensors.

    Both name styles are understood, the authors' own and the same towers saved under transformers' names, with
    or without a wrapper in front (`model.`, `module.`). Raises one `EncoderError` that lists every tensor that is
    missing, has no place in the model, or has another shape or a dtype that is not floating.
    """
    by_name = _by_canonical_name(tensors)
    model_parameters = parameters(architecture)
    if not any(name.startswith(_AUTHORS_PREFIXES) for name in by_name):
        model_parameters = [_same(parameter.name, parameter.name, parameter.shape) for parameter in model_parameters]
    expected = {piece.name: piece.shape for parameter in model_parameters for piece in parameter.pieces}

    problems = [f"missing: {name} {_shape_text(shape)}" for name, shape in expected.items() if name not in by_name]
    problems += [
        f"not part of the model: {tensor.name} {_shape_text(tensor.shape)}"
        for name, tensor in by_name.items()
        if name not in expected
    ]
    for name in expected.keys() & by_name.keys():
        tensor = by_name[name]
        if tensor.shape != expected[name]:
            problems.append(
                f"{tensor.name}: expected shape {_shape_text(expected[name])}, found {_shape_text(tensor.shape)}"
            )
        if tensor.dtype not in _FLOATING:
            problems.append(f"{tensor.name}: expected a floating dtype, found {tensor.dtype}")
    if problems:
        raise EncoderError(
            f"The weights do not fit the architecture; {len(problems)} tensors differ "
            f"({len(expected)} expected, {len(by_name)} found):\n" + "\n".join(sorted(problems))
        )
    return [Fill(parameter, tuple(by_name[piece.name] for piece in parameter.pieces)) for parameter in model_parameters]


def read_scalar(tensor: Tensor) -> float:
    """The value of a tensor that holds one number."""
    # NumPy has no bfloat16; torch is imported for it alone.
    with _opened(tensor.file, "pt" if tensor.dtype == "BF16" else "np") as opened:
        return float(opened.get_tensor(tensor.name).item())


@contextmanager
def _opened(file: Path, framework: Literal["np", "pt"]) -> Iterator[Any]:
    """A safetensors file; `StorageError` when the system does not let it be read, `EncoderError` if it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        file.open("rb").close()  # Whatever the reason, safetensors calls a file that it cannot open missing.
        with safe_open(file, framework=framework) as opened:
            yield opened
    except (OSError, RuntimeError, SafetensorError) as error:  # torch calls every refusal a RuntimeError.
        raise reading_refused(error, str(file)) or EncoderError(
            f"{file} is not a whole safetensors file ({error}). Was a copy or download cut off? Fetch it again."
        ) from error


def _by_canonical_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name without wrapper and without the level and the buffers that older releases saved."""
    prefix = _wrapper(list(tensors))
    by_name = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(prefix)
        if plain.startswith("vision.vision_model."):
            plain = "vision." + plain.removeprefix("vision.vision_model.")
        if not plain.endswith("embeddings.position_ids"):
            by_name[plain] = tensor
    return by_name


def _wrapper(names: Sequence[str]) -> str:
    """The dotted prefix that all names share; no two towers share one, so it can only be a wrapper's."""
    prefix = ""
    while names:
        first, dot, _ = names[0].removeprefix(prefix).partition(".")
        longer = f"{prefix}{first}."
        if not dot or not all(name.startswith(longer) for name in names):
            break
        prefix = longer
    return prefix


def _shape_text(shape: Shape) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
