"""Two batches of a small model at a time on the CPU: the same numbers, and nothing of the process changed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ccassets.encoders import load_encoder
from ccassets.encoders.side_by_side import SideBySide
from ccassets_tests.made_studies import write_study

PHANTOM = {"kind": "phantom"}


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batches(encoder: Any, count: int = 5) -> list[Any]:
    side = encoder.card.image_size
    return [np.random.default_rng(seed).random((4, 3, side, side), np.float32) for seed in range(count)]


def test_a_small_model_encodes_two_batches_at_a_time_with_the_numbers_of_one(two_threads: None, tmp_path: Path) -> None:
    encoder: Any = load_encoder(write_study(tmp_path / "cells", images=tmp_path, encoder=PHANTOM))
    pixels = batches(encoder)
    torch.set_float32_matmul_precision("medium")

    started = [encoder.start_pixels(batch) for batch in pixels]
    found = [batch.features() for batch in started]

    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    assert torch.get_num_threads() == 2
    assert sum(batch.seconds for batch in started) > 0
    torch.set_num_threads(1)
    for batch, of in zip(pixels, found, strict=True):
        alone = encoder.encode_pixels(batch)
        assert np.array_equal(of.features, alone.features)
        assert np.array_equal(of.tokens, alone.tokens)


def test_a_single_thread_encodes_one_batch_at_a_time(two_threads: None, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    encoder: Any = load_encoder(write_study(tmp_path / "cells", images=tmp_path, encoder=PHANTOM))

    assert encoder.start_pixels is None


def test_time_that_two_batches_share_counts_once(two_threads: None) -> None:
    together = threading.Barrier(2)

    def encode(pixels: Any) -> Any:
        together.wait(timeout=60)
        threading.Event().wait(0.2)
        return pixels

    pair = SideBySide(encode, 2)
    begun = time.perf_counter()
    started = [pair.start(np.zeros((1, 3, 2, 2), np.float32)) for _ in range(2)]
    for batch in started:
        batch.features()

    assert 0.2 <= sum(batch.seconds for batch in started) <= time.perf_counter() - begun


def test_what_a_batch_failed_on_is_raised_where_its_features_are_wanted(two_threads: None) -> None:
    def encode(pixels: Any) -> Any:
        raise ValueError("no such pixels")

    started = SideBySide(encode, 2).start(np.zeros((1, 3, 2, 2), np.float32))

    with pytest.raises(ValueError, match="no such pixels"):
        started.features()
