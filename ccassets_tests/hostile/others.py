"""Hostile files that are no HDF5: weights, archives, pictures and study files."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ccassets_tests.hostile.case import Case
from ccassets_tests.made_studies import DATA

MARK = "code-was-run"
"""The file that a hostile file would leave behind if it got its code run."""


class _Bomb:
    """Unpickling it leaves a mark in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(MARK),)


def _written(name: str, content: Callable[[], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content())
        return path

    return make


# --- weights ------------------------------------------------------------------------------------------

_GOOD = DATA / "conceptclip" / "tiny_a.safetensors"


def _safetensors(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
    """The golden weights under a header that lies."""

    def content() -> bytes:
        whole = _GOOD.read_bytes()
        length = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    return _written("model.safetensors", content)


def _header(text: bytes, length: int | None = None) -> Callable[[Path], Path]:
    declared = len(text) if length is None else length
    return _written("model.safetensors", lambda: struct.pack("<Q", declared) + text)


def _first(header: dict[str, Any]) -> dict[str, Any]:
    tensor: dict[str, Any] = next(value for name, value in header.items() if name != "__metadata__")
    return tensor


def _end(header: dict[str, Any]) -> int:
    return max(value["data_offsets"][1] for name, value in header.items() if name != "__metadata__")


def _share_offsets(header: dict[str, Any]) -> None:
    tensors = [value for name, value in header.items() if name != "__metadata__"]
    same = next(b for b in tensors[1:] if b["shape"] == tensors[0]["shape"] and b["dtype"] == tensors[0]["dtype"])
    same["data_offsets"] = tensors[0]["data_offsets"]


def _index(names: Any) -> Callable[[Path], Path]:
    """An index of shards beside good weights."""

    def make(folder: Path) -> Path:
        (folder / "model-00001.safetensors").write_bytes(_GOOD.read_bytes())
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(names), encoding="utf-8")
        return path

    return make


def _repeated_name() -> bytes:
    tensor = '"logit_scale":{"dtype":"F32","shape":[],"data_offsets":[0,4]}'
    text = f"{{{tensor},{tensor}}}".encode()
    return struct.pack("<Q", len(text)) + text + bytes(4)


_WHOLE = "is not a whole safetensors file"

WEIGHTS = (
    Case("header longer than the file", _header(b"{}", 1 << 20), _WHOLE),
    Case("header of 2^63 bytes", _header(b"{}", 1 << 63), _WHOLE),
    Case("header that is no JSON", _header(b"{not json"), _WHOLE),
    Case("header nested deeply", _header(b'{"a":' * 50_000), _WHOLE),
    Case("header that is a list", _header(b"[]"), _WHOLE),
    Case("file of three bytes", _written("model.safetensors", lambda: b"abc"), _WHOLE),
    Case("offsets beyond the end", _safetensors(lambda h: _first(h).update(data_offsets=[0, 1 << 40])), _WHOLE),
    Case("offsets backwards", _safetensors(lambda h: _first(h).update(data_offsets=[8, 0])), _WHOLE),
    Case("offsets of another tensor", _safetensors(_share_offsets), _WHOLE),
    Case("shape that is too large for its bytes", _safetensors(lambda h: _first(h).update(shape=[1 << 40])), _WHOLE),
    Case("shape that overflows", _safetensors(lambda h: _first(h).update(shape=[1 << 62, 1 << 62])), _WHOLE),
    Case("negative shape", _safetensors(lambda h: _first(h).update(shape=[-1])), _WHOLE),
    Case("unknown dtype", _safetensors(lambda h: _first(h).update(dtype="F1000")), _WHOLE),
    Case(
        "tensor nobody asked for",
        _safetensors(lambda h: h.update(evil={"dtype": "F32", "shape": [0], "data_offsets": [_end(h)] * 2})),
        "not part of the model: evil (0)",
    ),
    Case("one name twice", _written("model.safetensors", _repeated_name), "differ"),
    Case("pickle called safetensors", _written("model.safetensors", lambda: pickle.dumps(_Bomb())), _WHOLE),
    Case("pickle alone", _written("pytorch_model.bin", lambda: pickle.dumps(_Bomb())), "never do"),
    Case(
        "index that leads out of the folder",
        _index({"weight_map": {"a": "../../etc/passwd"}}),
        "must name files in its own folder",
    ),
    Case("index with an absolute path", _index({"weight_map": {"a": "/etc/passwd"}}), "in its own folder"),
    Case("index with numbers for names", _index({"weight_map": {"a": 7}}), "in its own folder"),
    Case("index that is a list", _index([]), "expected a JSON object with weight_map"),
)


# --- archives -----------------------------------------------------------------------------------------


def _arrays(**changes: Any) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for split, rows in (("train", 4), ("val", 2), ("test", 2)):
        arrays[f"{split}_images"] = np.zeros((rows, 28, 28, 3), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((rows, 1), np.uint8)
    return arrays | changes


def _npz(**changes: Any) -> Callable[[Path], Path]:
    def content() -> bytes:
        stream = io.BytesIO()
        np.savez_compressed(stream, **_arrays(**changes))
        return stream.getvalue()

    return _written("bloodmnist.npz", content)


def _member(name: str, content: bytes, called: str | None = None) -> Callable[[Path], Path]:
    """An archive with the given bytes instead of a member, under its name or another."""

    def packed() -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for other, values in _arrays().items():
                if f"{other}.npy" != name:
                    with archive.open(f"{other}.npy", "w") as member:
                        np.save(member, values)
            archive.writestr(called or name, content)
        return stream.getvalue()

    return _written("bloodmnist.npz", packed)


def _npy(header: str) -> bytes:
    text = header.encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


_CODE = f"{{'descr': __import__('pathlib').Path('{MARK}').touch(), 'fortran_order': False, 'shape': (2, 1)}}"

ARCHIVES = (
    Case("labels that are a pickle", _npz(val_labels=np.array([_Bomb(), None], object)), "is not a plain array"),
    Case("pictures that are a pickle", _npz(val_images=np.array([_Bomb(), None], object)), "is not a plain array"),
    Case("member that is a pickle", _member("val_labels.npy", pickle.dumps(_Bomb())), "is not a plain array"),
    Case("array header with code", _member("val_labels.npy", _npy(_CODE)), "is not a plain array"),
    Case(
        "array header with a huge shape",
        _member("val_labels.npy", _npy(f"{{'descr': '<i8', 'fortran_order': False, 'shape': ({1 << 60}, 1)}}")),
        "is not a plain array",
    ),
    Case(
        "array header with a negative shape",
        _member("val_labels.npy", _npy("{'descr': '<i8', 'fortran_order': False, 'shape': (-2, 1)}")),
        "val_labels",
    ),
    Case("member under a path that leads out", _member("val_labels.npy", b"x", "../../val_labels.npy"), "lacks"),
    Case("labels of texts", _npz(val_labels=np.array([["a"], ["b"]])), "must be integers"),
    Case(
        "archive that is cut",
        _written("bloodmnist.npz", lambda: b"PK\x03\x04" + bytes(100)),
        "not a valid .npz archive",
    ),
    Case(
        "archive that is a pickle",
        _written("bloodmnist.npz", lambda: pickle.dumps(_Bomb())),
        "not a valid .npz archive",
    ),
)


# --- pictures -----------------------------------------------------------------------------------------


def _picture(form: str, image: Image.Image, **options: Any) -> Callable[[], bytes]:
    def content() -> bytes:
        stream = io.BytesIO()
        image.save(stream, form, **options)
        return stream.getvalue()

    return content


def _noise(mode: str = "RGB") -> Image.Image:
    values = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    return Image.fromarray(values).convert(mode)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A grey 1-bit PNG of any declared size, with further chunks before its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    row = bytes(1 + (width + 7) // 8) if width * height < 1 << 34 else b""
    packer = zlib.compressobj(9)
    pixels = b"".join([packer.compress(row) for _ in range(min(height, 1 << 16))] + [packer.flush()])
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _truncated(form: str, keep: float = 0.5, **options: Any) -> Callable[[], bytes]:
    def content() -> bytes:
        whole = _picture(form, _noise(), **options)()
        return whole[: int(len(whole) * keep)]

    return content


_EPS = f"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
({MARK}) (w) file closefile
showpage
%%EOF
"""

PICTURES = (
    Case("60,000 x 60,000 pixels in a few kilobytes", _written("a.png", lambda: _png(60_000, 60_000)), "more than the"),
    Case("four billion pixels a row", _written("a.png", lambda: _png(0xFFFF_FFFF, 1 << 31)), "more than the"),
    Case("text chunk that inflates to 64 MB", _written("a.png", lambda: _png(8, 8, _text_bomb())), "cannot be decoded"),
    Case("colour profile that inflates to 64 MB", _written("a.png", lambda: _png(8, 8, _profile_bomb())), "decoded"),
    Case("cut PNG", _written("a.png", _truncated("PNG")), "cannot be decoded"),
    Case("cut JPEG", _written("a.jpg", _truncated("JPEG")), "cannot be decoded"),
    Case("cut TIFF", _written("a.tif", _truncated("TIFF")), "cannot be decoded"),
    Case("PNG without pixels", _written("a.png", lambda: _png(0, 0)), "not an image of a format"),
    Case("floating-point pixels", _written("a.tif", _picture("TIFF", _noise("F"))), "floating-point"),
    Case("32-bit pixels", _written("a.tif", _picture("TIFF", _noise("I"))), "32-bit"),
    Case(
        "animation",
        _written("a.gif", _picture("GIF", _noise("P"), save_all=True, append_images=[_noise("L").convert("P")])),
        "frames",
    ),
    Case(
        "PostScript that is called a PNG",
        _written("a.png", _EPS.encode),
        "not an image of a format that can be read here",
    ),
    Case("icon that is called a PNG", _written("a.png", _picture("ICO", _noise())), "not an image of a format"),
    Case(
        "page that is called a PNG",
        _written("a.png", lambda: b"<svg><script>1</script></svg>"),
        "not an image of a format",
    ),
    Case("pickle that is called a PNG", _written("a.png", lambda: pickle.dumps(_Bomb())), "not an image of a format"),
)


def _text_bomb() -> tuple[bytes, bytes]:
    return b"zTXt", b"a\0\0" + zlib.compress(bytes(1 << 26), 9)


def _profile_bomb() -> tuple[bytes, bytes]:
    return b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 26), 9)


# --- studies ------------------------------------------------------------------------------------------

_HEAD = "type: ccassets.FeatureDatabase\nattributes:\n  dataset: {kind: folder, root: cells}\n"
_OPTIONS = _HEAD + "  encoder:\n    kind: python\n    target: a:B\n    options:\n"


def _laughs(start: str, step: str) -> str:
    """Nine levels, each ten times the last."""
    lines = [f"      x0: &x0 {start}"]
    for level in range(1, 10):
        lines.append(f"      x{level}: &x{level} " + step.replace("?", ", ".join([f"*x{level - 1}"] * 10)))
    return _OPTIONS + "\n".join(lines) + "\n"


def _study(text: str) -> Callable[[Path], Path]:
    return _written("defs.yaml", text.encode)


STUDIES = (
    Case("a billion aliases", _study(_laughs("[a, a]", "[?]")), "stand for more than 100000 values"),
    Case("a billion merged keys", _study(_laughs("{a: 1}", "{<<: [?]}")), "stand for more than 100000 values"),
    Case(
        "alias inside itself",
        _study(_HEAD + "  encoder: &e {kind: python, target: a:B, options: {x: *e}}\n"),
        "stand for more than 100000 values",
    ),
    Case("tag that calls", _study(_HEAD + f"  encoder: !!python/object/apply:os.system ['touch {MARK}']\n"), "tag"),
    Case("tag that imports", _study(_HEAD + "  encoder: !!python/module:antigravity ''\n"), "tag"),
    Case("tag for a tuple", _study(_HEAD + "  encoder: !!python/tuple [a]\n"), "tag"),
    Case("lists nested deeply", _study(_HEAD + "  encoder: " + "[" * 5000 + "]" * 5000), "nested too deeply"),
    Case("mappings nested deeply", _study(_HEAD + "  encoder: " + "{a: " * 5000 + "}" * 5000), "nested too deeply"),
    Case("file of 5 MB", _study("#" * 5_000_000), "more than 4194304 bytes"),
    Case("date that is none", _study(_HEAD + "  description: 2024-13-45\n"), "a value cannot be read"),
    Case("number of 10,000 digits", _study(_HEAD + f"  description: {'9' * 10_000}\n"), "a value cannot be read"),
    Case("number in base 60", _study(_HEAD + f"  description: {'1:' * 100_000}1\n"), "a value cannot be read"),
    Case("key that is a list", _study(_HEAD + "  ? [a, b]\n  : c\n"), "this is not valid YAML"),
    Case("two documents", _study(_HEAD + "---\n" + _HEAD), "this is not valid YAML"),
    Case("NUL character", _study(_HEAD + "\0"), "this is not valid YAML"),
    Case(
        "database outside of the storage",
        _study(_HEAD + "  encoder: {kind: phantom}\n  storage: {file: ../../a.h5}\n"),
        "storage.file",
    ),
    Case(
        "split outside of the storage",
        _study(_HEAD.replace("root: cells", "root: cells, splits: [../..]") + "  encoder: {kind: phantom}\n"),
        "a split name has no slash",
    ),
)
