"""Projections: points near to images like them, the same each time, also of rows that were not fitted."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from ccassets import open_database
from ccassets.analysis import project_features, projection, read_projection, write_projection
from ccassets.analysis.projection import principal_components
from ccassets.errors import AnalysisError
from ccassets.study.storage import Store
from ccassets_tests.database.made_files import write_database

GROUPS = 4


def write_clusters(path: Path, rows: int) -> np.ndarray:
    """A database of unit vectors around a few directions; returns which direction each row has."""
    random = np.random.default_rng(0)
    group = random.integers(0, GROUPS, rows)
    features = random.normal(size=(GROUPS, 24))[group] + random.normal(size=(rows, 24)) / 4
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_database(path, {"train": rows - 10, "test": 10}, dim=24, tokens=0, templates=False)
    with h5py.File(path, "r+") as file:
        file["image_features"][...] = features
    return group


def share_of_like_neighbours(points: np.ndarray, group: np.ndarray) -> float:
    """The share of points whose nearest point is of the same direction."""
    distances = ((points[:, None] - points[None]) ** 2).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((group[distances.argmin(axis=1)] == group).mean())


def test_principal_components_are_those_of_unit_vectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = write_clusters(tmp_path / "a.h5", 90)
    with open_database(tmp_path / "a.h5") as database:
        points = project_features(database)
        vectors = np.asarray(database.image_features, np.float64)
        monkeypatch.setattr(projection, "MOST_FOR_AXES", 60)
        of_sample = project_features(database, "pca")

    assert (points.shape, points.dtype) == ((90, 2), np.float32)
    centred = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    centred -= centred.mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    assert np.allclose(np.abs(points), np.abs(expected), atol=1e-3)
    assert share_of_like_neighbours(of_sample, group) > 0.7


def test_a_tsne_places_rows_that_were_not_fitted_and_is_the_same_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openTSNE")
    group = write_clusters(tmp_path / "a.h5", 130)
    monkeypatch.setattr(projection, "MOST_FITTED", 100)
    seen: list[tuple[int, int]] = []
    with open_database(tmp_path / "a.h5") as database:
        points = project_features(database, "tsne", progress=lambda *done: seen.append(done))
        again = project_features(database, "tsne")

    assert np.isfinite(points).all()
    assert share_of_like_neighbours(points, group) > 0.9
    assert (points == again).all()
    assert seen[-1] == (130, 130)


def test_few_rows_and_dimensions_and_rows_without_direction_have_points_too() -> None:
    assert principal_components(np.zeros((0, 24), np.float16), 2).shape == (0, 0)
    assert np.array_equal(principal_components(np.ones((3, 1), np.float16), 2), np.zeros((3, 1)))
    rows = np.random.default_rng(3).standard_normal((20, 6)).astype(np.float16)
    rows[3], rows[5, 1] = 0, np.nan
    assert np.isfinite(principal_components(rows, 2)).all()


def test_a_database_of_one_row_and_of_none_has_its_points(tmp_path: Path) -> None:
    for rows in (0, 1):
        path = write_database(tmp_path / f"{rows}.h5", {"train": rows}, tokens=0, templates=False)
        with open_database(path) as database:
            assert np.array_equal(project_features(database), np.zeros((rows, 2)))


def test_what_a_build_wrote_is_read_for_its_database_alone(tmp_path: Path) -> None:
    store = Store(tmp_path, "cells", "features.h5")
    write_clusters(store.database, 40)

    written = write_projection(store)

    path = store.analysis / "projection.parquet"
    with open_database(store.database) as database:
        stored = read_projection(path, database)
        keys = list(database.keys)
    assert (stored.points == written.points).all()
    assert (stored.method, set(stored.versions)) == ("pca", {"numpy"})
    table = pq.read_table(path)
    assert table["key"].to_pylist() == keys
    assert json.loads(table.schema.metadata[b"ccassets"])["method"] == "pca"
    other = write_database(tmp_path / "other.h5", {"train": 40}, dim=24, tokens=0, templates=False)
    with open_database(other) as database:
        with pytest.raises(AnalysisError, match="of another state of the database"):
            read_projection(path, database)
        path.write_bytes(b"no table")
        with pytest.raises(AnalysisError, match="does not exist yet, or is damaged"):
            read_projection(path, database)
