"""Dual encoders of the transformers library (CLIP, SigLIP, …) behind the encoder contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from ccassets.encoders.dual_encoder import DualEncoder
from ccassets.encoders.encoder_contract import EncoderCard, FloatArray
from ccassets.encoders.library_tokenizer import (
    CONFIG,
    PROCESSOR_FILES,
    TOKENIZER_FILES,
    LibraryTokenizer,
    library_errors,
    load_library_tokenizer,
    needs_lowering,
    present_files,
    tokenizer_files,
    tokenizer_settings,
)
from ccassets.encoders.runtime import choose_device, strict_facts
from ccassets.encoders.state_dict import PICKLED, checkpoint_facts, read_state_dict, require_finite, unwrapped
from ccassets.encoders.tokenizer import Tokens
from ccassets.encoders.weights import ModelFolder, find_model, model_weights, with_index
from ccassets.errors import EncoderError
from ccassets.files import digest_files
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study, TransformersConfig

if TYPE_CHECKING:
    import torch

_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", CONFIG, *PROCESSOR_FILES, *TOKENIZER_FILES)
_PICKLED_PATTERNS = ("pytorch_model*.bin", "pytorch_model.bin.index.json", *_PATTERNS)


def inspect(
    study: Study, *, device: str | None, cache: Path | None, hf_token: str | None, progress: Progress = silent
) -> EncoderCard:
    """The card of a `transformers` study, from its configuration and files; tensors are matched when it is loaded."""
    return _card(_find(study, hf_token), study, device, cache, progress)


def load(study: Study, *, device: str | None, cache: Path | None, hf_token: str | None) -> DualEncoder:
    """The encoder of a `transformers` study; every tensor of the model must come from the file, and every one in the
    file must be used.
    """
    torch_device = choose_device(device)
    source = _find(study, hf_token)
    card = _card(source, study, device, cache, silent)
    towers = TransformersTowers(
        _model(source), _image_processor(source.folder), _library_tokenizer(source), card.token_count
    )
    return DualEncoder(card, towers, torch_device, study.extraction.batch_size)


def files(study: Study, *, hf_token: str | None) -> dict[str, Path]:
    """Every file a `transformers` encoder is read from, by its name in a model folder."""
    source = _find(study, hf_token)
    folder = source.folder
    others = [
        folder.path / CONFIG,
        *present_files(folder, PROCESSOR_FILES, "image processor"),
        *tokenizer_files(folder),
    ]
    return {file.name: file for file in (*with_index(_weights_files(source)), *others)}


def tokenizer(study: Study, *, hf_token: str | None) -> Callable[[Sequence[str]], Tokens]:
    """The tokenizer of a `transformers` study."""
    return _library_tokenizer(_find(study, hf_token))


class TransformersTowers:
    """The towers of a dual encoder of transformers.

    Image tokens are the patches' last hidden states, without a class token; if the tower normalises only its pooled
    vector, they go through the same normalisation; then through the visual projection if there is one, so that they
    share a space with the features. Text tokens are the last hidden states through the text projection.
    """

    def __init__(self, model: Any, image_processor: Any, tokenizer: LibraryTokenizer, token_count: int) -> None:
        self.model = model
        self.tokenize = tokenizer
        self._image_processor = image_processor
        self._token_count = token_count

    @property
    def embeddings(self) -> Any:
        return self.model.vision_model.embeddings

    def preprocess(self, image: Image.Image) -> FloatArray:
        pixels: FloatArray = self._image_processor(images=image, return_tensors="np")["pixel_values"][0]
        return pixels

    def encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        output = self.model.get_image_features(pixel_values=pixels)
        return output.pooler_output, self._image_tokens(output.last_hidden_state) if self._token_count else None

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # SigLIP was trained without a mask; its tokenizer says so by not naming one.
        masked = "attention_mask" in self.tokenize.tokenizer.model_input_names
        output = self.model.get_text_features(
            input_ids=input_ids, **({"attention_mask": attention_mask} if masked else {})
        )
        return output.pooler_output, self._text_tokens(output.last_hidden_state) if self._token_count else None

    def _image_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        if hidden.shape[1] == self._token_count + 1:
            hidden = hidden[:, 1:]
            norm = getattr(self.model.vision_model, "post_layernorm", None)
            if norm is not None:
                hidden = norm(hidden)
        projection = getattr(self.model, "visual_projection", None)
        return hidden if projection is None else projection(hidden)

    def _text_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        projection = getattr(self.model, "text_projection", None) or getattr(self.model.text_model, "head", None)
        return hidden if projection is None else projection(hidden)


# --- finding, verifying, building --------------------------------------------------------------------


@dataclass(frozen=True)
class _ModelFiles:
    """A model's folder and what its configuration says."""

    folder: ModelFolder
    weights: str | None
    model_type: str
    dim: int
    image_size: int
    token_count: int
    context_length: int


