"""The pages in a real browser, and what the atlas says of phantoms."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from ccassets.analysis import judge_labels
from ccassets.analysis.bottleneck import count_test_accesses, write_bottleneck
from ccassets.analysis.classifiers import evaluate_on_holdout, fit_logistic, fit_tree
from ccassets.analysis.concept_annotations import read_concept_annotations
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.localisation import exchange_maps, measure_localisation, patch_mask
from ccassets.analysis.metrics import evaluate
from ccassets.analysis.results import AnalysisResult
from ccassets.analysis.retrieval import measure_retrieval
from ccassets.analysis.samples import concept_samples, database_concepts
from ccassets.analysis.scores import concept_scores, patch_scores
from ccassets.analysis.sparse_classifiers import sparse_path, truncate_to_nec
from ccassets.analysis.zero_shot_scores import write_zero_shot
from ccassets.database.reader import open_database
from ccassets.datasets.phantom import PhantomDataset
from ccassets.errors import AnalysisError
from ccassets.pages.atlas import Atlas, write_atlas
from ccassets.pages.report_page import write_validation_report
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.analysis import recomputation
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study
from ccassets_tests.browser.pages import chromium, opened
from ccassets_tests.pages.page_terms import unexplained_terms, unlinked_headings, visible_text

HOSTILE = "<script>alert(1)</script>"
CHARTS = "main > section > .card [data-chart], .concept [data-chart], .columns [data-chart]"


@dataclass(frozen=True)
class Made:
    """A small phantom study with everything that is made of it."""

    study: Study
    store: Store
    zero_shot: AnalysisResult
    bottleneck: AnalysisResult
    atlas: Atlas
    validation: Path

    @property
    def html(self) -> str:
        return self.atlas.page.read_text(encoding="utf-8")


def make(folder: Path, **dataset: Any) -> Made:
    def change(attributes: dict[str, Any]) -> None:
        attributes["dataset"].update(dataset)
        concepts = attributes["vocabulary"]["concepts"]
        concepts["words"].append({"word": HOSTILE, "group": "<b>bold</b>", "level": 2, "synonyms": ["<i>x</i>"]})
        concepts["templates"] = concepts["templates"][:1]

    study = phantom_study(folder / "cells", change)
    store = extracted(study, folder / "storage")
    return Made(
        study,
        store,
        write_zero_shot(store),
        write_bottleneck(study, store),
        write_atlas(study, store),
        write_validation_report(study, store).page,
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("atlas"), rows={"train": 48, "val": 16, "test": 24})


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


# --- in a browser ------------------------------------------------------------------------------------

ATLAS_PARTS = [
    *("h1", "#notes", ".tiles", "nav", "#h-concepts", ".chips", "#h-map", "#h-classes", "#h-classifier", "#methods"),
    *("#measures", "#h-images", "#h-errors", "#h-about", "footer", ".concept h3", ".shots", ".concept .plot"),
    *(".matrix", "[data-chart=map]", "[data-chart=sparse]", "[data-chart=reliability]", ".example"),
]
VALIDATION_PARTS = ["h1", ".verdict", "h2", "table", "details"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_the_atlas_is_readable_and_asks_nobody(made: Made, browser: Any, width: int, scheme: str) -> None:
    with opened(browser, made.atlas.page, width=width, scheme=scheme) as shown:
        shown.scroll_through()
        shown.page.wait_for_function(
            "(charts) => [...document.querySelectorAll(charts)].every((chart) => chart.querySelector('.main-svg'))",
            arg=CHARTS,
        )
        assert shown.overflow() == 0
        assert shown.overlaps(ATLAS_PARTS) == []
        assert shown.page.locator(".concept").count() == 16
        assert shown.complaints == []
        assert shown.requests == []


@pytest.mark.parametrize("width", [390, 1440])
def test_the_validation_page_is_readable_and_asks_nobody(made: Made, browser: Any, width: int) -> None:
    with opened(browser, made.validation, width=width) as shown:
        shown.page.evaluate("document.querySelectorAll('details').forEach((found) => (found.open = true))")
        assert shown.overflow() == 0
        assert shown.overlaps(VALIDATION_PARTS) == []
        assert shown.complaints == []
        assert shown.requests == []


def test_names_from_data_are_shown_as_text(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        page = shown.page
        assert page.locator(".concept h3", has_text=HOSTILE).count() == 1
        assert page.locator(".concept h3 b, .concept i:not(.heat)").count() == 0
        page.locator("#map-colour").select_option(label=HOSTILE)
        page.locator("details:has([data-chart=correlation]) summary").click()
        names = page.locator("[data-chart=correlation] .ytick", has_text=HOSTILE)
        names.wait_for()
        assert shown.complaints == []
    assert HOSTILE not in made.html
    assert HOSTILE not in made.atlas.markdown


def test_heat_maps_can_be_switched_off(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        heat = shown.page.locator(".heat").first
        assert heat.is_visible()
        shown.page.locator("#heat").click()
        assert not heat.is_visible()


def test_a_point_of_the_map_shows_its_picture_and_class(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        page = shown.page
        page.locator("#map").scroll_into_view_if_needed()
        page.locator("[data-chart=map] .point").first.wait_for()
        page.locator("[data-chart=map] .point").nth(3).hover(force=True)
        tip = page.locator("#tip")
        tip.wait_for(state="visible")
        assert re.search(r"(train|val|test)/000\d\d", tip.inner_text())
        assert "data:image/webp" in tip.locator("i").evaluate("found => found.style.backgroundImage")
        page.locator("#map-colour").select_option("split")
        legend = page.locator("[data-chart=map] .legendtext")
        assert set(legend.all_text_contents()) == {"train", "val", "test"}
        page.locator("#map-colour").select_option(label="Round nucleus")
        page.locator("[data-chart=map] .point").nth(3).hover(force=True)
        tip.filter(has_text=re.compile(r"Round nucleus [+−]\d\.\d$")).wait_for()


def test_a_heat_map_lies_over_every_single_image_that_shows_what_it_is_predicted_by(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        examples = shown.page.locator(".example")
        named = examples.filter(has_text="green: ")
        assert named.count() > 0
        assert named.count() == shown.page.locator(".example .heat").count()


def test_every_picture_has_a_name_and_headings_descend(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        assert shown.page.locator("img:not([alt])").count() == 0
        assert shown.page.locator("[data-chart]:not([aria-label])").count() == 0
        levels = shown.page.eval_on_selector_all("h1, h2, h3", "all => all.map((found) => Number(found.tagName[1]))")
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


# --- what is on it -----------------------------------------------------------------------------------


def test_the_page_is_one_file_of_bounded_size_and_the_sheet_too(made: Made) -> None:
    assert len(made.html) < 6_000_000
    ours = made.html[: made.html.index('id="data"')]
    assert not re.findall(r"""(?:src|href)=["'](?!#|data:)|url\(""", ours)
    assert len(made.atlas.markdown) < 200_000
    assert made.atlas.markdown.count("data:image/webp") == 16


