"""The tables of a paper: every method on the same held-out images, few-shot curves, and concepts with known truth."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ccassets.analysis.association_classifier import fit_association
from ccassets.analysis.bottleneck import HOLDOUT_LOG, count_test_accesses
from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.concept_annotations import read_concept_annotations
from ccassets.analysis.few_shot import few_shot_curve
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervention import concept_auroc
from ccassets.analysis.metrics import choose_thresholds
from ccassets.analysis.results import RESULT_FILES, VAL, held_out_splits, read_result, unavailable_analyses
from ccassets.analysis.retrieval import measure_retrieval
from ccassets.analysis.samples import Samples, concept_samples, feature_samples
from ccassets.database.reader import Database, open_database
from ccassets.errors import AnalysisError
from ccassets.files import make_folder, write_text
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store

Rows = list[dict[str, Any]]

METRICS = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "auc": "AUC",
    "average_precision": "average precision",
    "mcc": "MCC",
    "quadratic_kappa": "quadratic kappa",
    "mean_absolute_error": "mean absolute error",
}

SOURCES = {
    "Concept classifier": "logistic regression on concept scores",
    "Sparse, 5 a class": "Srivastava et al. 2024, arXiv 2408.01432 (ANEC-5)",
    "Association of classes with concepts": "Yang et al. 2023, arXiv 2211.11158; Nie et al. 2025, arXiv 2501.15579",
    "Decision tree": "on concept scores",
    "Zero-shot": "label prompts alone",
    "Linear probe": "logistic regression on all features",
    "Retrieval of concepts": "concept scores alone",
}


def write_paper_tables(
    study: Study, store: Store, folder: str | os.PathLike[str], progress: Progress = silent
) -> list[Path]:
    """Write `results`, `few_shot` and `concepts`, each as CSV and as LaTeX, from a built study.

    Few-shot classifiers are fitted now, and every access to a held-out split is recorded in the study's log.

    Args:
        study: The study; its analyses must have been built.
        store: Its store.
        folder: Where the files are written.
        progress: Counts the classifiers of the few-shot curves, by method.

    Returns:
        The files. `few_shot` is missing in a multi-label set, `concepts` where no truth of concepts is known.

    Raises:
        AnalysisError: An analysis is missing, or of another state of the database.
        StorageError: A file cannot be written.
    """
    folder = Path(folder)
    make_folder(folder)
    with open_database(store.database) as database:
        contents = {
            name: read_result(store.analysis / RESULT_FILES[name], database)
            for name in ("zero_shot", "concept_bottleneck")
            if name not in unavailable_analyses(study)
        }
        tables = {"results": results_table(contents, database, count_test_accesses(store))}
        bottleneck = contents.get("concept_bottleneck", {})
        if "splits" in bottleneck and database.label_matrix is None:
            log = HoldoutLog(store.analysis / HOLDOUT_LOG)
            tables["few_shot"] = _few_shot_table(database, held_out_splits(database)[-1], log, progress)
        if (concepts := _concepts_table(study, database)) is not None:
            tables["concepts"] = concepts
    return [path for name, rows in tables.items() for path in write_table(folder / name, rows)]


def write_table(path: Path, rows: Rows) -> list[Path]:
    """Write rows as `<path>.csv` and, with booktabs, as `<path>.tex`; columns without any value are left out."""
    import pandas as pd

    table = pd.DataFrame(rows).convert_dtypes().dropna(axis="columns", how="all")
    texts = {f"{path}.csv": table.to_csv(index=False), f"{path}.tex": _latex(table)}
    for file, text in texts.items():
        write_text(Path(file), text)
    return [Path(file) for file in texts]


def results_table(contents: Mapping[str, Mapping[str, Any]], database: Database, test_accesses: int) -> Rows:
    """One row for each method and held-out split: metrics with their 95 % intervals, sizes and choices.

    Args:
        contents: The results `zero_shot` and `concept_bottleneck`, as their files hold them.
        database: The database they are of.
        test_accesses: How often the test split was looked at.

    Returns:
        The rows, by column.

    Raises:
        AnalysisError: There is nothing to put into them.
    """
    rows = []
    for split in held_out_splits(database):
        for method, measures, facts in _methods(contents, split):
            chosen = "val" if split == VAL and method != "Zero-shot" else ""
            accesses = test_accesses if split == "test" else None
            rows.append(
                {
                    "method": method,
                    "split": split,
                    "images": len(database.select(split)),
                    "independent units": independent_units(measures),
                    **{title: estimate_text(measures.get(name)) for name, title in METRICS.items()},
                    "columns": facts.get("columns"),
                    "seeds": facts.get("seeds", 1),
                    "chosen on": chosen or None,
                    "accesses to test": accesses,
                    "source": facts.get("source") or SOURCES.get(method),
                }
            )
    if not rows:
        raise AnalysisError(f"{database.path.name} has no measured val or test split: there is nothing to tabulate.")
    return rows


def _methods(
    contents: Mapping[str, Mapping[str, Any]], split: str
) -> list[tuple[str, Mapping[str, Any], Mapping[str, Any]]]:
    """Each method with its measures on a split and what is known of it."""
    methods: list[tuple[str, Mapping[str, Any], Mapping[str, Any]]] = []
    bottleneck, zero_shot = contents.get("concept_bottleneck", {}), contents.get("zero_shot", {})
    if split in bottleneck.get("splits", {}):
        columns = {"columns": len(bottleneck["concepts"])}
        methods.append(("Concept classifier", bottleneck["splits"][split], columns))
        for point in (bottleneck["sparse"].get(split) or {"points": []})["points"][:1]:
            methods.append(("Sparse, 5 a class", {"accuracy": point["accuracy"]}, {"columns": round(point["nec"], 1)}))
        if bottleneck.get("association"):
            methods.append(("Association of classes with concepts", bottleneck["association"][split], columns))
        if bottleneck.get("tree"):
            methods.append(("Decision tree", {"accuracy": bottleneck["tree"]["accuracy"][split]}, columns))
    if split in zero_shot.get("splits", {}):
        methods.append(("Zero-shot", zero_shot["splits"][split], {}))
    controls = bottleneck.get("controls", {})
    for control in controls.get("controls", []) if controls.get("split") == split else []:
        name = f"{control['name'][0].upper()}{control['name'][1:]}"
        facts = {"columns": control["columns"], "seeds": control["seeds"], "source": SOURCES.get(name, "control")}
        methods.append((name, {controls["metric"]: control["estimate"]}, facts))
    return methods


def independent_units(measures: Mapping[str, Any]) -> str | None:
    """What the intervals treat as independent, with its number."""
    estimate = next((value for name in METRICS if (value := measures.get(name))), None)
    return None if estimate is None else f"{estimate['units']} {estimate['per']}s"


def estimate_text(estimate: Mapping[str, Any] | None) -> str | None:
    """A value with its limits, from JSON types."""
    if estimate is None or estimate["value"] is None:
        return None
    value = f"{estimate['value']:.3f}"
    if estimate["low"] is None:
        return value
    dash = "–" if estimate["low"] >= 0 else " to "
    return f"{value} ({estimate['low']:.3f}{dash}{estimate['high']:.3f})"


def _few_shot_table(database: Database, split: str, log: HoldoutLog, progress: Progress) -> Rows:
    concepts = concept_samples(database)
    methods: dict[str, tuple[Any, Samples]] = {
        "Concept classifier": (fit_logistic, concepts),
        "Linear probe": (fit_logistic, feature_samples(database)),
    }
    if (multiplier := database.logit_multiplier) is not None:
        name = "Association of classes with concepts"
        methods[name] = (partial(fit_association, multiplier=multiplier), concepts)
    rows = []
    for done, (name, (fit, samples)) in enumerate(methods.items()):
        progress(done, len(methods))
        curve = few_shot_curve(fit, samples, name=name.lower(), split=split, log=log)
        rows += [
            {
                "method": name,
                "split": split,
                "images a class": point.shots,
                "accuracy": f"{point.mean:.3f} ± {point.deviation:.3f}",
                "seeds": len(point.accuracy),
                "images": point.rows,
            }
            for point in curve
        ]
    progress(len(methods), len(methods))
    return rows


def _concepts_table(study: Study, database: Database) -> Rows | None:
    """How well the score of each annotated concept finds it; the F1 is at a threshold chosen on val."""
    annotations = read_concept_annotations(study, database)
    if annotations is None:
        return None
    from sklearn.metrics import f1_score

    samples = concept_samples(database)
    split = held_out_splits(database)[-1] if held_out_splits(database) else None
    rows = np.flatnonzero(database.split == split) if split else np.arange(len(database))
    held_out = samples.take(rows)
    measured = zip(
        measure_retrieval(held_out.features, annotations[rows], samples.columns),
        concept_auroc(held_out, annotations[rows]),
        strict=True,
    )
    table = []
    for column, (retrieval, auroc) in enumerate(measured):
        chosen = np.flatnonzero((database.split == VAL) & ~np.isnan(annotations[:, column]))
        known = rows[~np.isnan(annotations[rows, column])]
        f1 = None
        if split not in {None, VAL} and len(chosen) and len(known):
            truth = (annotations[chosen, column] > 0.5).astype(np.int64)[:, None]
            threshold = choose_thresholds(truth, samples.features[chosen][:, [column]])[0]
            if not np.isnan(threshold):
                f1 = float(f1_score(annotations[known, column] > 0.5, samples.features[known, column] >= threshold))
        area = auroc.overall
        table.append(
            {
                "concept": retrieval.concept,
                "images": retrieval.images,
                "shown by": auroc.true,
                "AUROC": None if np.isnan(area.value) else f"{area.value:.3f} ({area.low:.3f}–{area.high:.3f})",
                "average precision": retrieval.average_precision,
                "F1": f1,
            }
        )
    return table


def _latex(table: Any) -> str:
    """The table for LaTeX, with the rules of booktabs."""
    escaped = table.rename(columns=lambda name: name.replace("_", r"\_"))
    text: str = escaped.style.hide(axis="index").format(escape="latex", precision=3, na_rep="--").to_latex(hrules=True)
    return text
