"""Search against brute force in double precision, whatever the blocks, and from the command line."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ccassets.analysis import vector_search as s
from ccassets.analysis.float16_kernel import MOST_VECTORS, kernel_cosines
from ccassets.analysis.image_source import image_reader
from ccassets.analysis.scores import cosines, local_features
from ccassets.cli import main
from ccassets.database import hdf5
from ccassets.database.reader import Database, open_database
from ccassets.database.writer import FileContent, new_file
from ccassets.datasets.image_decoding import image_digest
from ccassets.encoders.encoder_contract import EncoderCard, TextFeatures
from ccassets.errors import AnalysisError, CcassetsError, DatabaseError, DatasetError, StorageError
from ccassets.study.schema import FolderConfig, Study
from ccassets_tests.database.made_files import row_content, template_content, unit_rows, write_database

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "legacy_good.h5"
DIM = 12


class Letters:
    """An encoder as a user would write one: a text is the count of its letters; tokens are its characters."""

    card = EncoderCard(
        kind="python",
        weights_digest="none",
        architecture={"name": "letters"},
        preprocessing={},
        text_pooling="sum",
        tokenizer_digest="none",
        dim=DIM,
        token_count=4,
        image_size=8,
        dtype="float32",
    )

    def encode_texts(self, prompts: list[str]) -> TextFeatures:
        width = max(map(len, prompts))
        tokens = np.full((len(prompts), width, DIM), 0.5, np.float32)
        ids, mask = np.zeros((len(prompts), width), np.int32), np.zeros((len(prompts), width), np.uint8)
        offsets = np.zeros((len(prompts), width, 2), np.int32)
        for row, prompt in enumerate(prompts):
            for position, letter in enumerate(prompt):
                tokens[row, position] = np.eye(DIM)[ord(letter) % DIM]
                ids[row, position], mask[row, position] = ord(letter), 1
                offsets[row, position] = (position, position + 1)
        sums = (tokens * mask[:, :, None]).sum(axis=1)
        return TextFeatures(sums / np.linalg.norm(sums, axis=1, keepdims=True), tokens, ids, mask, offsets)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    """20 rows in three splits, two rows a group, labels 0 to 2, four patches each, made by `Letters`."""
    rng = np.random.default_rng(11)
    splits = {"train": 9, "val": 5, "test": 6}
    features = unit_rows(rng, 20).astype(np.float16)
    tokens = rng.standard_normal((20, 4, DIM)).astype(np.float16)
    attributes = {
        "concept_texts": ["round nucleus", "granules"],
        "label_classes": ["RBC", "WBC", "PLT"],
        "label_texts": ["red blood cell", "white blood cell", "platelet"],
        "provenance": {"encoder": {"identity": Letters.card.identity}, "dataset": {"labels": "present"}},
    }
    templates = {"concept_prompts_t01": template_content(rng, ["a round nucleus", "a granules"], 8)}
    content = FileContent("database", DIM, 4, row_content(splits, features, tokens), templates, attributes)
    with new_file(tmp_path / "small.h5", content) as writer:
        writer.write("image_features", 0, features)
        writer.write("image_token_features", 0, tokens)
    with open_database(tmp_path / "small.h5") as opened:
        yield opened


@pytest.fixture
def blocks_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are scanned three rows at a time, so that hits come from many blocks."""

    def three(values: Any, block_bytes: int = 0, rows: slice | None = None) -> Any:
        return hdf5.iter_blocks(values, 3 * values[0].nbytes, rows)

    monkeypatch.setattr(s, "iter_blocks", three)


def normalise(vectors: np.ndarray) -> np.ndarray:
    wide = np.asarray(vectors, np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)


def expected(database: Database, vector: np.ndarray, rows: Any = slice(None)) -> list[tuple[int, float]]:
    """All rows (or some) with their cosine, best first."""
    numbers = np.arange(len(database))[rows]
    cosines = normalise(database.image_features[numbers]) @ normalise(vector)
    order = np.argsort(-cosines, kind="stable")
    return list(zip(numbers[order].tolist(), cosines[order].tolist(), strict=True))


def same(hits: list[s.Hit], expected_hits: list[tuple[int, float]]) -> bool:
    return [hit.row for hit in hits] == [row for row, _ in expected_hits] and bool(
        np.allclose([hit.score for hit in hits], [score for _, score in expected_hits], atol=1e-6)
    )


