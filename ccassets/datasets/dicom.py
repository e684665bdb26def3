"""DICOM files: frames as 8-bit RGB, keys, patients. No text that this module gives contains a value of a header."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.datasets.image_decoding import SUFFIXES, refuse_large
from ccassets.errors import DatasetError
from ccassets.files import fingerprint, reading_errors, reading_refused, storage_errors, unreadable_reason
from ccassets.study.schema import DicomConfig
from ccassets.study.storage import home

if TYPE_CHECKING:
    from pydicom.dataset import Dataset as Header

DICOM_SUFFIXES: Final = frozenset({".dcm", ".dicom"})
GROUP_KEY_FILE: Final = "patient_groups.key"
"""The file in the home with the key of patient groups; without it, a group cannot be computed from a PatientID."""

_POLICY: Final = 1
"""Raised on purpose whenever a frame gives other pixels than before."""
_MOST_FRAMES: Final = 100_000
_GREY: Final = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_PALETTE: Final = "PALETTE COLOR"
_FUNCTIONAL_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_PALETTE_TAGS: Final = [
    f"{prefix}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue", "Alpha")
    for prefix, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    if (prefix, colour) != ("Segmented", "Alpha")
]
_PIXEL_TAGS: Final = [
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PixelRepresentation", "NumberOfFrames"),
    *("BitsAllocated", "BitsStored", "HighBit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *_FUNCTIONAL_GROUPS,
    *_PALETTE_TAGS,
]
_GPL_DECODER: Final = (
    "`pip install pylibjpeg-libjpeg` brings one for every kind of JPEG and JPEG-LS (its licence is the GPL), or "
    "decompress the file with another program"
)
_REASONS: Final = {
    RuntimeError: f"it is damaged, or of a JPEG with 12 bits: {_GPL_DECODER}",
    AttributeError: "it has no pixel data, or no value that its pixels depend on",
}
"""Our messages for the exceptions of pydicom, whose own texts hold values of the header."""
_FRAME = re.compile(r"(.*[^/])#([1-9][0-9]*)", re.DOTALL)


# --- keys --------------------------------------------------------------------------------------------


def is_dicom(root: Path, key: str) -> bool:
    """Whether a file is a DICOM file: by its suffix, or by its prefix `DICM` if the suffix is not that of an image."""
    suffix = suffix_of(key)
    if suffix in DICOM_SUFFIXES:
        return True
    # A name that ends like the key of a frame would be taken for one.
    if suffix in SUFFIXES or _FRAME.fullmatch(key):
        return False
    path = root / key
    return path.is_file() and _has_mark(path, fingerprint(path))


def suffix_of(key: str) -> str:
    """The suffix of a file's name in lower case; a data set has too many of them to make a path of each."""
    return key[key.rfind(".") :].lower()


@lru_cache(maxsize=1 << 18)
def _has_mark(path: Path, state: str) -> bool:
    """Whether a file has the prefix of DICOM files; read once for each `state` of the file."""
    with reading_errors(path), path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def split_frame(root: Path, key: str) -> tuple[str, int]:
    """The path below the root and the number of the frame, from 1, of a key such as `a/scan.dcm#3`."""
    match = _FRAME.fullmatch(key)
    return (match[1], int(match[2])) if match and not (root / key).exists() else (key, 1)


def frame_keys(root: Path, key: str) -> list[str]:
    """The key of each frame of a file with several, `a/scan.dcm#1` and so on; the key itself for any other file.

    Raises:
        DatasetError: The package that reads DICOM files is not installed.
    """
    if not is_dicom(root, key):  # As no frame of a file is, either.
        return [key]
    frames = _facts_of(root / key).frames
    return [key] if frames == 1 else [f"{key}#{number}" for number in range(1, frames + 1)]


