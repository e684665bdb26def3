"""The concept bottleneck of a study: a classifier on its concepts, with its controls, sparsity and interventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ccassets.analysis.association_classifier import fit_association
from ccassets.analysis.calibration import apply_platt, apply_temperature, fit_platt, fit_temperature, log_odds
from ccassets.analysis.classifiers import (
    Classifier,
    FloatArray,
    LinearClassifier,
    evaluate_on_holdout,
    fit_logistic,
    fit_tree,
)
from ccassets.analysis.concept_annotations import ConceptAnnotations, read_concept_annotations
from ccassets.analysis.concept_models import make_concept_model, save_model
from ccassets.analysis.controls import Controls, accuracy_by_level, run_controls
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.intervals import Estimate
from ccassets.analysis.intervention import ORDERS, concept_groups, intervention_curve
from ccassets.analysis.leakage import measure_leakage
from ccassets.analysis.metrics import accuracy, choose_thresholds, evaluate
from ccassets.analysis.results import (
    RESULT_FILES,
    TEST,
    VAL,
    AnalysisResult,
    headline_metrics,
    held_out_splits,
    measure_groups,
    measure_predictions,
    write_result,
)
from ccassets.analysis.samples import Samples, concept_samples, database_concepts, is_ordinal
from ccassets.analysis.sparse_classifiers import accuracy_against_nec, sparse_path
from ccassets.database.reader import Database, open_database
from ccassets.errors import AnalysisError
from ccassets.study.schema import Concept, Study
from ccassets.study.storage import Store

MODEL = "model.json"
HOLDOUT_LOG = "looks.jsonl"

CHOSEN_ON_VAL = (
    *("chosen", "temperature", "thresholds", "platt", "tree.leaves"),
    *(f"{part}.{VAL}" for part in ("splits", "groups", "association", "tree.accuracy")),
)
"""The parts of a result that were chosen or fitted on val, and the numbers of val that are therefore too good: keys,
with dots.
"""


def write_bottleneck(study: Study, store: Store) -> AnalysisResult:
    """Fit the concept bottleneck of a study and write `concept_bottleneck.json` and `model.json`.

    It is fitted on `train` and chosen on `val`. Controls, levels and interventions are measured on `test`, or on `val`
    if there is no test. Every access to `test` is added as a line to `looks.jsonl`.

    Args:
        study: The study.
        store: Its store, with the database.

    Returns:
        The result; a database that does not allow the measurement has its `unavailable_reason`.

    Raises:
        DatabaseError: The database cannot be read.
        StorageError: The result cannot be written.
    """
    with open_database(store.database) as database:
        return write_result(
            store.analysis / RESULT_FILES["concept_bottleneck"], database, lambda: _measure(study, database, store)
        )


def count_test_accesses(store: Store) -> int:
    """Count the accesses to `test` over all builds of the study."""
    return sum(access.split == TEST for access in HoldoutLog(store.analysis / HOLDOUT_LOG).accesses())


def bottleneck_metrics(content: Mapping[str, Any]) -> dict[str, float]:
    """The metrics whose history the UI plots: those of every split, of the sparse path and of the controls."""
    if "splits" not in content:
        return {}
    metrics = headline_metrics(content)
    for split, sparse in content["sparse"].items():
        metrics |= {f"{split}_{name}": sparse[name] for name in ("anec_5", "anec_avg") if sparse[name] is not None}
    for control in content["controls"]["controls"]:
        metrics[f"control_{control['name'].replace(' ', '_').replace('-', '_')}"] = control["estimate"]["value"]
    metrics["price_of_interpretability"] = content["controls"]["price"]["estimate"]["value"]
    return metrics


def _measure(study: Study, database: Database, store: Store) -> dict[str, Any]:
    samples = concept_samples(database)
    concepts = database_concepts(database)
    log = HoldoutLog(store.analysis / HOLDOUT_LOG)
    names = held_out_splits(database)
    if VAL not in names:
        raise AnalysisError(f"{database.path.name} has no rows of the split val, which a classifier is chosen on.")
    last = names[-1]
    classifier = fit_logistic(samples)
    probabilities = {name: evaluate_on_holdout(classifier, samples, name, log, "accuracy") for name in names}
    rows = {name: samples.of(name) for name in names}
    controls = run_controls(database, samples, classifier, split=last, log=log)
    common = {
        "classes": samples.classes,
        "concepts": samples.columns,
        "model": MODEL,
        "nec": classifier.nec,
        "chosen_on_val": CHOSEN_ON_VAL,
        "controls": {"split": last, **_controls(controls)},
    }
    ranks = {name: log_odds(own) for name, own in probabilities.items()}
    common["groups"] = measure_groups(
        {name: own.labels for name, own in rows.items()},
        ranks,
        {name: own.groups for name, own in rows.items()},
        is_ordinal(database),
    )
    if samples.multilabel:
        return {**common, **_several_labels(classifier, rows, probabilities, ranks, database, store)}
    temperature = fit_temperature(rows[VAL].labels, probabilities[VAL])
    save_model(make_concept_model(classifier, database), store.analysis / MODEL)
    path = sparse_path(samples)
    tree = fit_tree(samples)
    annotations = read_concept_annotations(study, database)
    return {
        **common,
        "chosen": classifier.chosen,
        "temperature": temperature,
        "splits": {
            name: measure_predictions(
                rows[name].labels,
                probabilities[name],
                rows[name].groups,
                apply_temperature(probabilities[name], temperature),
                ordinal=is_ordinal(database),
            )
            for name in names
        },
        "sparse": {name: _sparse(path, samples, name, log) for name in names},
        "association": _association(samples, database, names, log),
        "tree": {
            "text": tree.text(),
            "leaves": tree.chosen["leaves"],
            "accuracy": {name: _accuracy(tree, samples, name, log) for name in names},
        },
        "levels": [
            {"level": level.level, "concepts": level.concepts, "accuracy": level.accuracy}
            for level in accuracy_by_level(samples, concepts, split=last, log=log)
        ],
        "truth": None
        if annotations is None
        else _against_annotations(classifier, samples, annotations, concepts, last, log),
    }


def _several_labels(
    classifier: LinearClassifier,
    rows: Mapping[str, Samples],
    probabilities: Mapping[str, FloatArray],
    ranks: Mapping[str, FloatArray],
    database: Database,
    store: Store,
) -> dict[str, Any]:
    """Measure one-against-rest classifiers; thresholds and Platt scaling are chosen on val."""
    thresholds = choose_thresholds(rows[VAL].labels, ranks[VAL])
    lines = fit_platt(rows[VAL].labels, ranks[VAL])
    known = [None if np.isnan(threshold) else float(threshold) for threshold in thresholds]
    classifier = replace(classifier, chosen={**classifier.chosen, "thresholds": known})
    save_model(make_concept_model(classifier, database), store.analysis / MODEL)
    return {
        "chosen": classifier.chosen,
        "thresholds": thresholds,
        "platt": lines,
        "splits": {
            name: measure_predictions(
                rows[name].labels,
                probabilities[name],
                rows[name].groups,
                apply_platt(ranks[name], lines),
                ranks=ranks[name],
                thresholds=thresholds,
            )
            for name in rows
        },
        "sparse": {},
        "association": {},
        "tree": None,
        "levels": [],
        "truth": None,
    }


def _association(samples: Samples, database: Database, splits: Sequence[str], log: HoldoutLog) -> dict[str, Any]:
    """The classifier of ConceptCLIP's authors by split, where the encoder has a factor of similarities."""
    if database.logit_multiplier is None:
        return {}
    classifier = fit_association(samples, database.logit_multiplier)
    measured = {}
    for split in splits:
        held_out = samples.of(split)
        probabilities = evaluate_on_holdout(classifier, samples, split, log, "association")
        measured[split] = asdict(
            evaluate(held_out.labels, probabilities, held_out.groups, ordinal=is_ordinal(database))
        )
    return measured


