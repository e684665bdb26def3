"""The one pass over features: finite values, no zero rows, unit length, and unchanged bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import isfinite
from queue import SimpleQueue
from typing import Any

import h5py
import numkong
import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import row_hasher
from ccassets.database.float16 import not_finite_rows
from ccassets.database.hdf5 import READ_ERRORS, Array, bytes_of
from ccassets.database.layout import (
    IMAGE_FEATURES,
    IMAGE_TOKEN_FEATURES,
    LOGIT_PARAMETERS,
    LOGIT_SCALE_SPACE,
    NORM_TOLERANCE,
)
from ccassets.database.validation.contents import Contents
from ccassets.database.validation.finding_collector import FindingCollector, RowNumbers, count, rows_text
from ccassets.database.validation.stored_rows import StoredRows
from ccassets.files import system_error_kind
from ccassets.progress import available_cores

BULK_CHECKS = frozenset({"finite", "zero_rows", "zero_tokens", "norms", "unreadable_rows"})
"""The checks that need the pass over features."""


_BLOCK_BYTES = 8 << 20
"""What all threads read at a time: small enough to stay in the processor's cache between reading and checking."""
_RANGE_BYTES = 16 << 20
"""What a thread takes at a time."""
_RANGE_ROWS = 4096
"""The most rows of it: each has a hasher of its own, which can be larger than the row."""
_MOST_THREADS = 16
"""More are not faster than memory."""


@dataclass(frozen=True, eq=False)
class ValueScan:
    """What the pass over features gives: the rows of images that must not be used (increasing), and its numbers.

    `not_finite` counts rows with NaN or infinity, `norm_deviation` is the largest |norm - 1| of all others.
    """

    unsound_rows: RowNumbers
    not_finite: int = 0
    norm_deviation: float = 0.0


@dataclass
class _Faults:
    """Rows of one data set by fault."""

    not_finite: list[int] = field(default_factory=list)
    zero: list[int] = field(default_factory=list)
    zero_tokens: list[int] = field(default_factory=list)
    not_unit: list[int] = field(default_factory=list)
    worst_norm: float = 1.0
    unreadable: list[int] = field(default_factory=list)
    reason: str = ""

    def add(self, later: _Faults) -> None:
        """Add the faults of later rows."""
        self.not_finite += later.not_finite
        self.zero += later.zero
        self.zero_tokens += later.zero_tokens
        self.not_unit += later.not_unit
        self.worst_norm = max(self.worst_norm, later.worst_norm, key=lambda norm: abs(norm - 1))
        self.unreadable += later.unreadable
        self.reason = later.reason or self.reason

    @property
    def unsound(self) -> list[int]:
        """Rows that must not be used. One with single zero patches may: some encoders give them."""
        return [*self.not_finite, *self.zero, *self.not_unit, *self.unreadable]


@dataclass(frozen=True)
class _RangeScan:
    """The faults of a range of rows by data set, and the rows whose digest is not the stored one."""

    faults: Sequence[_Faults]
    changed: Sequence[int]


def check_values(contents: Contents, findings: FindingCollector, *, digests: bool = False) -> ValueScan:
    """Every feature of images and templates; with `digests` also every row's bytes against its `feature_digest`."""
    images = [name for name in (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES) if name in contents.datasets]
    unsound, faults = _scan(
        [contents.datasets[name] for name in images],
        findings,
        stored_digests=contents.feature_digest if digests and IMAGE_FEATURES in images else None,
    )
    for template in contents.templates.values():
        for name in ("text_features", "text_token_features"):
            if name in template.datasets:
                faults += _scan([template.datasets[name]], findings)[1]
    return ValueScan(
        unsound,
        not_finite=sum(len(fault.not_finite) for fault in faults),
        norm_deviation=max((abs(fault.worst_norm - 1) for fault in faults), default=0.0),
    )


