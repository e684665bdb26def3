"""A study from an empty home to an edited template, by pressing the buttons of the UI in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ccassets
from ccassets.orchestration.build import run_build
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.browser.pages import chromium
from ccassets_tests.browser.person import Person
from ccassets_tests.made_studies import edit_study
from ccassets_tests.orchestration.test_daemon import Webserver

pytestmark = [pytest.mark.browser, pytest.mark.timeout(1200)]

TOKEN = "hf_marker0that0must0be0nowhere"


@pytest.fixture
def browser() -> Iterator[Any]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server(browser: Any, study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Webserver]:
    """The UI, with a token of the hub in its environment that must be in no file afterwards."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server = Webserver(study, tmp_path / "ui.log")
    server.wait(180)
    yield server
    server.stop()
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


@pytest.fixture
def person(browser: Any, server: Webserver, study: Study, tmp_path: Path) -> Iterator[Person]:
    """Somebody at the UI, with a window in which nothing is cut; the last page they saw is kept as a picture."""
    person = Person(browser, server, study.name, width=2200, height=1400)
    try:
        yield person
    finally:
        person.page.screenshot(path=tmp_path / "last.png")


@pytest.mark.slow
def test_a_study_from_the_first_button_to_an_edited_template(person: Person, study: Study) -> None:
    for run in (*person.materialize("encoder"), *person.materialize("images", *study.splits)):
        assert person.ending(run) == "Success"

    [run] = person.materialize("image_features", "train")
    assert person.ending(run) == "Success"
    assert person.checks("image_features") == {"structure": "Succeeded", "values": "Succeeded"}

    assert person.ending(person.materialize_job("extract_text")) == "Success"
    assert person.ending(person.materialize_job("build_database")) == "Failure"
    refused = person.page.get_by_text("5 of 5 images of split 'val' are not encoded yet")
    refused.first.wait_for()
    assert not Store.of(study).database.exists()

    for run in person.materialize("image_features", "val", "test"):
        assert person.ending(run) == "Success"
    assert person.ending(person.materialize_job("build_database")) == "Success"
    assert set(person.checks("feature_database").values()) == {"Succeeded"}
    assert ccassets.validate_database(Store.of(study).database, study=study, deep=True) == []
    assert person.unsynced() == {}

    edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "an image of {}"))
    person.reload_definitions()
    assert person.unsynced() == {"template_features / label_prompts_t02": "Code version"}
    person.open_asset("template_features/label_prompts_t02")
    person.page.get_by_text("Unsynced (1)").wait_for()

    [run] = person.materialize("template_features/label_prompts_t02")
    assert person.ending(run) == "Success"
    assert person.unsynced() == {"feature_database": "Upstream data"}
    assert TOKEN not in person.page.content()


def test_a_click_copies_the_address_at_which_the_atlas_opens(person: Person, study: Study) -> None:
    run_build(study)
    person.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    person.open_asset("concept_atlas")
    person.page.get_by_text(re.compile("^file://.*concept_atlas.html$")).first.click()
    person.page.goto(person.page.evaluate("navigator.clipboard.readText()"))
    assert study.name in person.page.title()
    assert person.page.url == (Store.of(study).analysis / "concept_atlas.html").as_uri()
