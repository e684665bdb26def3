"""BERT's WordPiece tokenizer with a fixed length: prompts become ids, a mask and character offsets. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from ccassets.encoders.checkpoint import Architecture
from ccassets.encoders.weights import ModelFolder
from ccassets.errors import EncoderError
from ccassets.files import reading_refused

Bools = npt.NDArray[np.bool_]

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
PUBMEDBERT = "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext"


@dataclass(frozen=True)
class Tokens:
    """Prompts as tokens, as in `TextFeatures`: ids (K, T) int32, mask (K, T) uint8, offsets (K, T, 2) int32."""

    input_ids: npt.NDArray[np.int32]
    attention_mask: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int32]


def tokenizer_file(folder: ModelFolder) -> Path:
    """The file a folder's tokenizer is read from; raises `EncoderError` when there is none."""
    for name in TOKENIZER_FILES:
        if (folder.path / name).is_file():
            return folder.path / name
    raise EncoderError(
        f"{folder.name} holds no tokenizer (tokenizer.json or vocab.txt). Put one beside the weights, or name a "
        f"folder or hub id with `tokenizer`; ConceptCLIP uses {PUBMEDBERT}."
    )


class BertTokenizer:
    """A tokenizer that pads every prompt to the context length and cuts none."""

    def __init__(self, file: Path, architecture: Architecture) -> None:
        self._length = architecture.context_length
        self._tokenizer = _read(file)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        _check(self._tokenizer, file, architecture)
        self._unknown = self._tokenizer.token_to_id("[UNK]")

    def __call__(self, prompts: Sequence[str]) -> Tokens:
        """Prompts with `[CLS]` and `[SEP]`, padded to the context length.

        Raises `EncoderError` naming every prompt that is longer (a cut prompt may lose the word it is about), and every
        word that is not in the vocabulary.
        """
        encodings = self._tokenizer.encode_batch(list(prompts))
        require_length([len(encoding.ids) for encoding in encodings], prompts, self._length)
        shape = (len(prompts), self._length)
        tokens = Tokens(np.zeros(shape, np.int32), np.zeros(shape, np.uint8), np.zeros((*shape, 2), np.int32))
        for row, encoding in enumerate(encodings):
            count = len(encoding.ids)
            tokens.input_ids[row, :count] = encoding.ids
            tokens.attention_mask[row, :count] = 1
            tokens.offsets[row, :count] = encoding.offsets
        require_known(tokens.input_ids == self._unknown, tokens.offsets, prompts)
        return tokens


def require_length(counts: Sequence[int], prompts: Sequence[str], limit: int) -> None:
    """Raise `EncoderError` naming every prompt of more than `limit` tokens with its count."""
    long = [f"{count} tokens: {prompt!r}" for count, prompt in zip(counts, prompts, strict=True) if count > limit]
    if long:
        raise EncoderError(
            f"The text tower reads {limit} tokens, special ones included; {len(long)} prompts are longer. "
            "Shorten them:\n" + "\n".join(long)
        )


def require_known(unknown: Bools, offsets: npt.NDArray[np.int32], prompts: Sequence[str]) -> None:
    """Raise `EncoderError` naming the words that have only the unknown token: different ones would become one vector.

    Args:
        unknown: Where the unknown token stands, (K, T).
        offsets: The character range of every token, (K, T, 2).
        prompts: The K prompts.
    """
    rows = np.flatnonzero(unknown.any(axis=1)).tolist()
    if len(rows):
        words = [", ".join(repr(prompts[row][start:end]) for start, end in offsets[row][unknown[row]]) for row in rows]
        lines = [f"{text} in {prompts[row]!r}" for row, text in zip(rows, words, strict=True)]
        raise EncoderError(
            f"The vocabulary of the text tower lacks words of {len(rows)} prompts; all of them would become one token, "
            "which means nothing. Write them in the language of the model:\n" + "\n".join(lines)
        )


def _read(file: Path) -> Tokenizer:
    try:
        if file.name == "tokenizer.json":
            tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        else:
            tokenizer = BertWordPieceTokenizer(str(file), lowercase=True)._tokenizer
    except Exception as error:  # the library raises bare Exception
        raise reading_refused(error, str(file)) or EncoderError(
            f"{file.name} is not a tokenizer that can be read: {error}"
        ) from error
    return tokenizer


def _check(tokenizer: Tokenizer, file: Path, architecture: Architecture) -> None:
    """Compare a tokenizer with the model: ids index the word embeddings, and the mask takes 0 for padding."""
    text = architecture.text
    ids = tokenizer.get_vocab(with_added_tokens=True).values()
    problems = []
    if max(ids, default=0) >= text.vocab_size:
        problems.append(f"expected ids below {text.vocab_size}, found {max(ids)}")
    empty = tokenizer.encode("").ids
    if empty != [text.cls_token_id, text.sep_token_id]:
        problems.append(
            f"expected [CLS] [SEP] = [{text.cls_token_id}, {text.sep_token_id}] for an empty text, found {empty}"
        )
    if tokenizer.token_to_id("[PAD]") != text.pad_token_id:
        problems.append(f"expected {text.pad_token_id} for [PAD], found {tokenizer.token_to_id('[PAD]')}")
    if problems:
        raise EncoderError(f"{file.name} does not fit the text tower: {'; '.join(problems)}.")
