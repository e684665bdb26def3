"""The page of the atlas: its parts put together, with the notes a reader needs before any number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.analysis.bottleneck import HOLDOUT_LOG, MODEL
from ccassets.analysis.classifiers import LinearClassifier
from ccassets.analysis.concept_models import load_model
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.results import (
    RESULT_FILES,
    class_counts,
    held_out_splits,
    read_result,
    unavailable_analyses,
    unmeasured_classes,
)
from ccassets.analysis.samples import class_names, is_labelled, is_ordinal
from ccassets.database.attributes import section
from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.token_geometry import SIZED_IMAGES, mean_unseen_share, token_geometry
from ccassets.database.validation import run_checks
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.files import write_text
from ccassets.pages.atlas.atlas_view import AtlasView, make_view
from ccassets.pages.atlas.charts import chart_data
from ccassets.pages.atlas.concept_cards import HEAT_FROM, HEAT_TO, Heat, cards_as_markdown, make_cards, make_heat
from ccassets.pages.atlas.evidence import ConceptEvidence, MapEvidence, measure_concepts, measure_maps
from ccassets.pages.atlas.single_images import Example, single_images
from ccassets.pages.renderer import render
from ccassets.pages.thumbnails import HEAT_COLOUR, HEAT_OPACITY
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store

METRIC_NAMES: Mapping[str, str] = {"accuracy": "accuracy", "auc": "AUC"}


@dataclass(frozen=True)
class Atlas:
    """The page, with what the asset shows of it: `metrics`, and key images as Markdown."""

    page: Path
    digest: str
    metrics: Mapping[str, float]
    markdown: str


def write_atlas(study: Study, store: Store, progress: Progress = silent) -> Atlas:
    """Write `concept_atlas.html` from the database and the results of `zero_shot` and `concept_bottleneck`.

    Args:
        study: The study.
        store: Its store.
        progress: Counts concepts.

    Raises:
        AnalysisError: A result that the study should have is missing, or was made for another database.
        DatasetError: An image is not the one that was encoded.
    """
    unavailable = unavailable_analyses(study)
    with open_database(store.database) as database:
        zero_shot, bottleneck = (
            {"obstacle": unavailable[name]}
            if name in unavailable
            else read_result(store.analysis / RESULT_FILES[name], database)
            for name in ("zero_shot", "concept_bottleneck")
        )
        view = make_view(study, database)
        heat, no_heat_reason = make_heat(view)
        cards = make_cards(view, heat, progress)
        concept_evidence, map_evidence = measure_concepts(view), measure_maps(study, view)
        classified = None if "obstacle" in bottleneck else _classified(view, store, heat)
        counts = class_counts(database) if is_labelled(database) else {}
        page = render(
            "atlas.html",
            study=study,
            facts=summarize(database),
            view=view,
            ordinal=is_ordinal(database),
            notes=_notes(study, view),
            tiles=_tiles(view, zero_shot, bottleneck, concept_evidence),
            cards=cards,
            no_heat_reason=no_heat_reason,
            heat={
                "low": HEAT_FROM,
                "high": HEAT_TO,
                "colour": f"rgb({' '.join(map(str, HEAT_COLOUR))} / {HEAT_OPACITY})",
            },
            concept_evidence=concept_evidence,
            map_evidence=map_evidence,
            zero_shot=zero_shot,
            bottleneck=bottleneck,
            classified=classified,
            metric_names=METRIC_NAMES,
            methods=_methods(zero_shot, bottleneck, classified.split) if classified else [],
            class_means=_class_means(view),
            class_sizes=view.members.sum(axis=0).tolist(),
            counts={name: own.tolist() for name, own in counts.items()},
            rests_on_val=_rests_on_val,
            data={**chart_data(view, zero_shot, bottleneck), "held": classified and classified.split},
            plotly=_plotly(),
        )
    path = store.analysis / RESULT_FILES["concept_atlas"]
    write_text(path, page)
    digest = hashlib.sha256(page.encode("utf-8")).hexdigest()
    return Atlas(path, digest, _metrics(concept_evidence, map_evidence), cards_as_markdown(cards))


@dataclass(frozen=True, eq=False)
class Classified:
    """The concept classifier, with its predictions for single images of the held-out split `split`."""

    classifier: LinearClassifier
    split: str
    examples: list[Example]
    errors: list[Example]


def _classified(view: AtlasView, store: Store, heat: Heat | None) -> Classified:
    classifier = load_model(store.analysis / MODEL).classifier
    assert isinstance(classifier, LinearClassifier)
    split = held_out_splits(view.database)[-1]
    log = HoldoutLog(store.analysis / HOLDOUT_LOG)
    return Classified(classifier, split, *single_images(view, classifier, split, log, heat))


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return source


def _rests_on_val(result: Mapping[str, Any], key: str) -> bool:
    """Whether a number of a result, by its keys with dots, was chosen or fitted on val."""
    return any(f"{key}.".startswith(f"{chosen}.") for chosen in result.get("chosen_on_val", ()))


def _class_means(view: AtlasView) -> npt.NDArray[np.float64]:
    """(C, K): the mean standardised score of a class's images; nan for a class without any."""
    means = np.full((len(view.classes), len(view.concepts)), np.nan)
    for label in np.flatnonzero(view.members.any(axis=0)):
        means[label] = view.scores[view.members[:, label]].mean(axis=0)
    return means


