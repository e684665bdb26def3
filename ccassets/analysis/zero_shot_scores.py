"""The zero-shot result of a study: how far its label words alone tell the classes."""

from __future__ import annotations

from typing import Any

from ccassets.analysis.calibration import fit_temperature
from ccassets.analysis.results import RESULT_FILES, VAL, Result, held_out_splits, measured, write_result
from ccassets.analysis.samples import class_names, is_labelled
from ccassets.analysis.scores import Rule, has_local_scores, zero_shot
from ccassets.database.reader import Database, open_database
from ccassets.errors import AnalysisError
from ccassets.progress import Progress, silent
from ccassets.study.storage import Store

EVERYTHING = "all"
"""What the rows are called where there is neither `val` nor `test`: nothing was fitted, so all of them count."""


def write_zero_shot(store: Store, progress: Progress = silent) -> Result:
    """Measure the authors' zero-shot score on `val` and `test`, or on all rows, and write `zero_shot.json`.

    With patches where the database has what they need; `rule` says which tokens stood for a word, null without
    patches. The temperature is fitted on `val`.
    """
    with open_database(store.database) as database:
        return write_result(store.analysis / RESULT_FILES["zero_shot"], database, lambda: _measure(database, progress))


def _measure(database: Database, progress: Progress) -> dict[str, Any]:
    if not is_labelled(database):
        raise AnalysisError(f"{database.path.name} has no labels: there is nothing to measure zero-shot classes by.")
    if database.logit_multiplier is None:
        raise AnalysisError(f"{database.path.name} has no logit_scale: its encoder gives no zero-shot probabilities.")
    rule: Rule | None = "span" if has_local_scores(database) else None
    names = held_out_splits(database) or [EVERYTHING]
    found = {
        name: zero_shot(database, split=None if name == EVERYTHING else name, rule=rule, progress=progress)
        for name in names
    }
    rows = {name: database.select(None if name == EVERYTHING else name) for name in names}
    matrix = database.label_matrix
    labels = {name: chosen.labels if matrix is None else matrix[chosen.rows] for name, chosen in rows.items()}
    mendable = VAL in found and matrix is None
    temperature = fit_temperature(labels[VAL], found[VAL].scores) if mendable else None
    how = found[names[0]]
    return {
        "classes": class_names(database),
        "words": how.words,
        "templates": how.templates,
        "rule": how.rule,
        "patches": how.top,
        "temperature": temperature,
        "splits": {name: measured(labels[name], found[name].scores, rows[name].groups, temperature) for name in names},
    }
