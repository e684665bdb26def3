"""Exports: the numbers other tools read are the database's own."""

import sys
from pathlib import Path

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from ccassets import open_database
from ccassets.analysis.scores import concept_scores
from ccassets.errors import AnalysisError
from ccassets.exports import export, tables as export_module
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, DIM, GROUPS, LEVELS, cells, write_cells

SAMPLES = cells(48, grouped=True).samples
FACTS = ["id", "key", "split", "label", "class", "group"]


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # Ten rows a block, so that a file is made of several.
    monkeypatch.setattr(export_module, "_BLOCK_BYTES", 10 * DIM * 2)
    with open_database(write_cells(tmp_path / "cells.h5", SAMPLES)) as opened:
        yield opened


def read(path: Path):
    return pa_csv.read_csv(path) if path.suffix == ".csv" else pq.read_table(path)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_scores_stand_beside_what_is_known_of_the_row(database, tmp_path: Path, ending: str):
    export(database, tmp_path / f"scores.{ending}")
    table = read(tmp_path / f"scores.{ending}")
    assert table.column_names == [*FACTS, *CONCEPTS]
    assert table["class"].to_pylist() == [CLASSES[label] for label in SAMPLES.labels]
    assert table["group"].to_pylist() == SAMPLES.groups.tolist()
    numbers = np.stack([table[name].to_numpy() for name in CONCEPTS], axis=1)
    assert np.allclose(numbers, concept_scores(database), atol=1e-6)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_features_are_exported_as_they_are_stored(database, tmp_path: Path, ending: str):
    seen = []
    export(database, tmp_path / f"features.{ending}", "features", lambda done, total: seen.append((done, total)))
    table = read(tmp_path / f"features.{ending}")
    numbers = np.stack([table[f"f{number}"].to_numpy() for number in range(DIM)], axis=1)
    assert np.array_equal(numbers.astype(np.float16), database.image_features)
    assert seen == [(10, 48), (20, 48), (30, 48), (40, 48), (48, 48)]


def test_anndata_reads_numbers_rows_and_concepts(database, tmp_path: Path):
    anndata = pytest.importorskip("anndata", reason="anndata is the extra `export`")
    export(database, tmp_path / "scores.h5ad")
    read = anndata.read_h5ad(tmp_path / "scores.h5ad")
    assert np.allclose(read.X, concept_scores(database), atol=1e-6)
    assert read.obs["key"].astype(str).tolist() == SAMPLES.keys.tolist()
    assert read.var_names.tolist() == list(CONCEPTS)
    assert read.var["group"].astype(str).tolist() == list(GROUPS)
    assert read.var["level"].tolist() == list(LEVELS)
    export(database, tmp_path / "features.h5ad", "features")
    assert np.array_equal(anndata.read_h5ad(tmp_path / "features.h5ad").X, database.image_features.astype(np.float32))


def test_without_anndata_it_says_what_to_install(database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "anndata", None)
    with pytest.raises(AnalysisError, match=r"ccassets\[export\]"):
        export(database, tmp_path / "scores.h5ad")
    assert not list(tmp_path.glob("*scores*"))


def test_another_ending_is_refused(database, tmp_path: Path):
    with pytest.raises(AnalysisError, match=r"\.csv, \.parquet, \.h5ad"):
        export(database, tmp_path / "scores.xlsx")


def test_a_failed_export_leaves_the_old_file(database, tmp_path: Path):
    (tmp_path / "scores.csv").write_text("old")

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(database, tmp_path / "scores.csv", progress=fail)
    assert (tmp_path / "scores.csv").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir() if "scores" in path.name) == ["scores.csv"]
