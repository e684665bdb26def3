"""How a database shows itself in a notebook: everything at a glance, nothing of the file taken for HTML."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np

from ccassets.database.reader import open_database
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets_tests.database.made_files import SPLITS, unit_rows, write_database, write_template_part
from ccassets_tests.made_studies import DATA


class Cells(HTMLParser):
    """Headings and texts of a table, and every tag in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(path: Path) -> str:
    with open_database(path) as database:
        return " ".join(Cells(database._repr_html_()).texts)


def test_sizes_splits_templates_origin_and_findings_are_shown(tmp_path: Path) -> None:
    text = shown(write_database(tmp_path / "a.h5"))
    assert "a.h5" in text
    assert "20 of D = 12, 4 patches each" in text
    assert ", ".join(f"{split} {rows}" for split, rows in SPLITS.items()) in text
    assert "concept_prompts_t03 : 3 prompts, such as “a photo of round nucleus”" in text
    assert "extracted python" in text
    assert "none (features were not read)" in text


def test_what_is_wrong_is_shown_without_reading_features(tmp_path: Path) -> None:
    assert "error stopped_extraction" not in shown(DATA / "legacy" / "legacy_good.h5")
    assert "error split_counts: " in shown(DATA / "legacy" / "legacy_duplicated.h5")
    assert "error missing_labels: " in shown(DATA / "legacy" / "legacy_no_labels.h5")

    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["image_features"][0] = np.nan
    assert "none (features were not read)" in shown(path)


def test_texts_of_the_file_are_escaped(tmp_path: Path) -> None:
    texts = ["<script>alert(1)</script>", "<b>"]
    template = TemplateContent(texts, unit_rows(np.random.default_rng(0), 2))
    path = tmp_path / "<i>.h5"
    with new_file(path, FileContent("template-part", 12, 0, None, {"<u>": template}, {})):
        pass
    with open_database(path) as database:
        cells = Cells(database._repr_html_())
    assert "table" in cells.tags
    assert cells.tags <= {"table", "caption", "code", "tr", "th", "td", "br"}
    assert "<script>alert(1)</script>" in " ".join(cells.texts)


def test_many_splits_are_counted_and_parts_have_none(tmp_path: Path) -> None:
    text = shown(write_database(tmp_path / "a.h5", {f"s{number}": 1 for number in range(15)}))
    assert "s11 1 and 3 more" in text
    assert "images 0 of D = 12, no patches splits none" in shown(write_template_part(tmp_path / "part.h5"))


def test_a_closed_or_foreign_file_gives_a_sentence(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        pass
    assert database._repr_html_() == "<p><code>a.h5</code> is closed.</p>"
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["image_features"] = h5py.SoftLink("/nowhere")
    assert "cannot be read" in shown(tmp_path / "b.h5")
