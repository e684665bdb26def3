"""Digests: known answers written out by hand, what changes them, and what does not."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xxhash

from ccassets.database.feature_digests import (
    database_digest,
    feature_digests,
    rows_digest,
    split_digest,
    template_digest,
)
from ccassets.database.writer import TemplateContent


def test_a_rows_digest_is_xxh3_128_of_its_stored_bytes_features_then_tokens() -> None:
    features = np.arange(6, dtype="<f2").reshape(2, 3)
    tokens = np.arange(12, dtype="<f2").reshape(2, 2, 3)

    with_tokens, without = feature_digests(features, tokens), feature_digests(features, None)

    assert (with_tokens.shape, with_tokens.dtype) == ((2, 16), np.uint8)
    row = struct.pack("<9e", 3, 4, 5, 6, 7, 8, 9, 10, 11)
    assert with_tokens[1].tobytes() == xxhash.xxh3_128_digest(row)
    assert without[1].tobytes() == xxhash.xxh3_128_digest(row[:6])


def test_rows_that_lie_apart_in_memory_have_the_digests_of_their_values() -> None:
    wide = np.arange(24, dtype="<f2").reshape(4, 6)

    assert np.array_equal(feature_digests(wide[::2, ::2], None), feature_digests(wide[::2, ::2].copy(), None))


def test_no_rows_have_no_digests() -> None:
    assert feature_digests(np.empty((0, 3), "<f2"), np.empty((0, 2, 3), "<f2")).shape == (0, 16)
    assert rows_digest(np.empty((0, 32), np.uint8), np.empty((0, 16), np.uint8)) == xxhash.xxh3_128_hexdigest(b"")


def test_the_digest_of_a_files_rows_pairs_images_with_features() -> None:
    images = np.arange(64, dtype=np.uint8).reshape(2, 32)
    features = np.arange(32, dtype=np.uint8).reshape(2, 16)

    assert rows_digest(images, features) == xxhash.xxh3_128_hexdigest(images.tobytes() + features.tobytes())
    assert rows_digest(images[::-1], features) != rows_digest(images, features)


def test_templates_of_any_kind_of_numbers_have_a_digest_whatever_their_byte_order() -> None:
    for dtype in map(np.dtype, (np.float16, np.float32, np.float64)):
        templates = [
            replace(TEMPLATE, text_features=TEMPLATE.text_features.astype(dtype.newbyteorder(order))) for order in "<>"
        ]
        assert len({template_digest(template) for template in templates}) == 1
    longest = TEMPLATE.text_features.astype(np.longdouble)
    assert len(template_digest(replace(TEMPLATE, text_features=longest))) == 32
    assert feature_digests(longest.astype(longest.dtype.newbyteorder(">")), None).shape == (2, 16)


# --- templates ---------------------------------------------------------------------------------------

TEMPLATE = TemplateContent(
    texts=["a cell", "核"],
    text_features=np.array([[1, 0], [0, 1]], np.float32),
    text_token_features=np.arange(12, dtype=np.float32).reshape(2, 3, 2),
    input_ids=np.array([[2, 5, 3], [2, 6, 3]], np.int32),
    attention_mask=np.ones((2, 3), np.uint8),
    subject_span=np.array([[1, 2], [1, 2]], np.int32),
)


def test_a_templates_digest_is_over_names_dtypes_shapes_bytes_and_texts() -> None:
    expected = xxhash.xxh3_128()
    for name, dtype, shape in (
        ("text_features", "<f4", "(2, 2)"),
        ("text_token_features", "<f4", "(2, 3, 2)"),
        ("input_ids", "<i4", "(2, 3)"),
        ("attention_mask", "|u1", "(2, 3)"),
        ("subject_span", "<i4", "(2, 2)"),
    ):
        expected.update(f"{name}|{dtype}|{shape}|".encode() + getattr(TEMPLATE, name).tobytes())
    expected.update(b"texts|" + b"\x06" + bytes(7) + b"a cell" + b"\x03" + bytes(7) + "核".encode())

    assert template_digest(TEMPLATE) == expected.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"texts": ["a cell", "核 "]},
        {"texts": ["a cel", "l核"]},
        {"text_features": np.array([[1, 0], [0, -1]], np.float32)},
        {"text_token_features": None},
        {"text_token_features": np.arange(12, dtype=np.float32).reshape(2, 2, 3)},
        {"input_ids": np.array([[2, 5, 3], [2, 7, 3]], np.int32)},
        {"attention_mask": np.zeros((2, 3), np.uint8)},
        {"subject_span": None},
    ],
)
def test_any_change_of_a_template_changes_its_digest(change: dict[str, Any]) -> None:
    assert template_digest(replace(TEMPLATE, **change)) != template_digest(TEMPLATE)


def test_byte_order_in_memory_is_not_in_a_templates_digest() -> None:
    other = replace(TEMPLATE, input_ids=TEMPLATE.input_ids.astype(">i4"))

    assert template_digest(other) == template_digest(TEMPLATE)


# --- splits and databases ----------------------------------------------------------------------------

ROWS = np.arange(32, dtype=np.uint8).reshape(2, 16)
SPLIT: dict[str, Any] = {"keys": ["a", "b"], "labels": np.array([0, 1]), "groups": None, "label_matrix": None}


def test_a_splits_digest_has_the_known_answer() -> None:
    expected = hashlib.sha256(b"rows 2|" + ROWS.tobytes() + struct.pack("<2q", 0, 1))
    expected.update(b"keys|" + struct.pack("<Q", 1) + b"a" + struct.pack("<Q", 1) + b"b")

    assert split_digest(ROWS, **SPLIT) == expected.hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"keys": ["b", "a"]},
        {"keys": ["ab", ""]},
        {"labels": np.array([1, 0])},
        {"groups": ["a", "b"]},
        {"label_matrix": np.zeros((2, 1), np.uint8)},
        {"label_matrix": np.zeros((1, 2), np.uint8)},
    ],
)
def test_any_change_of_a_split_changes_its_digest(change: dict[str, Any]) -> None:
    known = {split_digest(ROWS, **SPLIT), split_digest(ROWS[::-1], **SPLIT)}
    known |= {split_digest(ROWS, **{**SPLIT, "label_matrix": np.zeros((2, 2), np.uint8)})}

    assert len(known | {split_digest(ROWS, **{**SPLIT, **change})}) == 4


def test_a_databases_digest_knows_the_order_of_splits_and_not_that_of_templates() -> None:
    words = {"label_texts": ["核"]}
    digest = database_digest({"train": "1", "val": "2"}, {"t1": "a", "t2": "b"}, words)

    text = json.dumps(
        {
            "splits": [["train", "1"], ["val", "2"]],
            "templates": [["t1", "a"], ["t2", "b"]],
            "vocabulary": {"label_texts": ["核"]},
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert database_digest({"train": "1", "val": "2"}, {"t2": "b", "t1": "a"}, words) == digest
    assert database_digest({"val": "2", "train": "1"}, {"t1": "a", "t2": "b"}, words) != digest
    assert database_digest({"train": "1", "val": "2"}, {"t1": "a", "t2": "b"}, {"label_texts": []}) != digest
