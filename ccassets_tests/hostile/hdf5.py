"""Hostile HDF5 files: each is a good database with one thing in it that wants to lead out, explode or mislead."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ccassets_tests.database.made_files import DIM, write_database
from ccassets_tests.hostile.case import Case

OUTSIDE = "outside"
"""The folder beside the file that nothing may open anything in."""

_ROWS = 20
_FREE = "templates/free_text"
_FIRST = b"concept_prompts_t01\0"
_TEXT = h5py.string_dtype("utf-8")


def _edited(edit: Callable[[h5py.File], Any]) -> Callable[[Path], Path]:
    """A good database, changed through h5py; what it may point at lies in the folder `OUTSIDE`."""

    def make(folder: Path) -> Path:
        outside = folder / OUTSIDE
        outside.mkdir()
        write_database(outside / "other.h5")
        (outside / "raw.bin").write_bytes(b"secret" * 4096)
        path = write_database(folder / "hostile.h5")
        with h5py.File(path, "r+") as file:
            edit(file)
        return path

    return make


def _patched(edit: Callable[[bytearray], Any], first: Callable[[h5py.File], Any] = lambda file: None) -> Any:
    """A good database whose bytes were changed with an editor, after `first`."""

    def make(folder: Path) -> Path:
        path = write_database(folder / "hostile.h5")
        with h5py.File(path, "r+") as file:
            first(file)
        data = bytearray(path.read_bytes())
        edit(data)
        path.write_bytes(data)
        return path

    return make


def _instead(name: str, put: Callable[[h5py.Group, str], Any]) -> Callable[[Path], Path]:
    """Something else under a name that readers open."""

    def edit(file: h5py.File) -> None:
        group, _, last = name.rpartition("/")
        del file[name]
        put(file[group or "/"], last)

    return _edited(edit)


def _link(name: str, link: Any) -> Callable[[Path], Path]:
    return _instead(name, lambda group, last: group.__setitem__(last, link))


def _external(name: str, there: str) -> Callable[[Path], Path]:
    return _link(name, h5py.ExternalLink(f"{OUTSIDE}/other.h5", there))


def _stored_outside(name: str, shape: tuple[int, ...], dtype: str) -> Callable[[Path], Path]:
    external = [(f"{OUTSIDE}/raw.bin", 0, h5py.h5f.UNLIMITED)]
    return _instead(name, lambda group, last: group.create_dataset(last, shape, dtype, external=external))


def _virtual(name: str, source: str, there: str, shape: tuple[int, ...], dtype: str) -> Callable[[Path], Path]:
    def put(group: h5py.Group, last: str) -> None:
        layout = h5py.VirtualLayout(shape, dtype, maxshape=(None, *shape[1:]))
        if "%b" in source:  # Row n from file n, without end.
            layout[0 : h5py.h5s.UNLIMITED] = h5py.VirtualSource(source, there, (1, *shape[1:]))
        else:
            layout[...] = h5py.VirtualSource(source, there, shape)
        group.create_virtual_dataset(last, layout)

    return _instead(name, put)


def _data(name: str, *arguments: Any, **options: Any) -> Callable[[Path], Path]:
    return _instead(name, lambda group, last: group.create_dataset(last, *arguments, **options))


def _attribute(owner: str, name: str, value: Any, **options: Any) -> Callable[[Path], Path]:
    return _edited(lambda file: file[owner].attrs.create(name, value, **options))


def _typed(type_id: Any) -> Callable[[h5py.Group, str], Any]:
    """A data set of a type that numpy has no name for."""

    def put(group: h5py.Group, name: str) -> None:
        h5py.h5d.create(group.id, name.encode(), type_id, h5py.h5s.create_simple((_ROWS,)))

    return put


# --- bombs --------------------------------------------------------------------------------------------


def _zero_chunks(name: str, rows: int, tokens: int) -> Callable[[Path], Path]:
    """Rows of zeros, one gzip'd chunk each, all of the same few bytes: a thousand times larger once they are read."""

    def put(group: h5py.Group, last: str) -> None:
        dataset = group.create_dataset(
            last, (rows, tokens, DIM), "<f2", chunks=(1, tokens, DIM), compression="gzip", maxshape=(None, tokens, DIM)
        )
        packed = zlib.compress(bytes(2 * tokens * DIM), 9)
        for row in range(rows):
            dataset.id.write_direct_chunk((row, 0, 0), packed)

    return _instead(name, put)


