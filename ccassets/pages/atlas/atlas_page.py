"""The page of the atlas: everything put together, with what a reader has to know before any number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis import bottleneck
from ccassets.analysis.classifiers import LinearClassifier
from ccassets.analysis.concept_models import load_model
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.results import RESULT_FILES, held_out_splits, read_result, unavailable_analyses
from ccassets.analysis.samples import is_labelled
from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.validation import examine
from ccassets.files import write_text
from ccassets.pages.atlas.charts import chart_data
from ccassets.pages.atlas.concept_cards import HEAT_FROM, HEAT_TO, contact_sheet, make_cards
from ccassets.pages.atlas.evidence import Located, Truths, find_truths, locate
from ccassets.pages.atlas.single_images import Example, single_images
from ccassets.pages.atlas.view import View, look_at
from ccassets.pages.renderer import render
from ccassets.pages.thumbnails import HEAT, MOST_HEAT
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store


@dataclass(frozen=True)
class Atlas:
    """The page, with what the asset shows of it: numbers, and key pictures as Markdown."""

    page: Path
    digest: str
    numbers: Mapping[str, float]
    markdown: str


def write_atlas(study: Study, store: Store, progress: Progress = silent) -> Atlas:
    """Write `concept_atlas.html`, from the database and from what `zero_shot` and `concept_bottleneck` left behind.

    Raises `AnalysisError` where one of these belongs to the study and was not made for this database, and
    `DatasetError` when a picture is not the one that was encoded.
    """
    left_out = unavailable_analyses(study)
    with open_database(store.database) as database:
        zero, fitted = (
            {"obstacle": left_out[name]}
            if name in left_out
            else read_result(store.analysis / RESULT_FILES[name], database)
            for name in ("zero_shot", "concept_bottleneck")
        )
        view = look_at(study, database)
        cards = make_cards(view, progress)
        truths, located = find_truths(view), locate(study, view)
        classifier = None if "obstacle" in fitted else _classifier(view, store)
        page = render(
            "atlas.html",
            study=study,
            facts=summarize(database),
            view=view,
            notes=_notes(study, view),
            tiles=_tiles(view, zero, fitted, truths),
            cards=cards,
            heat={"low": HEAT_FROM, "high": HEAT_TO, "colour": f"rgb({' '.join(map(str, HEAT))} / {MOST_HEAT})"},
            truths=truths,
            located=located,
            zero=zero,
            fitted=fitted,
            classifier=classifier,
            methods=_methods(zero, fitted, classifier.split) if classifier else [],
            means=_class_means(view),
            data={**chart_data(view, zero, fitted), "held": classifier and classifier.split},
            plotly=_plotly(),
        )
    path = store.analysis / RESULT_FILES["concept_atlas"]
    write_text(path, page)
    digest = hashlib.sha256(page.encode("utf-8")).hexdigest()
    return Atlas(path, digest, _numbers(truths, located), contact_sheet(cards))


@dataclass(frozen=True, eq=False)
class Classified:
    """The concept classifier, and what it makes of single images of the held-out split `split`."""

    model: LinearClassifier
    split: str
    examples: list[Example]
    errors: list[Example]


def _classifier(view: View, store: Store) -> Classified:
    model = load_model(store.analysis / bottleneck.MODEL).classifier
    assert isinstance(model, LinearClassifier)
    split = held_out_splits(view.database)[-1]
    return Classified(
        model, split, *single_images(view, model, split, HoldoutLog(store.analysis / bottleneck.HOLDOUT_LOG))
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _class_means(view: View) -> npt.NDArray[np.float64]:
    """(C, K): the mean standardised score of a class's images; nan for a class without any."""
    means = np.full((len(view.classes), len(view.concepts)), np.nan)
    for label in np.unique(view.labels):
        means[label] = view.scores[view.labels == label].mean(axis=0)
    return means


