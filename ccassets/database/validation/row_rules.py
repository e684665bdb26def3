"""Checks of rows besides their features: ids, splits, labels, keys."""

from __future__ import annotations

import numpy as np

from ccassets.database.attributes import section
from ccassets.database.validation.contents import Contents, SplitRun
from ccassets.database.validation.finding_collector import FindingCollector, count, listed, rows_text, shortened
from ccassets.database.validation.safe_reading import Categorical


def check_rows(contents: Contents, findings: FindingCollector) -> None:
    """Ids, split counts, order of splits, labels and keys."""
    _check_ids(contents, findings)
    if contents.kind == "database":
        _check_split_counts(contents, findings)
        _check_contiguous(contents, findings)
    _check_labels(contents, findings)
    _check_label_matrix(contents, findings)
    _check_keys(contents, findings)


def split_rows(contents: Contents) -> dict[str, int]:
    """Rows of every split on disk, without torn ones."""
    if contents.split is None:
        return {}
    return {name: number for name, number in contents.split.counts().items() if name}


def label_count(contents: Contents) -> int | None:
    """How many labels there are by the file's own lists; None where it has none."""
    lists = (contents.word_lists.get("label_texts"), section(contents.provenance, "dataset").get("classes"))
    return next((len(words) for words in lists if isinstance(words, (list, tuple)) and words), None)


def merged_runs(contents: Contents) -> list[SplitRun]:
    """Runs of rows of one split; torn rows in between do not end a run."""
    merged: list[SplitRun] = []
    for run in contents.runs():
        if merged and merged[-1].split == run.split:
            merged[-1] = SplitRun(run.split, merged[-1].start, run.stop)
        else:
            merged.append(run)
    return merged


def _check_ids(contents: Contents, findings: FindingCollector) -> None:
    if contents.ids is None:
        return
    wrong = np.flatnonzero(contents.ids != np.arange(len(contents.ids)))
    if len(wrong):
        findings.add(
            "ids",
            f"/ids {rows_text(wrong)}",
            f"expected every row's own number, 0 to {len(contents.ids) - 1}; "
            f"found {contents.ids[wrong[0]]} at row {wrong[0]} ({count(len(wrong), 'row')} differ)",
        )


def _check_split_counts(contents: Contents, findings: FindingCollector) -> None:
    stored = contents.split_counts
    if stored is None or contents.split is None:
        return
    counts = split_rows(contents)
    names = [*stored, *(name for name in counts if name not in stored)]
    wrong = [name for name in names if stored.get(name, 0) != counts.get(name, 0)]
    if wrong:
        text = listed([f"{name!r}: expected {stored.get(name, 'none')}, found {counts.get(name, 0)}" for name in wrong])
        findings.add(
            "split_counts",
            "/@split_counts",
            f"expected the rows of every split to be those of split_counts "
            f"({sum(stored.values())} in all, {sum(counts.values())} found); {text}",
        )


def _check_contiguous(contents: Contents, findings: FindingCollector) -> None:
    runs_of: dict[str, list[SplitRun]] = {}
    for run in merged_runs(contents):
        runs_of.setdefault(run.split, []).append(run)
    broken = {split: runs for split, runs in runs_of.items() if len(runs) > 1}
    if broken:
        text = listed(
            [
                f"{split!r} stands at "
                + listed([rows_text(range(run.start, run.stop)) for run in runs], limit=4, separator=" and at ")
                for split, runs in broken.items()
            ],
            separator="; ",
        )
        findings.add("contiguous_splits", "/split", f"expected the rows of a split to stand together; {text}")


def _check_labels(contents: Contents, findings: FindingCollector) -> None:
    labels = contents.labels
    if labels is None or not len(labels):
        return
    missing = np.flatnonzero(labels == -1)
    if len(missing):
        findings.add(
            "missing_labels",
            f"/labels {rows_text(missing)}",
            f"expected a label for every row; {_count_text(len(missing), len(labels))} hold -1, which the original "
            "scripts write where none was given. Features and texts are not affected.",
        )
    known = label_count(contents)
    outside = (labels < -1) if known is None else ((labels < -1) | (labels >= known))
    wrong = np.flatnonzero(outside)
    if len(wrong):
        text = listed([str(label) for label in np.unique(labels[wrong]).tolist()], limit=5)
        expected = "0 or more" if known is None else f"0 to {known - 1}, one of {known} labels,"
        findings.add("labels", f"/labels {rows_text(wrong)}", f"expected {expected}, found {text}")
    if _all_zero_is_suspicious(contents, known) and not labels.any():
        findings.add(
            "labels_all_zero",
            "/labels",
            f"all {len(labels)} labels are 0{_first_label(contents)}: "
            "either one class only, or a data set without labels. The file cannot tell which.",
        )


def _all_zero_is_suspicious(contents: Contents, known: int | None) -> bool:
    unlabelled = section(contents.provenance, "dataset").get("labels") == "none"
    return contents.kind == "database" and not unlabelled and contents.label_matrix is None and known != 1


def _first_label(contents: Contents) -> str:
    words = contents.word_lists.get("label_texts")
    return f" ({words[0]})" if words else ""


def _count_text(part: int, whole: int) -> str:
    return f"all {whole} rows" if part == whole else f"{part} of {whole} rows"


def _check_label_matrix(contents: Contents, findings: FindingCollector) -> None:
    matrix = contents.label_matrix
    if matrix is None:
        return
    other = np.flatnonzero((matrix > 1).any(axis=1))
    if len(other):
        findings.add("label_matrix", f"/label_matrix {rows_text(other)}", "expected 0 and 1, found other numbers")
    known = label_count(contents)
    if known is not None and matrix.shape[1] != known:
        findings.add("label_matrix", "/label_matrix", f"expected {known} columns, one a label, found {matrix.shape[1]}")
    if contents.labels is None or len(contents.labels) != len(matrix) or not matrix.shape[1]:
        return
    # argmax gives the first set column, and 0 where none is set.
    wrong = np.flatnonzero(contents.labels != (matrix != 0).argmax(axis=1))
    if len(wrong):
        findings.add(
            "label_matrix",
            f"/labels {rows_text(wrong)}",
            f"expected the first set column of label_matrix; {count(len(wrong), 'label')} differ",
        )


def _check_keys(contents: Contents, findings: FindingCollector) -> None:
    keys = contents.keys
    if keys is None:
        return
    empty = keys.rows_of("")
    if len(empty):
        findings.add("keys", f"/keys {rows_text(empty)}", f"expected a key for every row; {len(empty)} are empty")
    repeated = _repeated_keys(keys, contents.split)
    if repeated:
        text = listed([f"{shortened(key)} at {rows_text(rows)}" for key, rows in repeated.items()], separator="; ")
        findings.add("duplicate_keys", "/keys", f"expected every key once in a split; {text}")


def _repeated_keys(keys: Categorical, split: Categorical | None) -> dict[str, list[int]]:
    """Keys that stand more than once in one split, with their rows."""
    if split is None or len(split) != len(keys) or len(keys.names) == len(keys):
        return {}
    pairs = keys.codes * len(split.names) + split.codes
    order = np.argsort(pairs, kind="stable")
    same = np.flatnonzero(np.diff(pairs[order]) == 0)
    rows_of: dict[str, list[int]] = {}
    for index in same.tolist():
        key = keys.names[keys.codes[order[index]]]
        if key:
            rows = rows_of.setdefault(key, [])
            rows += [row for row in order[index : index + 2].tolist() if row not in rows]
    return {key: sorted(rows) for key, rows in rows_of.items()}
