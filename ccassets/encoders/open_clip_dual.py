"""Dual encoders of open_clip (BiomedCLIP, QuiltNet, SigLIP, …) behind the encoder contract."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ccassets.encoders.dual_encoder import DualEncoder
from ccassets.encoders.encoder_contract import EncoderCard, FloatArray
from ccassets.encoders.library_tokenizer import (
    CONFIG as TEXT_CONFIG,
    TOKENIZER_FILES,
    LibraryTokenizer,
    holds_tokenizer,
    library_errors,
    load_library_tokenizer,
    tokenizer_files,
)
from ccassets.encoders.offsets import offsets_in_prompt
from ccassets.encoders.runtime import choose_device, strict_facts
from ccassets.encoders.state_dict import checkpoint_facts, require_finite
from ccassets.encoders.tokenizer import Tokens, require_length
from ccassets.encoders.weights import ModelFolder, find_model
from ccassets.errors import AbsentWeightsError, EncoderError
from ccassets.files import digest_files, reading_refused
from ccassets.progress import Progress, silent
from ccassets.study.schema import OpenClipConfig, Study

if TYPE_CHECKING:
    import torch

CONFIG = "open_clip_config.json"

WEIGHTS_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)
"""The names of weights, in the order in which open_clip looks for them."""

_PATTERNS = (CONFIG, "open_clip*.safetensors", *TOKENIZER_FILES)
_PICKLED_PATTERNS = ("open_clip_pytorch_model.bin", *_PATTERNS)
_TEXT_PATTERNS = (TEXT_CONFIG, *TOKENIZER_FILES)


def inspect(
    study: Study, *, device: str | None, cache: Path | None, hf_token: str | None, progress: Progress = silent
) -> EncoderCard:
    """The card of an `open_clip` study, from its configuration and files; tensors are matched when it is loaded."""
    source = _find(study, hf_token)
    return _card(source, _without_weights(source), study, device, cache, progress)


def load(study: Study, *, device: str | None, cache: Path | None, hf_token: str | None) -> DualEncoder:
    """The encoder of an `open_clip` study; every tensor of the model must come from the file, and every one in the file
    must be used.
    """
    import open_clip

    torch_device = choose_device(device)
    source = _find(study, hf_token)
    model = _build(source)
    card = _card(source, model, study, device, cache, silent)
    if wrapper := checkpoint_facts([source.weights]).wrapper.removeprefix("module."):
        raise EncoderError(
            f"All names in {source.weights.name} start with {wrapper!r}, the prefix of a training wrapper; save the "
            "tensors again without it."
        )
    with library_errors(source.folder, "open_clip"):
        open_clip.load_checkpoint(model, str(source.weights), strict=True, weights_only=True)
    require_finite(model, source.folder.name)
    towers = OpenClipTowers(model, _preprocessing(source, model), _tokenizer(source), study.encoder.tokens)
    return DualEncoder(card, towers, torch_device, study.extraction.batch_size)


def files(study: Study, *, hf_token: str | None) -> dict[str, Path]:
    """Every file an `open_clip` encoder is read from, by its path in a model folder."""
    source = _find(study, hf_token)
    named = {CONFIG: source.folder.path / CONFIG, source.weights.name: source.weights}
    if source.text is not None:
        named[f"{_base_name(source.text_cfg['hf_model_name'])}/{TEXT_CONFIG}"] = source.text.path / TEXT_CONFIG
    if source.tokenizer is not None:
        own = source.tokenizer.path == source.folder.path
        prefix = "" if own else f"{_base_name(source.text_cfg['hf_tokenizer_name'])}/"
        named |= {prefix + file.name: file for file in tokenizer_files(source.tokenizer)}
    return named


def tokenizer(study: Study, *, hf_token: str | None) -> Callable[[Sequence[str]], Tokens]:
    """The tokenizer of an `open_clip` study."""
    return _tokenizer(_find(study, hf_token))


def text_repository(folder: Path) -> str | None:
    """The repository of the text tower that a folder's configuration names and that does not lie beside it."""
    source = ModelFolder(folder, folder.name)
    names = _text_references(source, _read_config(source)["model_cfg"]["text_cfg"])
    return next((name for name, needs in names.items() if _beside(source, name, needs) is None), None)


