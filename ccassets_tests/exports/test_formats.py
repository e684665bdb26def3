"""Exports: what each format's own library reads is what the database holds, bit by bit."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import anndata
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xarray

from ccassets import open_database
from ccassets.analysis import concept_scores
from ccassets.analysis.classifiers import LinearClassifier
from ccassets.analysis.concept_models import apply_model, make_concept_model, save_model
from ccassets.analysis.samples import row_classes
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError, DatabaseError, StorageError
from ccassets.exports import exported_rows, tables
from ccassets.exports.formats import export_checked
from ccassets.exports.tables import write_concept_scores
from ccassets.study.loading import load_study
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, GROUPS, LEVELS, cells, write_cells
from ccassets_tests.cli.command_line import run
from ccassets_tests.database import original_scripts
from ccassets_tests.database.made_files import SPLITS, write_bloodmnist_shape, write_database
from ccassets_tests.extraction.made_parts import build_in_storage

FACTS = ["id", "key", "split", "label", "class", "group"]
FORMATS = ("csv", "parquet", "h5ad", "huggingface", "npy")
TABLES = ("csv", "parquet", "huggingface")
PAGE = Path(__file__).parents[2] / "docs" / "exports.md"
READERS = {
    "csv": "`csv` and `json` of Python",
    "parquet": "pyarrow",
    "h5ad": "anndata",
    "huggingface": "datasets",
    "npy": "NumPy",
    "refs": "zarr, xarray",
}


def legacy(path: Path) -> Path:
    """A chunked, compressed file of the original scripts."""
    with original_scripts.start(path) as file:
        original_scripts.append(file, "train", range(5))
        original_scripts.append(file, "test", range(3))
    return path


def demo(path: Path) -> Path:
    built = build_in_storage(load_study("demo"), path.with_suffix(".storage")).path
    return built.replace(path)


FILES: dict[str, Callable[[Path], Path]] = {
    "the demo": demo,
    "chunked file of the original scripts": legacy,
    "no tokens": lambda path: write_database(path, tokens=0),
    "several labels": lambda path: write_database(path, matrix=True),
    "BloodMNIST's shape": write_bloodmnist_shape,
}
STORED_PATCHES = {"BloodMNIST's shape": [0, 8000, 17_091]}
"""The rows whose patches are compared, where not all of them are: the others are holes."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives each of the files, made once."""
    folder = tmp_path_factory.mktemp("files")
    return cache(lambda name: FILES[name](folder / f"{list(FILES).index(name)}.h5"))