def test_the_page_is_honest_about_what_it_shows(made: Made) -> None:
    assert "The images are phantoms" in made.html
    assert "made for phantoms" in made.html
    assert "Intervals are per image" in made.html
    assert "was not trained" not in made.html


def test_the_page_says_that_only_some_rows_were_taken(tmp_path: Path) -> None:
    def change(attributes: dict[str, Any]) -> None:
        attributes["dataset"]["rows"] = {"train": 12, "val": 9}
        attributes["extraction"]["limit"] = 4
        attributes["vocabulary"]["labels"]["templates"] = []

    study = phantom_study(tmp_path / "cells", change)
    store = extracted(study, tmp_path / "storage")
    write_bottleneck(study, store)
    page = write_atlas(study, store).page.read_text(encoding="utf-8")
    assert "only 4 images of each split were taken" in page
    assert "No zero-shot classes: The study has no label words" in page


def test_heat_maps_are_drawn_for_encoders_made_for_them_alone(made: Made, tmp_path: Path) -> None:
    store = replace(made.store, root=tmp_path)
    for recorded, sentence in (
        ({}, "were not trained to be compared with words"),
        ({"tokens_for_words": True, "geometry": {"rule": "crop", "shortest_edge": 4, "crop": 2}}, "never sees 75 %"),
    ):
        shutil.rmtree(store.folder, ignore_errors=True)
        shutil.copytree(made.store.folder, store.folder)
        with h5py.File(store.database, "r+") as file:
            provenance = json.loads(file.attrs["provenance"])
            provenance["encoder"] |= {"kind": "python", "recorded": recorded}
            file.attrs["provenance"] = json.dumps(provenance)
        page = write_atlas(made.study, store).page.read_text(encoding="utf-8")
        assert sentence in page
        assert ('class="heat"' in page) == bool(recorded)