# --- nearest rows -----------------------------------------------------------------------------------


def test_a_concept_finds_its_nearest_images(database: Database, blocks_of_three: None) -> None:
    hits = s.search(database, concepts=["granules"], k=7)
    assert same(hits, expected(database, database.concept_features(["granules"])[0])[:7])
    best = hits[0]
    assert database.keys is not None
    assert database.groups is not None
    assert (best.key, best.split) == (database.keys[best.row], database.split[best.row])
    assert (best.label, best.group, best.patch) == (database.labels[best.row], database.groups[best.row], None)


def random_database(path: Path, rng: np.random.Generator, dim: int) -> Database:
    """A few hundred rows of any length with two patches each: doubled, zero, not finite, close to one another."""
    count = int(rng.integers(1, 400))
    features = unit_rows(rng, count, dim) * rng.choice([0.01, 1, 30], (count, 1))
    features[rng.random(count) < 0.2] = features[0]
    near = rng.random(count) < 0.3
    features[near] = features[-1] * (1 + 1e-3 * rng.standard_normal((int(near.sum()), dim)))
    features[rng.random(count) < 0.03] = 0
    features[rng.random(count) < 0.03, rng.integers(dim)] = rng.choice([np.nan, np.inf])
    features = features.astype(np.float16)
    tokens = np.stack([features[rng.permutation(count)], features], axis=1)
    content = FileContent("database", dim, 2, row_content({"train": count}, features, tokens), {}, {})
    with new_file(path, content) as writer:
        writer.write("image_features", 0, features)
        writer.write("image_token_features", 0, tokens)
    return open_database(path)


@pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow)")
@pytest.mark.parametrize("fast", [True, False])
def test_fifty_random_files_give_the_order_of_float64(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    monkeypatch.setattr("ccassets.analysis.float16_kernel._kernel_is_fast", lambda: fast)
    rng = np.random.default_rng(5)
    for number in range(50):
        dim = 2 ** int(rng.integers(13)) + int(rng.integers(2)) if number else 4096
        with random_database(tmp_path / f"{number}.h5", rng, dim) as database:
            queries = unit_rows(rng, int(rng.choice([1, 3, 7, 20])), dim)
            allowed = rng.random(len(database)) < rng.choice([0.1, 0.6, 1.1])
            k = int(rng.integers(1, 30))
            for vector, hits in zip(queries, s.nearest_images_of_each(database, queries, k, allowed), strict=True):
                compare(hits, np.asarray(database.image_features)[:, None], vector, k, allowed)
            assert database.image_token_features is not None
            hits = s.nearest_patches(database, queries[0], k, allowed)
            compare(hits, np.asarray(database.image_token_features), queries[0], k, allowed)


def compare(hits: list[s.Hit], values: np.ndarray, vector: np.ndarray, k: int, allowed: np.ndarray) -> None:
    wide, query = values.astype(np.float64), vector.astype(np.float64)
    scores = ((wide * query).sum(axis=2) / np.sqrt((wide * wide).sum(axis=2))).max(axis=1)
    rows = np.flatnonzero(allowed)
    order = rows[np.lexsort((rows, -scores[rows]))][:k]
    assert [hit.row for hit in hits] == order.tolist()
    np.testing.assert_array_equal([hit.score for hit in hits], scores[order].astype(np.float32))


@pytest.mark.parametrize("row", [4, -16])
def test_a_row_finds_its_neighbours_and_not_itself(database: Database, row: int, blocks_of_three: None) -> None:
    hits = s.search(database, rows=[row], k=50)
    assert same(hits, [hit for hit in expected(database, database.image_features[4]) if hit[0] != 4])
    assert len(hits) == 19


def test_a_text_is_encoded_as_it_stands(database: Database) -> None:
    vector = Letters().encode_texts(["abba"]).features[0]
    assert same(s.search(database, texts=["abba"], encoder=Letters(), k=5), expected(database, vector)[:5])


def test_several_things_are_the_sum_of_their_vectors_less_what_is_taken_away(database: Database) -> None:
    texts = Letters().encode_texts(["abba", "cd", "efg"]).features
    vector = (
        normalise(database.image_features[[3]])[0] + database.concept_features(["granules"])[0] + texts[0] + texts[1]
    )
    hits = s.search(
        database, rows=[3], concepts=["granules"], texts=["abba", "cd"], minus=["efg"], encoder=Letters(), k=30
    )
    assert same(hits, [hit for hit in expected(database, vector - texts[2]) if hit[0] != 3])


@pytest.mark.parametrize("what", [{"concepts": ["granules"]}, {"texts": ["abba", "cd"], "encoder": Letters()}])
def test_patches_tell_which_one_of_each_image_is_nearest(
    database: Database, what: dict[str, Any], blocks_of_three: None
) -> None:
    if "concepts" in what:
        vector = local_features(database, ["granules"])[0]
    else:
        tokens = Letters().encode_texts(what["texts"]).tokens
        assert tokens is not None
        vector = normalise(tokens[0].mean(axis=0)) + normalise(tokens[1, :2].mean(axis=0))
    assert database.image_token_features is not None
    cosines = normalise(database.image_token_features) @ normalise(vector)
    hits = s.search(database, **what, patches=True, k=6)
    assert [hit.row for hit in hits] == np.argsort(-cosines.max(axis=1))[:6].tolist()
    assert [hit.patch for hit in hits] == cosines.argmax(axis=1)[[hit.row for hit in hits]].tolist()
    assert [hit.score for hit in hits] == pytest.approx(np.sort(cosines.max(axis=1))[::-1][:6].tolist(), abs=1e-6)


def test_filters_leave_only_their_rows(database: Database, blocks_of_three: None) -> None:
    vector = database.concept_features(["granules"])[0]
    assert database.groups is not None
    for where, rows in [
        (s.RowFilter(split="val"), np.arange(9, 14)),
        (s.RowFilter(label=2), np.flatnonzero(database.labels == 2)),
        (s.RowFilter(label="2"), np.flatnonzero(database.labels == 2)),
        (s.RowFilter(label="WBC"), np.flatnonzero(database.labels == 1)),
        (s.RowFilter(label="white blood cell"), np.flatnonzero(database.labels == 1)),
        (s.RowFilter(group="test patient 8"), np.flatnonzero(database.groups == "test patient 8")),
        (s.RowFilter("test", 1), np.flatnonzero((database.labels == 1) & (database.split == "test"))),
    ]:
        assert len(rows)
        assert same(s.search(database, concepts=["granules"], k=99, where=where), expected(database, vector, rows))
    assert s.search(database, concepts=["granules"], where=s.RowFilter("val", group="test patient 8")) == []


def test_a_label_of_a_multi_label_file_is_any_of_a_rows_labels(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "multi.h5", matrix=True)) as database:
        assert database.label_matrix is not None
        hits = s.search(database, rows=[0], k=99, where=s.RowFilter(label=1))
        assert {hit.row for hit in hits} == set(np.flatnonzero(database.label_matrix[:, 1]).tolist()) - {0}


