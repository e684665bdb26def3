"""Results of analyses: which ones a study has, what they measure of predictions, and the JSON files they write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.calibration import measure_calibration, reliability_diagram
from ccassets.analysis.intervals import FloatArray, Groups, Units
from ccassets.analysis.metrics import Array, choose_thresholds, evaluate
from ccassets.analysis.samples import class_names
from ccassets.database.reader import Database
from ccassets.database.summary import summarize
from ccassets.errors import AnalysisError
from ccassets.files import write_text
from ccassets.study.schema import Study

RESULT_FILES = {
    "concept_scores": "concept_scores.parquet",
    "zero_shot": "zero_shot.json",
    "concept_bottleneck": "concept_bottleneck.json",
    "label_errors": "label_errors.json",
    "projection": "projection.parquet",
    "concept_atlas": "concept_atlas.html",
}
"""The analyses of a study, each after those it reads, and the files they write to `Store.analysis`."""

TRAIN, VAL, TEST = "train", "val", "test"

HEADLINES = (
    *("accuracy", "auc", "balanced_accuracy", "macro_f1", "average_precision", "sensitivity", "mcc"),
    *("quadratic_kappa", "mean_absolute_error"),
)
"""The metrics of a split whose history the UI plots."""

_UNAVAILABLE = "obstacle"
"""Key of a result file that says why the analysis is unavailable."""


def available_analyses(study: Study) -> list[str]:
    """List the analyses of a study, each after those it reads."""
    unavailable = unavailable_analyses(study)
    return [name for name in RESULT_FILES if name not in unavailable]


def unavailable_analyses(study: Study) -> dict[str, str]:
    """Give the reason, by name, for each analysis that a study cannot have, as far as the study itself can tell."""
    vocabulary = study.vocabulary
    reasons: dict[str, str] = {}
    if not (vocabulary.concepts.words and vocabulary.concepts.templates):
        sentence = "The study has no concept words with templates to put them into (vocabulary.concepts)."
        names = ("concept_scores", "concept_bottleneck", "label_errors", "concept_atlas")
        reasons |= dict.fromkeys(names, sentence)
    elif missing := {TRAIN, VAL} - set(study.splits):
        splits = " and no ".join(sorted(missing))
        reasons["concept_bottleneck"] = f"A classifier is fitted on train and chosen on val; the study has no {splits}."
    if not (vocabulary.labels.words and vocabulary.labels.templates):
        reasons["zero_shot"] = "The study has no label words with templates to put them into (vocabulary.labels)."
    return reasons


def analysis_folder(database: Database) -> Path:
    """The folder that the analyses of a study write to, beside its database."""
    return database.path.parent / "analysis"


def held_out_splits(database: Database) -> list[str]:
    """List those of `val` and `test` that have rows."""
    return [name for name in (VAL, TEST) if name in database.splits and len(database.select(name))]


def class_counts(database: Database) -> dict[str, npt.NDArray[np.int64]]:
    """Count the rows of every class (C,) by split."""
    matrix, classes = database.label_matrix, np.arange(len(class_names(database)))
    members = database.labels[:, None] == classes if matrix is None else matrix > 0
    return {name: members[rows].sum(axis=0) for name, rows in database.splits.items()}


def unmeasured_classes(classes: Sequence[str], counts: Mapping[str, Array]) -> list[str]:
    """Say of every class that `val` or `test` has no rows of where its rows are, and that it is not measured.

    Args:
        classes: Names of the C classes.
        counts: Rows of every class (C,) by split.
    """
    held_out = [name for name in (VAL, TEST) if name in counts and counts[name].any()]
    sentences = []
    for label, name in enumerate(classes):
        missing = [split for split in held_out if not counts[split][label]]
        if missing:
            rows = {split: int(own[label]) for split, own in counts.items() if own[label]}
            parts = [f"{count} {'image' if count == 1 else 'images'} in {split}" for split, count in rows.items()]
            parts.append(f"none in {' or '.join(missing)}")
            where = "" if missing == held_out else f" on {missing[0]}"
            sentences.append(f"{name}: {', '.join(parts)}: not measured{where}")
    return sentences


# --- measures ----------------------------------------------------------------------------------------


def measure_predictions(
    labels: Array,
    probabilities: Array,
    groups: Groups,
    calibrated: Array | None,
    *,
    ranks: Array | None = None,
    thresholds: FloatArray | None = None,
    ordinal: bool = False,
) -> dict[str, Any]:
    """Measure probabilities (n, C): every metric with its interval, and calibration before and after `calibrated`.

    `ranks` are scores of the same order without ties, by default the probabilities; `thresholds` (C,) of a multi-label
    set are on their scale.
    """
    scores = probabilities if ranks is None else ranks
    measures = asdict(evaluate(labels, scores, groups, thresholds, ordinal))
    measures["calibration"] = asdict(measure_calibration(labels, probabilities))
    measures["reliability"] = asdict(reliability_diagram(labels, probabilities))
    if calibrated is not None:
        measures["calibrated"] = asdict(measure_calibration(labels, calibrated))
    return measures


def measure_groups(
    labels: Mapping[str, Array], ranks: Mapping[str, Array], groups: Mapping[str, Groups], ordinal: bool = False
) -> dict[str, Any] | None:
    """Measure patients or slides instead of images, by split; None if no group has several images.

    The score of a group is the mean log-odds of its images. In a multi-label set it has each label that one of its
    images has; thresholds are chosen on the groups of val.
    """
    pooled = {}
    for split, own in labels.items():
        units = Units.of(groups[split], len(own))
        if units.per == "group" and units.count < len(own):
            members = own > 0 if own.ndim == 2 else own[:, None] == np.arange(ranks[split].shape[1])
            pooled[split] = units.sums(members) > 0, units.sums(ranks[split]) / units.sums(np.ones((len(own), 1)))
    if not pooled:
        return None
    if any(own.ndim == 2 for own in labels.values()):
        thresholds = choose_thresholds(*pooled[VAL]) if VAL in pooled else None
        return {split: asdict(evaluate(*both, thresholds=thresholds)) for split, both in pooled.items()}
    measures: dict[str, Any] = {}
    for split, (members, scores) in pooled.items():
        if mixed := int((members.sum(axis=1) > 1).sum()):
            reason = (
                f"{mixed} of {len(members)} groups have images of several classes: a group has no class of its own."
            )
            measures[split] = {_UNAVAILABLE: reason}
        else:
            measures[split] = asdict(evaluate(members.argmax(axis=1), scores, ordinal=ordinal))
    return measures


def headline_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics whose history the UI plots: `val_accuracy`, `val_accuracy_low`, …, of every split of a result."""
    metrics = {}
    splits = dict(content.get("splits", {}))
    splits |= {f"{split}_by_group": measures for split, measures in (content.get("groups") or {}).items()}
    for split, measures in splits.items():
        for name in HEADLINES:
            for part, value in (measures.get(name) or {}).items():
                if isinstance(value, float):
                    metrics[f"{split}_{name}" if part == "value" else f"{split}_{name}_{part}"] = value
    return metrics