def read(path: Path, format: str) -> dict[str, Any]:
    """The columns of an export, as lists and arrays, read by the format's own library."""
    if format == "csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        for name in ("image_features", "label_matrix", "probabilities"):
            if name in columns:
                columns[name] = [json.loads(cell) for cell in columns[name]]
        for name in ("id", "label"):
            columns[name] = [int(cell) for cell in columns[name]]
        return columns
    if format == "parquet":
        return arrow_columns(pq.read_table(path))
    if format == "huggingface":
        loaded = datasets.load_dataset(str(path), cache_dir=str(path.parent / "cache"))
        return arrow_columns(datasets.concatenate_datasets(list(loaded.values())).with_format("arrow")[:])
    if format == "npy":
        about = json.loads((path / "rows.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(path / array["file"], mmap_mode="r") for name, array in about["arrays"].items()}
        assert all(isinstance(array, np.memmap) for array in arrays.values())
        assert {name: (a.dtype.str, list(a.shape)) for name, a in arrays.items()} == {
            name: (array["dtype"], array["shape"]) for name, array in about["arrays"].items()
        }
        return {**arrays, **about["texts"]}
    if format == "refs":
        zarr = pytest.importorskip("zarr", reason="zarr 3 needs Python 3.11")
        storage = {"fo": str(path)}
        group = zarr.open_group("reference://", storage_options=storage, mode="r")
        vectors = xarray.open_zarr("reference://", storage_options=storage).image_features.values
        names = {"keys": "key", "labels": "label", "groups": "group"}
        arrays = {names.get(name, name): group[name] for name in group.array_keys()}
        return {**arrays, "image_features": vectors}
    table = anndata.read_h5ad(path)
    vectors = {name: table.obsm[name] for name in table.obsm}
    return {**{name: table.obs[name].tolist() for name in table.obs}, **vectors, "image_features": table.X}


def arrow_columns(table: pa.Table) -> dict[str, Any]:
    """Vectors as arrays, everything else as lists."""
    columns: dict[str, Any] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        values, shape = column.combine_chunks(), [len(column)]
        while pa.types.is_fixed_size_list(values.type) or pa.types.is_list(values.type):
            inner = values.flatten()
            shape.append(len(inner) // max(1, len(values)))
            values = inner
        columns[name] = values.to_numpy().reshape(shape) if len(shape) > 1 else values.to_pylist()
    return columns


def compared(columns: dict[str, Any], database: Database, format: str, rows: slice, patches: Any) -> str:
    """Hold what was read to the database; what was held to it, in the words of the page."""
    words = ["features"]
    stored = np.asarray(database.image_features[rows])
    assert np.array_equal(np.array(columns["image_features"], np.float16), stored)
    if "image_token_features" in columns:
        words.append("patches")
        own = columns["image_token_features"]
        for row in patches:
            assert np.array_equal(np.asarray(own[row], "f2"), database.image_token_features[row]), row
    facts = {
        "id": database.ids,
        "key": database.keys,
        "split": database.split,
        "label": database.shown_labels if format != "refs" else database.labels,
        "class": np.array(row_classes(database)),
        "group": database.groups,
        "label_matrix": database.label_matrix,
    }
    held = {name: values[rows] for name, values in facts.items() if values is not None and name in columns}
    assert format == "refs" or held.keys() == {name for name, values in facts.items() if values is not None}
    for name, values in held.items():
        assert np.array_equal(np.asarray(columns[name][:]), values), name
    words.append("rows")
    if "feature_digest" in columns:
        words.append("digests")
        for name in ("image_digest", "feature_digest"):
            digests = [digest.tobytes() for digest in getattr(database, name)[rows]]
            own = columns[name][:]
            assert [bytes.fromhex(one) if isinstance(one, str) else np.asarray(one).tobytes() for one in own] == digests
    if database.templates and format != "refs":
        words.append("scores")
        names = list(database.concepts)
        scores = [columns[name] for name in names] if format in TABLES else np.transpose(columns["concept_scores"])
        assert np.allclose(np.array(scores, np.float32).T, concept_scores(database)[rows], atol=1e-6)
    return ", ".join(words)


def page_table() -> dict[tuple[str, str], str]:
    """The cells of the page's table of what was compared, by file and format."""
    text = PAGE.read_text(encoding="utf-8").partition("## What the tests compare")[2].partition("\n## ")[0]
    head, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    ]
    assert head[2:] == list(FILES)
    assert {row[0].strip("`"): row[1] for row in rows} == READERS
    return {(file, row[0].strip("`")): cell for row in rows for file, cell in zip(head[2:], row[2:], strict=True)}


@pytest.mark.parametrize("format", READERS)
@pytest.mark.parametrize("name", FILES)
def test_another_library_reads_what_the_database_holds(
    name: str, format: str, made: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_large = name == "BloodMNIST's shape"
    if not is_large:  # A few rows a block, so that a file is made of several.
        monkeypatch.setattr(exported_rows, "_BLOCK_BYTES", 400)
        monkeypatch.setattr(tables, "_ROW_GROUP_BYTES", 400)
    with open_database(made(name)) as database:
        tokens = database.image_token_features is not None and format not in ("csv", "refs") and not is_large
        split = "val" if is_large and format == "csv" else None
        path = tmp_path / ("out.refs.json" if format == "refs" else f"out.{format}")
        export = partial(export_checked, database, path, format=format, tokens=tokens, split=split)
        if (name, format) == ("chunked file of the original scripts", "refs"):
            with pytest.raises(AnalysisError, match="compressed chunks, which Zarr does not read"):
                export()
            result = "refused"
        else:
            export()
            rows = database.splits[split] if split else slice(0, len(database))
            patches = STORED_PATCHES.get(name, range(len(database)))
            result = compared(read(path, format), database, format, rows, patches) + (f" of {split}" if split else "")
    assert result == page_table()[name, format]


def test_parquet_has_one_column_of_features_as_they_are_stored(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        export_checked(database, tmp_path / "a.parquet", tokens=True)
        schema = pq.read_schema(tmp_path / "a.parquet")
        assert schema.field("image_features").type == pa.list_(pa.float16(), database.dim)
        patches = pa.list_(pa.list_(pa.float16(), database.dim), database.token_count)
        assert schema.field("image_token_features").type == patches
        assert schema.names[:6] == FACTS


@pytest.mark.parametrize("format", FORMATS)
def test_one_split_alone(format: str, tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        seen: list[tuple[int, int]] = []
        path = tmp_path / f"out.{format}"
        export_checked(
            database, path, format=format, split="val", progress=lambda done, total: seen.append((done, total))
        )
        columns = read(path, format)
        assert list(columns["key"]) == database.select("val").keys.tolist()
        assert np.array_equal(np.array(columns["image_features"], "f2"), database.select("val").image_features)
        assert seen[-1] == (SPLITS["val"], SPLITS["val"])


def test_the_folder_of_hugging_face_has_the_splits_in_files_of_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_SHARD_BYTES", 4 * 200)
    with open_database(write_database(tmp_path / "a.h5", {"train": 9, "held-out": 5, "none": 0})) as database:
        export_checked(database, tmp_path / "folder", format="huggingface")
    loaded = datasets.load_dataset(str(tmp_path / "folder"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(rows) for name, rows in loaded.items()} == {"train": 9, "held_out": 5}
    assert loaded["train"].features["image_features"].feature.dtype == "float16"
    assert len(list((tmp_path / "folder" / "data").glob("train-*"))) > 1


def test_predictions_of_the_classifier_beside_the_file(tmp_path: Path) -> None:
    with open_database(write_cells(tmp_path / "cells.h5", cells(48, grouped=True).samples)) as database:
        shape = (len(CLASSES), len(CONCEPTS))
        weights = np.random.default_rng(0).standard_normal(shape)
        zeros, ones = np.zeros(len(CONCEPTS)), np.ones(len(CONCEPTS))
        classifier = LinearClassifier(
            columns=CONCEPTS, classes=CLASSES, chosen={}, mean=zeros, scale=ones, weights=weights, intercept=np.zeros(4)
        )
        save_model(make_concept_model(classifier, database), tmp_path / "analysis" / "model.json")
        export_checked(database, tmp_path / "cells.parquet")
        expected = apply_model(make_concept_model(classifier, database), database)
    columns = pq.read_table(tmp_path / "cells.parquet").to_pydict()
    assert columns["predicted"] == expected.predicted
    assert np.array_equal(columns["probabilities"], expected.probabilities)


def test_anndata_has_the_concepts(tmp_path: Path) -> None:
    with open_database(write_cells(tmp_path / "cells.h5", cells(48).samples)) as database:
        export_checked(database, tmp_path / "cells.h5ad")
    concepts = anndata.read_h5ad(tmp_path / "cells.h5ad").uns["concepts"]
    assert concepts.index.tolist() == list(CONCEPTS)
    assert concepts["group"].astype(str).tolist() == list(GROUPS)
    assert concepts["level"].tolist() == list(LEVELS)


def test_codes_of_concepts_go_along(tmp_path: Path) -> None:
    code = "NCIt C12345"
    concepts = [{"word": word, "code": code} if number == 1 else {"word": word} for number, word in enumerate(CONCEPTS)]
    with open_database(
        write_cells(tmp_path / "a.h5", cells(48).samples, attributes={"concepts": concepts})
    ) as database:
        for format in FORMATS:
            export_checked(database, tmp_path / f"a.{format}", format=format)
    table = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert table.uns["concepts"]["code"].astype(str).tolist() == ["", code, *[""] * (len(CONCEPTS) - 2)]
    assert json.loads((tmp_path / "a.npy/rows.json").read_text())["concept_codes"] == {CONCEPTS[1]: code}
    for path in (tmp_path / "a.parquet", *(tmp_path / "a.huggingface/data").iterdir()):
        schema = pq.read_schema(path)
        assert schema.field(CONCEPTS[1]).metadata[b"code"] == code.encode()
        assert b"code" not in (schema.field(CONCEPTS[0]).metadata or {})
    assert CONCEPTS[1] in read(tmp_path / "a.csv", "csv")
    assert (
        CONCEPTS[1] in datasets.load_dataset(str(tmp_path / "a.huggingface"), cache_dir=str(tmp_path))["train"].features
    )


def test_the_concept_scores_of_a_study_are_a_table_of_concepts(tmp_path: Path) -> None:
    samples = cells(48, grouped=True).samples
    with open_database(write_cells(tmp_path / "cells.h5", samples)) as database:
        write_concept_scores(database, tmp_path / "scores.parquet")
        table = pq.read_table(tmp_path / "scores.parquet")
        assert table.column_names == [*FACTS, *CONCEPTS]
        numbers = np.stack([table[name].to_numpy() for name in CONCEPTS], axis=1)
        assert np.allclose(numbers, concept_scores(database), atol=1e-6)
    assert table["class"].to_pylist() == [CLASSES[label] for label in samples.labels]
    assert table["group"].to_pylist() == samples.groups.tolist()


def test_without_anndata_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anndata", None)
    with (
        open_database(write_database(tmp_path / "a.h5")) as database,
        pytest.raises(AnalysisError, match=r"ccassets\[export\]"),
    ):
        export_checked(database, tmp_path / "scores.h5ad")
    assert not list(tmp_path.glob("*scores*"))


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with open_database(write_database(tmp_path / "a.h5", tokens=0)) as database:
        with pytest.raises(AnalysisError, match=r"\.csv, \.parquet, \.h5ad"):
            export_checked(database, tmp_path / "scores.xlsx")
        with pytest.raises(AnalysisError, match="without token features"):
            export_checked(database, tmp_path / "a.parquet", tokens=True)
        with pytest.raises(DatabaseError, match="no split 'tset'"):
            export_checked(database, tmp_path / "a.parquet", split="tset")
        with pytest.raises(StorageError, match="is not empty"):
            export_checked(database, tmp_path / "full", format="npy")
    words = ["key", *CONCEPTS[1:]]
    named_key = {"concept_texts": words, "concepts": [{"word": word} for word in words]}
    with (
        open_database(write_cells(tmp_path / "b.h5", cells(48).samples, attributes=named_key)) as other,
        pytest.raises(AnalysisError, match=r"'key'.* have the names of columns"),
    ):
        export_checked(other, tmp_path / "a.parquet")


@pytest.mark.parametrize("format", FORMATS)
def test_a_failed_export_leaves_the_old_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"out.{format}"
    if format not in ("huggingface", "npy"):
        path.write_text("old")

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_database(write_database(tmp_path / "a.h5")) as database, pytest.raises(KeyboardInterrupt):
        export_checked(database, path, format=format, progress=fail)
    assert not path.exists() or path.read_text() == "old"
    assert [other.name for other in tmp_path.iterdir() if "out" in other.name and other != path] == []


def test_the_command_exports(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    result = run("export", path, tmp_path / "rows", "--format", "npy", "--split", "val", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out) == {"path": str(tmp_path / "rows"), "rows": SPLITS["val"]}
    assert len(np.load(tmp_path / "rows" / "image_features.npy")) == SPLITS["val"]
    assert run("export", path, tmp_path / "rows.xlsx").code == 2
