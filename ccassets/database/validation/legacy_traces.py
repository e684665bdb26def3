"""Traces of the original scripts: what happened to a file, and which of its rows can be saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5 import READ_ERRORS
from ccassets.database.layout import IMAGE_FEATURES, ROW_DATASETS
from ccassets.database.validation.contents import Contents, SplitRun
from ccassets.database.validation.finding_collector import FindingCollector, count, listed, rows_text
from ccassets.database.validation.row_rules import split_rows
from ccassets.database.validation.stored_rows import StoredRows
from ccassets.files import system_error_kind

Bools = npt.NDArray[np.bool_]

COPY_TOLERANCE = 1e-3
"""Rows a and b are copies when |a - b| is at most this share of the longer one's norm.

A resume in the middle of a batch encodes the same images in other batches: float16 values then differ in their last
digit, at most 2**-11 of a value, which this covers twice. Features of two different pictures lie a hundred times
farther apart even where they look alike.
"""

TRACE_CHECKS = frozenset({"stopped_extraction", "torn_rows", "foreign_split", "doubled_rows"})

_ROWS_PER_READ = 1024
_MOST_RESTARTS = 256


@dataclass(frozen=True, eq=False)
class Copy:
    """A split that was begun again: rows `again` show the images of rows `first`; `equal`: whose features are equal."""

    split: str
    first: range
    again: range
    equal: Bools


@dataclass(frozen=True)
class Repeat:
    """Rows of a split that stand in the file a second time: `again` repeats `first`, row by row."""

    split: str
    first: range
    again: range


def check_traces(contents: Contents, findings: FindingCollector) -> None:
    """A stopped extraction, torn rows, and rows that a resume wrote again."""
    if contents.kind != "database":
        return
    _check_stopped(contents, findings)
    _check_torn(contents, findings)
    _check_last_run(contents, findings)
    repeats = find_repeats(contents)
    if repeats:
        _report_repeats(contents, repeats, findings)


def torn_rows(contents: Contents) -> npt.NDArray[np.int64]:
    """Rows without a split, and rows beyond the end of a row data set that is too short; increasing."""
    lengths = [len(contents.datasets[name]) for name in ROW_DATASETS if name in contents.datasets]
    beyond = np.arange(min(lengths, default=0), max(lengths, default=0))
    unnamed = np.empty(0, np.int64) if contents.split is None else contents.split.rows_of("")
    return np.union1d(unnamed, beyond)


def _check_stopped(contents: Contents, findings: FindingCollector) -> None:
    if "split_counts" in contents.attributes:
        return
    counts = split_rows(contents)
    rows = listed([f"{name!r} {number}" for name, number in counts.items()], limit=5) or "none"
    last = f"; {list(counts)[-1]!r}, the last one, may be incomplete" if counts else ""
    findings.add(
        "stopped_extraction",
        "/@split_counts",
        "expected split_counts, which is written after the last split, found none: the extraction was stopped. "
        f"Rows on disk: {rows}{last}. They can be saved; what the data set has beyond them has to be extracted.",
    )


def _check_torn(contents: Contents, findings: FindingCollector) -> None:
    rows = torn_rows(contents)
    if not len(rows):
        return
    lengths = {name: len(contents.datasets[name]) for name in ROW_DATASETS if name in contents.datasets}
    short = [f"{name} ends at row {length}" for name, length in lengths.items() if length < max(lengths.values())]
    ends = f" ({listed(short)})" if short else ""
    findings.add(
        "torn_rows",
        f"/split {rows_text(rows)}",
        f"expected features, a label and a split in every row; {count(len(rows), 'row')} lack some{ends}: a batch "
        "was refused or interrupted after its features were written. Nothing says which image such a row belongs to; "
        "the others can be saved.",
    )


def _check_last_run(contents: Contents, findings: FindingCollector) -> None:
    """The original scripts store the counts of their last run; rows of another run are not among them."""
    stored = contents.split_counts
    if contents.published or not stored or contents.split is None:
        return
    others = [split for split in split_rows(contents) if split not in stored]
    if others:
        text = listed([f"{split!r} ({rows_text(contents.split.rows_of(split))})" for split in others])
        findings.add(
            "foreign_split",
            "/split",
            f"expected rows of the last run only, {listed([repr(split) for split in stored])}, found {text} of "
            "another run, whose counts are lost. These rows can be saved with a study that declares their splits.",
        )


# --- doubled rows -------------------------------------------------------------------------------------


def find_repeats(contents: Contents) -> list[Repeat]:
    """Rows that stand in the file twice because an extraction was resumed, in file order."""
    repeats = [
        Repeat(copy.split, copy.first[start:stop], copy.again[start:stop])
        for copy in find_copies(contents)
        for start, stop in _true_ranges(copy.equal)
    ]
    return sorted(repeats, key=lambda repeat: repeat.again.start)


def _true_ranges(values: Bools) -> Iterator[tuple[int, int]]:
    starts = np.flatnonzero(np.diff(np.r_[False, values]) & values)
    stops = np.flatnonzero(np.diff(np.r_[values, False]) & values) + 1
    yield from zip(starts.tolist(), stops.tolist(), strict=True)


def find_copies(contents: Contents) -> list[Copy]:
    """Where an extraction was resumed and began a split again.

    Every restart writes a split from its first row on, so copies are found by position: a run of rows is a copy when
    at least half of it equals, row by row and within `COPY_TOLERANCE`, the beginning of an earlier run of its split.
    Splits are looked into only where there is a sign: a split stands in two places, has more rows than
    `split_counts` says, or `split_counts` is absent. Only image features are read, block by block.
    """
    dataset = contents.datasets.get(IMAGE_FEATURES)
    if dataset is None or contents.split is None:
        return []
    rows = StoredRows(dataset), StoredRows(dataset)
    runs_of: dict[str, list[SplitRun]] = {}
    for run in contents.runs():
        if run.stop <= len(dataset):
            runs_of.setdefault(run.split, []).append(run)
    copies: list[Copy] = []
    for split, runs in runs_of.items():
        excess = _excess(contents.split_counts, split, runs)
        if len(runs) > 1 or excess != 0:
            copies += _copies_of(rows, split, runs, excess)
    return copies


def _excess(stored: Mapping[str, int] | None, split: str, runs: Sequence[SplitRun]) -> int | None:
    """How many rows a split has beyond its stored count, never below 0; None where no count is stored."""
    if stored is None or split not in stored:
        return None
    return max(0, sum(map(len, runs)) - stored[split])


def _copies_of(
    rows: tuple[StoredRows, StoredRows], split: str, runs: Sequence[SplitRun], excess: int | None
) -> list[Copy]:
    begun = [copy for run in runs for copy in _copies_in(rows, runs[0].start, run, excess if len(runs) == 1 else None)]
    copies: list[Copy] = []
    longest = begun[0]
    for run in begun[1:]:
        length = min(len(run), len(longest))
        equal = _equal_rows(rows, longest.start, run.start, length)
        if equal.mean() >= 0.5:
            first = range(longest.start, longest.start + length)
            copies.append(Copy(split, first, range(run.start, run.start + length), equal))
        if len(run) > len(longest):
            longest = run
    return copies


def _copies_in(rows: tuple[StoredRows, StoredRows], first: int, run: SplitRun, excess: int | None) -> list[SplitRun]:
    """Divide a run where the split was begun again; `first` is the split's first row.

    A restart inside a run is a row that equals the first row, and whose followers equal the rows that follow the first.
    """
    if excess and _is_copy(rows, run.start, run.start + excess, min(excess, len(run) - excess)):
        return [SplitRun(run.split, run.start, run.start + excess), SplitRun(run.split, run.start + excess, run.stop)]
    candidates = _rows_equal_to(rows, first, range(max(first, run.start) + 1, run.stop))
    if len(candidates) > _MOST_RESTARTS:
        return [run]  # rows that are all alike say nothing about restarts
    starts = [run.start]
    longest = SplitRun(run.split, run.start, run.start)
    for candidate in candidates:
        if candidate - starts[-1] > len(longest):
            longest = SplitRun(run.split, starts[-1], candidate)
        limit = min(len(longest), run.stop - candidate)
        equal = _equal_rows(rows, longest.start, candidate, limit)
        leading = limit if equal.all() else int(equal.argmin())
        whole = leading == limit or candidate + leading in candidates
        if whole and _has_distinct_rows(rows, candidate, leading):
            starts.append(candidate)
    return [SplitRun(run.split, a, b) for a, b in zip(starts, [*starts[1:], run.stop], strict=True)]


def are_copies(dataset: h5py.Dataset, first: npt.NDArray[np.int64], again: npt.NDArray[np.int64]) -> Bools:
    """Whether the features of each pair of rows are equal within `COPY_TOLERANCE`; read block by block."""
    rows = StoredRows(dataset), StoredRows(dataset)
    equal = np.zeros(len(first), bool)
    starts = np.flatnonzero(np.r_[True, (np.diff(first) != 1) | (np.diff(again) != 1)])
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(first)], strict=True):
        equal[start:stop] = _equal_rows(rows, int(first[start]), int(again[start]), stop - start)
    return equal


def _is_copy(rows: tuple[StoredRows, StoredRows], first: int, again: int, length: int) -> bool:
    return length > 0 and bool(_equal_rows(rows, first, again, length).all())


def _has_distinct_rows(rows: tuple[StoredRows, StoredRows], first: int, length: int) -> bool:
    """Whether a run of rows shows more than one picture repeated."""
    return length > 1 and not _equal_rows(rows, first, first + 1, length - 1).all()


def _rows_equal_to(rows: tuple[StoredRows, StoredRows], row: int, among: range) -> list[int]:
    """The rows of a range that equal a row."""
    one, many = rows
    equal_rows: list[int] = []
    for first in range(among.start, among.stop, _ROWS_PER_READ):
        number = min(_ROWS_PER_READ, among.stop - first)
        block = _read(many, first, number)
        equal = _equal_within_tolerance(np.broadcast_to(_read(one, row, 1), block.shape), block)
        equal_rows += (first + np.flatnonzero(equal)).tolist()
    return equal_rows


def _equal_rows(rows: tuple[StoredRows, StoredRows], first: int, again: int, length: int) -> Bools:
    """Whether each of `length` rows from `again` on equals the one from `first` on."""
    equal = np.zeros(length, bool)
    for done in range(0, length, _ROWS_PER_READ):
        number = min(_ROWS_PER_READ, length - done)
        equal[done : done + number] = _equal_within_tolerance(
            _read(rows[0], first + done, number), _read(rows[1], again + done, number)
        )
    return equal


def _read(rows: StoredRows, first: int, number: int) -> npt.NDArray[np.float32]:
    """Rows as float32; unreadable ones are NaN, which equals nothing (the pass over features reports them)."""
    try:
        return rows.read(first, number).astype(np.float32)
    except READ_ERRORS as error:
        if system_error_kind(error):
            raise
        return np.full((number, rows.width), np.nan, np.float32)


def _equal_within_tolerance(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Bools:
    norms = np.maximum(np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1))
    with np.errstate(invalid="ignore"):
        alike: Bools = (np.linalg.norm(first - second, axis=1) <= COPY_TOLERANCE * norms) & (norms > 0)
    return alike


def _report_repeats(contents: Contents, repeats: Sequence[Repeat], findings: FindingCollector) -> None:
    again = np.unique(np.concatenate([np.arange(repeat.again.start, repeat.again.stop) for repeat in repeats]))
    text = listed(
        [f"{rows_text(repeat.again)} repeat {rows_text(repeat.first)} ({repeat.split!r})" for repeat in repeats],
        limit=6,
    )
    total = 0 if contents.split is None else len(contents.split)
    findings.add(
        "doubled_rows",
        f"/{IMAGE_FEATURES} {rows_text(again)}",
        f"expected every image once; {len(again)} of {total} rows are copies, as a resumed extraction of the "
        f"original scripts leaves them: {text}. One row of each pair can be saved, {total - len(again)} in all.",
    )
