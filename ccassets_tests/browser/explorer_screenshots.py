"""The screenshots of the explorer in docs: `python -m ccassets_tests.browser.explorer_screenshots`."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

from PIL import Image

from ccassets.database.reader import open_database
from ccassets_tests.browser.pages import chromium
from ccassets_tests.browser.screenshots import IMAGES
from ccassets_tests.pages.explorer_process import build_study, served
from ccassets_tests.pages.test_explorer_pages import READY, visited

VIEWS = {
    "map": "#colour=class&rings=labels,duplicates",
    "gallery": "#view=gallery&query=concept:Eosinophilic+granules",
    "image": "#view=image&row=5&heat=concept:Eosinophilic+granules",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        built = build_study(Path(folder))
        with (
            open_database(built.store.database) as database,
            served(database, built.study) as client,
            chromium() as browser,
            visited(browser, client, width=1200) as visit,
        ):
            for view, address in VIEWS.items():
                visit.open(address)
                visit.wait(READY[view])
                visit.wait("[...document.images].filter((image) => !image.hidden && !image.complete).length === 0")
                screenshot = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB")
                path = IMAGES / f"explorer_{view}.png"
                screenshot.quantize(128).save(path, optimize=True)
                print(f"{path.name}: {path.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