def _endless_deflate(blocks: int) -> bytes:
    """A zlib stream of `blocks` times 16 MiB of zeros: after a full flush a block can be repeated at will."""
    compressor = zlib.compressobj(9)
    block = compressor.compress(bytes(16 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return block + block[2:] * (blocks - 1) + compressor.flush()


def _lying_chunk(group: h5py.Group, name: str) -> None:
    """A chunk that is declared small, and whose stream goes on for 16 GiB."""
    # Of 64 KiB: HDF5 1.14 has room for the length of a stream only in proportion to what is declared.
    dataset = group.create_dataset(name, (_ROWS,), "<i8", maxshape=(None,), chunks=(1 << 13,), compression="gzip")
    dataset.id.write_direct_chunk((0,), _endless_deflate(1024))


def _repeated_text(folder: Path) -> Path:
    """A million keys, all of them the same text of 8 MB: 8 TB for who reads them."""
    path = write_database(folder / "hostile.h5")
    rows = 1_000_000
    with h5py.File(path, "r+") as file:
        del file["keys"]
        dataset = file.create_dataset("keys", (rows,), _TEXT)
        dataset[0] = "x" * 8_000_000
        file.flush()
        offset = dataset.id.get_offset()
    with path.open("r+b") as raw:
        raw.seek(offset)
        reference = raw.read(16)
        raw.seek(offset)
        raw.write(reference * rows)
    return path


# --- structure ----------------------------------------------------------------------------------------


def _renamed(old: bytes, new: bytes) -> Callable[[bytearray], None]:
    """A name in the file, overwritten with one of the same length that HDF5 would not have let in."""
    assert len(old) == len(new)

    def edit(data: bytearray) -> None:
        assert old in data
        data[:] = data.replace(old, new)

    return edit


def _own_child(data: bytearray) -> None:
    """B-tree nodes of groups that are their own children."""
    position = data.find(b"TREE")
    while position >= 0:
        struct.pack_into("<Q", data, position + 32, position)
        data[position + 5] = 1
        position = data.find(b"TREE", position + 1)


def _symbols_repeated(data: bytearray) -> None:
    """Symbol tables that claim far more names than they have."""
    position = data.find(b"SNOD")
    while position >= 0:
        struct.pack_into("<H", data, position + 6, 0xFFFF)
        position = data.find(b"SNOD", position + 1)


def _moved(name: str, to: int) -> Callable[[Path], Path]:
    """A contiguous data set whose stored address is another place."""

    def make(folder: Path) -> Path:
        path = write_database(folder / "hostile.h5")
        with h5py.File(path) as file:
            address, size = file[name].id.get_offset(), file[name].id.get_storage_size()
        data = path.read_bytes()
        layout = struct.pack("<QQ", address, size)
        assert data.count(layout) == 1
        path.write_bytes(data.replace(layout, struct.pack("<QQ", to, size)))
        return path

    return make


def _many(count: int) -> Callable[[h5py.File], None]:
    def edit(file: h5py.File) -> None:
        for number in range(count):
            file["templates"].create_group(f"empty_{number:05d}")

    return edit


def _written(content: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "hostile.h5"
        path.write_bytes(content)
        return path

    return make


def _truncated(folder: Path) -> Path:
    path = write_database(folder / "hostile.h5")
    os.truncate(path, path.stat().st_size - 4096)
    return path


def _pipe(folder: Path) -> Path:
    path = folder / "hostile.h5"
    os.mkfifo(path)
    return path


def _device(folder: Path) -> Path:
    path = folder / "hostile.h5"
    path.symlink_to("/dev/zero")
    return path


def _circle(folder: Path) -> Path:
    path = folder / "hostile.h5"
    path.symlink_to(path)
    return path


def _folder(folder: Path) -> Path:
    path = folder / "hostile.h5"
    path.mkdir()
    return path


_COMPOUND = np.dtype([("a", "<i4"), ("b", "<f8")])
_ENUM = h5py.enum_dtype({"RED": 0, "GREEN": 1}, basetype="<i4")
_DEEP = "[" * 100_000 + "]" * 100_000

CASES = (
    # --- paths that lead out ---
    Case("external link for a data set", _external("image_features", "/image_features"), "soft or external link"),
    Case("external link for the tokens", _external("image_token_features", "/image_features"), "soft or external link"),
    Case("external link for all templates", _external("templates", "/templates"), "soft or external link"),
    Case("external link for a template", _external(_FREE, f"/{_FREE}"), "soft or external link"),
    Case("external link for the prompts", _external(f"{_FREE}/texts", f"/{_FREE}/texts"), "soft or external link"),
    Case("external link up the tree", _link("ids", h5py.ExternalLink("../../etc/passwd", "/")), "external link"),
    Case("external link to an absolute path", _link("ids", h5py.ExternalLink("/etc/passwd", "/x")), "external link"),
    Case("external storage of tokens", _stored_outside("image_token_features", (20, 4, 12), "<f2"), "other files"),
    Case("external storage of labels", _stored_outside("labels", (20,), "<i8"), "other files"),
    Case("external storage of a template", _stored_outside(f"{_FREE}/text_features", (2, 12), "<f4"), "other files"),
    Case(
        "virtual features from another file",
        _virtual("image_features", f"{OUTSIDE}/other.h5", "image_features", (20, 12), "<f2"),
        "other files",
    ),
    Case("virtual labels from the file itself", _virtual("labels", ".", "ids", (20,), "<i8"), "other files"),
    Case(
        "virtual data set of a pattern of files",
        _virtual("image_token_features", f"{OUTSIDE}/%b.h5", "image_token_features", (20, 4, 12), "<f2"),
        "other files",
    ),
    # --- links and groups that go round ---
    Case("soft link to itself", _link("ids", h5py.SoftLink("/ids")), "soft or external link"),
    Case("soft link to the root for the templates", _link("templates", h5py.SoftLink("/")), "soft or external link"),
    Case("soft link that leads nowhere", _link("labels", h5py.SoftLink("/nowhere/at/all")), "soft or external link"),
    Case(
        "group that contains itself",
        _edited(lambda file: file["templates"].__setitem__("again", file["templates"])),
        "/templates/again/texts",
    ),
    Case(
        "template that is the root",
        _edited(lambda file: file["templates"].__setitem__("root", file["/"])),
        "/templates/root/texts",
    ),
    Case(
        "one data set under two names",
        _instead("image_token_features", lambda group, last: group.__setitem__(last, group["image_features"])),
        "expected shape (N, T_img, D)",
    ),
    # --- names ---
    Case(
        "template called ..",
        _patched(_renamed(_FIRST, b"..".ljust(20, b"\0"))),
        "missing: concept_prompts_t01",
    ),
    Case(
        "template called like a path out",
        _patched(_renamed(_FIRST, b"../../../etc/passwd\0")),
        "the name is listed, and leads to nothing [/templates/../../../etc/passwd]",
    ),
    Case("template called .", _patched(_renamed(_FIRST, b".".ljust(20, b"\0"))), "/templates/."),
    Case("template whose name is no UTF-8", _patched(_renamed(b"free_text\0", b"fr\xff\xfe_text\0")), "in UTF-8"),
    Case(
        "template without a name",
        _patched(_renamed(b"free_text\0", b"\0" * 10)),
        "the names in the group cannot be read",
    ),
    # --- the wrong kind of object ---
    Case("group for a data set", _instead("groups", lambda group, last: group.create_group(last)), "another kind"),
    Case("data set for a template", _data(_FREE, data=np.zeros(3)), "expected a group"),
    Case(
        "type for a data set", _instead("ids", lambda group, last: group.__setitem__(last, _COMPOUND)), "another kind"
    ),
    Case("data set without a space", _data("labels", data=h5py.Empty("<i8")), "found no values"),
    Case("single value for a list", _data("labels", data=3), "expected shape (N,)"),
    Case("features of 32 axes", _data("image_features", data=np.zeros((1,) * 32, "<f2")), "expected shape (N, D)"),
    # --- types ---
    Case("labels of object references", _data("labels", (_ROWS,), h5py.ref_dtype), "expected int64 (<i8)"),
    Case("labels of region references", _data("labels", (_ROWS,), h5py.regionref_dtype), "expected int64 (<i8)"),
    Case("labels of compounds", _data("labels", (_ROWS,), _COMPOUND), "expected int64 (<i8)"),
    Case("labels of lists", _data("labels", (_ROWS,), h5py.vlen_dtype("<i8")), "expected int64 (<i8)"),
    Case("labels of enums", _data("labels", (_ROWS,), _ENUM), "expected int64 (<i8)"),
    Case("labels of bit fields", _instead("labels", _typed(h5py.h5t.STD_B64LE)), "expected int64 (<i8)"),
    Case("labels of times", _instead("labels", _typed(h5py.h5t.UNIX_D64LE)), "/labels"),
    Case("splits of opaque bytes", _data("split", (_ROWS,), np.dtype("V16")), "variable-length UTF-8 strings"),
    Case(
        "splits of lists of texts",
        _data("split", (_ROWS,), h5py.vlen_dtype("<i4")),
        "variable-length UTF-8 strings",
    ),
    Case("features of complex numbers", _data("image_features", (_ROWS, DIM), "<c8"), "expected float16 (<f2)"),
    Case("features of arrays", _data("image_features", (_ROWS,), np.dtype(("<f2", (DIM,)))), "expected shape (N, D)"),
    Case("features of long doubles", _data("image_features", (_ROWS, DIM), "<f16"), "expected float16 (<f2)"),
    # --- attributes ---
    Case("attribute D of a compound", _attribute("/", "D", np.zeros((), _COMPOUND)), "D: expected an int64"),
    Case("attribute D of an array", _attribute("/", "D", np.arange(12)), "D: expected an int64"),
    Case("attribute D of a reference", _edited(lambda f: f.attrs.create("D", f.ref, dtype=h5py.ref_dtype)), "an int64"),
    Case("attribute D without a value", _attribute("/", "D", h5py.Empty("<i8")), "D: expected an int64"),
    Case(
        "attribute version of opaque bytes",
        _attribute("/", "version", np.void(b"\xff1.0")),
        "expected version '1.0'",
    ),
    Case("attribute profile of an array", _attribute("/", "profile", np.zeros((2, 2))), "image-part or template-part"),
    Case("attribute logit_scale of texts", _attribute("/", "logit_scale", "4.5"), "expected a finite float64"),
    Case("attribute logit_scale complex", _attribute("/", "logit_scale", 1j), "expected a finite float64"),
    Case("attribute logit_scale of an enum", _attribute("/", "logit_scale", [0, 1], dtype=_ENUM), "a finite float64"),
    Case("attribute created_at of lists", _attribute("/", "created_at", np.arange(5)), "YYYY-MM-DD HH:MM:SS"),
    Case("attribute K of a template of texts", _attribute(_FREE, "K", "two"), "K: expected an int64"),
    Case("attribute provenance nested deeply", _attribute("/", "provenance", _DEEP, dtype=_TEXT), "one JSON object"),
    Case("attribute split_counts nested deeply", _attribute("/", "split_counts", _DEEP, dtype=_TEXT), "row numbers"),
    Case("attribute split_counts of huge numbers", _attribute("/", "split_counts", '{"train": 1e999}'), "row numbers"),
    Case(
        "attribute split_counts of a number with a million digits",
        _attribute("/", "split_counts", f'{{"train": {"9" * 1_000_000}}}', dtype=_TEXT),
        "row numbers",
    ),
    Case("attribute concepts of foreign shape", _attribute("/", "concepts", '[{"word": ["a"]}]'), "{word, synonyms"),
    # --- bombs ---
    Case("tokens declared and never written", _data("image_token_features", (10**9, 729, 1152), "<f2"), "declares"),
    Case("labels declared and never written", _data("labels", (2**62,), "<i8", chunks=(64,)), "declares"),
    Case(
        "one chunk of a gigabyte",
        _data("ids", (20,), "<i8", chunks=(2**27,), maxshape=(None,)),
        "chunks smaller",
    ),
    Case("tokens that inflate to 10 GB", _zero_chunks("image_token_features", 400, 1 << 20), "declares"),
    Case("chunk that inflates to 16 GB", _instead("labels", _lying_chunk), "cannot be read"),
    Case("a million texts of 8 MB", _repeated_text, "cannot be read"),
    Case("five thousand templates", _edited(_many(5000)), "/templates/empty_00000"),
    # --- broken structure ---
    Case("groups that are their own children", _patched(_own_child), "read"),
    Case("groups with more names than there are", _patched(_symbols_repeated), "read"),
    Case("data set beyond the end", _moved("labels", 1 << 40), "/labels"),
    Case("data set on top of the superblock", _moved("ids", 0), "every row's own number"),
    Case("file that is cut", _truncated, "cannot be opened as HDF5"),
    Case("file without bytes", _written(b""), "cannot be opened as HDF5"),
    Case("signature and nothing else", _written(b"\x89HDF\r\n\x1a\n"), "cannot be opened as HDF5"),
    Case("another format", _written(b"PK\x03\x04" + bytes(4096)), "cannot be opened as HDF5"),
    # --- no file at all ---
    Case("named pipe", _pipe, "is not a file"),
    Case("device", _device, "is not a file"),
    Case("link in a circle", _circle, "is not a file"),
    Case("folder", _folder, "is not a file"),
)
