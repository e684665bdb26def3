"""Seeded damage to files: bytes as disks and transfers damage them, objects as no writer of ours writes them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Rng = np.random.Generator
PAGE = 4096

# Where HDF5 keeps its own structures: damage there says more than damage to features.
_SIGNATURES = (b"\x89HDF", b"TREE", b"SNOD", b"HEAP", b"GCOL", b"OHDR", b"OCHK", b"FRHP", b"FHDB", b"BTHD", b"BTLF")
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, (1 << 64) - 1)


def damage_bytes(path: Path, rng: Rng) -> str:
    """Change a file's bytes in one to six places; says what was done."""
    data = bytearray(path.read_bytes())
    done = []
    for _ in range(int(rng.integers(1, 7))):
        change: Callable[[bytearray, int, Rng], str] = _BYTE_CHANGES[int(rng.integers(len(_BYTE_CHANGES)))]
        offset = _offset(data, rng)
        done.append(f"{change.__name__.strip('_')} at {offset}: {change(data, offset, rng)}")
    path.write_bytes(data)
    return "; ".join(done)


def _offset(data: bytearray, rng: Rng) -> int:
    """Half of the time near one of HDF5's own structures, else anywhere."""
    if rng.random() < 0.5:
        signature = _SIGNATURES[int(rng.integers(len(_SIGNATURES)))]
        start = data.find(signature, int(rng.integers(len(data))))
        if start >= 0:
            return min(start + int(rng.integers(0, 96)), len(data) - 1)
    return int(rng.integers(len(data))) if len(data) else 0


def _flip(data: bytearray, offset: int, rng: Rng) -> str:
    bit = 1 << int(rng.integers(8))
    if data:
        data[offset] ^= bit
    return f"bit {bit}"


def _number(data: bytearray, offset: int, rng: Rng) -> str:
    value = _EXTREMES[int(rng.integers(len(_EXTREMES)))]
    size = int(rng.choice([1, 2, 4, 8]))
    value &= (1 << (8 * size)) - 1
    data[offset : offset + size] = value.to_bytes(size, "little")
    return f"{value} in {size} bytes"


def _address(data: bytearray, offset: int, rng: Rng) -> str:
    """An address that leads somewhere in the file: loops and overlaps come of it."""
    target = _offset(data, rng)
    data[offset - offset % 8 : offset - offset % 8 + 8] = struct.pack("<Q", target)
    return f"address {target}"


def _copy(data: bytearray, offset: int, rng: Rng) -> str:
    source, size = int(rng.integers(len(data) or 1)), int(rng.integers(1, 512))
    data[offset : offset + size] = data[source : source + size]
    return f"{size} bytes of {source}"


def _zero(data: bytearray, offset: int, rng: Rng) -> str:
    start = offset - offset % PAGE
    length = min(PAGE, len(data) - start)
    data[start : start + length] = bytes(length)
    return "a page of zeros"


def _truncate(data: bytearray, offset: int, rng: Rng) -> str:
    if rng.random() < 0.7:  # Seldom: nothing else is found in a file that HDF5 will not open.
        return "nothing"
    del data[offset:]
    return "the end cut off"


def _insert(data: bytearray, offset: int, rng: Rng) -> str:
    if rng.random() < 0.7:
        return "nothing"
    size = int(rng.integers(1, 64))
    data[offset:offset] = rng.bytes(size)
    return f"{size} bytes inserted"


_BYTE_CHANGES = (_flip, _flip, _number, _number, _number, _address, _address, _copy, _zero, _truncate, _insert)


# --- objects ------------------------------------------------------------------------------------------


def damage_objects(path: Path, rng: Rng) -> str:
    """Change objects and attributes of a file in one to four places, through HDF5; says what was done."""
    done = []
    with h5py.File(path, "r+") as file:
        for _ in range(int(rng.integers(1, 5))):
            names: list[str] = ["/"]
            file.visit(names.append)
            name = names[int(rng.integers(len(names)))]
            change = _OBJECT_CHANGES[int(rng.integers(len(_OBJECT_CHANGES)))]
            try:
                done.append(f"{change.__name__.strip('_')} {name}: {change(file, name, rng)}")
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, OverflowError, AttributeError) as error:
                done.append(f"{change.__name__.strip('_')} {name}: {error}")
    return "; ".join(done)


def _remove(file: h5py.File, name: str, rng: Rng) -> str:
    del file[name]
    return "removed"