def test_equal_images_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    features = np.tile(np.eye(4, dtype=np.float16)[0], (9, 1))
    content = FileContent("database", 4, 0, row_content({"train": 9}, features, None))
    with new_file(tmp_path / "equal.h5", content) as writer:
        writer.write("image_features", 0, features)
    with open_database(tmp_path / "equal.h5") as database:
        assert [hit.row for hit in s.search(database, rows=[2], k=3)] == [0, 1, 3]


def test_a_chunked_file_of_the_original_scripts_is_searched_too() -> None:
    with open_database(LEGACY) as database:
        hits = s.search(database, rows=[1, 0], k=3)
        vector = normalise(database.select(rows=[0, 1]).image_features).sum(axis=0)
        features = normalise(np.asarray(database.image_features[:]))
        order = [row for row in np.argsort(-(features @ normalise(vector))).tolist() if row > 1]
        assert [hit.row for hit in hits] == order[:3]
        assert hits[0].key is None
        with pytest.raises(AnalysisError, match="does not say which encoder"):
            s.search(database, texts=["a cell"], encoder=Letters())


# --- what is refused ---------------------------------------------------------------------------------


class OtherLetters(Letters):
    card = EncoderCard(
        **{**{f: getattr(Letters.card, f) for f in Letters.card.__dataclass_fields__}, "dtype": "bfloat16"}
    )