def test_a_file_that_knows_no_keys_has_an_atlas_without_pictures(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.store.root, tmp_path / "storage")
    store = replace(made.store, root=tmp_path / "storage")
    with h5py.File(store.database, "r+") as file:
        del file["keys"]
    atlas = write_atlas(made.study, store)
    page = atlas.page.read_text(encoding="utf-8")
    page = page[: page.index('id="data"')]
    assert "does not say where its rows came from" in page
    assert "<img" not in page
    assert re.search(r"<br>row \d+</figcaption>", page)


def test_what_has_no_interval_or_no_images_is_said_on_the_page(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.store.root, tmp_path / "storage")
    store = replace(made.store, root=tmp_path / "storage")
    path = store.analysis / made.bottleneck.path.name
    content = json.loads(path.read_text(encoding="utf-8"))
    content["splits"]["test"]["absent"] = [2]
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auc"):
        content["splits"]["test"][name] |= {"low": None, "high": None, "reason": "3 groups are too few."}
    path.write_text(json.dumps(content), encoding="utf-8")
    page = write_atlas(made.study, store).page.read_text(encoding="utf-8")
    page = page[: page.index('id="data"')]
    assert f"{content['classes'][2]}: no image in test, not measured. test: 3 groups are too few." in page
    assert page.count('<span class="muted">(no interval)</span>') >= 4
    text = visible_text(page)
    assert "Leakage: beyond the truth of the concepts the scores tell a linear classifier" in text


def test_what_was_chosen_on_val_says_so_at_the_number(made: Made) -> None:
    page = made.html[: made.html.index('id="data"')]
    rows = re.findall(r'<tr><th scope="row"><a class="term"[^>]*>([^<]*)</a>, (val|test)</th>(.*?)</tr>', page)
    marks = {(name, split): cells.count(">†</a>") for name, split, cells in rows}
    fields = len(re.findall(r"<td", rows[0][2]))
    assert marks == {
        ("Zero-shot", "val"): 1,  # its calibrated error: the temperature was fitted there
        ("Zero-shot", "test"): 0,
        ("Concept classifier", "val"): fields,
        ("Concept classifier", "test"): 0,
    }
    fitted = made.bottleneck.content
    assert f"{made.zero_shot.content['temperature']:.2f} for zero-shot" in page
    assert f"{fitted['chosen']['C']:g}, was chosen on val" in page
    assert "The number of leaves was" in page


@pytest.mark.parametrize("name", ["atlas", "validation"])
def test_terms_are_explained_where_they_stand(made: Made, name: str) -> None:
    page = made.html[: made.html.index('id="data"')] if name == "atlas" else made.validation.read_text(encoding="utf-8")
    assert unexplained_terms(page) == set()
    assert unlinked_headings(page) == set()


