"""The writer: how bytes lie on disk, what other tools make of them, and what is left when the disk refuses."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.database.feature_digests import feature_digests
from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets.errors import StorageError
from ccassets_tests.database.made_files import (
    DIM,
    TOKENS,
    row_content,
    unit_rows,
    write_database,
    write_image_part,
    write_template_part,
)


def datasets(path: Path) -> dict[str, h5py.Dataset]:
    """Every data set by path, from a file that stays open as long as they are used."""
    by_name: dict[str, h5py.Dataset] = {}
    h5py.File(path).visititems(
        lambda name, item: by_name.update({name: item}) if isinstance(item, h5py.Dataset) else None
    )
    return by_name


# --- bytes on disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [12, 13, 1])  # An odd D leaves everything behind it misaligned unless we align it.
@pytest.mark.parametrize("write", [write_database, write_image_part, write_template_part])
def test_every_array_is_contiguous_unfiltered_little_endian_and_aligned(tmp_path: Path, write: Any, dim: int) -> None:
    path = write(tmp_path / "a.h5", **({"dim": dim, "matrix": True} if write is write_database else {}))

    for name, dataset in datasets(path).items():
        creation = dataset.id.get_create_plist()
        assert creation.get_layout() == h5py.h5d.CONTIGUOUS, name
        assert creation.get_nfilters() == 0, name
        if dataset.dtype.kind in "fiu":
            assert dataset.dtype.newbyteorder("<") == dataset.dtype, name
            offset = dataset.id.get_offset()
            assert offset is not None, name
            assert offset % (4096 if name in {"image_features", "image_token_features"} else 64) == 0, name


def test_dtypes_are_those_of_the_format(tmp_path: Path) -> None:
    stored = datasets(write_database(tmp_path / "a.h5", matrix=True))

    template = "templates/concept_prompts_t01"
    expected = {
        "image_features": "<f2",
        "image_token_features": "<f2",
        "ids": "<i8",
        "labels": "<i8",
        "label_matrix": "|u1",
        "image_digest": "|u1",
        "feature_digest": "|u1",
        f"{template}/text_features": "<f4",
        f"{template}/text_token_features": "<f4",
        f"{template}/input_ids": "<i4",
        f"{template}/attention_mask": "|u1",
        f"{template}/subject_span": "<i4",
    }
    assert {name: stored[name].dtype.str for name in expected} == expected
    for name in ("split", "keys", "groups", f"{template}/texts"):
        kind = h5py.check_string_dtype(stored[name].dtype)
        assert (kind.encoding, kind.length) == ("utf-8", None)
    assert stored["ids"][:].tolist() == list(range(20))


def test_the_bytes_where_hdf5_says_they_are_are_the_rows(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    raw = path.read_bytes()

    for name, shape in (("image_features", (20, DIM)), ("image_token_features", (20, TOKENS, DIM))):
        dataset = datasets(path)[name]
        values = np.frombuffer(raw, "<f2", int(np.prod(shape)), dataset.id.get_offset()).reshape(shape)
        assert np.array_equal(values, dataset[...])
        assert values.any(axis=-1).all()


def test_a_large_file_is_not_written_through_memory(tmp_path: Path) -> None:
    """100 GB of rows take no time to allocate: only what is written takes space."""
    rows, dim, tokens = 1000, 1000, 50_000
    content = row_content({"train": rows}, np.zeros((rows, 1), np.float16), None)

    with new_file(tmp_path / "a.h5", FileContent("image-part", dim, tokens, content)) as writer:
        writer.write("image_token_features", rows - 1, np.ones((1, tokens, dim), np.float16))

    with open_database(tmp_path / "a.h5") as database:
        assert database.image_token_features.shape == (rows, tokens, dim)
        assert database.image_token_features[-1, -1, -1] == 1
    stat = (tmp_path / "a.h5").stat()
    assert stat.st_size > 100e9
    assert stat.st_blocks * 512 < 200e6


def test_rows_may_be_written_in_any_order_and_pieces(tmp_path: Path) -> None:
    features = unit_rows(np.random.default_rng(0), 9).astype(np.float16)
    content = FileContent("image-part", DIM, 0, row_content({"train": 9}, features, None))

    with new_file(tmp_path / "a.h5", content) as writer:
        for rows in (slice(7, 9), slice(0, 1), slice(1, 7), slice(3, 3)):
            writer.write("image_features", rows.start, features[rows].astype(np.float32))

    with open_database(tmp_path / "a.h5") as database:
        assert np.array_equal(database.image_features, features)


def test_rows_of_many_blocks_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccassets.database.writer._BLOCK", 7)

    path = write_database(tmp_path / "a.h5")

    assert validate_database(path, deep=True) == []


# --- content -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, TOKENS])
def test_no_rows_are_a_legal_file(tmp_path: Path, tokens: int) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 0, "val": 0}, tokens=tokens)

    with open_database(path) as database:
        assert (len(database), database.dim, database.token_count) == (0, DIM, tokens)
        assert database.splits == {"train": slice(0, 0), "val": slice(0, 0)}
        assert database.image_features.shape == (0, DIM)
        assert database.select("val").image_features.shape == (0, DIM)
        assert database.select(rows=[]).labels.shape == (0,)
    assert not [finding for finding in validate_database(path, deep=True) if finding.severity == "error"]


def test_without_tokens_there_is_no_token_data_set_and_t_img_says_so(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5", tokens=0)) as database:
        assert database.image_token_features is None
        assert "image_token_features" not in database.file
        assert database.attributes["T_img"] == -1


def test_any_character_comes_back_as_it_was(tmp_path: Path) -> None:
    texts = ["plättchen", "圆形细胞核", "🩸 blood", "a\nb\tc", "'\"\\{}", "e\u0301", "é"]
    features = unit_rows(np.random.default_rng(0), len(texts)).astype(np.float16)
    rows = replace(row_content({"病例 1": len(texts)}, features, None), keys=texts, groups=texts)
    template = TemplateContent(texts=texts, text_features=unit_rows(np.random.default_rng(1), len(texts)))
    attributes = {"label_texts": texts, "split_counts": {"病例 1": len(texts)}, "dataset": "2024", "note": "核"}

    with new_file(tmp_path / "a.h5", FileContent("database", DIM, 0, rows, {"free": template}, attributes)) as writer:
        writer.write("image_features", 0, features)

    with open_database(tmp_path / "a.h5") as database:
        assert database.keys.tolist() == database.groups.tolist() == texts
        assert database.templates["free"].texts == database.attributes["label_texts"] == texts
        assert dict(database.splits) == {"病例 1": slice(0, len(texts))}
        assert database.attributes["dataset"] == "2024"  # A JSON string: never the number.
        assert database.attributes["note"] == "核"
    with h5py.File(tmp_path / "a.h5") as file:
        assert "plättchen" in file.attrs["label_texts"]
        assert file.attrs["dataset"] == '"2024"'


def test_json_attributes_may_be_longer_than_64_kb(tmp_path: Path) -> None:
    words = [f"concept {number} {'x' * 50}" for number in range(5000)]

    with new_file(tmp_path / "a.h5", FileContent("database", DIM, 0, attributes={"concept_texts": words})):
        pass

    with h5py.File(tmp_path / "a.h5") as file:
        assert len(file.attrs["concept_texts"]) > 65536
        assert json.loads(file.attrs["concept_texts"]) == words


def test_numbers_are_stored_as_the_format_says(tmp_path: Path) -> None:
    with h5py.File(write_database(tmp_path / "a.h5")) as file:
        assert {name: file.attrs[name].dtype.str for name in ("D", "T_img")} == {"D": "<i8", "T_img": "<i8"}
        assert {name: file.attrs[name].dtype.str for name in ("logit_scale", "logit_bias")} == {
            "logit_scale": "<f8",
            "logit_bias": "<f8",
        }
        assert (file.attrs["version"], file.attrs["profile"], file.attrs["logit_scale_space"]) == (
            "1.0",
            "database",
            "log",
        )
        template = file["templates/label_prompts_t01"].attrs
        assert (template["K"], template["D"]) == (3, DIM)
        assert template["T_txt"] == file["templates/label_prompts_t01/text_token_features"].shape[1]


# --- other tools -------------------------------------------------------------------------------------


def tool(name: str, *arguments: object) -> str:
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"{name} is not installed")
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def test_stock_hdf5_tools_list_the_file_without_a_plugin(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")

    header = tool("h5dump", "-H", path)
    listing = tool("h5ls", "-r", path)

    assert 'DATASET "image_token_features"' in header
    assert f"DATASPACE  SIMPLE {{ ( 20, {TOKENS}, {DIM} ) / ( 20, {TOKENS}, {DIM} ) }}" in header
    assert f"/templates/concept_prompts_t01/text_features Dataset {{3, {DIM}}}" in listing
    assert "OFFSET" in tool("h5dump", "-p", "-H", "-d", "image_features", path)


def test_stock_hdf5_tools_read_the_values(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")

    assert "(0): 0, 1, 2, 3" in tool("h5dump", "-d", "ids", path)
    assert '"val/' in tool("h5dump", "-d", "keys", path)


def test_the_original_reading_lines_work_unchanged(tmp_path: Path) -> None:
    with h5py.File(write_database(tmp_path / "a.h5"), "r") as f:
        i, t = 11, "concept_prompts_t02"
        assert f["image_features"][i].shape == (DIM,)
        assert f["image_token_features"][i].shape == (TOKENS, DIM)
        assert f["split"][i].decode() == "val"
        assert [text.decode() for text in f["templates"][t]["texts"][:]] == [
            "round nucleus in a cell",
            "圆形细胞核 in a cell",
            "granules in a cell",
        ]
        assert json.loads(f.attrs["split_counts"]) == {"train": 9, "val": 5, "test": 6}
        assert int(f["labels"][i]) in {0, 1, 2}


# --- publishing --------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_file_whose_rows_could_not_be_written(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    before = path.read_bytes()
    content = FileContent("image-part", DIM, 0, row_content({"train": 2}, np.zeros((2, 1), np.float16), None))

    def fail() -> None:
        with new_file(path, content):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()

    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.h5"]


def test_who_holds_the_old_file_reads_the_old_bytes_while_a_new_one_is_published(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 9})
    with open_database(path) as first, open_database(path) as untouched:
        features = first.image_features.copy()
        tokens = first.image_token_features.copy()

        write_database(path, {"train": 3, "test": 8}, tokens=0)

        # One that had read before, and one that maps its arrays only now.
        for database in (first, untouched):
            assert np.array_equal(database.image_features, features)
            assert np.array_equal(database.image_token_features, tokens)
            assert list(database.splits) == ["train"]
    with open_database(path) as new:
        assert (len(new), new.image_token_features) == (11, None)


def limits(whole: int) -> Iterator[int]:
    """File sizes to stop at: the first kilobytes one after the other, then evenly."""
    yield from (0, 1, 95, 96, 2048, 4095, 4096, 4097, 8192)
    yield from range(10_000, whole, whole // 23)


def test_a_full_disk_leaves_nothing_behind_and_is_one_sentence_wherever_it_stops(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from ccassets.errors import StorageError\nfrom ccassets_tests.database.made_files import write_database\n"
        "path = Path(sys.argv[1])\n"
        "for limit in map(int, sys.argv[2:]):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try:\n        write_database(path, {'train': 900, 'val': 100})\n"
        "    except StorageError as error:\n        said = str(error)\n"
        "    else:\n        said = 'written'\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
        "    print(limit, len(list(path.parent.iterdir())), said)\n"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    whole = write_database(tmp_path / "whole.h5", {"train": 900, "val": 100}).stat().st_size
    folder = tmp_path / "full"
    folder.mkdir()
    sizes = list(limits(whole))

    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "a.h5"), *map(str, sizes)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    expected = f"{folder / 'a.h5'} could not be written: File too large."
    assert done.stdout.splitlines() == [f"{size} 0 {expected}" for size in sizes]


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageError, match=r"file/a\.h5 could not be written: (Not a directory|File exists)"):
        write_database(tmp_path / "file" / "a.h5")


def test_a_digest_in_the_file_is_that_of_the_written_rows(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "a.h5")) as database:
        computed = feature_digests(database.image_features, database.image_token_features)

        assert np.array_equal(database.feature_digest, computed)
