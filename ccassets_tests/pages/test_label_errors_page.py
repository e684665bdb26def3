"""The page of label errors: every image whose label is in doubt, with its own and the likely label."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.analysis import judge_labels
from ccassets.database.reader import open_database
from ccassets.pages import label_errors_page
from ccassets.pages.label_errors_page import write_label_errors_page
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study
from ccassets_tests.browser.pages import chromium, opened
from ccassets_tests.pages.page_terms import unexplained_terms


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A study with eight of 160 labels turned, and its store."""
    folder = tmp_path_factory.mktemp("label_errors")
    study = phantom_study(folder / "turned", lambda attributes: attributes["dataset"].update(rows={"train": 160}))
    store = extracted(study, folder / "storage")
    turned = np.random.default_rng(0).choice(160, 8, replace=False)
    with h5py.File(store.database, "r+") as file:
        labels = file["labels"][:]
        labels[turned] = (labels[turned] + 3) % 8
        file["labels"][:] = labels
    with open_database(store.database) as database:
        assert database.keys is not None
        return study, store, set(database.keys[turned].tolist())


def test_the_page_shows_turned_labels_with_picture_and_likely_label(made: Any) -> None:
    study, store, turned = made
    result = judge_labels(store)
    errors = result.content["errors"]
    assert len(turned & {error["key"] for error in errors}) >= 6
    page = write_label_errors_page(study, store, result)
    html = page.read_text(encoding="utf-8")
    assert html.count('<img src="data:image/webp;base64,') == len(errors)
    assert f"{len(errors)} of 160 images" in html
    assert unexplained_terms(html) == set()
    for error in errors:
        assert f"<b>{error['label']}</b>, likely <b>{error['predicted']}</b>" in html
        assert error["key"] in html
    with (store.analysis / "label_errors.csv").open(encoding="utf-8") as file:
        assert [row["key"] for row in csv.DictReader(file)] == [error["key"] for error in errors]


def test_a_long_list_is_shown_in_part_and_says_so(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    study, store, _ = made
    monkeypatch.setattr(label_errors_page, "MOST_SHOWN", 2)
    html = write_label_errors_page(study, store, judge_labels(store)).read_text(encoding="utf-8")
    assert html.count("likely <b>") == 2
    assert "of which the first 2 are here; all are in <code>label_errors.csv</code>" in html


def test_rows_whose_pictures_are_away_are_listed_without_them(made: Any, tmp_path: Path) -> None:
    _, store, _ = made
    result = judge_labels(store)
    fewer = phantom_study(tmp_path / "fewer", lambda attributes: attributes["dataset"].update(rows={"train": 8}))
    html = write_label_errors_page(fewer, store, result).read_text(encoding="utf-8")
    errors = result.content["errors"]
    assert html.count("likely <b>") == len(errors)
    assert html.count("<img") == sum(int(error["key"][-5:]) < 8 for error in errors)
    assert "Some pictures, or all, are missing here: fewer has no image" in html
    gone = {"kind": "folder", "root": str(tmp_path / "gone"), "splits": ["train"]}
    nowhere = phantom_study(tmp_path / "nowhere", lambda attributes: attributes.update(dataset=gone))
    html = write_label_errors_page(nowhere, store, result).read_text(encoding="utf-8")
    assert html.count("likely <b>") == len(errors)
    assert "<img" not in html
    assert "Some pictures, or all, are missing here: " in html


@pytest.mark.parametrize("width", [390, 1440])
def test_the_page_is_readable_and_asks_nobody(made: Any, width: int) -> None:
    study, store, _ = made
    page: Path = write_label_errors_page(study, store, judge_labels(store))
    with chromium() as browser, opened(browser, page, width=width, scheme="dark") as shown:
        assert shown.overflow() == 0
        assert shown.overlaps(["h1", "p", "li"]) == []
        assert shown.requests == []


def test_a_class_of_few_images_is_named(made: Any) -> None:
    study, store, _ = made
    result = judge_labels(store)
    result.content["unjudged"]["basophil"] = 4  # type: ignore[index]
    html = write_label_errors_page(study, store, result).read_text(encoding="utf-8")
    assert "basophil: 4 images, too few to learn from; these labels were not judged." in html
    with open_database(store.database) as database:
        assert len(database) == result.content["rows"]
