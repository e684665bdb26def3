"""Matching of a file's rows with a study's images: by image digest, else by position in the split and by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import section
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, ROW_DATASETS
from ccassets.database.validation import CheckResults
from ccassets.database.validation.contents import Contents, SplitRun
from ccassets.database.validation.finding_collector import FindingCollector, count, rows_text
from ccassets.database.validation.legacy_traces import Copy, are_copies, find_copies, torn_rows
from ccassets.datasets.dataset_contract import Dataset, Rows
from ccassets.datasets.manifest import Manifest
from ccassets.extraction.parts import as_keys

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

BY_DIGEST = "image digest"
BY_POSITION_AND_LABEL = "position and label"
BY_POSITION = "position"


@dataclass(frozen=True, eq=False)
class Images:
    """The distinct images of a study: their digests (G,), sorted, and the number among them of every manifest row."""

    digests: npt.NDArray[np.bytes_]
    numbers: Mapping[str, Ints]

    @classmethod
    def of(cls, manifests: Sequence[Manifest]) -> Images:
        digests = np.concatenate([np.empty(0, "S32"), *(as_keys(manifest.image_digest) for manifest in manifests)])
        distinct, numbers = np.unique(digests, return_inverse=True)
        stops = np.cumsum([len(manifest) for manifest in manifests])
        by_split = np.split(numbers.astype(np.int64), stops[:-1])
        return cls(distinct, {manifest.split: part for manifest, part in zip(manifests, by_split, strict=True)})


@dataclass(frozen=True, eq=False)
class Match:
    """The matched rows: `row` (G,) is the row of the file that provably shows each image, -1 where none does."""

    row: Ints
    matched_by: str


def match_rows(
    results: CheckResults, images: Images, manifests: Sequence[Manifest], dataset: Dataset, findings: FindingCollector
) -> Match:
    """Find the image of each of a file's rows; rows that do not fit are reported and not matched.

    A row with an image digest shows the image of that digest. Rows of the original scripts, which have none, stand in
    the data set's order: row i of a split shows image i, where the split is complete and no label says otherwise. If an
    extraction was stopped, the rows of the last split are its first ones. Copies that a resume left count as one. If
    the rows of all attempts do not fit the images, the last attempt alone is used, provided that it is complete.
    """
    contents = results.contents
    nothing = np.full(len(images.digests), -1, np.int64)
    if contents.split is None or not _has_features(contents):
        return Match(nothing, BY_POSITION)
    if contents.image_digest is not None:
        row, image = _by_digest(contents, images, manifests, findings)
        matched_by = BY_DIGEST
    else:
        row, image, matched_by = _by_position(contents, images, manifests, dataset, findings)
    sound = ~np.isin(row, results.values.unsound_rows)
    return Match(_one_of_each(contents, row[sound], image[sound], nothing, findings), matched_by)


def _has_features(contents: Contents) -> bool:
    """Whether rows can be stored without change: their bytes are those that a build would store."""
    there = [contents.datasets[name] for name in (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES) if name in contents.datasets]
    return IMAGE_FEATURES in contents.datasets and all(dataset.dtype == np.float16 for dataset in there)


def _one_of_each(contents: Contents, row: Ints, image: Ints, nothing: Ints, findings: FindingCollector) -> Ints:
    """The first row of each image; none if its rows have different features, since one of them must be wrong."""
    order = np.lexsort((row, image))
    row, image = row[order], image[order]
    is_first = np.r_[True, image[1:] != image[:-1]][: len(image)]
    chosen: Ints = nothing.copy()
    chosen[image[is_first]] = row[is_first]
    again, image = row[~is_first], image[~is_first]
    if not len(again):
        return chosen
    order = np.argsort(again)
    again, image = again[order], image[order]
    different = ~are_copies(contents.datasets[IMAGE_FEATURES], chosen[image], again)
    if different.any():
        rows = np.union1d(chosen[image[different]], again[different])
        findings.add(
            "equal_images",
            f"/{IMAGE_FEATURES} {rows_text(rows)}",
            f"expected equal features in rows of one image, found {count(len(rows), 'row')} that differ",
        )
        chosen[image[different]] = -1
    return chosen


# --- files that know their images ---------------------------------------------------------------------


def _by_digest(
    contents: Contents, images: Images, manifests: Sequence[Manifest], findings: FindingCollector
) -> tuple[Ints, Ints]:
    assert contents.image_digest is not None
    stored = as_keys(contents.image_digest[: _whole_rows(contents)])
    nearest = np.searchsorted(images.digests, stored)
    known = nearest < len(images.digests)
    known[known] = images.digests[nearest[known]] == stored[known]
    row, image = np.flatnonzero(known), nearest[known].astype(np.int64)
    for manifest in manifests:
        missing = np.flatnonzero(~np.isin(images.numbers[manifest.split], image))
        if len(missing):
            findings.add(
                "data_set_rows",
                "/image_digest",
                f"expected every image of {manifest.split!r}, found {len(missing)} of {len(manifest)} missing from the "
                f"file (the first is {manifest.keys[missing[0]]!r})",
            )
    return row, image


def _whole_rows(contents: Contents) -> int:
    """The number of rows that every row data set has."""
    return min(len(contents.datasets[name]) for name in ROW_DATASETS if name in contents.datasets)


# --- files of the original scripts --------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Positions:
    """Rows of the file and the position of each in its split; they account for `reach` images."""

    rows: Ints
    position: Ints
    reach: int


@dataclass(frozen=True)
class _Mismatch:
    check: str
    where: str
    message: str


def _by_position(
    contents: Contents, images: Images, manifests: Sequence[Manifest], dataset: Dataset, findings: FindingCollector
) -> tuple[Ints, Ints, str]:
    runs = _runs_by_split(contents)
    copies = find_copies(contents)
    torn = np.zeros(_file_rows(contents), np.bool_)
    torn[torn_rows(contents)] = True
    source_rows = {manifest.split: dataset.rows(manifest.split) for manifest in manifests}
    labels = _stored_labels(contents, source_rows, findings) if manifests and manifests[0].labelled else None
    last = list(runs)[-1] if runs else None
    last_run = _complete_last_run(contents)
    rows, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for manifest in manifests:
        split = manifest.split
        stopped = split == last and _is_unfinished(contents, split, runs[split])
        positions, mismatches, kept = _find_positions(
            split,
            runs.get(split, []),
            [copy for copy in copies if copy.split == split],
            torn,
            source_rows[split],
            labels,
            stopped,
        )
        if mismatches and split in last_run:
            # What an earlier attempt left does not fit, and the last one needs nothing of it.
            of_last_run = _positions([last_run[split]], [])
            if not _mismatches(split, of_last_run, source_rows[split], labels, stopped=False):
                positions, mismatches, kept = of_last_run, [], True
        for mismatch in mismatches:
            findings.add(mismatch.check, mismatch.where, mismatch.message)
        if kept:
            number = _numbers_by_position(manifest, images.numbers[split], len(source_rows[split]))[positions.position]
            rows.append(positions.rows[number >= 0])
            numbers.append(number[number >= 0])
    row = np.concatenate(rows)
    by_label = labels is not None and bool((labels[row] >= 0).all())
    return row, np.concatenate(numbers), BY_POSITION_AND_LABEL if by_label else BY_POSITION


def _complete_last_run(contents: Contents) -> dict[str, SplitRun]:
    """The last rows of the file by split, if they are one complete attempt: exactly the rows of `split_counts`."""
    counts = {split: rows for split, rows in (contents.split_counts or {}).items() if rows}
    whole = _whole_rows(contents)
    first = whole - sum(counts.values())
    if not counts or first < 0 or whole != _file_rows(contents):
        return {}
    runs = [SplitRun(run.split, max(run.start, first), run.stop) for run in contents.runs() if run.stop > first]
    if len(runs) != len(counts) or any(len(run) != counts.get(run.split) for run in runs):
        return {}
    return {run.split: run for run in runs}


def _file_rows(contents: Contents) -> int:
    return max(len(contents.datasets[name]) for name in ROW_DATASETS if name in contents.datasets)


def _runs_by_split(contents: Contents) -> dict[str, list[SplitRun]]:
    """Runs of rows of every split, in file order, up to the end of the shortest row data set."""
    whole = _whole_rows(contents)
    by_split: dict[str, list[SplitRun]] = {}
    for run in contents.runs():
        if run.start < whole:
            by_split.setdefault(run.split, []).append(SplitRun(run.split, run.start, min(run.stop, whole)))
    return by_split


def _stored_labels(contents: Contents, source_rows: Mapping[str, Rows], findings: FindingCollector) -> Ints | None:
    """The labels of the file, -1 where one is missing; None if all are.

    Labels that are all 0 count as missing if the data set has other labels: the original scripts write 0 for images
    without labels.
    """
    labels = contents.labels
    if labels is None or (labels == -1).all():
        return None
    if not labels.any() and any(rows.labels.any() for rows in source_rows.values()):
        findings.add(
            "data_set_labels",
            "/labels",
            "expected the labels of the data set, found 0 in every row, as the original scripts write for images "
            "without labels. Rows are matched by position alone, and take the data set's labels.",
        )
        return None
    return labels


def _is_unfinished(contents: Contents, split: str, runs: Sequence[SplitRun]) -> bool:
    """Whether the file does not say that a split is complete: there is no count, or more rows were planned."""
    planned = section(contents.provenance, "dataset", "splits", split).get("rows")
    more = isinstance(planned, int) and planned > sum(map(len, runs))
    return more or split not in (contents.split_counts or {})


def _find_positions(
    split: str,
    runs: Sequence[SplitRun],
    copies: Sequence[Copy],
    torn: Bools,
    source_rows: Rows,
    labels: Ints | None,
    stopped: bool,
) -> tuple[_Positions, list[_Mismatch], bool]:
    """The positions of a split's rows, the mismatches found, and whether the rows can be used all the same."""
    positions = _positions(runs, copies)
    mismatches = _mismatches(split, positions, source_rows, labels, stopped)
    if mismatches and runs:
        # A refused batch may have been left out for good: its torn rows then stand where its images do.
        with_torn = _positions(runs, copies, torn)
        if not _mismatches(split, with_torn, source_rows, labels, stopped):
            return with_torn, [], True
    kept = not mismatches or (stopped and positions.reach < len(source_rows) and len(mismatches) == 1)
    return positions, mismatches, kept


