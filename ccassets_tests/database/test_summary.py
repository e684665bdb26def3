"""The summary of a file: plain values whatever kind of file it is, and a table in a notebook that reads no rows."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import h5py
import numpy as np

from ccassets.database.reader import open_database
from ccassets.database.summary import summarize
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets_tests.database.made_files import SPLITS, unit_rows, write_database, write_template_part
from ccassets_tests.made_studies import DATA


def test_a_database_is_summed_up_in_plain_json(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        facts = json.loads(json.dumps(summarize(database)))

    assert facts["file"] == "a.h5"
    assert facts["bytes"] == (tmp_path / "a.h5").stat().st_size
    assert (facts["rows"], facts["dim"], facts["token_count"]) == (20, 12, 4)
    assert facts["splits"] == {"train": 9, "val": 5, "test": 6}
    assert facts["templates"]["label_prompts_t02"] == {"prompts": 3, "first": "a smear of a basophil"}
    assert facts["concepts"] == ["round nucleus", "圆形细胞核", "granules"]
    assert facts["encoder"]["kind"] == "python"
    assert facts["origin"] == "extracted"
    assert len(facts["digest"]) == 64


def test_old_files_and_parts_are_summed_up_by_what_they_have(tmp_path: Path) -> None:
    with open_database(DATA / "legacy" / "legacy_duplicated.h5") as doubled:
        facts = summarize(doubled)
        assert (facts["rows"], facts["origin"], facts["digest"]) == (114, None, None)
        assert facts["splits"] == {"train": 72, "val": 28, "test": 14}  # As they stand, not as the attribute says.
    with open_database(write_template_part(tmp_path / "a.h5")) as part:
        facts = summarize(part)
        assert (facts["profile"], facts["rows"], facts["splits"]) == ("template-part", 0, {})
        assert list(facts["templates"]) == ["concept_prompts_t01"]


# --- in a notebook ------------------------------------------------------------------------------------


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


def table_text(path: Path) -> str:
    with open_database(path) as database:
        return " ".join(Cells(database._repr_html_()).texts)


def test_sizes_splits_templates_and_origin_are_shown(tmp_path: Path) -> None:
    text = table_text(write_database(tmp_path / "a.h5"))
    assert "a.h5" in text
    assert "20 of D = 12, 4 patches each" in text
    assert ", ".join(f"{split} {rows}" for split, rows in SPLITS.items()) in text
    assert "concept_prompts_t03 : 3 prompts, such as “a photo of round nucleus”" in text
    assert "extracted python" in text


def bytes_read() -> int:
    """Bytes that this process has read by system calls."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_large_file_is_shown_without_reading_its_rows(tmp_path: Path) -> None:
    rows = 1_000_000
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for name, width in {"split": (), "keys": (), "ids": (), "labels": (), "image_digest": (32,)}.items():
            dtype = file[name].dtype
            del file[name]
            file.create_dataset(name, (rows, *width), dtype)
        del file["image_features"], file["image_token_features"]
        file.create_dataset("image_features", (rows, 12), "<f2")
        file.attrs["split_counts"] = json.dumps({"train": rows - 1, "test": 1})
    with open_database(path) as database:
        before = bytes_read()
        text = " ".join(Cells(database._repr_html_()).texts)
        read = bytes_read() - before
    assert "1,000,000 of D = 12" in text
    assert "train 999,999, test 1" in text
    assert read < rows / 10


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
    text = table_text(write_database(tmp_path / "a.h5", {f"s{number}": 1 for number in range(15)}))
    assert "s11 1 and 3 more" in text
    assert "images 0 of D = 12, no patches splits none" in table_text(write_template_part(tmp_path / "part.h5"))


def test_a_closed_or_foreign_file_gives_a_sentence(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        pass
    assert database._repr_html_() == "<p><code>a.h5</code> is closed.</p>"
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["image_features"] = h5py.SoftLink("/nowhere")
    assert "cannot be read" in table_text(tmp_path / "b.h5")