@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ({}, AnalysisError, "Nothing to search for"),
        ({"texts": ["x"]}, AnalysisError, "needs the encoder"),
        ({"texts": ["x"], "encoder": OtherLetters()}, AnalysisError, "cannot be compared"),
        ({"texts": ["x"], "minus": ["x"], "encoder": Letters()}, AnalysisError, "nothing is left"),
        ({"concepts": ["nothing"]}, DatabaseError, "no concepts"),
        ({"rows": [20]}, DatabaseError, "has 20 rows"),
        ({"rows": [0], "patches": True}, AnalysisError, "whole images"),
        ({"rows": [0], "k": 0}, AnalysisError, "at least one"),
        ({"rows": [0], "where": s.RowFilter(split="all")}, DatabaseError, "no split 'all'"),
        ({"rows": [0], "where": s.RowFilter(label=7)}, AnalysisError, r"no label 7; it has \[0, 1, 2\]"),
        ({"rows": [0], "where": s.RowFilter(label="nothing")}, AnalysisError, "no label 'nothing'; it has"),
        ({"rows": [0], "where": s.RowFilter(group="x")}, AnalysisError, "no group 'x'"),
    ],
)
def test_what_cannot_be_searched_is_said(
    database: Database, what: dict[str, Any], error: type[CcassetsError], words: str
) -> None:
    with pytest.raises(error, match=words):
        s.search(database, **what)


def test_a_file_without_tokens_has_no_patches_to_search(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "plain.h5", tokens=0)) as database:
        assert s.search(database, concepts=["granules"], k=2)
        with pytest.raises(AnalysisError, match="no patches"):
            s.search(database, concepts=["granules"], patches=True)


# --- near-duplicates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rows_of_a_block", [2, 3, 7, 2048])
def test_near_duplicates_are_all_pairs_across_splits(
    database: Database, rows_of_a_block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s, "_PAIR_ROWS", rows_of_a_block)
    cosines = normalise(database.image_features) @ normalise(database.image_features).T
    apart = database.split[:, None] != database.split[None, :]
    pairs = [(cosines[a, b], a, b) for a in range(20) for b in range(a + 1, 20) if apart[a, b] and cosines[a, b] >= 0.3]
    pairs.sort(key=lambda pair: -pair[0])
    near = s.near_duplicates(database, 0.3)
    assert len(pairs) > 5
    assert [(pair.row, pair.other_row) for pair in near.pairs] == [(a, b) for _, a, b in pairs]
    assert [pair.similarity for pair in near.pairs] == pytest.approx([value for value, _, _ in pairs], abs=1e-6)
    assert near.pairs[0].split != near.pairs[0].other_split
    few = s.near_duplicates(database, 0.3, most=2)
    assert (few.pairs, few.count) == (near.pairs[:2], len(pairs))


# --- hits as files -----------------------------------------------------------------------------------


def test_hits_and_pairs_are_written_as_csv(database: Database, tmp_path: Path) -> None:
    hits = s.search(database, rows=[0], k=3)
    s.write_hits(hits, tmp_path / "new" / "hits.csv")
    with (tmp_path / "new" / "hits.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["row"]), row["key"], float(row["score"]), row["patch"]) for row in rows] == [
        (hit.row, hit.key, hit.score, "") for hit in hits
    ]
    s.write_pairs((), tmp_path / "pairs.csv")
    assert (tmp_path / "pairs.csv").read_text().startswith("similarity,row,key,split,label,other_row")


def test_a_file_that_cannot_be_written_is_named(database: Database, tmp_path: Path) -> None:
    (tmp_path / "in the way").write_text("")
    with pytest.raises(StorageError, match="in the way"):
        s.write_hits([], tmp_path / "in the way" / "hits.csv")
    hits, picture = s.search(database, rows=[0], k=1), Image.new("RGB", (4, 4))
    with pytest.raises(StorageError, match="in the way"):
        s.save_hit_images(hits, lambda row: picture, tmp_path / "in the way")


@pytest.fixture
def cells(tmp_path: Path) -> tuple[Study, Path]:
    """A folder study of six pictures, and the database of five of them, in another order."""
    keys = [f"train/a/{name}.png" for name in "fbdca"]
    digests = []
    for shade, name in enumerate("abcdef"):
        path = tmp_path / "cells" / "train" / "a" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (40 * shade, 0, 0)).save(path)
    for key in keys:
        with Image.open(tmp_path / "cells" / key) as image:
            digests.append(image_digest(image))
    study = Study(
        name="cells",
        folder=tmp_path,
        dataset=FolderConfig(kind="folder", root=Path("cells"), splits=("train",)),
        encoder={"kind": "phantom"},  # type: ignore[arg-type]
    )
    features = unit_rows(np.random.default_rng(0), 5).astype(np.float16)
    rows = row_content({"train": 5}, features, None)
    rows = type(rows)(
        split=rows.split,
        labels=rows.labels,
        keys=keys,
        image_digest=np.frombuffer(b"".join(digests), np.uint8).reshape(5, 32),
        feature_digest=rows.feature_digest,
    )
    with new_file(tmp_path / "cells.h5", FileContent("database", DIM, 0, rows)) as writer:
        writer.write("image_features", 0, features)
    return study, tmp_path / "cells.h5"