def require_nameless_keys(root: Path, name: str, keys: Iterable[str], splits: Collection[str]) -> None:
    """Refuse keys that carry the name or the number of a patient, since keys are stored and shown.

    Args:
        root: The data set's root.
        name: The name of the data set, which is stored, too.
        keys: The keys; only DICOM files among them are opened.
        splits: The splits of the study; a folder of such a name, such as `test`, is not a patient of that name.

    Raises:
        DatasetError: A key carries the PatientName or PatientID of its own header; the message leaves it out.
    """
    files = dict.fromkeys(split_frame(root, key)[0] for key in keys)
    paths = [path for path in files if is_dicom(root, path)]
    carrying = []
    for path in paths:
        patient = _facts_of(root / path).patient
        parts = [name, *path.split("/")]
        masked = ["…" if part not in splits and _carries(part, patient) else part for part in parts]
        if "…" in masked:
            carrying.append("/".join(masked[1:]) if "…" in masked[1:] else "under the data set's folder or table")
    if carrying:
        raise DatasetError(
            f"{len(carrying)} of {len(paths)} DICOM files carry the PatientName or PatientID of their header in their "
            f"path, and paths are stored as keys; the first is {carrying[0]} (shown with … in its place). Rename the "
            "files and folders, for example to numbers, and let `dicom: {group: patient}` tell patients apart."
        )


def dicom_fingerprint(path: Path, config: DicomConfig) -> str:
    """A text that changes whenever the pixels may have: file, policy, the library's version, the window."""
    import pydicom

    return f"{fingerprint(path)} dicom {_POLICY} pydicom {pydicom.__version__} window {config.window}"


def patient_groups(root: Path, keys: Sequence[str]) -> list[str]:
    """The patient of each row as a keyed hash of its PatientID: equal for equal patients in one home.

    Raises:
        DatasetError: A file has no PatientID, or is no DICOM file.
        StorageError: The home does not let the key be read or written.
    """
    secret = _group_key()
    groups = []
    for key in keys:
        name = split_frame(root, key)[0]
        number = _facts_of(root / name).patient[0] if is_dicom(root, name) else ""
        if not number:
            raise DatasetError(f"{key} has no PatientID, and `dicom: {{group: patient}}` needs one for every image.")
        groups.append(hmac.new(secret, number.encode(), hashlib.sha256).hexdigest()[:16])
    return groups


def _group_key() -> bytes:
    path = home() / GROUP_KEY_FILE
    with storage_errors(path):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            new = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            try:
                os.link(new, path)  # Whole or not at all, and never over the key of another process.
            except FileExistsError:
                pass
            finally:
                new.unlink()
        return path.read_bytes()


@dataclass(frozen=True)
class _Facts:
    """The facts of a file that a listing needs: its frames, PatientID and PatientName ('' where there are none)."""

    frames: int = 1
    patient: tuple[str, str] = ("", "")


def _facts_of(path: Path) -> _Facts:
    if not path.is_file() or unreadable_reason(path):
        return _Facts()
    return _read_facts(path, fingerprint(path))


@lru_cache(maxsize=1 << 18)
def _read_facts(path: Path, state: str) -> _Facts:
    """The facts of a file, read once for each `state` of it; faults are reported when its pixels are read."""
    dcmread = _library().dcmread
    tags = ["NumberOfFrames", "PatientID", "PatientName", "SpecificCharacterSet"]
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
    except Exception as error:  # Whatever a broken header makes the parser raise.
        if refusal := reading_refused(error, str(path)):
            raise refusal from None
        return _Facts()
    frames = _whole_number(header, "NumberOfFrames") or 1
    patient = tuple(_text(header, tag) for tag in ("PatientID", "PatientName"))
    return _Facts(frames if 1 <= frames <= _MOST_FRAMES else 1, (patient[0], patient[1]))


def _text(header: Header, tag: str) -> str:
    try:
        return str(header.get(tag) or "").strip()
    except Exception:  # A value that cannot be decoded is none that a path could carry.
        return ""


def _whole_number(header: Header, tag: str) -> int | None:
    try:
        return int(header.get(tag))
    except (TypeError, ValueError):
        return None


