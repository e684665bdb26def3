"""Rows about checking: a whole file validated, and with every digest recomputed, against reading and hashing it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import xxhash

from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import material, read_on_all_cores
from benchmarks.sizes import Size
from ccassets.database.validation import validate_database


def validation(folder: Path, size: Size) -> Contest:
    path = material(folder, size).store.database
    return Contest(
        work=f"every check of a file of {path.stat().st_size / 1e6:.0f} MB, warm",
        ours=lambda: validate_database(path),
        limit=Contestant("reading it with all cores", lambda: read_on_all_cores(path)),
        usual=Contestant("finite, not zero and of length 1, by h5py and numpy", lambda: _usual_checks(path)),
        target=Target(of_limit=0.8),
    )


def digests(folder: Path, size: Size) -> Contest:
    path = material(folder, size).store.database
    return Contest(
        work=f"every check and every digest of a file of {path.stat().st_size / 1e6:.0f} MB (`--deep`), warm",
        ours=lambda: validate_database(path, deep=True),
        limit=Contestant(
            "reading it with all cores, and XXH3-128, which is what our digests are",
            lambda: read_on_all_cores(path, lambda: xxhash.xxh3_128().update),
        ),
        target=Target(of_limit=0.8),
    )


def _usual_checks(path: Path) -> bool:
    with h5py.File(path, "r") as file:
        good = True
        for name in ("image_features", "image_token_features"):
            for first in range(0, len(file[name]), 16):
                block = file[name][first : first + 16]
                good &= bool(np.isfinite(block).all()) and bool(block.any(axis=-1).all())
                if block.ndim == 2:
                    lengths = np.linalg.norm(block.astype(np.float32), axis=1)
                    good &= bool((np.abs(lengths - 1) < 2e-3).all())
        return good
