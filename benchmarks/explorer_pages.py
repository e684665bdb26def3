"""What somebody waits for at the explorer's pages, in Chromium without WebGL: seconds from the press to the picture."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ccassets_tests.browser.pages import ARGUMENTS, CHROMIUM

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH, HEIGHT = 1440, 900
DRAG_SECONDS = 5
MOST_SECONDS = 120

_COUNT_DRAWN = """
const put = CanvasRenderingContext2D.prototype.putImageData;
window.drawn = 0;
CanvasRenderingContext2D.prototype.putImageData = function (...given) {
  window.drawn += 1;
  return put.apply(this, given);
};
window.shown = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
window.until = (condition) =>
  new Promise((done) => {
    const check = () => condition() && (observer.disconnect(), done());
    const observer = new MutationObserver(check);
    observer.observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
    check();
  });
"""

_HEAT_MAPS = """async (words) => {
  const root = document.querySelector("#image");
  const title = root.querySelector("h2");
  const next = [...root.querySelectorAll("button")].find((button) => button.textContent === "Next →");
  const note = root.querySelector(".note[role=status]");
  const seconds = [];
  for (const word of words) {
    const before = title.textContent;
    next.click();
    await until(() => title.textContent !== before && root.querySelector(".strip .card"));
    await shown();
    const start = performance.now();
    [...root.querySelectorAll("[data-word]")].find((button) => button.dataset.word === word).click();
    await until(() => note.textContent.includes(`“${word}”`));
    await new Promise(requestAnimationFrame);
    seconds.push((performance.now() - start) / 1000);
  }
  return seconds;
}"""

_GALLERIES = """async (words) => {
  const root = document.querySelector("#gallery");
  const seconds = [];
  for (const word of words) {
    await shown();
    root.querySelector("#query").value = word;
    const start = performance.now();
    root.querySelector("form").requestSubmit();
    await until(() => root.querySelector(".card"));
    await new Promise(requestAnimationFrame);
    seconds.push((performance.now() - start) / 1000);
  }
  return seconds;
}"""

_LASSOS = """async (corners) => {
  const { Grid, isInside } = await import("/points.js");
  const { columns } = await import("/api.js");
  const { x, y } = await columns("api/points", { columns: "x,y" });
  const grid = new Grid(x.values, y.values);
  let seed = 1;
  const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647);
  const results = [];
  for (const count of corners) {
    const polygon = Float64Array.from({ length: 2 * count }, random);
    const start = performance.now();
    const rows = grid.inside(polygon);
    const seconds = (performance.now() - start) / 1000;
    const chosen = new Uint8Array(x.values.length);
    for (const row of rows) chosen[row] += 1;
    let wrong = 0;
    for (let i = 0; i < chosen.length; i++) {
      wrong += Number(chosen[grid.row[i]] !== Number(isInside(polygon, grid.x[i], grid.y[i])));
    }
    results.push({ corners: count, rows: rows.length, seconds, wrong });
  }
  return results;
}"""


@contextmanager
def chromium_page() -> Iterator[Page]:
    """A page of Chromium without WebGL."""
    from playwright.sync_api import sync_playwright

    without_webgl = ("--disable-webgl", "--disable-webgl2", "--disable-3d-apis")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=[*ARGUMENTS, *without_webgl])
        try:
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.set_default_timeout(MOST_SECONDS * 1000)
            page.add_init_script(_COUNT_DRAWN)
            yield page
        finally:
            browser.close()


def open_map(page: Page, address: str) -> float:
    """Open the map: seconds until its points are there in their colours, with the legend."""
    page.goto("about:blank")
    started = time.perf_counter()
    page.goto(address)
    page.locator("#map .entry").first.wait_for()
    page.evaluate("shown()")
    return time.perf_counter() - started


def drag_map(page: Page) -> tuple[float, float]:
    """Drag the map in circles: mouse moves that are answered, and pictures that are drawn, a second."""
    box = page.locator("#map canvas").bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    before: int = page.evaluate("drawn")
    moves, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < DRAG_SECONDS:
        moves += 1
        page.mouse.move(x + 150 * math.sin(moves / 8), y + 150 * (math.cos(moves / 8) - 1))
    drawn: int = page.evaluate("drawn") - before
    page.mouse.up()
    return moves / passed, drawn / passed


def zoom_map(page: Page) -> float:
    """Turn the wheel over the map: pictures that are drawn a second."""
    before: int = page.evaluate("drawn")
    turns, started = 0, time.perf_counter()
    while (passed := time.perf_counter() - started) < DRAG_SECONDS:
        turns += 1
        page.mouse.wheel(0, -60 if turns % 20 < 10 else 60)
    drawn: int = page.evaluate("drawn") - before
    return drawn / passed


def lasso_rows(page: Page, corners: Sequence[int]) -> list[dict[str, Any]]:
    """Circle all points by rough polygons: rows, seconds, and how many differ from the even-odd rule of every point."""
    results: list[dict[str, Any]] = page.evaluate(_LASSOS, list(corners))
    return results


def show_heat_maps(page: Page, address: str, words: Sequence[str]) -> list[float]:
    """Click a concept of one image after the other: seconds until each heat map is painted."""
    page.goto(f"{address}#view=image&row=0")
    page.locator("#image .strip .card").first.wait_for()
    seconds: list[float] = page.evaluate(_HEAT_MAPS, list(words))
    return seconds


def show_galleries(page: Page, address: str, words: Sequence[str]) -> list[float]:
    """Search for one concept after the other: seconds until each gallery is there."""
    page.goto(f"{address}#view=gallery")
    page.locator("#gallery .card").first.wait_for()
    seconds: list[float] = page.evaluate(_GALLERIES, list(words))
    return seconds