def _notes(study: Study, view: AtlasView) -> list[str]:
    """What a reader has to know before any number."""
    database = view.database
    notes = []
    if study.dataset.kind == "phantom":
        notes.append("The images are phantoms: generated cells of no patient. Nothing here is a medical result.")
    if study.encoder.kind == "phantom":
        notes.append(
            "The encoder is a small one made for phantoms. It shows how the atlas works, not what ConceptCLIP can do."
        )
    notes += [
        f"{finding.message[0].upper()}{finding.message[1:]}."
        for finding in run_checks(database, only={"random_weights", "blank_rows"}).findings
    ]
    if (limit := database.attributes.get("limit")) is not None:
        notes.append(f"A first try: only {limit} images of each split were taken.")
    if view.read_thumbnail is None:
        notes.append("The file does not say where its rows came from: there are no pictures.")
    elif unseen := _unseen_share(view):
        notes.append(
            f"The encoder crops: it never sees {100 * unseen:.0f} % of an average picture here (its borders), and what "
            "lies there changes no score."
        )
    if not is_labelled(database):
        notes.append("The data set has no labels: there are no classes to tell apart.")
    else:
        notes += [f"{text}." for text in unmeasured_classes(class_names(database), class_counts(database))]
    if database.label_matrix is not None:
        notes.append(
            "An image can have several labels, or none. Charts show it under its first one, or under “none”; what is "
            "said of several labels at once needs a threshold for each, chosen on val."
        )
    if database.groups is None:
        notes.append(
            "Intervals are per image: no patients or slides are known. Where several images come from one patient, "
            "they are too narrow."
        )
    return notes


def _unseen_share(view: AtlasView) -> float:
    """The mean share of pictures, at most 64 of them, that the encoder never sees, rounded to whole percents."""
    read, database = view.read_thumbnail, view.database
    if read is None:
        return 0.0
    rows = evenly_spaced_positions(len(database), SIZED_IMAGES).tolist()
    geometry = token_geometry(section(database.provenance, "encoder"))
    return round(mean_unseen_share(geometry, lambda: (read(row).size for row in rows)), 2)


