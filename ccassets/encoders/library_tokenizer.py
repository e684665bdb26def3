"""Tokenizers of the transformers library: the files that make one, and prompts as tokens of a fixed length."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ccassets.encoders.offsets import offsets_in_prompt, offsets_of_pieces
from ccassets.encoders.tokenizer import Tokens, require_known, require_length
from ccassets.encoders.weights import ModelFolder
from ccassets.errors import CcassetsError, EncoderError
from ccassets.files import reading_refused

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG,
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")

_NO_TOKENIZER = {CONFIG, *PROCESSOR_FILES}
_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth"}


class LibraryTokenizer:
    """A tokenizer of transformers that pads every prompt to a fixed length and cuts none.

    `clean` is applied to every prompt first; offsets refer to the prompt before that.
    """

    def __init__(self, tokenizer: Any, length: int, clean: Callable[[str], str] = str) -> None:
        self.tokenizer = tokenizer
        self._length = length
        self._clean = clean

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Prompts as tokens; raises `EncoderError` naming those that are too long, and words it does not know."""
        texts = [self._clean(prompt) for prompt in prompts]
        encoded = self.tokenizer(
            texts,
            padding="max_length",
            max_length=self._length,
            truncation=False,
            return_attention_mask=True,
            return_offsets_mapping=self.tokenizer.is_fast,
            return_special_tokens_mask=True,
        )
        require_length([len(ids) for ids in encoded["input_ids"]], prompts, self._length)
        ids, mask = np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["attention_mask"], np.uint8)
        unknown = ids == self.tokenizer.unk_token_id
        if self.tokenizer.is_fast:
            offsets = np.asarray(encoded["offset_mapping"], np.int32)
            special = np.asarray(encoded["special_tokens_mask"], bool)
            offsets[special] = 0
        else:
            # It counts the unknown token among the special ones.
            special = np.asarray(encoded["special_tokens_mask"], bool) & ~unknown
            offsets = np.zeros((*ids.shape, 2), np.int32)
            for row, text in enumerate(texts):
                pieces, columns = self.tokenizer.tokenize(text), np.flatnonzero((mask[row] == 1) & ~special[row])
                if len(pieces) == len(columns):
                    offsets[row, columns] = offsets_of_pieces(pieces, text)
        for row, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
            offsets[row] = offsets_in_prompt(offsets[row], text, prompt)
        # Some tokenizers write the unknown token for the end of a text and for padding, too.
        require_known(unknown & ~special & (mask == 1), offsets, prompts)
        return Tokens(ids, mask, offsets)


def load_library_tokenizer(folder: ModelFolder) -> Any:
    """The library's tokenizer of a folder, read without network and without running its code."""
    from transformers import AutoTokenizer

    with library_errors(folder):
        return AutoTokenizer.from_pretrained(folder.path, trust_remote_code=False, local_files_only=True)


def needs_lowering(folder: ModelFolder) -> bool:
    """Whether a folder's configuration asks for lower case, and the library's tokenizer keeps capitals."""
    if not tokenizer_settings(folder).get("do_lower_case"):
        return False
    tokenizer = load_library_tokenizer(folder)
    return bool(tokenizer.tokenize("Red CELL") != tokenizer.tokenize("red cell"))


def tokenizer_settings(folder: ModelFolder) -> dict[str, Any]:
    """The settings in a folder's tokenizer_config.json; none without the file."""
    file = folder.path / TOKENIZER_CONFIG
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return dict(settings.items())
    except (OSError, ValueError, AttributeError) as error:
        raise reading_refused(error, str(file)) or EncoderError(
            f"{file.name} of {folder.name} cannot be read: expected a JSON object."
        ) from error


def holds_tokenizer(folder: ModelFolder) -> bool:
    """Whether a folder holds the vocabulary of a tokenizer."""
    settings = {TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json"}
    return any((folder.path / name).is_file() for name in TOKENIZER_FILES if name not in settings)


def tokenizer_files(folder: ModelFolder) -> list[Path]:
    """The files that determine the tokenizer: the usual ones, and every other one without which it is not the same."""
    usual = present_files(folder, TOKENIZER_FILES, "tokenizer")
    known = {*_NO_TOKENIZER, *(file.name for file in usual)}
    others = [
        file
        for file in sorted(folder.path.iterdir())
        if file.is_file() and file.name not in known and file.suffix not in _WEIGHTS
    ]
    if not others:
        return usual
    state = _tokenizer_state(folder, [*usual, *others])
    if _tokenizer_state(folder, usual) == state:
        return usual
    needed = [file for file in others if _tokenizer_state(folder, [*usual, *(f for f in others if f != file)]) != state]
    return [*usual, *needed]


def present_files(folder: ModelFolder, names: Sequence[str], what: str) -> list[Path]:
    """The files of these names in a folder; raises `EncoderError` when there is none."""
    files = [folder.path / name for name in names if (folder.path / name).is_file()]
    if not files:
        raise EncoderError(f"{folder.name} holds no {what}: expected one of {', '.join(names)}.")
    return files


def _tokenizer_state(folder: ModelFolder, files: Sequence[Path]) -> str | None:
    """Everything about the tokenizer that the library makes of these files of a folder; None where it makes none."""
    with TemporaryDirectory() as only:
        for file in (folder.path / CONFIG, *files):
            (Path(only) / file.name).symlink_to(file.absolute())
        try:
            tokenizer = load_library_tokenizer(ModelFolder(Path(only), folder.name))
        except EncoderError:
            return None
    names = ("model_input_names", "padding_side", "pad_token_id", "unk_token_id")
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
    return repr([vocabulary, *(getattr(tokenizer, name) for name in names)])


@contextmanager
def library_errors(folder: ModelFolder, library: str = "transformers") -> Iterator[None]:
    """Turn what a library raises for files it cannot use into one `EncoderError`.

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
        if "sentencepiece" in str(error).lower() and find_spec("sentencepiece") is None:
            raise EncoderError(
                f"The tokenizer of {folder.name} needs sentencepiece: `pip install 'ccassets[siglip]'`."
            ) from error
        raise EncoderError(f"{library} cannot use {folder.name}: {str(error).strip()}") from error