def test_hits_are_copied_as_the_images_that_were_encoded(cells: tuple[Study, Path], tmp_path: Path) -> None:
    study, path = cells
    with open_database(path) as database:
        hits = s.search(database, rows=[0], k=4)
        saved = s.save_hit_images(hits, image_reader(study, database), tmp_path / "hits")
        assert [file.name for file in saved] == [
            f"{rank:04d}_row{hit.row}_{hit.score:.4f}.png" for rank, hit in enumerate(hits, start=1)
        ]
        for file, hit in zip(saved, hits, strict=True):
            with Image.open(file) as image:
                assert image.getpixel((0, 0)) == (40 * "abcdef".index("fbdca"[hit.row]), 0, 0)


def test_an_image_that_changed_or_is_gone_is_named(cells: tuple[Study, Path], tmp_path: Path) -> None:
    study, path = cells
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "cells" / "train" / "a" / "f.png")
    (tmp_path / "cells" / "train" / "a" / "b.png").unlink()
    with open_database(path) as database:
        read = image_reader(study, database)
        with pytest.raises(DatasetError, match=r"'train/a/f.png' \(row 0\): the image is not the one"):
            read(0)
        with pytest.raises(DatasetError, match=r"no image 'train/a/b.png' in the split 'train' \(row 1\)"):
            read(1)
        assert read(2).getpixel((0, 0)) == (120, 0, 0)


# --- the command line --------------------------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command line in this process: exit code, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ccassets", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return call


def test_search_prints_hits_or_json(database: Database, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("search", database.path, "--concept", "granules", "-k", 3, "--split", "test", "--json")
    hits = s.search(database, concepts=["granules"], k=3, where=s.RowFilter(split="test"))
    assert code == 0
    assert json.loads(out) == [vars(hit) for hit in hits]
    code, out, _ = run("search", database.path, "--row", 4, "-k", 2, "--output", tmp_path / "hits.csv")
    assert code == 0
    assert [line.split()[2] for line in out.splitlines()] == [str(h.row) for h in s.search(database, rows=[4], k=2)]
    assert len((tmp_path / "hits.csv").read_text().splitlines()) == 3


def test_search_takes_and_prints_the_name_of_a_label(database: Database, run: Run) -> None:
    by_name, by_number = (
        run("search", database.path, "--row", 4, "--label", label, "--top", 3) for label in ("WBC", "1")
    )
    assert by_name == by_number
    assert [re.findall(r"label (.*?)  ", line) for line in by_name[1].splitlines()] == [["1 (WBC)"]] * 3


def test_a_search_by_text_asks_for_the_study(database: Database, run: Run) -> None:
    code, out, err = run("search", database.path, "--text", "a round cell")
    assert (code, out) == (2, "")
    assert "--study" in err
    assert run("search", database.path)[0] == 2
    assert run("search", database.path, "--concept", "nothing")[0] == 2


def test_duplicates_end_with_one_when_there_are_any(database: Database, run: Run) -> None:
    near = s.near_duplicates(database, 0.3)
    code, out, _ = run("duplicates", database.path, "--similarity", 0.3, "--json")
    assert (code, json.loads(out)["found"]) == (1, near.count)
    code, out, err = run("duplicates", database.path, "--similarity", 0.999)
    assert (code, out) == (0, "")
    assert "0 pairs" in err


@pytest.mark.parametrize("count", [0, 1, 2, 4, 5, 16, 17])
def test_vectors_may_lie_in_memory_in_any_order(count: int) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 64)).astype(np.float16)
    columns = normalise(rng.standard_normal((count, 64))).T.copy()
    expected = rows.astype(float) @ columns / np.linalg.norm(rows.astype(float), axis=1)[:, None]
    if count <= MOST_VECTORS:
        assert kernel_cosines(rows, columns.T) == pytest.approx(expected, abs=2e-4)
    assert cosines(rows, columns.T) == pytest.approx(expected, abs=2e-4)
