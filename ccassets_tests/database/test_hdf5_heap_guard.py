"""Damaged texts in a file of ours: an error at opening, where HDF5 would never end."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import h5py
import pytest

from ccassets.database.hdf5_heap_guard import find_endless_among, find_endless_heap
from ccassets.database.reader import open_database
from ccassets.errors import DatabaseError
from ccassets_tests.campaigns.examination import examine
from ccassets_tests.campaigns.mutations import PAGE
from ccassets_tests.database.made_files import write_database, write_image_part, write_template_part
from ccassets_tests.made_studies import DATA


def heap_offsets(data: bytes) -> list[int]:
    return [match.start() for match in re.finditer(b"GCOL", data)]


def test_a_lost_page_in_the_texts_is_told_and_not_read_for_ever(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    data = bytearray(path.read_bytes())
    offset = heap_offsets(data)[-1]
    page = offset - offset % PAGE + PAGE  # A heap is not aligned: its end lies on the next page.
    data[page : page + PAGE] = bytes(min(PAGE, len(data) - page))
    path.write_bytes(data)
    with pytest.raises(DatabaseError, match=f"texts at byte {offset} are damaged"):
        open_database(path)


def test_every_lost_page_is_answered(tmp_path: Path) -> None:
    path = write_image_part(tmp_path / "a.h5")
    whole = path.read_bytes()
    for page in range(0, len(whole), PAGE):
        path.write_bytes(whole[:page] + bytes(min(PAGE, len(whole) - page)) + whole[page + PAGE :])
        assert examine(path).end in {"findings", "refused"}, page


def test_good_files_have_no_endless_heap(tmp_path: Path) -> None:
    files = [write_database(tmp_path / "a.h5"), write_template_part(tmp_path / "b.h5"), *(DATA / "legacy").glob("*.h5")]
    for path in files:
        assert b"GCOL" in path.read_bytes()
        with h5py.File(path) as file:
            assert find_endless_heap(file, file.id.get_vfd_handle()) is None


def test_a_key_that_reads_like_a_heap_is_none(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["ids"][:3] = [int.from_bytes(b"GCOL\1\0\0\0", "little"), 4096, 0]
    assert b"GCOL\1\0\0\0\0\x10" in path.read_bytes()
    with open_database(path) as database:
        assert len(database) == 20


def heap(texts: int, free_bytes: int) -> bytes:
    """A heap of texts of many lengths and of free space at the end, as the format specification describes it."""
    objects = [struct.pack("<HH4xQ", 1 + n, 1, n % 50) + bytes(-(-(n % 50) // 8) * 8) for n in range(texts)]
    free = struct.pack("<HH4xQ", 0, 0, free_bytes) + bytes(48)
    content = b"".join([*objects, free])
    return b"GCOL\1\0\0\0" + struct.pack("<Q", 16 + len(content)) + content


@pytest.mark.parametrize("count", [1, 32, 33, 200])
@pytest.mark.parametrize("free_bytes", [0, 12, 2**64 - 1])
def test_one_endless_heap_is_found_among_any_number(count: int, free_bytes: int) -> None:
    good = [heap(texts=n % 70, free_bytes=64) for n in range(count)]
    for bad in {0, count // 2, count - 1}:
        heaps = [*good[:bad], heap(texts=5, free_bytes=free_bytes), *good[bad + 1 :]]
        offsets = [3 + sum(map(len, heaps[:n])) for n in range(count)]
        assert find_endless_among(b"abc" + b"".join(heaps), offsets) == offsets[bad]
        assert (
            find_endless_among(b"abc" + b"".join(heaps), [offset for offset in offsets if offset != offsets[bad]])
            is None
        )


def test_a_heap_that_says_it_is_larger_than_the_file_ends_with_it() -> None:
    heaps = [heap(texts=n, free_bytes=2**62) for n in range(60)]
    offsets = [sum(map(len, heaps[:n])) for n in range(60)]
    data = b"".join(heaps)
    assert find_endless_among(data, offsets) is None
    assert find_endless_among(data[:-1], offsets) is None
    assert find_endless_among(data, []) is None