def check_logit_parameters(contents: Contents, findings: FindingCollector) -> None:
    """The four logit parameters, where the model has them, and the space of the scales."""
    for name in LOGIT_PARAMETERS:
        value = contents.attributes.get(name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and isfinite(value)):
            findings.add("logit_parameters", f"/@{name}", f"expected a finite float64, found {value!r}")
    space = contents.attributes.get("logit_scale_space", LOGIT_SCALE_SPACE)
    if space != LOGIT_SCALE_SPACE:
        findings.add("logit_parameters", "/@logit_scale_space", f"expected {LOGIT_SCALE_SPACE!r}, found {str(space)!r}")


def _scan(
    datasets: Sequence[h5py.Dataset], findings: FindingCollector, stored_digests: Array | None = None
) -> tuple[RowNumbers, list[_Faults]]:
    """Read equal rows of all data sets side by side, each once, on all cores; gives unsound rows and all faults."""
    if not datasets:
        return np.empty(0, np.int64), []
    rows = max(map(len, datasets))
    if stored_digests is not None and {len(dataset) for dataset in datasets} != {len(stored_digests)}:
        stored_digests = None  # rows that do not belong together; `row_counts` says so
    largest = max(map(StoredRows, datasets), key=lambda source: source.row_bytes)
    step = largest.step(_RANGE_BYTES, _RANGE_ROWS)
    ranges = [range(first, min(first + step, rows)) for first in range(0, rows, step)]
    # HDF5 unpacks chunks in one thread at a time.
    cores = 1 if any(dataset.chunks for dataset in datasets) else min(available_cores(), _MOST_THREADS)
    # Each thread has buffers of its own.
    unused: SimpleQueue[list[StoredRows]] = SimpleQueue()
    for _ in range(cores):
        unused.put([StoredRows(dataset) for dataset in datasets])

    def scan(rows: range) -> _RangeScan:
        sources = unused.get()
        try:
            return _scan_range(sources, rows, stored_digests, _BLOCK_BYTES // cores)
        finally:
            unused.put(sources)

    faults = [_Faults() for _ in datasets]
    changed: list[int] = []
    with ThreadPoolExecutor(cores) as threads:
        for scanned in threads.map(scan, ranges) if len(ranges) > 1 else map(scan, ranges):
            changed += scanned.changed
            for fault, later in zip(faults, scanned.faults, strict=True):
                fault.add(later)
    for dataset, fault in zip(datasets, faults, strict=True):
        _report_faults(dataset.name, fault, findings)
    if changed:
        findings.add(
            "feature_digest",
            f"/feature_digest {rows_text(changed)}",
            f"expected the digest of every row's stored bytes; {count(len(changed), 'row')} give another: "
            "their features were changed after they were written",
        )
    return np.array(sorted({*changed, *(row for fault in faults for row in fault.unsound)}), np.int64), faults


def _scan_range(
    sources: Sequence[StoredRows], rows: range, stored_digests: Array | None, block_bytes: int
) -> _RangeScan:
    """Scan a range of rows, one data set after the other, in blocks."""
    faults = [_Faults() for _ in sources]
    hashers: dict[int, Any] = {} if stored_digests is None else {row: row_hasher() for row in rows}
    for source, fault in zip(sources, faults, strict=True):
        step = source.step(block_bytes)
        stop = min(rows.stop, len(source))
        for first in range(rows.start, stop, step):
            _scan_block(source, range(first, min(first + step, stop)), fault, hashers)
    unreadable = {row for fault in faults for row in fault.unreadable}
    changed = [
        row
        for row, hasher in hashers.items()
        if stored_digests is not None and row not in unreadable and hasher.digest() != stored_digests[row].tobytes()
    ]
    return _RangeScan(faults, changed)


def _scan_block(source: StoredRows, rows: range, faults: _Faults, hashers: Mapping[int, Any]) -> None:
    """Read, inspect and hash a block of rows; what of it cannot be read is found row by row."""
    try:
        block = source.read(rows.start, len(rows))
    except READ_ERRORS as error:
        if system_error_kind(error):
            raise
        faults.reason = str(error)
        if len(rows) == 1:
            faults.unreadable.append(rows.start)
        else:
            for row in rows:
                _scan_block(source, range(row, row + 1), faults, hashers)
        return
    if block.size:
        _inspect(block, rows.start, source.name, faults)
    if hashers:
        for row, values in zip(rows, block, strict=True):
            hashers[row].update(bytes_of(values))


def _inspect(block: Array, first: int, name: str, faults: _Faults) -> None:
    values = block.astype(block.dtype.newbyteorder("="), copy=False)
    if values.dtype.itemsize > 8:  # A long double: nothing below has use for its precision.
        with np.errstate(over="ignore", invalid="ignore"):  # What is too large is found as infinite below.
            values = values.astype(np.float64)
    rows = len(values)
    sound = np.ones(rows, bool)
    broken = not_finite_rows(values)
    faults.not_finite += (first + broken).tolist()
    sound[broken] = False
    zero = _zero_vectors(values.reshape(rows, -1, values.shape[-1]))
    if zero.any():
        zero_rows = zero.all(axis=1)
        faults.zero += (first + np.flatnonzero(zero_rows)).tolist()
        faults.zero_tokens += (first + np.flatnonzero(zero.any(axis=1) & ~zero_rows)).tolist()
        sound &= ~zero_rows
    if values.ndim == 2:
        _inspect_norms(values, sound, first, faults)


def _zero_vectors(vectors: Array) -> npt.NDArray[np.bool_]:
    """Which vectors (n, T, D) are all zero, (n, T); only those that start with a zero are looked at."""
    zero: npt.NDArray[np.bool_] = vectors[..., 0] == 0
    if zero.any():
        zero[zero] = ~vectors[zero].any(axis=-1)
    return zero


def _inspect_norms(values: Array, sound: npt.NDArray[np.bool_], first: int, faults: _Faults) -> None:
    norms = _norms(values)
    norms[~sound] = 1
    deviation = np.abs(norms - 1)
    faults.not_unit += (first + np.flatnonzero(~(deviation <= NORM_TOLERANCE))).tolist()
    faults.worst_norm = max(faults.worst_norm, float(norms[deviation.argmax()]), key=lambda norm: abs(norm - 1))


def _norms(vectors: Array) -> npt.NDArray[np.floating[Any]]:
    """The norms of vectors (n, D); by the kernel if all are right, since numpy converts float16 one number at a time.

    Wrong ones are computed by numpy, so that no finding depends on the kernel of a processor.
    """
    if vectors.dtype == np.float16:
        norms: npt.NDArray[np.float32] = np.sqrt(np.asarray(numkong.dot(vectors, vectors)))
        if (np.abs(norms - 1) <= NORM_TOLERANCE / 2).all():
            return norms
        vectors = vectors.astype(np.float32)
    wide = np.float64 if vectors.dtype.itemsize > 4 else None
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=wide)))


def _report_faults(name: str, faults: _Faults, findings: FindingCollector) -> None:
    for check, rows, expected, fault in (
        ("unreadable_rows", faults.unreadable, "readable bytes", f"cannot be read ({faults.reason})"),
        ("finite", faults.not_finite, "finite numbers", "hold NaN or infinity"),
        ("zero_rows", faults.zero, "features", "are all zero: allocated, and never written"),
        ("norms", faults.not_unit, f"a norm of 1 ± {NORM_TOLERANCE}", f"have another, up to {faults.worst_norm:.4g}"),
    ):
        if rows:
            text = f"expected {expected} in every row; {count(len(rows), 'row')} {fault}"
            findings.add(check, f"{name} {rows_text(rows)}", text)
    if faults.zero_tokens and name == f"/{IMAGE_TOKEN_FEATURES}":
        rows = faults.zero_tokens
        findings.add(
            "zero_tokens",
            f"{name} {rows_text(rows)}",
            f"expected no all-zero patch vector; {count(len(rows), 'row')} have some",
        )
