"""What torch has set for the process: no number depends on it, and encoding leaves it as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ccassets.encoders import load_encoder
from ccassets_tests.encoders.conftest import images
from ccassets_tests.made_studies import write_study


def test_the_settings_of_the_process_change_no_bit_and_stay(tmp_path: Path) -> None:
    encoder = load_encoder(write_study(tmp_path / "cells", images=tmp_path, encoder={"kind": "phantom"}))
    expected = encoder.encode_images(images(5))
    threads = torch.get_num_threads()
    torch.set_float32_matmul_precision("medium")
    torch.set_num_threads(1)

    encoded = encoder.encode_images(images(5))
    settings = torch.get_float32_matmul_precision(), torch.get_num_threads()
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(threads)

    assert settings == ("medium", 1)
    assert np.array_equal(encoded.features, expected.features)
    assert encoded.tokens is not None
    assert expected.tokens is not None
    assert np.array_equal(encoded.tokens, expected.tokens)