class OpenClipTowers:
    """The towers of an open_clip model.

    Image tokens are the patches' last hidden states without class and other extra tokens, normalised if the pooled
    vector is, then through the projection; text tokens are the last hidden states through the text projection.
    """

    def __init__(
        self,
        model: Any,
        transform: Callable[[Image.Image], torch.Tensor],
        tokenize: Callable[[Sequence[str]], Tokens],
        with_tokens: bool,
    ) -> None:
        self.model = model
        self.tokenize = tokenize
        self._transform = transform
        self._with_tokens = with_tokens
        for tower in (model.visual, model.text):
            if hasattr(tower, "output_tokens"):  # Of open_clip's own and of transformers, not of timm.
                tower.output_tokens = with_tokens

    @property
    def embeddings(self) -> Any:
        trunk = getattr(self.model.visual, "trunk", None)
        if trunk is None:
            return self.model.visual.conv1
        return getattr(trunk, "patch_embed", None) or trunk.stem

    def preprocess(self, image: Image.Image) -> FloatArray:
        pixels: FloatArray = self._transform(image).numpy()
        return pixels

    def encode_image(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        visual = self.model.visual
        if not self._with_tokens:
            return visual(pixels), None
        if hasattr(visual, "trunk"):
            trunk = visual.trunk
            hidden = trunk.forward_features(pixels)
            patches = trunk.fc_norm(hidden[:, trunk.num_prefix_tokens :])
            return visual.head(trunk.forward_head(hidden)), visual.head(trunk.head(patches))
        pooled, patches = visual(pixels)
        return pooled, (visual.ln_post(patches) if visual.final_ln_after_pool else patches) @ visual.proj

    def encode_text(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        from torch import nn

        text = self.model.text
        if not self._with_tokens:
            return text(input_ids), None
        if hasattr(text, "pooler"):  # A tower of transformers, whose mask open_clip makes from the ids.
            mask = (input_ids != text.config.pad_token_id).long()
            output = text.transformer(input_ids=input_ids, attention_mask=mask)
            return text.proj(text.pooler(output, mask)), text.proj(output.last_hidden_state)
        pooled, hidden = text(input_ids)
        projection = text.text_projection
        if projection is None:
            return pooled, hidden
        return pooled, projection(hidden) if isinstance(projection, nn.Linear) else hidden @ projection


class BpeTokenizer:
    """open_clip's own tokenizer, with offsets, and without cutting."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Prompts as tokens; raises `EncoderError` naming those that are too long."""
        tokenizer, length = self._tokenizer, self._tokenizer.context_length
        cleaned = [tokenizer.clean_fn(prompt) for prompt in prompts]
        ranges = [self._ranges(text) for text in cleaned]
        require_length([len(row) + 2 for row in ranges], prompts, length)
        ids = tokenizer(list(prompts)).numpy().astype(np.int32)
        mask = np.zeros(ids.shape, np.uint8)
        offsets = np.zeros((*ids.shape, 2), np.int32)
        for row, (token_ranges, text, prompt) in enumerate(zip(ranges, cleaned, prompts, strict=True)):
            mask[row, : len(token_ranges) + 2] = 1
            offsets[row, 1 : len(token_ranges) + 1] = np.reshape(token_ranges, (-1, 2))
            offsets[row] = offsets_in_prompt(offsets[row], text, prompt)
        return Tokens(ids, mask, offsets)

    def _ranges(self, text: str) -> list[tuple[int, int]]:
        """The characters of each token of a cleaned text. The vocabulary is of bytes: a token may end within one."""
        tokenizer = self._tokenizer
        ranges = []
        for match in tokenizer.pat.finditer(text):
            word = match.group().encode()
            start = 0
            for piece in tokenizer.bpe("".join(tokenizer.byte_encoder[byte] for byte in word)).split(" "):
                end = start + len(piece.removesuffix("</w>"))
                first, last = (len(word[:stop].decode(errors="ignore")) for stop in (start, end))
                ranges.append((match.start() + first, match.start() + max(last, first + 1)))
                start = end
        return ranges


# --- finding, verifying, building --------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """A model's folder, what its configuration says, and the folders of the text tower and of the tokenizer.

    `text` is None for a text tower of open_clip's own, `tokenizer` for its own vocabulary.
    """

    folder: ModelFolder
    weights: Path
    config: dict[str, Any]
    text: ModelFolder | None
    tokenizer: ModelFolder | None

    @property
    def text_cfg(self) -> dict[str, Any]:
        text_cfg: dict[str, Any] = self.config["model_cfg"]["text_cfg"]
        return text_cfg

    @property
    def context_length(self) -> int:
        return int(self.text_cfg.get("context_length", 77))


def _find(study: Study, hf_token: str | None) -> _Source:
    _require_open_clip()
    encoder = study.encoder
    assert isinstance(encoder, OpenClipConfig)
    folder = find_model(study, encoder.weights, encoder.revision, hf_token, _PATTERNS, _PICKLED_PATTERNS)
    config = _read_config(folder)
    text_cfg = config["model_cfg"]["text_cfg"]
    folders = {
        name: _text_folder(name, needs, folder, study, encoder, hf_token)
        for name, needs in _text_references(folder, text_cfg).items()
    }
    named = text_cfg.get("hf_tokenizer_name")
    return _Source(
        folder=folder,
        weights=_weights(folder),
        config=config,
        text=folders.get(text_cfg.get("hf_model_name", "")),
        tokenizer=None if not named else folder if holds_tokenizer(folder) else folders[named],
    )


def _require_open_clip() -> None:
    try:
        import open_clip  # noqa: F401
    except ModuleNotFoundError as error:
        raise EncoderError(f"kind: open_clip needs {error.name}: `pip install 'ccassets[open-clip]'`.") from error


def _read_config(folder: ModelFolder) -> dict[str, Any]:
    """The configuration of a folder; raises `EncoderError` for a model that cannot be read here."""
    file = folder.path / CONFIG
    try:
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        model_cfg, preprocess_cfg = config["model_cfg"], config["preprocess_cfg"]
        text_cfg, timm_name = model_cfg["text_cfg"], model_cfg["vision_cfg"].get("timm_model_name") or ""
        statistics = (preprocess_cfg["mean"], preprocess_cfg["std"])
    except FileNotFoundError as error:
        raise EncoderError(f"{folder.name} holds no {CONFIG}, so it is not a model of open_clip.") from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        # Without its own mean and std, open_clip would take those of another model.
        raise reading_refused(error, str(file)) or EncoderError(
            f"{CONFIG} of {folder.name} cannot be read ({type(error).__name__}: {error}): expected model_cfg with "
            "vision_cfg and text_cfg, and preprocess_cfg with mean and std."
        ) from error
    if "multimodal_cfg" in model_cfg or text_cfg.get("tokenizer_mode") or ":" in timm_name or None in statistics:
        raise EncoderError(
            f"{CONFIG} of {folder.name} describes a model that is not read here: CoCa, a tokenizer_mode, a timm model "
            "that is named by an address, or no mean and std."
        )
    return config


def _weights(folder: ModelFolder) -> Path:
    for name in WEIGHTS_FILES:
        if (folder.path / name).is_file():
            return folder.path / name
    raise EncoderError(f"{folder.name} holds no weights: expected one of {', '.join(WEIGHTS_FILES)}.")


# --- the text tower and its tokenizer in other folders ------------------------------------------------


def _text_references(folder: ModelFolder, text_cfg: dict[str, Any]) -> dict[str, set[str]]:
    """The repositories that a configuration names, each with what it is needed for: `config`, `tokenizer`.

    A tokenizer beside the weights takes precedence over the one that is named, as in open_clip.
    """
    references: dict[str, set[str]] = {}
    if model := text_cfg.get("hf_model_name"):
        references.setdefault(model, set()).add("config")
    if (named := text_cfg.get("hf_tokenizer_name")) and not holds_tokenizer(folder):
        references.setdefault(named, set()).add("tokenizer")
    return references


def _holds(folder: ModelFolder, needs: set[str]) -> bool:
    return ("config" not in needs or (folder.path / TEXT_CONFIG).is_file()) and (
        "tokenizer" not in needs or holds_tokenizer(folder)
    )


def _text_folder(
    repository: str, needs: set[str], folder: ModelFolder, study: Study, encoder: OpenClipConfig, hf_token: str | None
) -> ModelFolder:
    """The folder with the files of `repository`: the study's `text`, one beside the weights, else the hub's."""
    reference = encoder.text
    if reference is None:
        if beside := _beside(folder, repository, needs):
            return beside
        if folder.commit is None:
            files = f"{TEXT_CONFIG} tokenizer_config.json vocab.txt" if "tokenizer" in needs else TEXT_CONFIG
            raise AbsentWeightsError(
                f"{folder.name} builds its text tower from files of {repository}, which do not lie beside it: run "
                f"`hf download {repository} {files} --local-dir {folder.path / _base_name(repository)}` on a machine "
                "with network, or name their folder as encoder.text."
            )
        reference = repository
    source = find_model(study, reference, encoder.text_revision, hf_token, _TEXT_PATTERNS)
    if not _holds(source, needs):
        raise EncoderError(f"{source.name} lacks {' or '.join(sorted(needs))} of {repository}.")
    return source


def _beside(folder: ModelFolder, repository: str, needs: set[str]) -> ModelFolder | None:
    """The folder of a repository in or beside a model's folder, under its full name or the last part of it."""
    for start in (folder.path, folder.path.parent, folder.path.parent.parent):
        for name in (repository, _base_name(repository)):
            candidate = ModelFolder(start / name, repository)
            if candidate.path != folder.path and _holds(candidate, needs):
                return candidate
    return None


def _base_name(repository: str) -> str:
    return repository.rstrip("/").rpartition("/")[2]


# --- card and model ----------------------------------------------------------------------------------


def _without_weights(source: _Source) -> Any:
    import torch

    with torch.device("meta"):
        return _build(source)


def _build(source: _Source) -> Any:
    """The model of a configuration, with weights that nobody trained."""
    from open_clip import CustomTextCLIP

    model_cfg = {key: value for key, value in source.config["model_cfg"].items() if key != "custom_text"}
    model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "timm_model_pretrained": False}
    with library_errors(source.folder, "open_clip"):
        if source.text is not None:
            from transformers import AutoConfig

            # Refuses what would run code of the folder; open_clip would ask on the terminal.
            AutoConfig.from_pretrained(source.text.path, trust_remote_code=False, local_files_only=True)
            model_cfg["text_cfg"] = {
                **source.text_cfg,
                "hf_model_name": str(source.text.path),
                "hf_model_pretrained": False,
            }
        return CustomTextCLIP(**model_cfg).eval()


def _preprocessing(source: _Source, model: Any) -> Any:
    """open_clip's own transform of a model's images."""
    from open_clip.transform import image_transform_v2

    return image_transform_v2(_preprocess_cfg(source, model), is_train=False)


def _preprocess_cfg(source: _Source, model: Any) -> Any:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    settings = merge_preprocess_dict(PreprocessCfg(), source.config["preprocess_cfg"])
    return PreprocessCfg(**{**settings, "size": model.visual.image_size})


def _tokenizer(source: _Source) -> Callable[[Sequence[str]], Tokens]:
    from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

    settings = dict(source.text_cfg.get("tokenizer_kwargs") or {})
    if source.tokenizer is None:
        return BpeTokenizer(SimpleTokenizer(context_length=source.context_length, **settings))
    clean = get_clean_fn(settings.get("clean", "whitespace"))
    library_tokenizer = LibraryTokenizer(load_library_tokenizer(source.tokenizer), source.context_length, clean)
    if not settings.get("strip_sep_token"):
        return library_tokenizer

    def without_separator(prompts: Sequence[str]) -> Tokens:
        tokens = library_tokenizer(prompts)
        separators = tokens.input_ids == library_tokenizer.tokenizer.sep_token_id
        return Tokens(np.where(separators, 0, tokens.input_ids), tokens.attention_mask, tokens.offsets)

    return without_separator


def _card(
    source: _Source, model: Any, study: Study, device: str | None, cache: Path | None, progress: Progress
) -> EncoderCard:
    from open_clip.tokenizer import default_bpe

    encoder = study.encoder
    preprocess_cfg = _preprocess_cfg(source, model)
    facts = checkpoint_facts([source.weights])
    vocabulary = [Path(default_bpe())] if source.tokenizer is None else tokenizer_files(source.tokenizer)
    text = {} if source.text is None else {"text_config_digest": digest_files([source.text.path / TEXT_CONFIG])}
    return EncoderCard(
        kind=encoder.kind,
        weights_digest=digest_files([source.weights], cache=cache, progress=progress),
        architecture={"model_cfg": source.config["model_cfg"], "context_length": source.context_length, **text},
        preprocessing={"backend": "open_clip", **json.loads(json.dumps(asdict(preprocess_cfg)))},
        text_pooling="model",
        tokenizer_digest=digest_files(vocabulary, cache=cache),
        dim=source.config["model_cfg"]["embed_dim"],
        token_count=_token_count(source, model) if encoder.tokens else 0,
        image_size=_side(source, model),
        dtype=encoder.dtype,
        compiled=encoder.compiled,
        strict=strict_facts(study, device, ("open_clip_torch", "timm")),
        logit_scale=facts.logit_scale,
        logit_bias=facts.logit_bias,
        recorded={
            "weights": source.folder.name,
            "commit": source.folder.commit,
            "parameters": facts.parameters,
            **({} if source.text is None else {"text": source.text.name, "text_commit": source.text.commit}),
            # Their objective compares whole images with whole texts; patches are a by-product.
            "tokens_for_words": False,
            "geometry": _geometry(preprocess_cfg),
        },
    )


def _side(source: _Source, model: Any) -> int:
    height, width = model.visual.image_size
    if height != width:
        raise EncoderError(f"{source.folder.name}: expected square images, found {height} × {width}.")
    return int(height)


def _token_count(source: _Source, model: Any) -> int:
    trunk: Any = getattr(model.visual, "trunk", None)
    if trunk is None and getattr(model.visual, "attn_pool", "none") is None:  # A ResNet has none at all.
        return int(np.prod(model.visual.grid_size))
    if all(hasattr(trunk, name) for name in ("num_prefix_tokens", "fc_norm", "patch_embed")):
        return int(trunk.patch_embed.num_patches)
    raise EncoderError(f"{source.folder.name} has no patches that become tokens: set encoder.tokens: false.")


def _geometry(preprocess_cfg: Any) -> dict[str, Any] | None:
    """Which rectangle of a picture the pixels are taken from, as `TokenGeometry` has it."""
    side = preprocess_cfg.size[0]
    rules = {"shortest": {"rule": "crop", "shortest_edge": side, "crop": side}, "longest": {"rule": "pad"}}
    return rules.get(preprocess_cfg.resize_mode, {"rule": "squash"})
