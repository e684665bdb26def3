"""A person at the Dagster UI in a real browser: what they press, and what they read."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page, ViewportSize

    from ccassets_tests.orchestration.test_daemon import Webserver

LOCATION = "ccassets"

_SECONDS = 240
_RUNS = "{ runsOrError { ... on Runs { results { id } } } }"
_LOADED = "{ workspaceOrError { ... on Workspace { locationEntries { updatedTimestamp } } } }"
# What the list of a group calls an asset that is not what its definition and its sources say.
_UNSYNCED = re.compile("Code version|Upstream .*|Unsynced.*")


class Person:
    """Somebody with the UI open who works on one study, and waits for what a person would wait for."""

    def __init__(
        self, browser: Browser, server: Webserver, study: str, *, width: int, height: int, scale: float = 1.0
    ) -> None:
        size: ViewportSize = {"width": width, "height": height}
        self.page: Page = browser.new_page(viewport=size, device_scale_factor=scale)
        self.page.set_default_timeout(_SECONDS * 1000)
        self.server = server
        self.study = study

    def open(self, path: str) -> None:
        self.page.goto(f"http://127.0.0.1:{self.server.port}/{path}")

    def open_asset(self, asset: str, view: str = "overview") -> None:
        self.open(f"assets/{self.study}/{asset}?view={view}")

    def open_group(self, view: str = "lineage") -> None:
        self.open(f"locations/{LOCATION}/asset-groups/{self.study}/{view}")

    def open_run(self, run: str) -> None:
        self.open(f"runs/{run}")

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name)

    def materialize(self, asset: str, *splits: str) -> list[str]:
        """Press Materialize on the page of an asset, for these splits if it has splits; the runs that were started."""
        before = self._runs()
        self.open_asset(asset)
        self.button("Materialize").click()
        if splits:
            self.page.get_by_text("Select a partition or create one").click()
            for split in splits:
                self.page.locator("span", has_text=re.compile(f"^{split}$")).last.click()
            self.page.keyboard.press("Escape")
            self.button("Launch").click()
        return self._new_runs(before, max(1, len(splits)))

    def materialize_job(self, job: str) -> str:
        """Press Materialize all on the page of a job; the run that was started."""
        before = self._runs()
        self.open(f"locations/{LOCATION}/jobs/{self.study}__{job}")
        self.button("Materialize all").click()
        return self._new_runs(before, 1)[0]

    def ending(self, run: str) -> str:
        """Watch the page of a run until it says how the run ended: Success or Failure."""
        self.open_run(run)
        ended = self.page.get_by_text(re.compile("^(Success|Failure)$")).first
        ended.wait_for()
        return ended.inner_text()

    def reload_definitions(self) -> None:
        """Press Reload definitions on the page of the study's group, and wait until they are loaded anew."""
        before = self._loaded()
        self.open_group()
        self.button("Reload definitions").click()
        self._wait(lambda: self._loaded() != before, "the definitions were not reloaded")

    def checks(self, asset: str) -> dict[str, str]:
        """The checks of an asset and how they ended, as its page lists them."""
        self.open_asset(asset, "checks")
        self.page.get_by_text(re.compile("^(Succeeded|Failed)$")).first.wait_for()
        return dict(re.findall(r"^(\w+)\n(Succeeded|Failed|Not evaluated)$", self.read(), re.MULTILINE))

    def unsynced(self) -> dict[str, str]:
        """Every asset of the study that the list of its group calls unsynced, with the word for why."""
        self.open_group("list")
        self.page.get_by_text(re.compile("^Materialized$")).first.wait_for()
        self.page.wait_for_timeout(3000)  # Staleness arrives after the rest.
        unsynced, asset = {}, ""
        for line in self.read().splitlines():
            if line.startswith(f"{self.study} / "):
                asset = line.removeprefix(f"{self.study} / ")
            elif _UNSYNCED.fullmatch(line):
                unsynced[asset] = line
        return unsynced

    def read(self) -> str:
        """All text of the page."""
        return self.page.inner_text("body")

    def _runs(self) -> list[str]:
        return [run["id"] for run in self.server.ask(_RUNS)["runsOrError"]["results"]]

    def _new_runs(self, before: list[str], count: int) -> list[str]:
        self._wait(lambda: len(self._runs()) == len(before) + count, "the runs were not started")
        return [run for run in self._runs() if run not in before]

    def _loaded(self) -> list[float]:
        entries = self.server.ask(_LOADED)["workspaceOrError"]["locationEntries"]
        return [entry["updatedTimestamp"] for entry in entries]

    def _wait(self, there: Callable[[], bool], else_said: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while not there():
            assert time.monotonic() < deadline, f"{else_said}; the page says:\n{self.read()}"
            self.page.wait_for_timeout(500)