# --- files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AnalysisResult:
    """The result of an analysis, as it stands in its file.

    Attributes:
        path: The file.
        content: JSON types; `database` is the digest of the database that was analysed.
        digest: Of the result alone: another database with the same result has the same digest.
    """

    path: Path
    content: Mapping[str, Any]
    digest: str

    @property
    def unavailable_reason(self) -> str | None:
        """Why the database does not allow the analysis, a sentence; None where it was made."""
        return self.content.get(_UNAVAILABLE)


def result_content(database: Database, measures: Mapping[str, Any]) -> dict[str, Any]:
    """Convert measures to JSON types, with the digest of the database that they were computed from."""
    return {"database": summarize(database)["digest"], **as_json(measures)}


def write_result(path: Path, database: Database, measure: Callable[[], Mapping[str, Any]]) -> AnalysisResult:
    """Write what `measure` returns; where it raises `AnalysisError`, write why the analysis is unavailable.

    A database without labels does not fail a build: its features are finished, and this analysis does not apply.
    """
    try:
        content = result_content(database, measure())
    except AnalysisError as error:
        content = result_content(database, {_UNAVAILABLE: str(error)})
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    measures = {name: value for name, value in content.items() if name != "database"}
    text = json.dumps(measures, ensure_ascii=False, allow_nan=False)
    return AnalysisResult(path, content, hashlib.sha256(text.encode("utf-8")).hexdigest())


def read_result(path: Path, database: Database) -> Mapping[str, Any]:
    """Read the result of an analysis; raises `AnalysisError` when there is none, or one of another database."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        digest = content["database"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise AnalysisError(f"{path.name} does not exist yet, or is damaged: materialize {path.stem} first.") from error
    if digest != summarize(database)["digest"]:
        raise AnalysisError(f"{path.name} is of another state of the database: materialize {path.stem} again.")
    return content


def as_json(value: Any) -> Any:
    """Convert to JSON's own types; a number that is not finite becomes null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: as_json(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [as_json(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
