"""The format page, in both languages: its reader runs, it leaves no name out, and its digests are the stored ones."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xxhash

from ccassets.database.layout import DATASET_DESCRIPTIONS
from ccassets_tests.database.made_files import write_database

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {name: (DOCS / name).read_text(encoding="utf-8") for name in ("format.md", "format.zh.md")}
LEGACY = Path(__file__).parents[1] / "data" / "legacy"


def example(page: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", PAGES[page], re.DOTALL)
    assert len(blocks) == 1
    return str(blocks[0])


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_database(tmp_path / "conceptclip_features.h5", matrix=True)


def run(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(example(page), page, "exec"), names)
    return names


@pytest.mark.parametrize("page", PAGES)
def test_the_reader_of_the_page_reads_our_files(page: str, database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = run(page)["database"]

    assert content["splits"] == {"train": slice(0, 9), "val": slice(9, 14), "test": slice(14, 20)}
    assert content["image_features"].shape == (20, 12)
    assert content["first_patches"].shape == (4, 12)
    assert content["templates"]["free_text"][0] == ["a healthy cell", "an ill cell"]
    assert content["multiplier"] == pytest.approx(np.exp(4.5))
    assert capsys.readouterr().out.startswith("(6, 3) [")


@pytest.mark.parametrize("page", PAGES)
def test_the_reader_of_the_page_reads_files_of_the_original_scripts(page: str, database: Path) -> None:
    shutil.copy(LEGACY / "legacy_good.h5", database)

    content = run(page)["database"]

    assert content["splits"] == {"train": slice(0, 36), "val": slice(36, 56), "test": slice(56, 70)}
    assert len(content["templates"]) == 12
    assert content["multiplier"] == pytest.approx(96.607, abs=1e-3)


@pytest.mark.parametrize("name", ["legacy_duplicated", "changed text", "wrong ids"])
def test_the_reader_of_the_page_notices_what_is_broken(name: str, database: Path) -> None:
    if name == "legacy_duplicated":
        shutil.copy(LEGACY / f"{name}.h5", database)
    with h5py.File(database, "r+") as file:
        if name == "changed text":
            file["templates/label_prompts_t01/texts"][0] = "another text"
        if name == "wrong ids":
            file["ids"][3] = 0

    with pytest.raises(AssertionError):
        run("format.md")


def test_both_pages_show_the_same_reader() -> None:
    assert example("format.md") == example("format.zh.md")
    assert PAGES["format.md"].count("\n## ") == PAGES["format.zh.md"].count("\n## ")
    assert PAGES["format.md"].count("\n- ") == PAGES["format.zh.md"].count("\n- ")


@pytest.mark.parametrize("page", PAGES)
def test_the_page_leaves_no_name_out(page: str, database: Path) -> None:
    with h5py.File(database) as file:
        names = {*file, *file.attrs}
        for group in file["templates"].values():
            names |= {*group, *group.attrs}

    documented = set(re.findall(r"\w+", PAGES[page]))

    assert names - documented == set()


def test_digests_can_be_computed_from_the_page_alone(database: Path) -> None:
    def texts(values: Any) -> bytes:
        return b"".join(len(value).to_bytes(8, "little") + value for value in values)

    with h5py.File(database) as file:
        stored = json.loads(file.attrs["provenance"])["digests"]
        arrays = {name: file[name][:] for name in file if name != "templates"}
        for row, digest in enumerate(arrays["feature_digest"]):
            content = arrays["image_features"][row].tobytes() + arrays["image_token_features"][row].tobytes()
            assert xxhash.xxh3_128_digest(content) == digest.tobytes()
        both = arrays["image_digest"].tobytes() + arrays["feature_digest"].tobytes()
        assert xxhash.xxh3_128_hexdigest(both) == file.attrs["rows_digest"]

        templates = []
        for template_id, group in file["templates"].items():
            hasher = xxhash.xxh3_128()
            for name in ("text_features", "text_token_features", "input_ids", "attention_mask", "subject_span"):
                if name in group:
                    values = group[name][:]
                    hasher.update(f"{name}|{values.dtype.str}|{values.shape}|".encode() + values.tobytes())
            hasher.update(b"texts|" + texts(group["texts"][:]))
            assert hasher.hexdigest() == group.attrs["digest"]
            templates.append([template_id, hasher.hexdigest()])

        splits = []
        for split in json.loads(file.attrs["split_counts"]):
            rows = arrays["split"] == split.encode()
            content = f"rows {rows.sum()}|".encode() + arrays["feature_digest"][rows].tobytes()
            content += arrays["labels"][rows].tobytes() + b"keys|" + texts(arrays["keys"][rows])
            content += b"groups|" + texts(arrays["groups"][rows])
            matrix = arrays["label_matrix"][rows]
            content += f"label_matrix {matrix.shape}|".encode() + matrix.tobytes()
            splits.append([split, hashlib.sha256(content).hexdigest()])
        assert dict(splits) == stored["splits"]

        lists = ("concept_texts", "label_texts", "prompt_temp_for_concepts", "prompt_temp_for_labels")
        vocabulary = {name: json.loads(file.attrs[name]) for name in lists}
        text = json.dumps(
            {"splits": splits, "templates": sorted(templates), "vocabulary": vocabulary},
            separators=(",", ":"),
            ensure_ascii=False,
        )
        assert hashlib.sha256(text.encode()).hexdigest() == stored["database"]


def test_the_ui_describes_data_sets_as_the_page_does() -> None:
    tree = re.findall(r"^[ │]*[├└]── (\w+) +\(.*?\) +\w+ +(\S.*?)(?: +\(ours\))?$", PAGES["format.md"], re.MULTILINE)
    assert dict(tree) == DATASET_DESCRIPTIONS
