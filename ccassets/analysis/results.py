"""Results: which analyses a study has, and what each of them leaves behind as a JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.analysis.calibration import calibration, reliability, with_temperature
from ccassets.analysis.metrics import Array, Groups, evaluate
from ccassets.database.reader import Database
from ccassets.database.summary import summarize
from ccassets.errors import AnalysisError
from ccassets.files import write_text
from ccassets.study.schema import Study

RESULT_FILES = {
    "concept_scores": "concept_scores.parquet",
    "zero_shot": "zero_shot.json",
    "concept_bottleneck": "concept_bottleneck.json",
    "concept_atlas": "concept_atlas.html",
}
"""The analyses of a study, each after those it reads, and the files they leave in `Store.analysis`."""

TRAIN, VAL, TEST = "train", "val", "test"


def available_analyses(study: Study) -> list[str]:
    """The analyses of a study, each after those it reads."""
    left_out = unavailable_analyses(study)
    return [name for name in RESULT_FILES if name not in left_out]


def unavailable_analyses(study: Study) -> dict[str, str]:
    """Why an analysis is no part of the study, as far as the study itself can tell; {} where nothing is in the way."""
    vocabulary = study.vocabulary
    found: dict[str, str] = {}
    if not (vocabulary.concepts.words and vocabulary.concepts.templates):
        sentence = "The study has no concept words with templates to put them into (vocabulary.concepts)."
        found |= dict.fromkeys(("concept_scores", "concept_bottleneck", "concept_atlas"), sentence)
    elif missing := {TRAIN, VAL} - set(study.splits):
        lacking = " and no ".join(sorted(missing))
        found["concept_bottleneck"] = f"A classifier is fitted on train and chosen on val; the study has no {lacking}."
    if not (vocabulary.labels.words and vocabulary.labels.templates):
        found["zero_shot"] = "The study has no label words with templates to put them into (vocabulary.labels)."
    return found


def held_out_splits(database: Database) -> list[str]:
    """`val` and `test`, those of them that have rows."""
    return [name for name in (VAL, TEST) if name in database.splits and len(database.select(name))]


# --- what is measured --------------------------------------------------------------------------------


def measured(labels: Array, probabilities: Array, groups: Groups, temperature: float | None) -> dict[str, Any]:
    """Every metric with its interval; where classes exclude each other also calibration, as it is and mended."""
    found = asdict(evaluate(labels, probabilities, groups))
    if labels.ndim == 1:
        found["calibration"] = asdict(calibration(labels, probabilities))
        found["reliability"] = asdict(reliability(labels, probabilities))
        if temperature is not None:
            found["calibrated"] = asdict(calibration(labels, with_temperature(probabilities, temperature)))
    return found


def headline_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The numbers whose history is worth a curve: `val_accuracy`, `val_accuracy_low`, …, of every split."""
    numbers = {}
    for split, found in content.get("splits", {}).items():
        for name in ("accuracy", "auc", "balanced_accuracy"):
            for part, value in (found[name] or {}).items():
                if isinstance(value, float):
                    numbers[f"{split}_{name}" if part == "value" else f"{split}_{name}_{part}"] = value
    return numbers


# --- files -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What an analysis found, as it stands in its file; `digest` changes when what was found does.

    `content` tells in `database` the digest of the database that was analysed, and has nothing but an `obstacle`
    besides, a sentence, where that does not allow the analysis.
    """

    path: Path
    content: Mapping[str, Any]
    digest: str

    @property
    def unavailable_reason(self) -> str | None:
        """Why the database does not allow the analysis, a sentence; None where it was made."""
        return self.content.get("obstacle")


def write_result(path: Path, database: Database, compute: Callable[[], Mapping[str, Any]]) -> Result:
    """Compute, and write what was found; an `AnalysisError` becomes the obstacle.

    A database without labels is no failure of a build: its features are finished, this analysis does not apply.
    """
    try:
        found = compute()
    except AnalysisError as error:
        found = {"obstacle": str(error)}
    text = json.dumps(_plain(found), ensure_ascii=False, allow_nan=False)
    content = {"database": summarize(database)["digest"], **json.loads(text)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Result(path, content, hashlib.sha256(text.encode("utf-8")).hexdigest())


def read_result(path: Path, database: Database) -> Mapping[str, Any]:
    """What an analysis left behind; raises `AnalysisError` when it is not of this database, or not there."""
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AnalysisError(f"{path.name} is not there yet: materialize {path.stem} first.") from error
    if content["database"] != summarize(database)["digest"]:
        raise AnalysisError(f"{path.name} is of another state of the database: materialize {path.stem} again.")
    return content


def _plain(value: Any) -> Any:
    """JSON's own types; a number that is not finite is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {name: _plain(part) for name, part in vars(value).items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
