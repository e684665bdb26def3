"""The explorer in Chromium without WebGL: its views at every size, and what a person does with its buttons."""

from __future__ import annotations

import csv
import io
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ccassets.analysis.samples import class_names, row_classes
from ccassets.database.reader import open_database
from ccassets.exports.study_of_rows import label_overrides
from ccassets.orchestration.instance import dagster_instance
from ccassets_tests.browser.pages import chromium
from ccassets_tests.cli.command_line import run, run_in_process
from ccassets_tests.database.made_files import write_database
from ccassets_tests.extraction.made_parts import arrays
from ccassets_tests.orchestration.study_runs import encoded_by_runs
from ccassets_tests.pages.explorer_process import BuiltStudy, Client, served

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

VIEWS = {
    "map": "#colour=split&rings=labels,duplicates&rows=3-9",
    "gallery": "#view=gallery&query=concept:Eosinophilic+granules",
    "image": "#view=image&row=5&heat=concept:Round+nucleus",
    "errors": "#view=errors&list=duplicates",
}
READY = {
    "map": "document.querySelector('#map .entry') !== null",
    "gallery": "document.querySelectorAll('#gallery .card').length > 20",
    "image": (
        "document.querySelectorAll('#image .strip .card').length > 5"
        " && document.querySelector('#image .heat').width === 12"
    ),
    "errors": "document.querySelector('#errors h2') !== null",
}
_COVERED = """() => {
  const canvas = document.querySelector("#map canvas");
  const box = canvas.getBoundingClientRect();
  const covering = new Set();
  for (let x = box.left + 2; x < box.right - 1; x += 9) {
    for (let y = box.top + 2; y < box.bottom - 1; y += 9) {
      const top = document.elementFromPoint(x, y);
      if (top !== canvas) covering.add(top?.outerHTML ?? "below the window");
    }
  }
  return [...covering];
}"""
_UNREADABLE = "() => [...document.images].filter((image) => image.complete && !image.naturalWidth).length"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium("--disable-webgl", "--disable-webgl2", "--disable-3d-apis") as started:
        yield started


@dataclass
class Visit:
    """A page of the explorer, with all that went wrong in it."""

    page: Any
    address: str
    complaints: list[str] = field(default_factory=list)

    def open(self, view: str) -> None:
        self.page.goto(self.address + "/" + view)

    def wait(self, condition: str) -> None:
        """Wait for a condition in the page; its policy forbids what playwright waits by."""
        deadline = time.monotonic() + 120
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, f"{condition}: {self.page.inner_text('body')}"
            self.page.wait_for_timeout(50)

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True)

    def search(self, text: str) -> None:
        """Look for images like a text, and wait until they are there."""
        self.page.get_by_label("Find images like").fill(text)
        self.button("Search").click()
        self.page.get_by_role("heading", name=f"Images like “{text}”").wait_for()

    def downloaded(self, name: str) -> bytes:
        """Press a button, and read the file that it gives."""
        with self.page.expect_download() as download:
            self.button(name).click()
        return Path(download.value.path()).read_bytes()


@contextmanager
def visited(browser: Any, client: Client, *, width: int = 1440, scheme: str = "light") -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, accept_downloads=True)
    page = context.new_page()
    visit = Visit(page, client.address)
    page.on("console", lambda said: visit.complaints.append(f"{said.type}: {said.text}"))
    page.on("pageerror", lambda error: visit.complaints.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (visit.complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on(
        "request",
        lambda request: request.url.startswith((client.address, "blob:")) or visit.complaints.append(request.url),
    )
    try:
        yield visit
    finally:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440, 2560])