def _carries(text: str, patient: tuple[str, str]) -> bool:
    """Whether a part of a path carries the number or the name of a patient, or a part of the name as a word."""
    number, name = patient
    words = {_letters(word) for word in re.split(r"[\W_]+", text)}
    # What is short is part of many words; a single character says nothing.
    whole = {_letters(part) for part in (number, *name.split("="))}
    parts = {_letters(part) for part in re.split(r"[\s^=,.]+", name)} | whole
    return any(len(part) > 3 and part in _letters(text) for part in whole) or any(
        len(part) > 1 and part in words for part in parts
    )


def _letters(text: str) -> str:
    """Letters and digits alone, without case and accents."""
    decomposed = unicodedata.normalize("NFKD", text).casefold()
    return "".join(character for character in decomposed if character.isalnum())


# --- pixels ------------------------------------------------------------------------------------------


def decode_frame(path: Path, frame: int, config: DicomConfig) -> Image.Image:
    """Decode a frame as 8-bit RGB: modality LUT, VOI LUT or window, MONOCHROME1 inverted, palettes and YBR as RGB.

    Args:
        path: The DICOM file.
        frame: The number of the frame, from 1.
        config: The study's section `dicom`.

    Returns:
        The decoded frame.

    Raises:
        DatasetError: The file has no pixels that are read here. The message is the reason alone, in words of our own.
        StorageError: The operating system refuses to read the file now.
    """
    if reason := unreadable_reason(path):
        raise DatasetError(reason)
    try:
        header = _frame_header(_read_header(path, fingerprint(path)), frame - 1)
        _require_decodable(header, frame)
        pixels = _decoded_pixels(path, header, frame - 1)
        return Image.fromarray(_as_rgb(pixels, header, config))
    except (DatasetError, MemoryError):
        raise
    except FileNotFoundError:
        raise DatasetError("there is no such file") from None
    except Exception as error:  # The texts of the library hold values of the header.
        if refusal := reading_refused(error, str(path)):
            raise refusal from None
        reason = _REASONS.get(type(error), "it is damaged or cut off")
        raise DatasetError(f"its pixels cannot be decoded: {reason} ({type(error).__name__})") from None


@lru_cache(maxsize=8)
def _read_header(path: Path, state: str) -> Header:
    """The parts of a file's header that its pixels depend on; cached by `state` for the other frames of the file."""
    from pydicom.errors import InvalidDicomError

    dcmread = _library().dcmread
    try:
        header: Header = dcmread(path, stop_before_pixels=True, specific_tags=_PIXEL_TAGS)
    except InvalidDicomError:
        raise DatasetError("it is no DICOM file: the mark DICM is not at byte 128") from None
    return header


def _frame_header(header: Header, index: int) -> Header:
    """The header of one frame: values of functional groups, its own or shared ones, replace those of the file."""
    from pydicom.dataset import Dataset

    own = Dataset()
    own.update(header)
    own.file_meta = header.file_meta
    own.set_original_encoding(*header.original_encoding)
    shared, per_frame = (header.get(name) or [] for name in _FUNCTIONAL_GROUPS)
    for groups in (*shared[:1], *per_frame[index : index + 1]):
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for values in groups.get(name) or []:
                own.update(values)
    return own


def _require_decodable(header: Header, frame: int) -> None:
    from pydicom.pixels.decoders.base import get_decoder

    size = [_whole_number(header, tag) for tag in ("Columns", "Rows")]
    if None in size or not header.get("PhotometricInterpretation"):
        raise DatasetError("it holds no picture: it may be a report, a plan or a waveform")
    refuse_large(int(size[0] or 0), int(size[1] or 0))
    frames = _whole_number(header, "NumberOfFrames") or 1
    if not frame <= frames <= _MOST_FRAMES:
        raise DatasetError(f"it has no frame {frame}, or says that it has more than {_MOST_FRAMES:,}")
    if header.PhotometricInterpretation not in {*_GREY, *_COLOUR, _PALETTE}:
        raise DatasetError("its photometric interpretation is none that is read here; docs/data.md names those")
    if not 1 <= header.BitsStored <= 16:
        raise DatasetError("it has more than 16 bits a value, which have no agreed range; save it with 8 to 16 bits")
    if header.HighBit != header.BitsStored - 1:
        raise DatasetError("its values do not start at the lowest bit (HighBit); save it again with another program")
    syntax = header.file_meta.get("TransferSyntaxUID")
    if not syntax:
        raise DatasetError("it does not say how it is encoded (TransferSyntaxUID); save it again with another program")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise DatasetError("its compression is none of images, or one that pydicom does not know") from None
    if not available:
        raise DatasetError(f"no installed decoder reads its compression ({syntax.name}); {_GPL_DECODER}")