def test_explanations_are_reached_by_the_keyboard(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        link = shown.page.locator("#measures a.term", has_text="ECE").first
        link.focus()
        shown.page.keyboard.press("Enter")
        entry = shown.page.locator("dt:target")
        assert entry.inner_text() == "ECE"
        assert "calibration error" in (link.get_attribute("title") or "")


def test_few_images_are_points_beside_their_number(made: Made, browser: Any) -> None:
    with opened(browser, made.atlas.page, width=1440) as shown:
        chart = shown.page.locator("[data-chart=ridge]").first
        chart.locator(".main-svg").first.wait_for()
        traces = chart.evaluate("chart => chart.data.map((trace) => [trace.type, trace.x.length])")
        assert traces == [["scatter", 11]] * 8
        assert chart.locator(".ytick").all_text_contents()[0] == "basophil (11)"
    assert f'<th scope="row">images</th>{"<td>11</td>" * 8}</tr>' in made.html


def test_equal_databases_make_equal_pages(made: Made) -> None:
    before = count_test_accesses(made.store)
    assert write_bottleneck(made.study, made.store).digest == made.bottleneck.digest
    assert write_zero_shot(made.store).digest == made.zero_shot.digest
    assert write_atlas(made.study, made.store).digest == made.atlas.digest
    assert count_test_accesses(made.store) > before, "every access is on record"


def test_results_hold_what_a_program_needs(made: Made) -> None:
    zero = json.loads(made.zero_shot.path.read_text(encoding="utf-8"))
    assert zero["rule"] == "span"
    assert zero["patches"] == 128
    assert set(zero["splits"]) == {"val", "test"}
    assert np.sum(zero["splits"]["test"]["confusion"]) == 24
    fitted = json.loads(made.bottleneck.path.read_text(encoding="utf-8"))
    assert {control["name"] for control in fitted["controls"]["controls"]} == {
        *("linear probe", "random directions", "without class names"),
    }
    assert "off-domain phrases" in fitted["controls"]["missing"]
    assert [point["level"] for point in fitted["sparse"]["test"]["points"]] == [5, 10, 15]
    assert len(fitted["truth"]["interventions"]) == 2


def test_an_atlas_before_its_results_is_refused(tmp_path: Path) -> None:
    study = phantom_study(tmp_path / "cells", lambda a: a["dataset"].update(rows={"train": 8, "val": 8}))
    with pytest.raises(AnalysisError, match="materialize zero_shot first"):
        write_atlas(study, extracted(study, tmp_path / "storage"))


def test_splits_of_any_name_have_scores_zero_shot_and_an_atlas(tmp_path: Path) -> None:
    study = phantom_study(tmp_path / "cells", lambda a: a["dataset"].update(rows={"fold 1": 8, "fold 2": 8}))
    store = extracted(study, tmp_path / "storage")
    assert list(write_zero_shot(store).content["splits"]) == ["all"]
    page = write_atlas(study, store).page.read_text(encoding="utf-8")
    assert "the study has no train and no val" in page
    assert "from the mean of all images" in page


# --- its numbers, computed again ---------------------------------------------------------------------


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def drawn_data(made: Made) -> Any:
    """The numbers of the page's charts; of principal components the distance from the middle."""
    data = json.loads(made.html.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    data["points"] |= {axis: np.abs(data["points"][axis]).tolist() for axis in "xy"}
    return data


@pytest.fixture(scope="module")
def recomputed(made: Made) -> dict[str, Any]:
    """What the results of the study ought to be, by name."""
    file = recomputation.StoredFile(made.store.database)
    with open_database(made.store.database) as database:
        annotations = read_concept_annotations(made.study, database)
        path = sparse_path(concept_samples(database))
    assert annotations is not None
    reached = [next((k for k, one in enumerate(path) if one.nec >= level), len(path) - 1) for level in (5, 10, 15)]
    penalties = [path[k].chosen["C"] for k in sorted({k for own in reached for k in (own - 1, own)})]
    with threadpool_limits(1):
        zero = recomputation.zero_shot(file)
        fitted = recomputation.bottleneck(file, annotations, read(made.bottleneck.path), penalties)
        errors = recomputation.label_errors(file)
    charts = recomputation.chart_data(file, zero, fitted)
    return {"zero_shot": zero, "concept_bottleneck": fitted, "label_errors": errors, "charts": charts}


def test_every_number_of_the_results_is_what_others_compute(made: Made, recomputed: dict[str, Any]) -> None:
    actual = {
        "zero_shot": read(made.zero_shot.path),
        "concept_bottleneck": read(made.bottleneck.path),
        "label_errors": read(judge_labels(made.store).path),
        "charts": drawn_data(made),
    }
    assert list(recomputation.numbers_that_differ(actual, recomputed)) == []


def test_a_number_that_is_wrong_or_computed_by_nothing_is_named(made: Made, recomputed: dict[str, Any]) -> None:
    content = read(made.bottleneck.path)
    content["splits"]["test"]["auc"]["value"] += 1e-5
    content["splits"]["test"]["confusion"].append([0] * 8)
    content["controls"]["price"]["new"] = 0.5
    differing = list(recomputation.numbers_that_differ(content, recomputed["concept_bottleneck"]))
    assert {text.partition(":")[0].partition("[")[0] for text in differing} == {
        *(".controls.price.new", ".splits.test.auc.value", ".splits.test.confusion"),
    }


# --- what it means -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """400 phantoms that no training has seen, with the shipped encoder."""
    folder = tmp_path_factory.mktemp("many")
    rows = {"train": 240, "val": 80, "test": 80}
    study = phantom_study(folder / "cells", lambda a: a["dataset"].update(rows=rows, seed=77))
    return study, extracted(study, folder / "storage")


def test_segmented_nucleus_finds_segmented_phantoms(many: tuple[Study, Store]) -> None:
    study, store = many
    with open_database(store.database) as database:
        annotations = read_concept_annotations(study, database)
        assert annotations is not None
        words = [concept.word for concept in database_concepts(database)]
        nucleus = measure_retrieval(concept_scores(database), annotations, words)[words.index("Segmented nucleus")]
    print(nucleus)
    assert nucleus.base_rate < 0.35
    assert nucleus.precision >= 0.8
    assert nucleus.average_precision >= 0.75


def test_heat_maps_are_where_the_concepts_are(many: tuple[Study, Store]) -> None:
    study, store = many
    phantoms = PhantomDataset(study.dataset)  # type: ignore[arg-type]
    with open_database(store.database) as database:
        maps = patch_scores(database)
        annotations = read_concept_annotations(study, database)
        assert annotations is not None
        assert database.keys is not None
        groups = [concept.group or "" for concept in database_concepts(database)]
        phantom_rows = [(split, int(key[-5:])) for split, key in zip(database.split, database.keys, strict=True)]
        side = round(database.token_count**0.5)
        nucleus = np.stack([patch_mask(phantoms.annotations(*row).nucleus, side) for row in phantom_rows])
    known = {"nucleus": "nucleus", "granules": "cytoplasm", "cytoplasm": "cytoplasm", "surroundings": "surroundings"}
    parts = [known.get(group, "") for group in groups]
    own = measure_localisation(maps, annotations > 0.5, parts, "nucleus", nucleus)
    exchanged = measure_localisation(exchange_maps(maps, parts), annotations > 0.5, parts, "nucleus", nucleus)
    print(own, exchanged, sep="\n")
    assert own.both >= 0.9
    assert own.pointing >= 0.75
    assert own.mass >= 4 * own.area
    assert exchanged.both < 0.3
    assert exchanged.pointing < 0.5
    assert exchanged.mass < 3 * exchanged.area


def test_shuffled_labels_fall_to_chance(many: tuple[Study, Store]) -> None:
    _, store = many
    with open_database(store.database) as database:
        samples = concept_samples(database)
    evaluations = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels = samples.labels.copy()
        for split in ("train", "val", "test"):
            rows = np.flatnonzero(samples.split == split)
            labels[rows] = labels[rng.permutation(rows)]
        shuffled = replace(samples, labels=labels)
        for classifier in (
            fit_logistic(shuffled),
            fit_tree(shuffled),
            truncate_to_nec(sparse_path(shuffled, most=5), 5),
        ):
            probabilities = evaluate_on_holdout(classifier, shuffled, "test", HoldoutLog(), "control: shuffled labels")
            evaluations.append(evaluate(shuffled.of("test").labels, probabilities))
    for estimates, chance in (
        ([one.balanced_accuracy for one in evaluations], 1 / 8),
        ([one.auc for one in evaluations], 0.5),
    ):
        values = [one.value for one in estimates if one is not None]
        inside = [one.low <= chance <= one.high for one in estimates if one is not None]
        print(f"{np.mean(values):.3f} for {chance}, {sum(inside)} of {len(inside)} intervals")
        # Of 95 % intervals one in twenty leaves out the truth.
        assert sum(inside) >= 12
        assert np.mean(values) == pytest.approx(chance, abs=0.03)