def _notes(study: Study, view: View) -> list[str]:
    """What a reader has to know before any number."""
    database = view.database
    notes = []
    if study.dataset.kind == "phantom":
        notes.append("The images are phantoms: generated cells that nobody ever had. Nothing here is a medical result.")
    if study.encoder.kind == "phantom":
        notes.append(
            "The encoder is a small one made for phantoms. It shows how the atlas works, not what ConceptCLIP can do."
        )
    notes += [
        f"{found.message[0].upper()}{found.message[1:]}."
        for found in examine(database, only={"random_weights", "blank_rows"}).findings
    ]
    if (limit := database.attributes.get("limit")) is not None:
        notes.append(f"A first try: only {limit} images of each split were taken.")
    if view.picture is None:
        notes.append("The file does not say where its rows came from: there are no pictures.")
    if not is_labelled(database):
        notes.append("The data set has no labels: there are no classes to tell apart.")
    elif database.label_matrix is not None:
        notes.append("Images have several labels; where one is shown it is the first.")
    if database.groups is None:
        notes.append(
            "Intervals are per image: no patients or slides are known. Where several images come from one patient, "
            "they are too narrow."
        )
    return notes


def _tiles(view: View, zero: Mapping[str, Any], fitted: Mapping[str, Any], truths: Truths) -> list[dict[str, str]]:
    """The few numbers at the top of the page."""
    tiles = []
    for name, found, about in (
        ("Zero-shot accuracy", zero, "from label words alone"),
        ("Concept classifier", fitted, f"on {len(view.concepts)} concept scores"),
    ):
        if "splits" in found:
            split, values = list(found["splits"].items())[-1]
            value, low, high = (values["accuracy"][part] for part in ("value", "low", "high"))
            interval = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f} %, "
            tiles.append(_tile(f"{name}, {split}", f"{100 * value:.1f} %", f"{interval}{about}"))
            if (sparse := found.get("sparse", {}).get(split, {}).get("anec_5")) is not None:
                tiles.append(_tile("With 5 concepts a class", f"{100 * sparse:.1f} %", f"ANEC-5 on {split}"))
    if truths:
        mean = _numbers(truths, {})["mean_concept_auroc"]
        tiles.append(_tile("Concepts told apart", f"{mean:.2f}", "mean AUROC against their truth"))
    splits = [f"{name} {rows.stop - rows.start:,}" for name, rows in view.database.splits.items()]
    about = ", ".join(splits) if len(splits) <= 4 else f"{len(splits)} splits"
    return [*tiles, _tile("Images", f"{len(view.database):,}", about)]


def _tile(name: str, value: str, about: str) -> dict[str, str]:
    return {"name": name, "value": value, "about": about}


def _methods(zero: Mapping[str, Any], fitted: Mapping[str, Any], held: str) -> list[dict[str, Any]]:
    """Everything that was measured on the same images, the concepts first."""
    rows = [("Concept classifier", fitted["splits"][held]["accuracy"], f"{len(fitted['concepts'])} concepts")]
    rows += [
        (f"Sparse, {point['level']} a class", point["accuracy"], f"{point['nec']:.1f} effective concepts a class")
        for point in fitted["sparse"][held]["points"][:1]
    ]
    rows.append(("Decision tree", fitted["tree"]["accuracy"][held], f"{fitted['tree']['leaves']} leaves"))
    if held in zero.get("splits", {}):
        rows.append(("Zero-shot", zero["splits"][held]["accuracy"], "label words, nothing fitted"))
    rows += [
        (f"{control['name'][0].upper()}{control['name'][1:]}", control["accuracy"], control["verdict"])
        for control in fitted["controls"]["controls"]
    ]
    return [{"name": name, "accuracy": accuracy, "about": about} for name, accuracy, about in rows]


def _numbers(truths: Truths, located: Located) -> dict[str, float]:
    """Numbers whose history is worth a curve; only those there are."""
    found = {}
    if truths:
        found["mean_concept_auroc"] = float(np.nanmean([auroc.overall.value for _, auroc in truths.values()]))
        found["mean_average_precision"] = float(np.nanmean([one.average_precision for one, _ in truths.values()]))
    for part, (own, _) in located.items():
        found |= {f"pointing_game_{part}": own.pointing, f"mass_fraction_{part}": own.mass}
    return found