def _decoded_pixels(path: Path, header: Header, index: int) -> npt.NDArray[Any]:
    from pydicom.pixels.utils import pixel_array
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # A deflated file has to be read as a whole; of others only the frame is.
    deflated = header.file_meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian
    source = _library().dcmread(path) if deflated else path
    pixels: npt.NDArray[Any] = pixel_array(source, index=index)
    return pixels


def _as_rgb(pixels: npt.NDArray[Any], header: Header, config: DicomConfig) -> npt.NDArray[np.uint8]:
    from pydicom.pixels.processing import apply_color_lut

    if header.PhotometricInterpretation in _COLOUR:
        return _upper_8_bits(pixels, header.BitsStored)
    if header.PhotometricInterpretation == _PALETTE:
        colours = apply_color_lut(pixels, header)
        if colours.shape[-1] != 3:
            raise DatasetError("its palette has transparent colours, which are not read")
        return _upper_8_bits(colours, 8 * colours.dtype.itemsize)
    grey = np.floor(_shares(pixels, header, config).clip(0, 1) * 255 + 0.5).astype(np.uint8)
    if header.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, axis=2)


def _upper_8_bits(colours: npt.NDArray[Any], bits: int) -> npt.NDArray[np.uint8]:
    if colours.dtype.kind != "u":
        raise DatasetError("its colours are signed numbers, which have no agreed range")
    return (colours >> (bits - 8) if bits > 8 else colours).astype(np.uint8)


def _shares(pixels: npt.NDArray[Any], header: Header, config: DicomConfig) -> npt.NDArray[np.float64]:
    """Grey values as shares of the range of a window, a VOI LUT or the stored bits, not of the values that occur.

    The output range of pydicom's window is the stored one through the modality LUT, as in its documentation.
    """
    from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing

    low, high = _stored_range(header)
    first, last = _modality_range(header, low, high)
    values = apply_modality_lut(pixels, header)
    if config.window != "auto":
        header.WindowCenter, header.WindowWidth = config.window
        header.VOILUTFunction = "LINEAR"
        values = apply_windowing(values, header)
    elif header.get("VOILUTSequence"):
        values = apply_voi(values, header)
        first, last = 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif header.get("WindowCenter") is not None and header.get("WindowWidth") is not None:
        values = apply_windowing(values, header)
    else:
        first, last = min(first, last), max(first, last)
    if first == last:
        raise DatasetError("its values are all mapped to one (RescaleSlope is 0)")
    return (np.asarray(values, np.float64) - first) / (last - first)


def _stored_range(header: Header) -> tuple[int, int]:
    bits = header.BitsStored
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if header.PixelRepresentation else (0, (1 << bits) - 1)


def _modality_range(header: Header, low: int, high: int) -> tuple[float, float]:
    """What the modality LUT makes of the lowest and the highest value."""
    if header.get("ModalityLUTSequence"):
        return 0, 2 ** header.ModalityLUTSequence[0].LUTDescriptor[2] - 1
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if slope is None or intercept is None:
        return low, high
    return float(low * slope + intercept), float(high * slope + intercept)


@cache
def _library() -> Any:
    """The package pydicom, silenced: its warnings quote values of headers.

    Raises:
        DatasetError: It is not installed.
    """
    try:
        import pydicom
    except ImportError:
        raise DatasetError("DICOM files need pydicom: `pip install 'ccassets[dicom]'`.") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    return pydicom