def _set_attribute(file: h5py.File, name: str, rng: Rng) -> str:
    attributes = list(file[name].attrs) or ["D"]
    attribute = attributes[int(rng.integers(len(attributes)))]
    value = _odd_value(rng)
    file[name].attrs[attribute] = value
    return f"@{attribute} = {str(value)[:40]!r}"


def _remove_attribute(file: h5py.File, name: str, rng: Rng) -> str:
    attributes = list(file[name].attrs)
    attribute = attributes[int(rng.integers(len(attributes)))] if attributes else "D"
    del file[name].attrs[attribute]
    return f"@{attribute}"


def _replace(file: h5py.File, name: str, rng: Rng) -> str:
    shape = tuple(int(length) for length in rng.choice([0, 1, 3, 12, 20], int(rng.integers(0, 4))))
    dtype = _ODD_DTYPES[int(rng.integers(len(_ODD_DTYPES)))]
    options: dict[str, Any] = {}
    if len(shape) and all(shape) and rng.random() < 0.5:
        options = {"chunks": True, "maxshape": (None, *shape[1:]), "compression": rng.choice(["gzip", "lzf"])}
    del file[name]
    file.create_dataset(name, shape, dtype, **options)
    return f"{shape} {dtype} {options}"


def _write(file: h5py.File, name: str, rng: Rng) -> str:
    values = file[name][...]
    index = tuple(int(rng.integers(length)) for length in values.shape)
    if values.dtype.kind == "O":
        value: Any = (b"", b"\xff\xfe", "\U0001f9ec" * 9, "a\0b", "x" * 70_000)[int(rng.integers(5))]
    elif values.dtype.kind == "f":
        value = (np.nan, np.inf, 0, 1e5, -1e-7)[int(rng.integers(5))]
    else:
        value = (0, 1, -1, 255, 2**31, -(2**63))[int(rng.integers(6))]
    file[name][index] = value
    return f"{index} = {str(value)[:20]!r}"


def _link(file: h5py.File, name: str, rng: Rng) -> str:
    targets: Sequence[Any] = (
        h5py.SoftLink("/ids"),
        h5py.ExternalLink("nowhere.h5", "/"),
        file["/"],
        h5py.SoftLink(name),
    )
    choice = int(rng.integers(len(targets)))
    del file[name]
    file[name] = targets[choice]
    return f"link {choice}"


def _rename(file: h5py.File, name: str, rng: Rng) -> str:
    other = ("ids", "labels", "templates", "split", "templates/new", "image_features", "a/b")[int(rng.integers(7))]
    file.move(name, other)
    return other


_ODD_DTYPES = (
    "<f2", ">f2", "<f4", "<f8", "<i8", ">i8", "<u8", "u1", "<i4", "?", "<c8", "S5", "V7",
    h5py.string_dtype("utf-8"), h5py.string_dtype("ascii"), h5py.vlen_dtype("<i4"), h5py.ref_dtype,
    h5py.enum_dtype({"A": 0}, basetype="u1"), np.dtype([("a", "<i4"), ("b", "<f2", (2,))]), np.dtype(("<f2", (3,))),
)  # fmt: skip


def _odd_value(rng: Rng) -> Any:
    values: tuple[Any, ...] = (
        0, -1, 1 << 62, 1.5, np.nan, True, "", "1.0", "database", "image-part", "template-part", "text-only-1.0",
        "[]", "{}", "null", "[1, 2]", '["a"]', '{"train": 3}', '{"train": -1}', '{"a": {"b": []}}', "[[[[[[", "NaN",
        '{"encoder": [], "dataset": 3, "digests": "x"}', '{"dataset": {"splits": {"train": 5, "val": {"blank": "x"}}}}',
        '{"dataset": {"splits": [], "classes": {"a": 1}}, "digests": {"splits": [1], "database": {}}}',
        '[{"word": "a", "synonyms": [1]}]', '[{"word": "a"}, {"word": "a"}]', b"\xff\xfe", np.arange(5),
        np.zeros((2, 2)), h5py.Empty("f4"), np.void(b"\x01\x02"), np.array(["a", "b"], h5py.string_dtype()), 1j,
        "x" * 70_000,
    )  # fmt: skip
    return values[int(rng.integers(len(values)))]


_OBJECT_CHANGES = (
    _remove, _set_attribute, _set_attribute, _set_attribute, _remove_attribute, _replace, _replace, _write, _write,
    _link, _rename,
)  # fmt: skip