def _positions(runs: Sequence[SplitRun], copies: Sequence[Copy], torn: Bools | None = None) -> _Positions:
    """Number a split's rows by their images: consecutively, and from 0 again where a copy begins.

    With `torn`, incomplete rows between the rows of the split and after them have positions too.
    """
    rows = np.concatenate([np.empty(0, np.int64), *(np.arange(run.start, run.stop) for run in runs)])
    position = np.empty_like(rows)
    begun = {copy.again.start: copy for copy in copies}
    edges = {edge for copy in copies for edge in (copy.again.start, copy.again.stop)}
    following = reach = done = 0
    for number, run in enumerate(runs):
        cuts = [run.start, *sorted(edge for edge in edges if run.start < edge < run.stop), run.stop]
        for start, stop in pairwise(cuts):
            segment = slice(done, done + stop - start)
            if start in begun:
                first = int(np.searchsorted(rows, begun[start].first.start))
                position[segment] = position[first : first + stop - start]
            else:
                position[segment] = np.arange(following, following + stop - start)
            done = segment.stop
            following = int(position[done - 1]) + 1
            reach = max(reach, following)
        if torn is not None:
            after = runs[number + 1].start if number + 1 < len(runs) else len(torn)
            gap = torn[run.stop : after]
            held = len(gap) if gap.all() else int(gap.argmin())
            if held == len(gap) or number + 1 == len(runs):
                following += held
                reach = max(reach, following)
    return _Positions(rows, position, reach)


