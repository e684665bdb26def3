"""Prompts to tokens, and inserted words to token positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.implementations import BertWordPieceTokenizer

from ccassets.encoders import token_spans
from ccassets.encoders.checkpoint import read_architecture
from ccassets.encoders.tokenizer import BertTokenizer
from ccassets.errors import EncoderError


@pytest.fixture
def tokenizer(weights_folder: Path, config: dict[str, Any]) -> BertTokenizer:
    return BertTokenizer(weights_folder / "vocab.txt", read_architecture(config))


def test_prompts_are_padded_to_the_context_length_with_mask_and_offsets(tokenizer: BertTokenizer) -> None:
    tokens = tokenizer(["Red cell", "smear"])

    assert tokens.input_ids.shape == (2, 77)
    assert tokens.input_ids.dtype == np.int32
    assert tokens.attention_mask.dtype == np.uint8
    np.testing.assert_array_equal(tokens.attention_mask.sum(1), [4, 3])
    np.testing.assert_array_equal(tokens.attention_mask, tokens.input_ids != 0)
    assert tokens.offsets[0, :5].tolist() == [[0, 0], [0, 3], [4, 8], [0, 0], [0, 0]]


def test_tokenizer_json_gives_what_vocab_txt_gives_whatever_length_it_carries(
    tokenizer: BertTokenizer, weights_folder: Path, config: dict[str, Any]
) -> None:
    library = BertWordPieceTokenizer(str(weights_folder / "vocab.txt"), lowercase=True)
    library.enable_truncation(4)
    library.enable_padding(length=9)
    library.save(str(weights_folder / "tokenizer.json"))

    other = BertTokenizer(weights_folder / "tokenizer.json", read_architecture(config))

    prompts = ["a microscopy image of a blood cell (red)", "Smear"]
    for name in ("input_ids", "attention_mask", "offsets"):
        np.testing.assert_array_equal(getattr(other(prompts), name), getattr(tokenizer(prompts), name))


def test_every_prompt_that_is_too_long_is_named_with_its_count(tokenizer: BertTokenizer) -> None:
    fits, long, longer = "cell " * 75, "cell " * 76, "blood " * 100

    assert tokenizer([fits]).attention_mask.sum() == 77
    with pytest.raises(EncoderError) as caught:
        tokenizer([fits, long, "cell", longer])
    assert str(caught.value).splitlines()[1:] == [f"78 tokens: {long!r}", f"102 tokens: {longer!r}"]


def test_words_that_the_vocabulary_lacks_are_named(tokenizer: BertTokenizer) -> None:
    with pytest.raises(EncoderError, match="lacks words of 2 prompts") as caught:
        tokenizer(["a blood cell", "a cell with 颗粒", "cell 🩸"])
    assert str(caught.value).splitlines()[1:] == ["'颗', '粒' in 'a cell with 颗粒'", "'🩸' in 'cell 🩸'"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [*lines, "extra"], "expected ids below 200, found 200"),
        (lambda lines: [lines[2], lines[1], lines[0], *lines[3:]], r"expected 0 for \[PAD\], found 2"),
        (lambda lines: [line for line in lines if line != "[SEP]"], "is not a tokenizer that can be read"),
    ],
)
def test_a_vocabulary_that_does_not_fit_the_model_is_refused(
    weights_folder: Path, config: dict[str, Any], change: Any, message: str
) -> None:
    file = weights_folder / "vocab.txt"
    file.write_text("\n".join(change(file.read_text().splitlines())) + "\n")

    with pytest.raises(EncoderError, match=message):
        BertTokenizer(file, read_architecture(config))


@pytest.mark.parametrize("text", ["", "{", '{"version": "1.0"}'])
def test_a_broken_tokenizer_file_is_named(weights_folder: Path, config: dict[str, Any], text: str) -> None:
    (weights_folder / "tokenizer.json").write_text(text)

    with pytest.raises(EncoderError, match=r"tokenizer\.json is not a tokenizer"):
        BertTokenizer(weights_folder / "tokenizer.json", read_architecture(config))


def test_a_span_covers_all_pieces_of_the_word_and_no_word_has_none(tokenizer: BertTokenizer) -> None:
    prompts = ["a photo of a platelet.", "a photo", "Réd cell"]
    tokens = tokenizer(prompts)
    start = prompts[0].index("platelet")

    spans = token_spans(tokens.offsets, tokens.attention_mask, [(start, start + 8), (0, 0), (0, 3)])

    # [CLS] a photo of a plate ##let . [SEP]
    assert spans.tolist() == [[5, 7], [0, 0], [1, 2]]
    assert spans.dtype == np.int32


def test_a_token_that_only_overlaps_the_word_belongs_to_it() -> None:
    offsets = np.array([[[0, 0], [0, 4], [4, 9], [9, 12], [0, 0]]], np.int32)
    mask = np.array([[1, 1, 1, 1, 0]], np.uint8)

    assert token_spans(offsets, mask, [(5, 7)]).tolist() == [[2, 3]]
    assert token_spans(offsets, mask, [(3, 10)]).tolist() == [[1, 4]]
    assert token_spans(offsets, mask, [(4, 9)]).tolist() == [[2, 3]]


def test_a_word_without_tokens_is_named(tokenizer: BertTokenizer) -> None:
    tokens = tokenizer(["a  cell"])

    with pytest.raises(EncoderError, match="characters 1 to 3 of prompt 0"):
        token_spans(tokens.offsets, tokens.attention_mask, [(1, 3)])
