"""The check of the encoder contract: an encoder's results compared with its card."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
from PIL import Image

from ccassets.database.layout import NORM_TOLERANCE
from ccassets.encoders.encoder_contract import Encoder, EncoderCard, ImageFeatures, TextFeatures
from ccassets.errors import EncoderError
from ccassets.findings import Finding
from ccassets.study.schema import Dtype

_HALF_OR_SINGLE = ("float32", "float16")


def check_encoder(encoder: Encoder) -> list[Finding]:
    """Try an encoder on small generated images and prompts.

    Args:
        encoder: The encoder.

    Returns:
        Findings of the checks `encoder_card`, `encoder_preprocess`, `encoder_images`, `encoder_texts` and
        `encoder_determinism`; none when the encoder satisfies the contract.
    """
    problems = _try("encoder_card", lambda: card_problems(encoder.card))
    if not problems:
        problems += _try("encoder_preprocess", lambda: _check_preprocess(encoder))
    if not problems:
        problems += _try("encoder_images", lambda: _check_images(encoder))
        problems += _try("encoder_texts", lambda: _check_texts(encoder))
    if not problems:
        problems += _try("encoder_determinism", lambda: _check_determinism(encoder))
    where = type(encoder).__name__
    return [Finding(check, "error", problem, where) for check, problem in problems]


# --- the checks --------------------------------------------------------------------------------------


def _check_preprocess(encoder: Encoder) -> list[str]:
    problems = []
    for image in _images():
        before = image.tobytes()
        problems += pixel_problems(encoder.card, encoder.preprocess(image))
        if image.tobytes() != before:
            problems.append("preprocess changes the image it is given")
    return problems


def _check_images(encoder: Encoder) -> list[str]:
    images = _images()
    pixels = np.stack([encoder.preprocess(image) for image in images])
    result = encoder.encode_pixels(pixels)
    problems = image_problems(encoder.card, len(images), result)
    if not problems and all(np.array_equal(result.features[0], row) for row in result.features[1:]):
        problems.append("features of different images: expected different ones, found equal ones")
    if not problems:
        problems += image_problems(encoder.card, 1, encoder.encode_pixels(pixels[:1]))
        together = encoder.encode_images(images)
        if not _same_bits(together, result):
            problems.append("encode_images must give what preprocess and encode_pixels give; the bits differ")
    return problems


def _check_texts(encoder: Encoder) -> list[str]:
    prompts = _prompts()
    if encoder.card.has_text:
        return text_problems(encoder.card, prompts, encoder.encode_texts(prompts))
    try:
        encoder.encode_texts(prompts)
    except EncoderError:
        return []
    return ["encode_texts must raise EncoderError when card.text_pooling is None; it returned"]


def _check_determinism(encoder: Encoder) -> list[str]:
    problems = []
    if not _same_bits(encoder.encode_images(_images()), encoder.encode_images(_images())):
        problems.append("equal images must give equal bits; two calls differ (is the model in evaluation mode?)")
    if encoder.card.has_text and not _same_bits(encoder.encode_texts(_prompts()), encoder.encode_texts(_prompts())):
        problems.append("equal prompts must give equal bits; two calls differ (is the model in evaluation mode?)")
    return problems


def _try(check: str, run: Callable[[], list[str]]) -> list[tuple[str, str]]:
    try:
        return [(check, problem) for problem in run()]
    except Exception as error:  # whatever the user's code raises is what we are here to report
        return [(check, f"{type(error).__name__}: {error}")]


def _images() -> list[Image.Image]:
    """Small, large, square and oblong noise, always the same."""
    noise = np.random.default_rng(0)
    sizes = ((28, 28), (50, 37), (3, 200))
    return [Image.fromarray(noise.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


def _prompts() -> list[str]:
    return ["a photo of a cell", "a blood cell with a round nucleus", "platelet"]


def _same_bits(one: ImageFeatures | TextFeatures, other: ImageFeatures | TextFeatures) -> bool:
    return all(np.array_equal(array, vars(other)[name]) for name, array in vars(one).items())


# --- what the contract says, about one result --------------------------------------------------------


def card_problems(card: object) -> list[str]:
    if not isinstance(card, EncoderCard):
        return [f"card: expected an EncoderCard, found {type(card).__name__}"]
    problems = [
        f"card.{name}: must be above 0, found {size}"
        for name, size in (("dim", card.dim), ("image_size", card.image_size))
        if size < 1
    ]
    if card.token_count < 0:
        problems.append(f"card.token_count: must not be negative, found {card.token_count}")
    if card.dtype not in get_args(Dtype):
        problems.append(f"card.dtype: expected one of {', '.join(get_args(Dtype))}, found {card.dtype!r}")
    if not card.weights_digest:
        problems.append("card.weights_digest: must say which weights these are, found nothing")
    if card.has_text and not card.tokenizer_digest:
        problems.append("card.tokenizer_digest: must say which tokenizer this is, found nothing")
    try:
        if EncoderCard.from_json(card.to_json()) != card:
            problems.append("card: must be the same after JSON; use lists for tuples, and strings as keys")
    except (TypeError, ValueError) as error:
        problems.append(f"card: must be plain JSON values; {error}")
    return problems


def pixel_problems(card: EncoderCard, pixels: object) -> list[str]:
    return _array_problems("preprocess", pixels, (3, card.image_size, card.image_size), ("float32",))


def image_problems(card: EncoderCard, count: int, result: object) -> list[str]:
    if not isinstance(result, ImageFeatures):
        return [f"encode_pixels: expected ImageFeatures, found {type(result).__name__}"]
    return [
        *_unit_problems("features", result.features, (count, card.dim), _HALF_OR_SINGLE),
        *_token_problems(card, result.tokens, count),
    ]


def text_problems(card: EncoderCard, prompts: Sequence[str], result: object) -> list[str]:
    if not isinstance(result, TextFeatures):
        return [f"encode_texts: expected TextFeatures, found {type(result).__name__}"]
    ids = result.input_ids
    if not isinstance(ids, np.ndarray) or ids.ndim != 2:
        return ["input_ids: expected an array (K, T)"]
    shape = (len(prompts), ids.shape[1])
    problems = [
        *_unit_problems("features", result.features, (len(prompts), card.dim), ("float32",)),
        *_array_problems("input_ids", ids, shape, ("int32",)),
        *_array_problems("attention_mask", result.attention_mask, shape, ("uint8",)),
        *_array_problems("offsets", result.offsets, (*shape, 2), ("int32",)),
    ]
    if result.tokens is not None:
        problems += _array_problems("tokens", result.tokens, (*shape, card.dim), ("float32",))
    if not problems and result.attention_mask.max(initial=0) > 1:
        problems.append("attention_mask: expected 0 and 1 alone, found larger values")
    if not problems:
        ends = result.offsets.max(axis=(1, 2), initial=0)
        problems += [
            f"offsets: end at character {end} of {len(prompt)} in {prompt!r}"
            for prompt, end in zip(prompts, ends, strict=True)
            if end > len(prompt)
        ]
    return problems


def _token_problems(card: EncoderCard, tokens: object, count: int) -> list[str]:
    if card.token_count:
        return _array_problems("tokens", tokens, (count, card.token_count, card.dim), _HALF_OR_SINGLE)
    return [] if tokens is None else ["tokens: expected None, since card.token_count is 0"]


def _unit_problems(name: str, array: object, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> list[str]:
    problems = _array_problems(name, array, shape, dtypes)
    if problems or not isinstance(array, np.ndarray):
        return problems
    lengths = np.linalg.norm(array.astype(np.float64), axis=1)
    off = float(np.abs(lengths - 1).max(initial=0))
    return [f"{name}: expected rows of length 1, found one off by {off:.3g}"] if off > NORM_TOLERANCE else []


def _array_problems(name: str, array: object, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> list[str]:
    if not isinstance(array, np.ndarray):
        return [f"{name}: expected a NumPy array, found {type(array).__name__}"]
    if array.shape != shape or array.dtype.name not in dtypes:
        return [f"{name}: expected {shape} {' or '.join(dtypes)}, found {array.shape} {array.dtype}"]
    return [] if np.isfinite(array).all() else [f"{name}: expected finite values, found NaN or infinity"]
