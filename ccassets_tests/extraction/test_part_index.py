"""The part index: it says what the parts say, never more, and nothing depends on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import ccassets
from ccassets.extraction import parts as parts_module
from ccassets.extraction.part_index import read_part_index, write_part_index
from ccassets.extraction.parts import RowIndex, VerifiedFiles, held_rows
from ccassets.extraction.plan import plan_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import COLOURS, parts
from ccassets_tests.made_studies import write_study

ROWS = 18


@pytest.fixture
def encoded(tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study of six parts, all of them in the index."""
    monkeypatch.setattr(parts_module, "MOST_OPENED", 0)
    encoder = {"kind": "python", "target": "colours:Colours"}
    study = write_study(tmp_path / "studies" / "cells", images=image_folder, encoder=encoder, vocabulary={})
    (study.folder / "colours.py").write_text(COLOURS)
    ccassets.extract_images(study)
    assert plan_study(study).to_encode == 0
    assert index_file(study).is_file()
    return study


def index_file(study: Study) -> Path:
    return parts(study)[0].parent / "parts.index"


def held(study: Study) -> RowIndex:
    return held_rows(Store.of(study), index_file(study).parents[1].name)


def indexed(study: Study) -> dict[str, object]:
    folder = index_file(study).parent
    return dict(read_part_index(folder, folder.parent.name))


def facts(index: RowIndex) -> dict[str, object]:
    return {field.name: np.asarray(getattr(index, field.name)).tolist() for field in fields(index)}


def test_with_the_index_the_same_rows_are_held_as_without(encoded: Study) -> None:
    assert len(indexed(encoded)) == 6
    with_index = facts(held(encoded))
    index_file(encoded).unlink()
    assert facts(held(encoded)) == with_index
    assert len(with_index["row"]) == ROWS


def test_an_entry_is_taken_only_while_record_and_file_have_its_fingerprint(encoded: Study) -> None:
    part, folder = parts(encoded)[-1], index_file(encoded).parent
    true = facts(held(encoded))
    odd = {name: entry if name != part.name else replace(entry, written=0) for name, entry in indexed(encoded).items()}
    write_part_index(folder, folder.parent.name, list(odd.values()))
    assert facts(held(encoded)) != true, "the newest part came first: the entry was taken"

    VerifiedFiles(folder).forget(part)
    assert facts(held(encoded)) == true
    write_part_index(folder, folder.parent.name, list(odd.values()))
    os.utime(part)
    assert facts(held(encoded)) == true


def test_a_part_that_is_removed_truncated_or_replaced_is_noticed(encoded: Study) -> None:
    first, second, third, *_ = parts(encoded)
    rows = {part: held(encoded).rows_of(part) for part in (first, second, third)}
    first.unlink()
    assert plan_study(encoded).to_encode == rows[first]

    with second.open("r+b") as file:
        file.truncate(second.stat().st_size // 2)
    assert plan_study(encoded).to_encode == rows[first] + rows[second]
    assert held(encoded).damaged == [second.name]

    copy = third.with_suffix(".copy")
    shutil.copy2(third, copy)  # Equal size and mtime, other bytes.
    with h5py.File(copy, "r+") as file:
        file["feature_digest"][0] = 0
    os.utime(copy, ns=(third.stat().st_atime_ns, third.stat().st_mtime_ns))
    copy.replace(third)
    assert plan_study(encoded).to_encode == sum(rows.values())

    assert sum(split.encoded for split in ccassets.extract_images(encoded).splits) == sum(rows.values())
    assert plan_study(encoded).to_encode == 0


def test_a_damaged_index_says_nothing_and_is_written_anew(encoded: Study) -> None:
    whole, true = index_file(encoded).read_bytes(), facts(held(encoded))
    for position in range(0, len(whole), 97):
        index_file(encoded).write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        assert indexed(encoded) == {}
        index_file(encoded).write_bytes(whole[:position])
        assert indexed(encoded) == {}
    assert facts(held(encoded)) == true
    assert len(indexed(encoded)) == 6


def test_an_index_of_another_encoder_says_nothing(encoded: Study) -> None:
    assert dict(read_part_index(index_file(encoded).parent, "0" * 32)) == {}


def test_few_new_parts_are_opened_and_leave_the_index_as_it_is(encoded: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "MOST_OPENED", 2)
    folder, before = index_file(encoded).parent, facts(held(encoded))
    fewer = list(indexed(encoded).values())
    for missing, written in ((2, False), (3, True)):
        write_part_index(folder, folder.parent.name, fewer[missing:])
        assert facts(held(encoded)) == before
        assert len(indexed(encoded)) == (6 if written else 6 - missing)


def test_two_processes_that_write_the_index_at_once_leave_a_whole_one(encoded: Study) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ccassets.extraction import parts\n"
        "from ccassets.study.storage import Store\n"
        "parts.MOST_OPENED = 0\n"
        "store = Store(Path(sys.argv[1]), 'cells', 'features.h5')\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for _ in range(20):\n"
        "    Path(sys.argv[3]).unlink(missing_ok=True)\n"
        "    print(len(parts.held_rows(store, sys.argv[2]).row))\n"
    )
    arguments = [str(Store.of(encoded).root), index_file(encoded).parents[1].name, str(index_file(encoded))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()

    answers = [process.communicate()[0].split() for process in processes]

    assert answers == [[str(ROWS)] * 20] * 2
    assert len(held(encoded).row) == ROWS
    assert len(indexed(encoded)) == 6


def test_an_image_is_found_by_its_whole_digest_first_come_first_held() -> None:
    """Also where digests begin alike, which those of pictures hardly ever do."""
    rng = np.random.default_rng(0)
    held = rng.integers(0, 3, (200, 32), np.uint8)
    held[:, :28] = rng.integers(0, 2, (200, 1), np.uint8)  # Two beginnings, and some digests twice.
    queries = np.concatenate([held[rng.permutation(200)], rng.integers(0, 3, (50, 32), np.uint8)])
    queries[200:225, :28] = 1
    nothing = np.empty(0, np.int64)
    index = RowIndex([], held, held[:, :16], nothing, nothing, nothing.astype(bool), nothing.astype(bool))

    entries = index.find(queries)

    first = {digest.tobytes(): entry for entry, digest in reversed(list(enumerate(held)))}
    assert entries.tolist() == [first.get(digest.tobytes(), -1) for digest in queries]
    assert len(first) < 200
    assert index.find(queries[:0]).tolist() == []
    assert replace(index, image_digest=held[:0]).find(queries).tolist() == [-1] * 250
