"""The pictures of the UI in README and docs, taken anew of the demo: `python -m ccassets_tests.browser.screenshots`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from ccassets_tests.browser.pages import chromium
from ccassets_tests.browser.person import Person
from ccassets_tests.orchestration.test_daemon import Webserver

IMAGES = Path(__file__).parents[2] / "docs" / "images"


def main() -> None:
    """Build a copy of the demo in a home of its own and photograph it, at the end with one word of it edited."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"CCASSETS_HOME": f"{folder}/home", "CCASSETS_STUDIES": f"{folder}/studies"}
        # Imported with the home in place.
        import ccassets
        from ccassets.study.loading import SHIPPED_STUDIES, load_study

        shutil.copytree(SHIPPED_STUDIES / "demo", Path(folder) / "studies" / "demo")
        study = load_study("demo")
        ccassets.build(study)
        server = Webserver(study, Path(folder) / "ui.log")
        try:
            server.wait(180)
            with chromium() as browser:
                photograph_database(visitor(browser, server, width=1440, height=1100))
                photograph_checks(visitor(browser, server, width=1440, height=900))
                file = study.folder / "defs.yaml"
                file.write_text(file.read_text().replace("a bloodcell of {}", "a blood cell of {}"))
                # Large letters: a README shows it at half its size.
                photograph_lineage(visitor(browser, server, width=1080, height=1110, scale=4 / 3))
        finally:
            server.stop()


def visitor(browser: Any, server: Webserver, **window: Any) -> Person:
    """Somebody at the demo with the navigation out of the way; the picture gets 1440 pixels wide."""
    person = Person(browser, server, "demo", **window)
    person.open_group()
    person.button("Hide navigation").click()
    return person


def photograph_database(person: Person) -> None:
    person.open_asset("feature_database")
    person.page.get_by_text("/image_features").first.wait_for()
    save(person, "ui_database")


def photograph_checks(person: Person) -> None:
    person.open_asset("feature_database", "checks")
    person.page.get_by_text("Passed").first.wait_for()
    save(person, "ui_checks")


def photograph_lineage(person: Person) -> None:
    person.reload_definitions()
    person.open_asset("template_features/label_prompts_t03")
    person.page.get_by_text("Unsynced (1)").wait_for()
    person.open_group()
    person.page.get_by_text("concept_atlas").last.wait_for()
    save(person, "ui_lineage")


def save(person: Person, name: str) -> None:
    person.page.wait_for_timeout(4000)  # Numbers and states arrive after the frame.
    path = IMAGES / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    person.page.screenshot(path=path)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