def _mismatches(
    split: str, positions: _Positions, source_rows: Rows, labels: Ints | None, stopped: bool
) -> list[_Mismatch]:
    if positions.reach != len(source_rows):
        missing = positions.reach < len(source_rows)
        why = (
            "more than there are images, and nothing says which belong together."
            if not missing
            else "the first ones of the split, in which the extraction was stopped."
            if stopped
            else "and nothing says which images have none."
        )
        where = f"/split {rows_text(positions.rows)}" if len(positions.rows) else "/split"
        text = f"expected {len(source_rows)} rows of {split!r}, one for each image, found {positions.reach}"
        mismatch = _Mismatch("data_set_rows", where, f"{text}, {why}" if positions.reach else text)
        if not missing or labels is None:
            return [mismatch]
        return [mismatch, *_label_mismatches(split, positions, source_rows, labels)]
    return [] if labels is None else _label_mismatches(split, positions, source_rows, labels)


def _label_mismatches(split: str, positions: _Positions, source_rows: Rows, labels: Ints) -> list[_Mismatch]:
    expected, stored = source_rows.labels[positions.position], labels[positions.rows]
    wrong = np.flatnonzero((stored != -1) & (stored != expected))
    if not len(wrong):
        return []
    first = wrong[0]
    return [
        _Mismatch(
            "data_set_labels",
            f"/labels {rows_text(positions.rows[wrong])}",
            f"expected the labels of the data set, found others in {len(wrong)} of {count(len(stored), 'row')} of "
            f"{split!r} (row {positions.rows[first]}: expected {expected[first]}, found {stored[first]}): these rows "
            "may be of other images, and so may their neighbours",
        )
    ]


def _numbers_by_position(manifest: Manifest, numbers: Ints, length: int) -> Ints:
    """The image number at every position of the data set's split; -1 for images that the study leaves out or blanks."""
    by_position = np.full(length, -1, np.int64)
    by_position[manifest.rows[~manifest.blank]] = numbers[~manifest.blank]
    return by_position