def _accuracy(classifier: Classifier, samples: Samples, split: str, log: HoldoutLog) -> Estimate:
    held_out = samples.of(split)
    probabilities = evaluate_on_holdout(classifier, samples, split, log, "accuracy")
    return accuracy(held_out.labels, probabilities, held_out.groups)


def _sparse(path: Sequence[LinearClassifier], samples: Samples, split: str, log: HoldoutLog) -> dict[str, Any]:
    sparse = accuracy_against_nec(path, samples, split, log)
    return {"points": sparse.points, "anec_5": sparse.anec_5, "anec_avg": sparse.anec_avg}


def _controls(controls: Controls) -> dict[str, Any]:
    return {
        "controls": [
            {
                "name": control.name,
                "columns": control.columns,
                "seeds": len(control.probabilities),
                "estimate": control.estimate,
                "difference": control.difference,
                "verdict": control.verdict,
            }
            for control in controls.controls
        ],
        "metric": controls.metric,
        "price": controls.price,
        "class_names": controls.class_names,
        "missing": controls.missing,
    }


def _against_annotations(
    classifier: LinearClassifier,
    samples: Samples,
    annotations: ConceptAnnotations,
    concepts: Sequence[Concept],
    split: str,
    log: HoldoutLog,
) -> dict[str, Any]:
    """Results that need annotated concepts: accuracy after corrections, and leakage."""
    curves = [
        intervention_curve(
            classifier, samples, annotations, concept_groups(concepts), order=order, split=split, log=log
        )
        for order in ORDERS
    ]
    return {"split": split, "interventions": curves, "leakage": _leakage(samples, annotations, split, log)}


def _leakage(samples: Samples, annotations: ConceptAnnotations, split: str, log: HoldoutLog) -> dict[str, Any]:
    try:
        leakage = measure_leakage(samples, annotations, split=split, log=log)
    except AnalysisError as error:
        return {"obstacle": str(error)}
    return {
        "given_truth": leakage.given_annotations,
        "given_both": leakage.given_both,
        "concepts": leakage.concepts,
        "rows": leakage.rows,
        "matched": leakage.matched,
        "information": leakage.information,
    }
