"""Publication: the folder loads, the card says what the file records, and Croissant's own reader accepts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import h5py
import numpy as np
import pytest
import yaml

from ccassets import open_database
from ccassets.database.attributes import read_json_attribute
from ccassets.errors import AnalysisError, StorageError
from ccassets.exports import publish
from ccassets.study.schema import Concept, FolderConfig
from ccassets_tests.cli.command_line import run
from ccassets_tests.database.made_files import SPLITS, write_database


def licensed(path: Path, **changes: Any) -> Path:
    """A database whose data set has a licence, and whose first concept a code."""
    write_database(path)
    with h5py.File(path, "r+") as file:
        provenance = read_json_attribute(file, "provenance")
        provenance["dataset"] |= {"license": "CC-BY-4.0", **changes}
        file.attrs["provenance"] = json.dumps(provenance)
        concepts = read_json_attribute(file, "concepts")
        concepts[0]["code"] = "SNOMED CT 47082005"
        file.attrs["concepts"] = json.dumps(concepts)
    return path


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published")
    result = run("publish", licensed(folder / "a.h5"), folder / "out")
    assert result.code == 0, result.err
    return folder / "out"


def test_the_folder_loads_and_holds_no_image(published: Path, tmp_path: Path) -> None:
    loaded = datasets.load_dataset(str(published), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == dict(SPLITS)
    with open_database(published.parent / "a.h5") as database:
        features = loaded["val"].with_format("numpy")["image_features"]
        assert np.array_equal(np.array(features[:]), database.select("val").image_features)
    assert {path.suffix for path in published.rglob("*") if path.is_file()} == {".md", ".json", ".parquet"}


def test_the_card_says_what_the_file_records(published: Path) -> None:
    text = (published / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["license"] == "cc-by-4.0"
    assert [entry["split"] for entry in facts["configs"][0]["data_files"]] == list(SPLITS)
    for sentence in (
        "**The images are not part of it.**",
        "- `id`, `key`, `split`, `label`, `class`, `group`, `image_digest`, `feature_digest`;",
        "| round nucleus |  | SNOMED CT 47082005 | 圆形细胞核 |",
        "| train | 9 | 5 |",
        "Concept prompts: `a cell with {}`",
        "Not for diagnosis or treatment of patients.",
        "- No image stands in two splits.",
        "`ccassets validate` has",
    ):
        assert sentence in body, sentence


def test_croissant_describes_every_file_and_column(published: Path) -> None:
    croissant = json.loads((published / "croissant.json").read_text(encoding="utf-8"))
    assert croissant["license"] == "CC-BY-4.0"
    assert [(published / file["contentUrl"]).is_file() for file in croissant["distribution"]] == [True] * 3
    fields = {field["name"]: field for field in croissant["recordSet"][0]["field"]}
    assert fields["image_features"]["repeated"]
    assert fields["key"]["dataType"] == "sc:Text"


def test_the_reader_of_croissant_accepts_it(published: Path, caplog: pytest.LogCaptureFixture) -> None:
    mlcroissant = pytest.importorskip("mlcroissant", reason="mlcroissant is not installed: pip install -e '.[dev]'")
    dataset = mlcroissant.Dataset(jsonld=str(published / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    assert [warning.rpartition("/")[2] for warning in dataset.metadata.ctx.issues.warnings] == [
        'citeAs" is recommended, but does not exist.'
    ]
    assert "is not standard" not in caplog.text
    [record_set] = [one for one in dataset.metadata.record_sets if one.id == "val-00000-of-00001"]
    [field] = [field.id for field in record_set.fields if field.name == "image_features"]
    rows = list(dataset.records(record_set.id))
    with open_database(published.parent / "a.h5") as database:
        features = np.array([row[field] for row in rows], np.float16)
        assert np.array_equal(features, database.select("val").image_features)


def test_without_a_licence_nothing_is_published(tmp_path: Path) -> None:
    with (
        open_database(write_database(tmp_path / "a.h5")) as database,
        pytest.raises(AnalysisError, match="Set `license` in the study's dataset section"),
    ):
        publish(database, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_texts_of_a_file_are_no_markup(tmp_path: Path) -> None:
    path = licensed(tmp_path / "a.h5", license="mine\n---\nevil: true", name="<script> | [x](http://y)")
    with open_database(path) as database:
        publish(database, tmp_path / "out")
        with pytest.raises(StorageError, match="is not empty"):
            publish(database, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(text.split("---\n")[1])["license_name"] == "mine\n---\nevil: true"
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_licence_and_code_are_left_out_of_stored_json_where_there_are_none() -> None:
    assert "license" not in FolderConfig(kind="folder", root=Path("a")).model_dump(mode="json")
    assert "dicom" not in FolderConfig(kind="folder", root=Path("a"), license="mit").model_dump(mode="json")
    assert Concept(word="a").model_dump(mode="json") == {"word": "a", "group": None, "level": None, "synonyms": []}
    assert Concept(word="a", code="NCIt C1").model_dump(mode="json")["code"] == "NCIt C1"
