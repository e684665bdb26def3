"""The ConceptCLIP encoder: its identity card, its checkpoint, and images and texts encoded with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ccassets.database.layout import LOGIT_PARAMETERS
from ccassets.encoders.checkpoint import (
    PUBLISHED,
    RANDOM_LOGITS,
    Architecture,
    Fill,
    match_tensors,
    read_architecture,
    read_headers,
    read_scalar,
)
from ccassets.encoders.encoder_contract import EncoderCard, FloatArray, ImageFeatures, TextFeatures
from ccassets.encoders.preprocessing import PREPROCESSING, require_pixels, squash
from ccassets.encoders.runtime import (
    TEXT_BATCH,
    choose_device,
    encode_batch,
    fixed_arithmetic,
    strict_facts,
    tower_dtype,
)
from ccassets.encoders.tokenizer import TOKENIZER_FILES, BertTokenizer, tokenizer_file
from ccassets.encoders.weights import ModelFolder, find_model, safetensors_files, with_index
from ccassets.errors import EncoderError
from ccassets.files import digest_files, reading_refused
from ccassets.progress import Progress, silent
from ccassets.study.schema import ConceptClipConfig, PhantomEncoderConfig, Study

if TYPE_CHECKING:
    import torch

    from ccassets.encoders.runtime import ImageTower
    from ccassets.encoders.towers import ConceptClip

__all__ = ["PUBLISHED", "ConceptClipEncoder", "inspect", "load", "load_checkpoint"]

PHANTOM = Path(__file__).parent / "phantom"
ARCHITECTURE_FILE = "architecture.json"

_TOKENIZER_PATTERNS = (*TOKENIZER_FILES, "tokenizer_config.json")
_WEIGHTS_PATTERNS = ("*.safetensors", "*.safetensors.index.json", ARCHITECTURE_FILE, *_TOKENIZER_PATTERNS)


def load_checkpoint(weights: str | PathLike[str], config: Mapping[str, Any]) -> ConceptClip:
    """Load ConceptCLIP from a safetensors file, every tensor assigned by name.

    Args:
        weights: The path of a safetensors file under the authors' names, or those of transformers.
        config: The dimensions, with the keys of `PUBLISHED`.

    Returns:
        The module in float32 on the CPU, in evaluation mode. Its `encode_image(pixel_values)` and
        `encode_text(input_ids)` give features of unit length and token features.

    Raises:
        EncoderError: Tensors do not fit the dimensions; all of them are listed.
    """
    from ccassets.encoders.towers import build, read_state

    architecture = read_architecture(config)
    return build(architecture, read_state(match_tensors(read_headers([Path(weights)]), architecture)))


def inspect(
    study: Study, *, device: str | None, cache: Path | None, hf_token: str | None, progress: Progress = silent
) -> EncoderCard:
    """The card of a `conceptclip` or `phantom` study, with weights and tokenizer verified."""
    return _card(_find(study, hf_token), study, device, cache, progress)


def load(study: Study, *, device: str | None, cache: Path | None, hf_token: str | None) -> ConceptClipEncoder:
    """The encoder of a `conceptclip` or `phantom` study."""
    from ccassets.encoders.towers import build, random_state, read_state

    torch_device = choose_device(device)
    source = _find(study, hf_token)
    card = _card(source, study, device, cache, silent)
    if source.fills is None:
        assert source.seed is not None
        state = random_state(source.architecture, source.seed)
    else:
        state = read_state(source.fills)
    model = build(source.architecture, state, compute_dtype=tower_dtype(card.dtype))
    return ConceptClipEncoder(card, model.to(torch_device), source.tokenizer, torch_device, study.extraction.batch_size)


def files(study: Study, *, hf_token: str | None) -> dict[str, Path]:
    """Every file that a `conceptclip` encoder is read from, by its name in a model folder; none for a `phantom`."""
    if isinstance(study.encoder, PhantomEncoderConfig):
        return {}
    source = _find(study, hf_token)
    named = {file.name: file for file in (*with_index(source.weights_files), source.tokenizer_file)}
    return named if source.architecture_file is None else {**named, ARCHITECTURE_FILE: source.architecture_file}


def tokenizer(study: Study, *, hf_token: str | None) -> BertTokenizer:
    """The tokenizer of a `conceptclip` or `phantom` study, verified against its weights."""
    return _find(study, hf_token).tokenizer


class ConceptClipEncoder:
    """ConceptCLIP behind the encoder contract.

    A card that says `compiled` has the image tower compiled for batches of `batch_size`.
    """

    def __init__(
        self,
        card: EncoderCard,
        model: ConceptClip,
        tokenizer: BertTokenizer,
        device: torch.device,
        batch_size: int,
    ) -> None:
        self.card = card
        self.model = model
        self.tokenizer = tokenizer
        self._device = device
        self.device = device.type
        self.image_tower: ImageTower = self._encode_image
        if card.compiled:
            from ccassets.encoders.compiling import compiled

            self.image_tower = compiled(self._encode_image, batch_size)

    def preprocess(self, image: Image.Image) -> FloatArray:
        return squash(image, self.card.image_size)

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        require_pixels(pixels, self.card.image_size)
        return encode_batch(self.image_tower, pixels, self._device, self.card.dtype)

    def _encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        features, tokens = self.model.encode_image(pixels)
        return features, tokens if self.card.token_count else None

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        import torch

        text = self.tokenizer(prompts)
        features, tokens = [], []
        with fixed_arithmetic(self.card.dtype):
            for start in range(0, len(prompts), TEXT_BATCH):
                ids = torch.from_numpy(text.input_ids[start : start + TEXT_BATCH]).long().to(self._device)
                batch = self.model.encode_text(ids)
                features.append(batch[0].cpu().numpy())
                tokens.append(batch[1].cpu().numpy())
        return TextFeatures(
            np.concatenate(features), np.concatenate(tokens), text.input_ids, text.attention_mask, text.offsets
        )


# --- finding and verifying ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Checkpoint:
    """A verified encoder before it is built; `fills` is None for random weights, drawn from `seed`."""

    architecture: Architecture
    architecture_file: Path | None
    tokenizer: BertTokenizer
    tokenizer_file: Path
    weights_files: list[Path]
    fills: list[Fill] | None
    seed: int | None
    recorded: dict[str, Any]


def _find(study: Study, hf_token: str | None) -> _Checkpoint:
    config = study.encoder
    if isinstance(config, PhantomEncoderConfig):
        config = ConceptClipConfig(kind="conceptclip", weights=str(PHANTOM))
    assert isinstance(config, ConceptClipConfig)
    folder = None
    if config.weights != "random":
        folder = find_model(study, config.weights, config.revision, hf_token, _WEIGHTS_PATTERNS)
    architecture_file = _architecture_file(config, folder, study)
    architecture = _read_architecture(architecture_file)
    recorded: dict[str, Any] = {"parameters": architecture.parameter_count}
    if folder is None:
        weights_files, fills = [], None
        recorded["weights"] = f"random, seed {config.seed}"
    else:
        weights_files = safetensors_files(folder)
        fills = match_tensors(read_headers(weights_files), architecture)
        recorded |= {"weights": folder.name, "commit": folder.commit}
    if architecture.untrained:
        recorded["untrained"] = True
    text = folder
    if config.tokenizer is not None:
        text = find_model(study, config.tokenizer, "main", hf_token, _TOKENIZER_PATTERNS)
        recorded |= {"tokenizer": text.name, "tokenizer_commit": text.commit}
    assert text is not None  # the study's own rule: random weights name a tokenizer
    file = tokenizer_file(text)
    return _Checkpoint(
        architecture=architecture,
        architecture_file=architecture_file,
        tokenizer=BertTokenizer(file, architecture),
        tokenizer_file=file,
        weights_files=weights_files,
        fills=fills,
        seed=config.seed,
        recorded=recorded,
    )


def _architecture_file(config: ConceptClipConfig, folder: ModelFolder | None, study: Study) -> Path | None:
    """The file with the dimensions: the one the study names, else the one beside the weights."""
    if config.architecture is not None:
        return study.resolve(config.architecture)
    beside = None if folder is None else folder.path / ARCHITECTURE_FILE
    return beside if beside is not None and beside.is_file() else None


def _read_architecture(file: Path | None) -> Architecture:
    """The dimensions in a file; without one the published ones."""
    if file is None:
        return read_architecture(PUBLISHED)
    try:
        return read_architecture(json.loads(file.read_text(encoding="utf-8")), where=file.name)
    except (OSError, ValueError) as error:
        raise reading_refused(error, str(file)) or EncoderError(f"{file} cannot be read as JSON: {error}") from error


def _card(source: _Checkpoint, study: Study, device: str | None, cache: Path | None, progress: Progress) -> EncoderCard:
    architecture = source.architecture
    if source.fills is None:
        # The digest itself says it, so that nobody takes such features for a model's.
        weights_digest, logits = f"random:{source.seed}", dict(RANDOM_LOGITS)
    else:
        weights_digest = digest_files(source.weights_files, cache=cache, progress=progress)
        scalars = {fill.parameter.name: fill.tensors[0] for fill in source.fills}
        logits = {name: read_scalar(scalars[name]) for name in LOGIT_PARAMETERS}
    return EncoderCard(
        kind=study.encoder.kind,
        weights_digest=weights_digest,
        architecture=architecture.model_dump(),
        preprocessing=PREPROCESSING,
        text_pooling=architecture.text.pooling,
        tokenizer_digest=digest_files([source.tokenizer_file], cache=cache),
        dim=architecture.embed_dim,
        token_count=architecture.token_count if study.encoder.tokens else 0,
        image_size=architecture.image_size,
        dtype=study.encoder.dtype,
        compiled=study.encoder.compiled,
        strict=strict_facts(study, device),
        logit_scale=logits["logit_scale"],
        logit_bias=logits["logit_bias"],
        concept_logit_scale=logits["concept_logit_scale"],
        concept_logit_bias=logits["concept_logit_bias"],
        recorded=source.recorded,
    )