def _find(study: Study, hf_token: str | None) -> _ModelFiles:
    from transformers import AutoConfig

    encoder = study.encoder
    assert isinstance(encoder, TransformersConfig)
    folder = find_model(study, encoder.weights, encoder.revision, hf_token, _PATTERNS, _PICKLED_PATTERNS)
    with library_errors(folder):
        config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    vision, text = getattr(config, "vision_config", None), getattr(config, "text_config", None)
    if vision is None or text is None:
        raise EncoderError(f"{folder.name}: expected a dual encoder of images and texts, found a {config.model_type}.")
    size: Any = getattr(vision, "image_size", None)
    patch: Any = getattr(vision, "patch_size", None)
    if not isinstance(size, int):
        raise EncoderError(
            f"{folder.name} has no fixed image size ({size}); models with flexible sizes are not supported."
        )
    if study.encoder.tokens and not isinstance(patch, int):
        raise EncoderError(f"{folder.name} has no patches ({patch}): set encoder.tokens: false.")
    return _ModelFiles(
        folder=folder,
        weights=getattr(config, "transformers_weights", None),
        model_type=config.model_type,
        dim=getattr(config, "projection_dim", None) or vision.hidden_size,
        image_size=size,
        token_count=(size // patch) ** 2 if study.encoder.tokens else 0,
        context_length=_context_length(folder, text),
    )


def _context_length(folder: ModelFolder, text_config: Any) -> int:
    """T: what the text tower has positions for, or less where the tokenizer says so."""
    positions: int = text_config.max_position_embeddings
    limit = tokenizer_settings(folder).get("model_max_length")
    return min(positions, int(limit)) if limit else positions


def _card(source: _ModelFiles, study: Study, device: str | None, cache: Path | None, progress: Progress) -> EncoderCard:
    folder = source.folder
    files = _weights_files(source)
    facts = checkpoint_facts(files)
    return EncoderCard(
        kind=study.encoder.kind,
        weights_digest=digest_files(files, cache=cache, progress=progress),
        architecture={
            "model_type": source.model_type,
            "config_digest": digest_files([folder.path / CONFIG], cache=cache),
            "context_length": source.context_length,
            # Only where we lower what the library's tokenizer keeps: other identities stay.
            **({"lower_case": True} if needs_lowering(folder) else {}),
        },
        preprocessing={
            "backend": "pillow",
            "config_digest": _image_processor_digest(folder, cache),
        },
        text_pooling="model",
        tokenizer_digest=digest_files(tokenizer_files(folder), cache=cache),
        dim=source.dim,
        token_count=source.token_count,
        image_size=source.image_size,
        dtype=study.encoder.dtype,
        compiled=study.encoder.compiled,
        strict=strict_facts(study, device),
        logit_scale=facts.logit_scale,
        logit_bias=facts.logit_bias,
        recorded={
            "weights": folder.name,
            "commit": folder.commit,
            "parameters": facts.parameters,
            # Their objective compares whole images with whole texts; patches are a by-product.
            "tokens_for_words": False,
            "geometry": _geometry(_image_processor(folder)),
        },
    )


def _geometry(processor: Any) -> dict[str, Any] | None:
    """Which rectangle of a picture the pixels are taken from, as `TokenGeometry` has it; None for any other rule."""
    resized, cropped = (dict(getattr(processor, name, None) or {}) for name in ("size", "crop_size"))
    crops = bool(getattr(processor, "do_center_crop", False))
    if getattr(processor, "do_resize", False) and crops == bool(resized.get("shortest_edge")):
        if not crops and resized.get("height") and resized.get("width"):
            return {"rule": "squash"}
        if crops and cropped.get("height") == cropped.get("width"):
            return {"rule": "crop", "shortest_edge": resized["shortest_edge"], "crop": cropped["height"]}
    return None


def _weights_files(source: _ModelFiles) -> list[Path]:
    """The weights that the library takes: what the configuration names, else one file before the shards of an index."""
    file = source.folder.path / (source.weights or "model.safetensors")
    return [file] if file.is_file() and file.suffix == ".safetensors" else model_weights(source.folder)


def _image_processor_digest(folder: ModelFolder, cache: Path | None) -> str:
    """The digest of the file that holds the settings the library takes; it knows several, in an order of its own."""
    from transformers import ImageProcessingMixin

    files = present_files(folder, PROCESSOR_FILES, "image processor")
    with library_errors(folder):
        settings, _ = ImageProcessingMixin.get_image_processor_dict(folder.path, local_files_only=True)
        for file in files:
            content = json.loads(file.read_text(encoding="utf-8"))
            if settings in (content, content.get("image_processor")):
                return digest_files([file], cache=cache)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _library_tokenizer(source: _ModelFiles) -> LibraryTokenizer:
    clean = str.lower if needs_lowering(source.folder) else str
    return LibraryTokenizer(load_library_tokenizer(source.folder), source.context_length, clean)


def _model(source: _ModelFiles) -> Any:
    import torch
    from transformers import AutoConfig, AutoModel

    folder, weights = source.folder, _weights_files(source)
    settings: dict[str, Any] = {"dtype": torch.float32, "output_loading_info": True}
    with library_errors(folder):
        if checkpoint_facts(weights).wrapper:  # The library takes names as they are.
            config = AutoConfig.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
            with torch.device("meta"):
                kind = type(AutoModel.from_config(config, trust_remote_code=False))
            state = unwrapped(read_state_dict(weights))
            model, report = kind.from_pretrained(None, config=config, state_dict=state, **settings)
        else:
            model, report = AutoModel.from_pretrained(
                folder.path,
                use_safetensors=weights[0].suffix != PICKLED,
                weights_only=True,
                trust_remote_code=False,
                local_files_only=True,
                **settings,
            )
    problems = [
        f"{kind.removesuffix('_keys')}: {key}"
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")
        for key in sorted(map(str, report.get(kind) or ()))
    ]
    if problems:
        raise EncoderError(f"The weights of {folder.name} do not fit its configuration:\n" + "\n".join(problems))
    if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
        raise EncoderError(f"{type(model).__name__} of {folder.name} is not a dual encoder of images and texts.")
    require_finite(model, folder.name)
    return model


def _image_processor(folder: ModelFolder) -> Any:
    from transformers import AutoImageProcessor

    with library_errors(folder):
        processor = AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", trust_remote_code=False, local_files_only=True
        )
    if not type(processor).__name__.endswith("Pil"):
        # The library falls back to its torchvision form, whose pixels differ, and only warns.
        raise EncoderError(f"{type(processor).__name__} of {folder.name} has no Pillow form.")
    return processor
