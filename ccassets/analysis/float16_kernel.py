"""Cosines of stored float16 rows with a few vectors at the speed of memory, without a float32 copy of the rows."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numkong
import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5 import loaded
from ccassets.progress import available_cores

FloatArray = npt.NDArray[np.float32]

PRECISE_VECTORS = 4
"""Up to here a vector counts with 22 bits a number; more vectors are rounded to float16, or the cost would double."""
MOST_VECTORS = 16
"""From here on converting a block of rows once and multiplying it as float32 is quicker."""
_LEAST_PIECE, _LARGEST_PIECE = 2 << 20, 16 << 20
"""Bytes of rows that a thread takes at a time: enough to pay off, few enough that no thread waits for the last."""
_PIECES_OF_A_THREAD = 2
_REST = 2048.0
"""What float16 rounds away of a vector is kept as a second float16 vector, this many times as large."""


def kernel_cosines(rows: npt.NDArray[np.float16], vectors: FloatArray, lengths: FloatArray | None = None) -> FloatArray:
    """Compare float16 rows with a few unit vectors on all cores.

    Products are summed in float32; the error is at most `largest_error`. Up to `PRECISE_VECTORS` vectors are each split
    into a sum of two float16 vectors. If there are more, each is rounded to a single float16 vector.

    Args:
        rows: (n, D) of any length, C-contiguous.
        vectors: (K, D), unit length, at most `MOST_VECTORS`.
        lengths: (n,), where the rows' lengths are kept: those that are nan are computed and written there.

    Returns:
        Cosines, (n, K); nan for rows of length 0 or with values that are not finite.

    Raises:
        DatabaseError: The file that the rows are mapped from is cut off.
        StorageError: The system refuses to read it.
    """
    parts = _float16_parts(vectors)
    packed = numkong.dots_pack(np.ascontiguousarray(np.concatenate(parts)))
    result = np.empty((len(rows), len(vectors)), np.float32)
    if lengths is None:
        lengths = np.full(len(rows), np.nan, np.float32)

    def fill(piece: slice) -> None:
        with loaded(rows[piece]) as part:
            products = np.asarray(numkong.dots_packed(part, packed))
            if np.isnan(lengths[piece]).any():
                lengths[piece] = np.sqrt(np.asarray(numkong.dot(part, part)))
        cosines = result[piece]
        cosines[...] = products[:, : len(vectors)]
        if len(parts) > 1:
            cosines += products[:, len(vectors) :] * np.float32(1 / _REST)
        with np.errstate(divide="ignore", invalid="ignore"):
            cosines /= lengths[piece, None]

    pieces = _pieces(rows)
    if len(pieces) == 1:
        fill(pieces[0])
    else:
        with ThreadPoolExecutor(available_cores()) as threads:
            list(threads.map(fill, pieces))
    return result


def _pieces(rows: npt.NDArray[np.float16]) -> list[slice]:
    size = min(max(rows.nbytes // (_PIECES_OF_A_THREAD * available_cores()), _LEAST_PIECE), _LARGEST_PIECE)
    step = max(1, size // (2 * rows.shape[1]))
    return [slice(first, first + step) for first in range(0, len(rows), step)]


def largest_error(vectors: FloatArray) -> float:
    """The largest error of `kernel_cosines` with some unit vectors (K, D): their rounding, and that of a float32 sum.

    Source of the second: N. Higham, Accuracy and Stability of Numerical Algorithms (2002), section 3.1. It holds for
    any order of summation, and so for the matrix product of float32 numbers too.
    """
    high, *rest = _float16_parts(vectors)
    used = high + (rest[0] * np.float64(1 / _REST) if rest else np.float64(0))
    return float(np.linalg.norm(vectors - used, axis=1).max(initial=0) + (vectors.shape[1] + 16) * 2.0**-24)


def _float16_parts(vectors: FloatArray) -> list[npt.NDArray[np.float16]]:
    high = vectors.astype(np.float16)
    if len(vectors) > PRECISE_VECTORS:
        return [high]
    return [high, ((vectors - high) * np.float32(_REST)).astype(np.float16)]


def suits_kernel(rows: npt.NDArray[Any]) -> bool:
    """Whether the kernel can read these rows, and is the faster way in this process."""
    return (
        rows.dtype == np.float16
        and rows.dtype.isnative
        and rows.flags.c_contiguous
        and rows.flags.aligned
        and _kernel_is_fast()
    )


@functools.cache
def _kernel_is_fast() -> bool:
    """Whether the kernel beats converting and multiplying in this process, and gives the same numbers.

    Another library in the process can make it fall back silently to scalar code, which is thirty times slower.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((512, 1024), np.float32).astype(np.float16)
    vectors = rng.standard_normal((1, 1024), np.float32)
    vectors /= np.linalg.norm(vectors)

    def usual() -> FloatArray:
        wide = rows.astype(np.float32)
        return np.asarray(wide @ vectors.T / np.linalg.norm(wide, axis=1, keepdims=True), np.float32)

    same = np.abs(kernel_cosines(rows, vectors) - usual()).max() <= 2 * largest_error(vectors)
    return bool(same and _seconds(lambda: kernel_cosines(rows, vectors)) <= _seconds(usual))


def _seconds(work: Callable[[], Any], tries: int = 3) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return min(once() for _ in range(tries))
