"""Assembly: whatever rows of whatever files in whatever order, it is what numpy's indexing gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from ccassets.database import merging
from ccassets.database.feature_digests import feature_digests
from ccassets.database.merging import assemble
from ccassets.database.reader import open_database
from ccassets.database.writer import FileContent, new_file
from ccassets.errors import DatabaseError
from ccassets_tests.database.made_files import row_content

DIM, TOKENS = 5, 3
LENGTHS = (1, 7, 12, 3)


def write_source(path: Path, rows: int, seed: int, *, dim: int = DIM, tokens: int = TOKENS) -> Path:
    """A part with rows that no other seed gives."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, dim)).astype(np.float16)
    token_features = rng.standard_normal((rows, tokens, dim)).astype(np.float16) if tokens else None
    content = row_content({"train": rows}, features, token_features)
    with new_file(path, FileContent("image-part", dim, tokens, content)) as writer:
        writer.write("image_features", 0, features)
        if token_features is not None:
            writer.write("image_token_features", 0, token_features)
    return path


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    with open_database(path) as database:
        tokens = database.image_token_features
        shape = (len(database), 0, database.dim)
        return np.array(database.image_features), np.empty(shape, "<f2") if tokens is None else np.array(tokens)


def expected_rows(sources: Sequence[Path], source_of: np.ndarray, row_in: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows as numpy takes them from the sources."""
    features, tokens = zip(*map(read, sources), strict=True)
    first = np.cumsum([0, *map(len, features[:-1])])
    rows = first[source_of] + row_in
    return np.concatenate(features)[rows], np.concatenate(tokens)[rows]


def content_of(features: np.ndarray, tokens: np.ndarray) -> FileContent:
    count = tokens.shape[1]
    rows = row_content({"train": len(features)}, features, tokens if count else None)
    return FileContent("database", features.shape[1], count, rows)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    return [write_source(folder / f"{seed}.h5", rows, seed) for seed, rows in enumerate(LENGTHS)]


ALL = [(source, row) for source, rows in enumerate(LENGTHS) for row in range(rows)]


def mixtures(rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Numbers of `ALL`: none, all in order and backwards, permutations, and any with repeats and runs."""
    everything = np.arange(len(ALL))
    yield from (everything[:0], everything, everything[::-1])
    for _ in range(10):
        yield rng.permutation(everything)
        yield rng.choice(everything, rng.integers(1, 40))
        yield np.concatenate([everything[first : first + 5] for first in rng.choice(everything, 4)])


@pytest.mark.parametrize("copy_bytes", [1, 64, 256 << 20])
def test_any_mixture_of_rows_is_what_numpys_indexing_gives(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copy_bytes: int
) -> None:
    monkeypatch.setattr(merging, "_COPY_BYTES", copy_bytes)  # Longer runs are copied in pieces of this.
    for chosen in mixtures(np.random.default_rng(copy_bytes)):
        source_of, row_in = np.array(ALL, np.int64)[chosen].T
        features, tokens = expected_rows(sources, source_of, row_in)

        assemble(tmp_path / "a.h5", content_of(features, tokens), sources, source_of, row_in)

        stored = read(tmp_path / "a.h5")
        assert np.array_equal(stored[0], features)
        assert np.array_equal(stored[1], tokens)


def test_without_tokens_only_features_are_copied(tmp_path: Path) -> None:
    source = write_source(tmp_path / "source.h5", 6, 0, tokens=0)
    rows = np.array([5, 0, 1, 2, 0])
    features, tokens = expected_rows([source], np.zeros(5, int), rows)

    assemble(tmp_path / "a.h5", content_of(features, tokens), [source], np.zeros(5, np.int64), rows)

    assert np.array_equal(read(tmp_path / "a.h5")[0], features)


def test_progress_counts_to_the_end_in_steps_of_what_was_copied(sources: list[Path], tmp_path: Path) -> None:
    source_of, row_in = np.array(ALL, np.int64).T
    said: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        said.append((done, total))

    assemble(
        tmp_path / "a.h5", content_of(*expected_rows(sources, source_of, row_in)), sources, source_of, row_in, progress
    )

    assert said[-1] == (46, 46)
    assert [done for done, _ in said] == sorted({done for done, _ in said})
    assert len(said) == 8  # Features and tokens of four sources, each in one run.


def test_bytes_are_copied_through_memory_where_the_file_system_cannot(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr("ccassets.database.writer._BLOCK", 7)
    source_of, row_in = np.array(ALL[::-1], np.int64).T
    features, tokens = expected_rows(sources, source_of, row_in)

    assemble(tmp_path / "a.h5", content_of(features, tokens), sources, source_of, row_in)

    assert np.array_equal(read(tmp_path / "a.h5")[1], tokens)


# --- what is refused ---------------------------------------------------------------------------------


def assemble_first_rows(path: Path, sources: list[Path], change: Callable[[], object]) -> None:
    """Plan the first row of every source, change something, then assemble."""
    source_of, row_in = np.arange(len(sources)), np.zeros(len(sources), np.int64)
    features, tokens = expected_rows(sources, source_of, row_in)
    change()
    assemble(path, content_of(features, tokens), sources, source_of, row_in)


@pytest.mark.parametrize("other", [{"dim": DIM + 1}, {"tokens": TOKENS + 1}, {"tokens": 0}])
def test_a_source_of_another_shape_is_refused_by_name(tmp_path: Path, other: dict[str, int]) -> None:
    files = [write_source(tmp_path / f"{name}.h5", 4, 0) for name in "ab"]

    with pytest.raises(DatabaseError, match=r"b\.h5: D and T_img are .*; expected \(5, 3\) in float16"):
        assemble_first_rows(tmp_path / "new.h5", files, lambda: write_source(files[1], 4, 0, **other))

    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_a_source_that_was_truncated_is_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.h5", 4, 0)

    with pytest.raises(DatabaseError, match=r"a\.h5 cannot be opened as HDF5"):
        assemble_first_rows(tmp_path / "new.h5", [source], lambda: os.truncate(source, source.stat().st_size - 100))


def test_a_source_whose_rows_end_early_is_refused(tmp_path: Path) -> None:
    """HDF5 looks at the end of the file it recorded; a copied range must not trust that its bytes are there."""
    source = write_source(tmp_path / "a.h5", 4, 0)
    features, tokens = read(source)
    with open_database(source) as held:
        assemble_path = tmp_path / "new.h5"
        offset = held.byte_range("image_token_features")[0]

        def truncate() -> None:
            with new_file(assemble_path, content_of(features, tokens)) as rows:
                os.truncate(source, offset + 20)
                rows.copy("image_token_features", 0, held.fileno(), offset, 4)

        with pytest.raises(DatabaseError, match="it was truncated"):
            truncate()
    assert not assemble_path.exists()


@pytest.mark.parametrize("rows", [4, 1])
def test_a_source_that_was_replaced_since_the_plan_is_refused(tmp_path: Path, rows: int) -> None:
    source = write_source(tmp_path / "a.h5", 4, 0)
    features, tokens = read(source)
    write_source(source, rows, seed=1)

    with pytest.raises(DatabaseError, match="does not hold the rows it held when the build began"):
        assemble(tmp_path / "new.h5", content_of(features, tokens), [source], np.zeros(4, np.int64), np.arange(4))


def test_chunked_and_float32_sources_are_refused(tmp_path: Path) -> None:
    source = write_source(tmp_path / "a.h5", 4, 0)
    features, tokens = read(source)
    for form, says in (
        ({"data": tokens, "chunks": (1, TOKENS, DIM)}, "/image_token_features: expected a contiguous data set"),
        ({"data": tokens.astype("<f4")}, "dtypes .*float32.*; expected .* in float16"),
    ):
        with h5py.File(source, "r+") as file:
            del file["image_token_features"]
            file.create_dataset("image_token_features", **form)

        with pytest.raises(DatabaseError, match=says):
            assemble(tmp_path / "new.h5", content_of(features, tokens), [source], np.zeros(4, np.int64), np.arange(4))


def test_digests_written_are_those_of_the_copied_rows(sources: list[Path], tmp_path: Path) -> None:
    source_of, row_in = np.array(ALL[::-2], np.int64).T
    assemble(tmp_path / "a.h5", content_of(*expected_rows(sources, source_of, row_in)), sources, source_of, row_in)

    with open_database(tmp_path / "a.h5") as database:
        assert np.array_equal(database.feature_digest, feature_digests(*read(tmp_path / "a.h5")))
