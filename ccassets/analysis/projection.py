"""Projections: all images of a database as points of a plane, for maps."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ccassets.analysis.results import RESULT_FILES
from ccassets.analysis.scores import cosines
from ccassets.database.hdf5 import Array, iter_blocks, take_rows
from ccassets.database.reader import Database, open_database
from ccassets.database.summary import summarize
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.errors import AnalysisError
from ccassets.files import remove_leftovers, replacing, storage_errors
from ccassets.progress import Progress, available_cores, silent
from ccassets.study.storage import Store

Method = Literal["pca", "tsne"]

MOST_FITTED = 50_000
"""A t-SNE is fitted on at most so many rows, evenly spaced; the others are added to it."""
MOST_FOR_AXES = 20_000
"""Principal components are fitted on at most so many rows, evenly spaced, which takes a second."""
LEAST_FOR_TSNE = 500
"""With fewer rows, principal components show as much and take no time."""
MOST_SINGLE_THREADED = 5_000
"""With fewer rows, threads would wait for each other longer than one thread works, tenfold on busy cores."""
_COMPONENTS = 50
_BLOCK = 10_000
_CHUNK = 2_000
"""Rows that are converted and multiplied at a time."""
_SEED = 0
_FACTS = b"ccassets"

Points = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Projection:
    """A stored projection.

    Attributes:
        points: (N, 2) float32, a point for each row of the database.
        method: How the points were computed.
        versions: The versions of the libraries that computed them, by name.
    """

    points: Points
    method: Method
    versions: dict[str, str]


def project_features(database: Database, method: Method | None = None, *, progress: Progress = silent) -> Points:
    """Project the image features of a database onto a plane.

    Principal components of unit vectors are what both methods start with. The seed is fixed: the same machine and the
    same versions give the same points.

    Args:
        database: The database.
        method: `pca` (the first two of them), or `tsne` (openTSNE on the first fifty, by the extra `map`); by default
            `tsne` where it is installed and there are at least 500 rows.
        progress: Called with the rows that have a point and all of them.

    Returns:
        (N, 2) float32.

    Raises:
        AnalysisError: openTSNE is not installed.
    """
    method = method or default_method(len(database))
    features = database.image_features
    if method == "tsne":
        return _embed(principal_components(features, _COMPONENTS), progress)
    points = np.zeros((len(database), 2), np.float32)
    components = principal_components(features, 2)
    points[:, : components.shape[1]] = components
    progress(len(points), len(points))
    return points


def default_method(rows: int) -> Method:
    """The method for a database of so many rows on this machine."""
    return "tsne" if rows >= LEAST_FOR_TSNE and find_spec("openTSNE") else "pca"


def write_projection(store: Store, *, progress: Progress = silent) -> Projection:
    """Project the database of a study and write `projection.parquet`: one row for each image.

    Args:
        store: The store of the study.
        progress: Called with the rows that have a point and all of them.

    Returns:
        What was written.

    Raises:
        StorageError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = store.analysis / RESULT_FILES["projection"]
    with open_database(store.database) as database:
        method = default_method(len(database))
        libraries = ("numpy", *(("openTSNE",) if method == "tsne" else ()))
        versions = {name: version(name) for name in libraries}
        projection = Projection(project_features(database, method, progress=progress), method, versions)
        facts = {"method": method, "versions": projection.versions, "database": summarize(database)["digest"]}
        columns = {"id": database.ids, "split": database.split, **dict(zip("xy", projection.points.T, strict=True))}
        keys = {} if database.keys is None else {"key": database.keys}
    table = pa.table({**columns, **keys}).replace_schema_metadata({_FACTS: json.dumps(facts)})
    with storage_errors(path):
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    return projection


def read_projection(path: str | os.PathLike[str], database: Database) -> Projection:
    """Read a projection that `write_projection` wrote.

    Args:
        path: The file.
        database: The database whose points are expected.

    Returns:
        The projection.

    Raises:
        AnalysisError: There is no such file, or it is of another state of the database.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, columns=["x", "y"])
        facts = json.loads(table.schema.metadata[_FACTS])
        points = np.column_stack([table["x"].to_numpy(), table["y"].to_numpy()])
        projection, digest = Projection(points, facts["method"], facts["versions"]), facts["database"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise AnalysisError(f"{path} does not exist yet, or is damaged: materialize projection.") from error
    if digest != summarize(database)["digest"] or len(points) != len(database):
        raise AnalysisError(f"{path} is of another state of the database: materialize projection again.")
    return projection


def principal_components(features: Array, count: int) -> npt.NDArray[np.float32]:
    """Project features onto their first principal components, which are fitted on evenly spaced rows.

    Args:
        features: (N, D) of any float dtype and length; compared at unit length.
        count: The number of components; at most the number of rows and of dimensions.

    Returns:
        (N, C), C at most `count`; a row that is zero or not finite counts as zeros.
    """
    fitted = take_rows(features, evenly_spaced_positions(len(features), MOST_FOR_AXES))
    count = min(count, *fitted.shape)
    components = np.zeros((len(features), count), np.float32)
    if not count:
        return components
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # On busy cores threads wait for each other ten times as long as all this takes.
        centre, scatter = _centre_and_scatter(fitted)
        axes = np.linalg.eigh(scatter)[1][:, : -count - 1 : -1]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(count)])  # Either sign would do: always the same one.
    directions = np.ascontiguousarray(axes.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        for first, block in iter_blocks(features):
            projected = np.nan_to_num(cosines(block, directions), posinf=0, neginf=0)
            components[first : first + len(block)] = projected - directions @ centre
    return components


def _centre_and_scatter(rows: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """The mean (D,) of rows at unit length, and the sum of products (D, D) of their deviations from it."""
    near = _unit_vectors(rows[:_CHUNK]).mean(axis=0)  # Small differences keep their digits.
    total, scatter = np.zeros(rows.shape[1]), np.zeros((rows.shape[1], rows.shape[1]))
    for first in range(0, len(rows), _CHUNK):
        part = _unit_vectors(rows[first : first + _CHUNK])
        part -= near
        total += part.sum(axis=0, dtype=np.float64)
        scatter += part.T @ part
    mean = total / len(rows)
    scatter -= len(rows) * np.outer(mean, mean)
    return (near + mean).astype(np.float32), scatter.astype(np.float32)


def _unit_vectors(features: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    wide = features.astype(np.float32)
    lengths = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    without = ~(np.isfinite(lengths) & (lengths > 0))
    wide[without], lengths[without] = 0, 1
    wide /= lengths[:, None]
    return wide


def _embed(components: npt.NDArray[np.float32], progress: Progress) -> Points:
    """Compute points from components (N, C): a fit of evenly spaced rows, and the others added to it in blocks."""
    try:
        from openTSNE import TSNE
    except ImportError:
        raise AnalysisError("A t-SNE needs openTSNE: `pip install 'ccassets[map]'`, or take pca.") from None
    rows = len(components)
    fitted = evenly_spaced_positions(rows, MOST_FITTED)
    threads = available_cores() if len(fitted) > MOST_SINGLE_THREADED else 1
    fit: Any = TSNE(initialization="pca", random_state=_SEED, n_jobs=threads).fit(components[fitted])
    points = np.empty((rows, 2), np.float32)
    points[fitted] = fit
    progress(len(fitted), rows)
    others = np.setdiff1d(np.arange(rows), fitted)
    for first in range(0, len(others), _BLOCK):
        block = others[first : first + _BLOCK]
        points[block] = fit.transform(components[block])
        progress(len(fitted) + first + len(block), rows)
    return points
