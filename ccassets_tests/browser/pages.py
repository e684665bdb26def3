"""Pages in a real browser: headless Chromium through playwright, with all that it says and asks for written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

_SCROLL = """async () => {
  for (let y = 0; y < document.documentElement.scrollHeight; y += 500) {
    scrollTo({ top: y, behavior: "instant" });
    await new Promise((done) => setTimeout(done, 30));
  }
  scrollTo({ top: 0, behavior: "instant" });
}"""

_BOXES = """(selectors) => selectors.flatMap((selector) => [...document.querySelectorAll(selector)].map((found) => {
  const box = found.getBoundingClientRect();
  return { name: selector, left: box.left, top: box.top + scrollY, right: box.right, bottom: box.bottom + scrollY };
}))"""


@dataclass
class Watched:
    """A page with what went on in it: what the console said, scripts that failed, dialogs, and requests to any host."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def scroll_through(self) -> None:
        self.page.evaluate(_SCROLL)

    def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def overlaps(self, selectors: list[str]) -> list[tuple[str, str]]:
        """Pairs of the elements that cover one another though neither should; every selector has to find something."""
        boxes = self.page.evaluate(_BOXES, selectors)
        missing = set(selectors) - {box["name"] for box in boxes}
        assert not missing, f"not on the page: {missing}"
        empty = {box["name"] for box in boxes if box["right"] - box["left"] < 2 or box["bottom"] - box["top"] < 2}
        assert not empty, f"without any size: {empty}"
        return [
            (one["name"], other["name"])
            for index, one in enumerate(boxes)
            for other in boxes[index + 1 :]
            if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1
            and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 1
        ]


@contextmanager
def chromium(*arguments: str) -> Iterator[Any]:
    """The browser, with further arguments of its command line; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not looked at")
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there: pages are not looked at")
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=[*ARGUMENTS, *arguments])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int, scheme: str = "light") -> Iterator[Watched]:
    """A file in a window of that width."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    watched = Watched(page)
    page.on("console", lambda said: watched.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: watched.complaints.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (watched.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or watched.requests.append(request.url)
    )
    try:
        page.goto(path.as_uri())
        yield watched
    finally:
        context.close()
