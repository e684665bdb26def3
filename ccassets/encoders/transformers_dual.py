"""Dual encoders of the transformers library (CLIP, SigLIP, …) behind the encoder contract."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ccassets.encoders.checkpoint import read_headers, read_scalar
from ccassets.encoders.encoder_contract import EncoderCard, FloatArray, ImageFeatures, TextFeatures
from ccassets.encoders.preprocessing import require_pixels, require_rgb
from ccassets.encoders.runtime import (
    TEXT_BATCH,
    choose_device,
    encode_batch,
    fixed_arithmetic,
    strict_facts,
    tower_dtype,
)
from ccassets.encoders.tokenizer import Tokens, require_known, require_length
from ccassets.encoders.weights import ModelFolder, find_model, safetensors_files, with_index
from ccassets.errors import CcassetsError, EncoderError
from ccassets.files import digest_files, reading_refused
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study, TransformersConfig

if TYPE_CHECKING:
    import torch

    from ccassets.encoders.runtime import ImageTower

CONFIG = "config.json"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
_PATTERNS = ("model*.safetensors", "model.safetensors.index.json", CONFIG, *PROCESSOR_FILES, *TOKENIZER_FILES)


def inspect(
    study: Study, *, device: str | None, cache: Path | None, hf_token: str | None, progress: Progress = silent
) -> EncoderCard:
    """The card of a `transformers` study, from its configuration and files; tensors are matched when it is loaded."""
    return _card(_find(study, hf_token), study, device, cache, progress)


def load(study: Study, *, device: str | None, cache: Path | None, hf_token: str | None) -> DualEncoder:
    """The encoder of a `transformers` study; every tensor of the model must come from the file, and the other way."""
    torch_device = choose_device(device)
    source = _find(study, hf_token)
    card = _card(source, study, device, cache, silent)
    model, parts = _model(source.folder), _parts(source.folder)
    encoder = DualEncoder(card, model, parts, source.context_length, torch_device, study.extraction.batch_size)
    # The card's dimensions come from a configuration; one image and one text show that the model has them too.
    encoder.encode_pixels(np.zeros((1, 3, card.image_size, card.image_size), np.float32))
    encoder.encode_texts(["cell"])
    return encoder


def files(study: Study, *, hf_token: str | None) -> dict[str, Path]:
    """Every file a `transformers` encoder is read from, by its name in a model folder."""
    source = _find(study, hf_token)
    folder = source.folder
    others = [
        folder.path / CONFIG,
        *_present(folder, PROCESSOR_FILES, "image processor"),
        *_tokenizer_files(folder),
    ]
    return {file.name: file for file in (*with_index(_weights_files(source)), *others)}


def tokenizer(study: Study, *, hf_token: str | None) -> Callable[[Sequence[str]], Tokens]:
    """The tokenizer of a `transformers` study."""
    source = _find(study, hf_token)
    return partial(_tokenize, _parts(source.folder).tokenizer, source.context_length)


def _tokenize(tokenizer: Any, length: int, prompts: Sequence[str]) -> Tokens:
    """Prompts padded to `length`; raises `EncoderError` naming those that are longer, and words it does not know."""
    encoded = tokenizer(
        list(prompts),
        padding="max_length",
        max_length=length,
        truncation=False,
        return_attention_mask=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    require_length([len(ids) for ids in encoded["input_ids"]], prompts, length)
    offsets = np.asarray(encoded["offset_mapping"], np.int32)
    special = np.asarray(encoded["special_tokens_mask"], bool)
    offsets[special] = 0
    ids, mask = np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["attention_mask"], np.uint8)
    # Some tokenizers write the unknown token for the end of a text and for padding, too.
    require_known((ids == tokenizer.unk_token_id) & ~special & (mask == 1), offsets, prompts)
    return Tokens(ids, mask, offsets)


class DualEncoder:
    """A dual encoder of transformers.

    Features are those of the model, L2-normalised. Image tokens are the patches' last hidden states, without a
    class token; where the tower norms its pooled vector only, they go through that norm too; then through the
    visual projection if there is one, so that they share a space with the features. Text tokens are the last
    hidden states through the text projection. A card that says `compiled` has the image tower compiled for batches of
    `batch_size`.
    """

    def __init__(
        self,
        card: EncoderCard,
        model: Any,
        parts: _Parts,
        context_length: int,
        device: torch.device,
        batch_size: int,
    ) -> None:
        import torch

        self.card = card
        self._parts = parts
        self._context_length = context_length
        self._device = device
        self.device = device.type
        self._dtype = tower_dtype(card.dtype)
        self._model = model.to(device)
        self.image_tower: ImageTower = self._encode_image
        if card.compiled:
            from ccassets.encoders.compiling import compiled

            self.image_tower = compiled(self._encode_image, batch_size)
        if self._dtype != torch.float32:
            # Patch convolution and position embedding lose too much below float32.
            embeddings = self._model.vision_model.embeddings
            embeddings.forward = torch.autocast(device.type, enabled=False)(embeddings.forward)

    def preprocess(self, image: Image.Image) -> FloatArray:
        pixels: FloatArray = self._parts.image_processor(images=require_rgb(image), return_tensors="np")["pixel_values"]
        require_pixels(pixels, self.card.image_size)
        image_pixels: FloatArray = pixels[0]
        return image_pixels

    def encode_pixels(self, pixels: FloatArray) -> ImageFeatures:
        require_pixels(pixels, self.card.image_size)
        return encode_batch(self.image_tower, pixels, self._device, self.card.dtype)

    def _encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        with self._precision():
            output = self._model.get_image_features(pixel_values=pixels)
            tokens = self._image_tokens(output.last_hidden_state) if self.card.token_count else None
            return self._unit(output.pooler_output), tokens

    def encode_images(self, images: Sequence[Image.Image]) -> ImageFeatures:
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts: Sequence[str]) -> TextFeatures:
        import torch

        text = _tokenize(self._parts.tokenizer, self._context_length, prompts)
        features, tokens = [], []
        for start in range(0, len(prompts), TEXT_BATCH):
            batch = slice(start, start + TEXT_BATCH)
            inputs = {"input_ids": torch.from_numpy(text.input_ids[batch]).long().to(self._device)}
            # SigLIP was trained without a mask; its tokenizer says so by not naming one.
            if "attention_mask" in self._parts.tokenizer.model_input_names:
                inputs["attention_mask"] = torch.from_numpy(text.attention_mask[batch]).long().to(self._device)
            with fixed_arithmetic(self.card.dtype), self._precision():
                output = self._model.get_text_features(**inputs)
                features.append(self._unit(output.pooler_output).cpu().numpy())
                if self.card.token_count:
                    tokens.append(self._text_tokens(output.last_hidden_state))
        return TextFeatures(
            np.concatenate(features),
            np.concatenate(tokens) if tokens else None,
            text.input_ids,
            text.attention_mask,
            text.offsets,
        )

    def _image_tokens(self, hidden: torch.Tensor) -> torch.Tensor:
        count = self.card.token_count
        if hidden.shape[1] == count + 1:
            hidden = hidden[:, 1:]
            norm = getattr(self._model.vision_model, "post_layernorm", None)
            if norm is not None:
                hidden = norm(hidden)
        projection = getattr(self._model, "visual_projection", None)
        if projection is not None:
            hidden = projection(hidden)
        if hidden.shape[1:] != (count, self.card.dim):
            raise EncoderError(
                f"Patch tokens: expected ({count}, {self.card.dim}) from {CONFIG}, found "
                f"{tuple(hidden.shape[1:])}. Set encoder.tokens: false."
            )
        return hidden.float()

    def _text_tokens(self, hidden: torch.Tensor) -> FloatArray:
        projection = getattr(self._model, "text_projection", None) or getattr(self._model.text_model, "head", None)
        projected = projection(hidden) if projection is not None else hidden
        if projected.shape[-1] != self.card.dim:
            raise EncoderError(
                f"Text tokens: expected size {self.card.dim}, found {projected.shape[-1]}. Set encoder.tokens: false."
            )
        return projected.float().cpu().numpy()

    def _unit(self, features: torch.Tensor) -> torch.Tensor:
        from torch.nn import functional

        if features.shape[-1] != self.card.dim:
            raise EncoderError(f"Features: expected size {self.card.dim} from {CONFIG}, found {features.shape[-1]}.")
        return functional.normalize(features.float(), dim=-1)

    def _precision(self) -> Any:
        import torch

        mixed = self._dtype != torch.float32
        return torch.autocast(self._device.type, self._dtype if mixed else torch.bfloat16, enabled=mixed)


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


@dataclass(frozen=True)
class _Parts:
    image_processor: Any
    tokenizer: Any


def _find(study: Study, hf_token: str | None) -> _ModelFiles:
    from transformers import AutoConfig

    encoder = study.encoder
    assert isinstance(encoder, TransformersConfig)
    folder = find_model(encoder.weights, study=study, revision=encoder.revision, patterns=_PATTERNS, hf_token=hf_token)
    with _library_errors(folder):
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
    file = folder.path / "tokenizer_config.json"
    try:
        limit = json.loads(file.read_text(encoding="utf-8")).get("model_max_length") if file.is_file() else None
    except (OSError, ValueError, AttributeError) as error:
        raise reading_refused(error, str(file)) or EncoderError(
            f"{file.name} of {folder.name} cannot be read: expected a JSON object."
        ) from error
    return min(positions, int(limit)) if limit else positions


def _card(source: _ModelFiles, study: Study, device: str | None, cache: Path | None, progress: Progress) -> EncoderCard:
    folder = source.folder
    files = _weights_files(source)
    tensors = read_headers(files)
    scales = {name: read_scalar(tensors[name]) for name in ("logit_scale", "logit_bias") if name in tensors}
    return EncoderCard(
        kind=study.encoder.kind,
        weights_digest=digest_files(files, cache=cache, progress=progress),
        architecture={
            "model_type": source.model_type,
            "config_digest": digest_files([folder.path / CONFIG], cache=cache),
            "context_length": source.context_length,
        },
        preprocessing={
            "backend": "pillow",
            "config_digest": _image_processor_digest(folder, cache),
        },
        text_pooling="model",
        tokenizer_digest=digest_files(_tokenizer_files(folder), cache=cache),
        dim=source.dim,
        token_count=source.token_count,
        image_size=source.image_size,
        dtype=study.encoder.dtype,
        compiled=study.encoder.compiled,
        strict=strict_facts(study, device),
        logit_scale=scales.get("logit_scale"),
        logit_bias=scales.get("logit_bias"),
        recorded={
            "weights": folder.name,
            "commit": folder.commit,
            "parameters": sum(prod(tensor.shape) for tensor in tensors.values()),
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
    return [file] if file.is_file() and file.suffix == ".safetensors" else safetensors_files(source.folder)


def _image_processor_digest(folder: ModelFolder, cache: Path | None) -> str:
    """The digest of the file that holds the settings the library takes; it knows several, in an order of its own."""
    from transformers import ImageProcessingMixin

    files = _present(folder, PROCESSOR_FILES, "image processor")
    with _library_errors(folder):
        settings, _ = ImageProcessingMixin.get_image_processor_dict(folder.path, local_files_only=True)
        for file in files:
            content = json.loads(file.read_text(encoding="utf-8"))
            if settings in (content, content.get("image_processor")):
                return digest_files([file], cache=cache)
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _tokenizer_files(folder: ModelFolder) -> list[Path]:
    """The files that determine the tokenizer: the usual ones, and every other one without which it is not the same."""
    usual = _present(folder, TOKENIZER_FILES, "tokenizer")
    known = {CONFIG, *PROCESSOR_FILES, *(file.name for file in usual)}
    others = [
        file
        for file in sorted(folder.path.iterdir())
        if file.is_file() and file.name not in known and file.suffix != ".safetensors"
    ]
    if not others:
        return usual
    state = _tokenizer_state(folder, [*usual, *others])
    if _tokenizer_state(folder, usual) == state:
        return usual
    needed = [file for file in others if _tokenizer_state(folder, [*usual, *(f for f in others if f != file)]) != state]
    return [*usual, *needed]


def _tokenizer_state(folder: ModelFolder, files: Sequence[Path]) -> str | None:
    """Everything about the tokenizer that the library makes of these files of a folder; None where it makes none."""
    with TemporaryDirectory() as only:
        for file in (folder.path / CONFIG, *files):
            (Path(only) / file.name).symlink_to(file.absolute())
        try:
            tokenizer = _tokenizer(ModelFolder(Path(only), folder.name))
        except EncoderError:
            return None
    names = ("model_input_names", "padding_side", "pad_token_id", "unk_token_id")
    return repr([tokenizer.backend_tokenizer.to_str(), *(getattr(tokenizer, name) for name in names)])


def _present(folder: ModelFolder, names: Sequence[str], what: str) -> list[Path]:
    files = [folder.path / name for name in names if (folder.path / name).is_file()]
    if not files:
        raise EncoderError(f"{folder.name} holds no {what}: expected one of {', '.join(names)}.")
    return files


def _model(folder: ModelFolder) -> Any:
    import torch
    from transformers import AutoModel

    with _library_errors(folder):
        model, report = AutoModel.from_pretrained(
            folder.path,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
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
    return model.eval().requires_grad_(False)


def _parts(folder: ModelFolder) -> _Parts:
    return _Parts(_image_processor(folder), _tokenizer(folder))


def _image_processor(folder: ModelFolder) -> Any:
    from transformers import AutoImageProcessor

    with _library_errors(folder):
        processor = AutoImageProcessor.from_pretrained(
            folder.path, backend="pil", trust_remote_code=False, local_files_only=True
        )
    if not type(processor).__name__.endswith("Pil"):
        # The library falls back to its torchvision form, whose pixels differ, and only warns.
        raise EncoderError(f"{type(processor).__name__} of {folder.name} has no Pillow form.")
    return processor


def _tokenizer(folder: ModelFolder) -> Any:
    from transformers import AutoTokenizer

    with _library_errors(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)
    if not tokenizer.is_fast:
        raise EncoderError(f"{type(tokenizer).__name__} of {folder.name} gives no character offsets.")
    return tokenizer


@contextmanager
def _library_errors(folder: ModelFolder) -> Iterator[None]:
    """Turn what the library raises for files it cannot use into one `EncoderError`.

    Raises `StorageError` instead where the system refused to read, whatever the library made of that.
    """
    try:
        yield
    except CcassetsError:
        raise
    except Exception as error:  # Tokenizers raise just that.
        reason: BaseException | None = error
        while reason is not None:
            if refusal := reading_refused(reason, folder.name):
                raise refusal from error
            reason = reason.__cause__ or reason.__context__
        raise EncoderError(f"transformers cannot use {folder.name}: {str(error).strip()}") from error
