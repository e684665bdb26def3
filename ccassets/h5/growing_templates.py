"""Templates and logit parameters of a growing file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import h5py
import numpy as np

from ccassets.database.feature_digests import template_digest
from ccassets.database.float16 import all_finite
from ccassets.database.hdf5 import Array
from ccassets.database.layout import IMAGE_FEATURES, LOGIT_PARAMETERS, LOGIT_SCALE_SPACE, STORED_TEXT_DTYPE
from ccassets.database.writer import TemplateContent, write_template_group
from ccassets.h5.exceptions import ArgumentError
from ccassets.h5.input_values import to_array, to_text


def write_template(
    f: h5py.File,
    template_id: str,
    texts: Sequence[str],
    text_features: Any,
    text_token_features: Any = None,
    *,
    input_ids: Any = None,
    attention_mask: Any = None,
    subject_span: Any = None,
) -> None:
    """Write a template of K prompts, in place of a stored one of the same id.

    Unlike the original: counts and D are checked before anything is removed, and a stored template with equal bytes is
    left alone. `finalize` frees the space of a replaced template. The keyword arguments are new: local text scores need
    them.

    Args:
        f: A growing file, as `init_file` opens it.
        template_id: The template's name in the file.
        texts: (K,) prompts; their SHA-256 is stored as `texts_hash`.
        text_features: (K, D), a tensor or an array, stored as float32.
        text_token_features: (K, T_txt, D), stored as float32; None where the model has none.
        input_ids: (K, T), the tokens as encoded.
        attention_mask: (K, T), 1 for tokens and 0 for padding.
        subject_span: (K, 2), the half-open range of token positions of the inserted word.

    Raises:
        ArgumentError: An argument does not fit the file (a `DatabaseError` and a `ValueError`); nothing was written.
        StorageError: The disk refuses; the file is closed as it was at the last flush.
    """
    if isinstance(texts, str):
        raise ArgumentError(f"texts: expected a list of prompts, found one string, {texts!r}.")
    if not template_id or "/" in template_id or template_id.startswith("."):
        raise ArgumentError(f"template_id: {template_id!r} is not a name for a template.")
    content = TemplateContent(
        texts=[to_text(text) for text in texts],
        text_features=_template_array("text_features", text_features, STORED_TEXT_DTYPE),
        text_token_features=_optional("text_token_features", text_token_features, STORED_TEXT_DTYPE),
        input_ids=_optional("input_ids", input_ids, np.dtype("<i4")),
        attention_mask=_optional("attention_mask", attention_mask, np.dtype("u1")),
        subject_span=_optional("subject_span", subject_span, np.dtype("<i4")),
    )
    _require_template(content, int(f[IMAGE_FEATURES].shape[1]))
    templates = f["templates"]
    if template_id in templates:
        if templates[template_id].attrs.get("digest") == template_digest(content):
            return
        del templates[template_id]
    write_template_group(templates.create_group(template_id), content)
    f.flush()


def _template_array(name: str, values: Any, dtype: np.dtype[Any]) -> Array:
    array = np.ascontiguousarray(to_array(values), dtype)
    if dtype.kind == "f" and not all_finite(array):
        raise ArgumentError(f"{name}: expected finite numbers. Nothing was written.")
    return array


def _optional(name: str, values: Any, dtype: np.dtype[Any]) -> Array | None:
    return None if values is None else _template_array(name, values, dtype)


def _require_template(content: TemplateContent, dim: int) -> None:
    count = len(content.texts)
    expected = {
        "text_features": (count, dim),
        "text_token_features": (count, None, dim),
        "input_ids": (count, None),
        "attention_mask": (count, None),
        "subject_span": (count, 2),
    }
    for name, shape in expected.items():
        values = getattr(content, name)
        if values is None:
            continue
        fits = values.ndim == len(shape) and all(
            axis in (None, length) for axis, length in zip(shape, values.shape, strict=True)
        )
        if not fits:
            text = ", ".join("T" if axis is None else str(axis) for axis in shape)
            raise ArgumentError(
                f"{name}: expected shape ({text}), for {count} texts and D = {dim} as in this file, found "
                f"{values.shape}. Nothing was written."
            )


def save_model_params(
    f: h5py.File,
    logit_scale: float | None = None,
    logit_bias: float | None = None,
    concept_logit_scale: float | None = None,
    concept_logit_bias: float | None = None,
    *,
    logit_multiplier: float | None = None,
    concept_logit_multiplier: float | None = None,
) -> None:
    """Store a model's logit parameters as they are; None is left out.

    The two scales are **natural logarithms**, as the published model holds them (4.57 and 4.51): a cosine is
    multiplied by their exp (96.6 and 91.1), not by them. A scale may be given by its multiplier instead.

    Unlike the original: the root attribute `logit_scale_space` says `log`; numbers that are not finite are refused.

    Args:
        f: A growing file, as `init_file` opens it.
        logit_scale: Natural logarithm of the factor of image-text cosines.
        logit_bias: Added to the scaled image-text cosine.
        concept_logit_scale: Natural logarithm of the factor of patch-concept cosines.
        concept_logit_bias: Added to the scaled patch-concept cosine.
        logit_multiplier: exp of `logit_scale`.
        concept_logit_multiplier: exp of `concept_logit_scale`.

    Raises:
        ArgumentError: A number is not finite, or a multiplier is not the exp of its scale.
        StorageError: The disk refuses; the file is closed as it was at the last flush.
    """
    scales = {
        "logit_scale": (logit_scale, logit_multiplier),
        "concept_logit_scale": (concept_logit_scale, concept_logit_multiplier),
    }
    values: dict[str, float | None] = {"logit_bias": logit_bias, "concept_logit_bias": concept_logit_bias}
    for name, (scale, multiplier) in scales.items():
        if multiplier is not None and multiplier > 0:
            stated = float(np.log(multiplier))
            if scale is not None and not np.isclose(float(scale), stated, atol=1e-5):
                raise ArgumentError(f"{name}: {scale} is not the logarithm of the multiplier {multiplier}.")
            scale = stated if scale is None else scale
        values[name] = scale
    write_logit_parameters(f, {name: float(value) for name, value in values.items() if value is not None})
    f.flush()


def write_logit_parameters(f: h5py.File, given: Mapping[str, float]) -> None:
    """Write logit parameters by name, to be stored with the next flush; numbers that are not finite are refused."""
    broken = [name for name, value in given.items() if not np.isfinite(value)]
    if broken:
        raise ArgumentError(f"expected finite numbers, found { ({name: given[name] for name in broken}) }.")
    for name, value in given.items():
        f.attrs[name] = np.float64(value)
    if given:
        f.attrs["logit_scale_space"] = LOGIT_SCALE_SPACE


def load_model_params(f: h5py.File) -> dict[str, float]:
    """The stored logit parameters, and the factors to multiply cosines by.

    Args:
        f: An open file.

    Returns:
        The stored ones of `logit_scale`, `logit_bias`, `concept_logit_scale` and `concept_logit_bias`, the scales as
        natural logarithms. New: `logit_multiplier` and `concept_logit_multiplier`, the exp of the scales, to be
        applied as `logit_multiplier * cosine + logit_bias`.
    """
    params = {name: float(f.attrs[name]) for name in LOGIT_PARAMETERS if name in f.attrs}
    for prefix in ("", "concept_"):
        if f"{prefix}logit_scale" in params:
            params[f"{prefix}logit_multiplier"] = float(np.exp(params[f"{prefix}logit_scale"]))
    return params