def test_every_view_is_whole_at_every_size_and_asks_nobody_else(
    browser: Any, client: Client, width: int, scheme: str
) -> None:
    with visited(browser, client, width=width, scheme=scheme) as visit:
        for view, address in VIEWS.items():
            visit.open(address)
            visit.wait(READY[view])
            too_wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
            assert visit.page.evaluate(too_wide) == 0, view
            assert visit.page.evaluate(_UNREADABLE) == 0, view
            assert visit.page.get_by_text("false", exact=True).count() == 0, view
            assert visit.page.get_by_role("button", name="Errors and data").is_visible()
            if view == "map":
                assert visit.page.evaluate(_COVERED) == []
        assert visit.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_axe_finds_nothing_to_mend(browser: Any, client: Client, width: int, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    with visited(browser, client, width=width, scheme=scheme) as visit:
        for view, address in VIEWS.items():
            visit.open(address)
            visit.wait(READY[view])
            results = axe.Axe().run(visit.page)
            assert results.violations_count == 0, f"{view}: {results.generate_report()}"


def test_the_walk_from_a_text_to_a_new_study(
    browser: Any, client: Client, built: BuiltStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text → image → heat map → patch → lasso → CSV → new study with a corrected label → build that encodes nothing."""
    database = client.explorer.database
    with visited(browser, client) as visit:
        page = visit.page
        visit.open("")
        visit.button("Gallery").click()
        visit.search("a cell with eosinophilic granules")
        first = page.locator("#gallery .card").first
        first.wait_for()
        row = int(first.get_attribute("data-row"))
        assert row == client.get("/api/search?text=a+cell+with+eosinophilic+granules&k=1")["rows"][0]["row"]

        first.locator(".open").click()
        page.get_by_role("heading", name=str(database.keys[row])).wait_for()
        page.locator("[data-word='Round nucleus']").first.click()
        visit.wait(READY["image"])
        painted = page.locator("#image .heat").evaluate(
            "(layer) => [...layer.getContext('2d').getImageData(0, 0, 12, 12).data].filter((_, i) => i % 4 === 3)"
        )
        heat = client.get(f"/api/heat/{row}?concept=Round+nucleus")
        above = (np.array(heat["grid"]).ravel() - heat["low"]) / (heat["high"] - heat["low"])
        assert painted == pytest.approx((np.clip(above, 0, 1) * 0.75 * 255).tolist(), abs=1.5)

        corrected = next(name for name in class_names(database) if name != row_classes(database)[row])
        page.get_by_label("The label should be").select_option(label=corrected)
        page.get_by_label("in the selection").check()

        box = page.locator(".cover").bounding_box()
        page.mouse.click(box["x"] + box["width"] * 4.5 / 12, box["y"] + box["height"] * 6.5 / 12)
        page.get_by_role("heading", name=f"Patches like patch {6 * 12 + 4} of row {row}").wait_for()
        page.locator("#gallery .patchmark").first.wait_for()
        assert f"patch%3A{row}%3A76" in page.url

        visit.button("Map").click()
        visit.wait(READY["map"])
        visit.button("Lasso").click()
        plot = page.locator("#map canvas").bounding_box()
        corners = [(0.1, 0.15), (0.9, 0.15), (0.9, 0.95), (0.1, 0.95)]
        points = [(plot["x"] + plot["width"] * x, plot["y"] + plot["height"] * y) for x, y in corners]
        page.mouse.move(*points[0])
        page.mouse.down()
        for point in points[1:]:
            page.mouse.move(*point, steps=4)
        page.mouse.up()
        page.get_by_text("selected", exact=False).first.wait_for()
        lines = list(csv.DictReader(io.StringIO(visit.downloaded("CSV").decode())))
        assert len(lines) > 30
        assert all(line["key"] == database.keys[int(line["row"])] for line in lines)

        visit.button("New study…").click()
        page.get_by_text(f"A zip with the study file and {len(lines)} keys and 1 corrected label.").wait_for()
        page.get_by_label("Name").fill("few_cells")
        with zipfile.ZipFile(io.BytesIO(visit.downloaded("Download"))) as archive:
            archive.extractall(tmp_path / "studies")
        assert visit.complaints == []

    monkeypatch.setenv("CCASSETS_STORAGE", str(built.store.root))
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path / "studies"))
    parts = {path: path.stat().st_mtime_ns for path in built.store.root.glob("features/**/*.h5")}
    result = run_in_process("build", "few_cells")
    assert result.code == 0, result.err
    with dagster_instance() as instance:
        assert encoded_by_runs(instance, instance.get_runs()) == {"image_features": 0, "template_features": 0}
    assert {path: path.stat().st_mtime_ns for path in built.store.root.glob("features/**/*.h5")} == parts
    path = Path(result.out.strip())
    old, new = arrays(built.store.database), arrays(path)
    rows = [int(line["row"]) for line in lines]
    expected = {name: values[rows] if len(values) == len(database) else values for name, values in old.items()}
    expected["ids"] = np.arange(len(rows))
    expected["labels"][rows.index(row)] = class_names(database).index(corrected)
    assert [name for name in old if not np.array_equal(new[name], expected[name])] == []
    assert (
        f"overridden by the study; the data set says {row_classes(database)[row]}"
        in run("explain", path, database.keys[row]).out
    )


def test_a_link_shows_the_same_and_the_way_back_works(browser: Any, client: Client) -> None:
    with visited(browser, client) as visit:
        page = visit.page
        visit.open("#view=gallery&query=concept:Round+nucleus&split=val&rows=1-3.9&labels=5:2")
        visit.wait("document.querySelectorAll('#gallery .card').length === 12")
        assert page.locator("#bar").inner_text().startswith("4 selected")
        assert "1 corrected label" in page.locator("#bar").inner_text()
        assert page.get_by_role("button", name="val", exact=True).get_attribute("aria-pressed") == "true"
        page.locator("#gallery .card .open").first.click()
        visit.wait("location.hash.includes('view=image')")
        page.locator("#image h2").wait_for()
        page.go_back()
        visit.wait("document.querySelectorAll('#gallery .card').length === 12")
        page.locator("#gallery .card .open").first.click()
        page.get_by_label("in the selection").check()
        page.go_back()
        visit.wait("document.querySelectorAll('#gallery .card').length === 12")
        assert page.locator("#bar").inner_text().startswith("5 selected")
        visit.open("#view=gallery&split=val&rows=1")
        visit.wait("document.querySelector('#bar').innerText.startsWith('1 selected')")
        assert visit.complaints == []


def test_labels_are_corrected_and_leave_as_a_file(browser: Any, client: Client) -> None:
    database = client.explorer.database
    with visited(browser, client) as visit:
        visit.open("#view=image&row=7")
        visit.page.get_by_label("The label should be").select_option(label="platelet")
        assert visit.downloaded("Labels CSV") == label_overrides(database, {7: "platelet"})


def test_an_image_file_is_searched_by_and_a_wrong_one_is_refused(browser: Any, client: Client, tmp_path: Path) -> None:
    picture = tmp_path / "cell.png"
    picture.write_bytes(client.request("GET", "/api/rows/9/image").body)
    wrong = tmp_path / "wrong.png"
    wrong.write_text("no image")
    with visited(browser, client) as visit:
        visit.open("#view=gallery")
        visit.page.locator("#file").set_input_files(str(picture))
        visit.page.get_by_role("heading", name="Images like the file").wait_for()
        first = visit.page.locator("#gallery .card").first
        first.wait_for()
        assert first.get_attribute("data-row") == "9"
        visit.page.locator("#file").set_input_files(str(wrong))
        visit.page.get_by_text("not an image of a format that can be read here").wait_for()


def test_the_lasso_takes_exactly_the_points_inside(browser: Any, client: Client) -> None:
    """Against the even-odd rule of every point, for rough polygons that cross themselves."""
    with visited(browser, client) as visit:
        visit.open("")
        wrong = visit.page.evaluate(
            """async () => {
              const { Grid, isInside } = await import("/points.js");
              let seed = 1;
              const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647);
              const count = 40_000;
              const x = Float32Array.from({ length: count }, () => random() + random());
              const y = Float32Array.from({ length: count }, () => random() * random());
              const grid = new Grid(x, y);
              let wrong = 0;
              for (const corners of [3, 4, 40, 200]) {
                for (let turn = 0; turn < 5; turn++) {
                  const polygon = Float64Array.from({ length: 2 * corners }, () => random() * 1.2 - 0.1);
                  const inside = new Set(grid.inside(polygon));
                  for (let i = 0; i < count; i++) {
                    wrong += Number(inside.has(grid.row[i]) !== isInside(polygon, grid.x[i], grid.y[i]));
                  }
                }
              }
              return wrong;
            }"""
        )
        assert wrong == 0


def test_a_map_that_is_dragged_looks_as_if_it_was_drawn_anew(browser: Any, client: Client) -> None:
    with visited(browser, client) as visit:
        visit.open("")
        different = visit.page.evaluate(
            """async () => {
              const { PointPlot } = await import("/points.js");
              const canvas = document.body.appendChild(document.createElement("canvas"));
              Object.assign(canvas.style, { position: "fixed", left: 0, top: 0, width: "301px", height: "211px" });
              let seed = 1;
              const random = () => ((seed = (seed * 48271) % 2147483647) / 2147483647);
              const floats = () => Float32Array.from({ length: 800 }, random);
              const plot = new PointPlot(canvas, floats(), floats());
              plot.show({
                pixels: Uint32Array.from({ length: 800 }, (_, row) => 0xff000000 + row * 20000),
                shown: Uint8Array.from({ length: 800 }, (_, row) => Number(row % 5 > 0)),
                chosen: new Set([1, 2, 3, 104, 206, 307, 509]),
              });
              plot.draw();
              let different = 0;
              for (const scale of [1, 3]) {
                plot.moveTo({ ...plot.view, scale });
                plot.draw();
                for (const [right, down] of [[13, -7], [-40, 0], [0, 33], [-1, -1], [150, 90], [-400, 3]]) {
                  plot.pan(right, down);
                  plot.draw();
                  const moved = plot.target.slice();
                  plot.drawn = null;
                  plot.draw();
                  different += Number(plot.target.some((ink, at) => ink !== moved[at]));
                }
              }
              return different;
            }"""
        )
        assert different == 0


def test_the_map_rests_once_it_is_let_go(browser: Any, client: Client) -> None:
    with visited(browser, client) as visit:
        visit.open("")
        visit.wait(READY["map"])
        box = visit.page.locator("#map canvas").bounding_box()
        visit.page.mouse.move(box["x"] + 200, box["y"] + 200)
        visit.page.mouse.down()
        visit.page.mouse.move(box["x"] + 260, box["y"] + 240, steps=3)
        visit.page.wait_for_timeout(500)
        assert "at=" not in visit.page.url
        visit.page.mouse.up()
        visit.wait("location.hash.includes('at=')")
        assert visit.complaints == []


def test_a_file_alone_has_a_map_and_says_why_there_are_no_pictures(browser: Any, tmp_path: Path) -> None:
    path = write_database(tmp_path / "features.h5")
    with open_database(path) as database, served(database, None) as client, visited(browser, client) as visit:
        visit.open("")
        visit.wait(READY["map"])
        visit.open("#view=gallery&query=concept:granules")
        visit.page.locator("#gallery .card").first.wait_for()
        visit.open("#view=image&row=3")
        visit.page.get_by_text("A file alone has no pictures").wait_for()
        visit.open("#view=errors")
        visit.page.locator("#errors").get_by_text("No fitted classifier lies beside the file").wait_for()
        assert visit.complaints == []


def test_a_file_alone_shows_heat_maps_without_their_pictures(browser: Any, built: BuiltStudy) -> None:
    with (
        open_database(built.store.database) as database,
        served(database, None) as client,
        visited(browser, client) as visit,
    ):
        visit.open("#view=image&row=5&heat=concept:Eosinophilic+granules")
        visit.wait("document.querySelector('#image .heat')?.width === 12")
        box = visit.page.locator("#image .stage").bounding_box()
        assert box["width"] == pytest.approx(box["height"])
        assert box["width"] > 200
        assert visit.page.get_by_text("A file alone has no pictures").is_visible()
        assert visit.complaints == []


def test_the_views_are_reached_and_used_by_the_keyboard(browser: Any, client: Client) -> None:
    with visited(browser, client) as visit:
        page = visit.page
        visit.open("")
        visit.wait(READY["map"])
        page.locator("#map canvas").focus()
        for key in ("+", "+", "ArrowLeft"):
            page.keyboard.press(key)
        visit.wait("location.hash.includes('at=')")
        page.keyboard.press("0")
        visit.wait("!location.hash.includes('at=')")
        page.keyboard.press("Enter")
        visit.wait("location.hash.includes('view=image')")
        page.locator(".cover").focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        visit.wait("location.hash.includes('query=patch')")
        assert visit.complaints == []