def _tiles(
    view: AtlasView, zero_shot: Mapping[str, Any], bottleneck: Mapping[str, Any], evidence: ConceptEvidence
) -> list[dict[str, str]]:
    """The few numbers at the top of the page."""
    tiles = []
    for name, result, about in (
        ("Zero-shot", zero_shot, "from label words alone"),
        ("Concept classifier", bottleneck, f"on {len(view.concepts)} concept scores"),
    ):
        if "splits" in result:
            split, values = list(result["splits"].items())[-1]
            # Of several labels that few images have, an accuracy is close to that of always saying no.
            metric = "accuracy" if view.database.label_matrix is None else "auc"
            value, low, high = (values[metric][part] for part in ("value", "low", "high"))
            if value is None:
                continue
            interval = "" if low is None else f"{100 * low:.1f} to {100 * high:.1f} %, "
            chosen = ", chosen on val" if _rests_on_val(result, f"splits.{split}.{metric}") else ""
            title = f"{name} {METRIC_NAMES[metric]}, {split}"
            tiles.append(_tile(title, f"{100 * value:.1f} %", f"{interval}{about}{chosen}", name))
            if (sparse := result.get("sparse", {}).get(split, {}).get("anec_5")) is not None:
                tiles.append(_tile("With 5 concepts a class", f"{100 * sparse:.1f} %", f"ANEC-5 on {split}", "ANEC"))
    if evidence:
        mean = _metrics(evidence, {})["mean_concept_auroc"]
        tiles.append(_tile("Concepts told apart", f"{mean:.2f}", "mean AUROC against their truth", "AUROC"))
    splits = [f"{name} {rows.stop - rows.start:,}" for name, rows in view.database.splits.items()]
    about = ", ".join(splits) if len(splits) <= 4 else f"{len(splits)} splits"
    return [*tiles, _tile("Images", f"{len(view.database):,}", about)]


def _tile(name: str, value: str, about: str, term: str = "") -> dict[str, str]:
    """A number with its name, which is linked to the explanation of `term`."""
    return {"name": name, "value": value, "about": about, "term": term}


def _methods(zero_shot: Mapping[str, Any], bottleneck: Mapping[str, Any], split: str) -> list[dict[str, Any]]:
    """Every method that was measured on the same images, the concepts first."""
    metric = bottleneck["controls"]["metric"]
    rows = [("Concept classifier", bottleneck["splits"][split][metric], f"{len(bottleneck['concepts'])} concepts")]
    rows += [
        (f"Sparse, {point['level']} a class", point["accuracy"], f"{point['nec']:.1f} effective concepts a class")
        for point in bottleneck["sparse"].get(split, {}).get("points", ())[:1]
    ]
    if association := bottleneck["association"]:
        about = "each class one mixture of concepts, as ConceptCLIP's authors have it"
        rows.append(("Association of classes with concepts", association[split][metric], about))
    if tree := bottleneck["tree"]:
        rows.append(("Decision tree", tree["accuracy"][split], f"{tree['leaves']} leaves"))
    if split in zero_shot.get("splits", {}):
        rows.append(("Zero-shot", zero_shot["splits"][split][metric], "label words, nothing fitted"))
    rows += [
        (f"{control['name'][0].upper()}{control['name'][1:]}", control["estimate"], control["verdict"])
        for control in bottleneck["controls"]["controls"]
    ]
    return [
        {"name": name, "term": "sparse" if name.startswith("Sparse") else name, "estimate": estimate, "about": about}
        for name, estimate, about in rows
    ]


def _metrics(concept_evidence: ConceptEvidence, map_evidence: MapEvidence) -> dict[str, float]:
    """The metrics whose history the UI plots, as far as there are any."""
    metrics = {}
    if concept_evidence:
        aurocs = [auroc.overall.value for _, auroc in concept_evidence.values()]
        precisions = [retrieval.average_precision for retrieval, _ in concept_evidence.values()]
        metrics["mean_concept_auroc"] = float(np.nanmean(aurocs))
        metrics["mean_average_precision"] = float(np.nanmean(precisions))
    for part, (own, _) in map_evidence.items():
        metrics |= {f"pointing_game_{part}": own.pointing, f"mass_fraction_{part}": own.mass}
    return metrics
