"""DICOM files: pixels as pydicom's own LUT functions make them, refusals with a reason, and nothing of the patient."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset as Header, FileMetaDataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing, pixel_array
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

import ccassets
from ccassets.datasets import dicom, open_dataset, read_manifest
from ccassets.datasets.dicom import GROUP_KEY_FILE, decode_frame
from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets.study.schema import DicomConfig, FolderConfig, TableConfig
from ccassets.study.storage import Store
from ccassets_tests.datasets.made_datasets import dataset_of, save_image
from ccassets_tests.made_studies import write_study

SHIPPED = sorted((Path(pydicom.__file__).parent / "data").rglob("*.dcm"))
AUTO = DicomConfig()
NAME, NUMBER = "Xylander^Quirin", "PX-4711"


# --- the files that pydicom ships --------------------------------------------------------------------

REFUSED = {
    "no DICOM file": ["ExplVR_BigEndNoMeta", "ExplVR_LitEndNoMeta", "no_meta", "rtstruct"],
    "no picture": [
        *(
            "UN_sequence",
            "meta_missing_tsyntax",
            "empty_charset_LEI",
            "nested_priv_SQ",
            "no_meta_group_length",
            "priv_SQ",
            "reportsi",
        ),
        *("reportsi_with_empty_number_tags", "rtplan", "rtplan_truncated", "test-SR", "waveform_ecg"),
        *("fall", "hotiron", "hotmetalblue", "pet", "pet20step", "spring", "summer", "winter"),
        *("chrSQEncoding", "chrSQEncoding1", "DICOMDIR-empty"),
    ],
    "more than 16 bits": [
        *("badVR", "SC_rgb_rle_32bit", "SC_rgb_rle_32bit_2frame"),
        *("rtdose", "rtdose_1frame", "rtdose_expb", "rtdose_expb_1frame", "rtdose_rle", "rtdose_rle_1frame"),
    ],
    "pip install pylibjpeg-libjpeg": [
        *("JPEGLSNearLossless_08", "JPEGLSNearLossless_16", "MR_small_jpeg_ls_lossless", "SC_rgb_jls_lossy_line"),
        *("SC_rgb_jls_lossy_sample", "SC_rgb_jpeg_gdcm", "JPEG-lossy", "JPGExtended"),
        "JPEG2000-embedded-sequence-delimiter",
    ],
    "damaged or cut off": ["MR_truncated", "SC_rgb_jpeg"],
    "no pixel data": ["chrJapMulti", "chrJapMultiExplicitIR6", "chrKoreanMulti"],
}
"""The shipped files that hold no picture that is read, by a part of the reason."""


def by_pydicom(path: Path, frame: int) -> np.ndarray:
    """8-bit RGB of a frame by pydicom's functions alone, for files without functional groups."""
    header = pydicom.dcmread(path)
    pixels = pixel_array(header, index=frame - 1)
    if header.PhotometricInterpretation == "PALETTE COLOR":
        return (apply_color_lut(pixels, header) >> 8).astype(np.uint8)
    if header.SamplesPerPixel == 3:
        return (pixels >> (header.BitsStored - 8)).astype(np.uint8)
    bits, slope, start = header.BitsStored, header.get("RescaleSlope", 1), header.get("RescaleIntercept", 0)
    low = -(2 ** (bits - 1)) if header.PixelRepresentation else 0
    first, last = (float(value * slope + start) for value in (low, low + 2**bits - 1))
    values = apply_modality_lut(pixels, header)
    if header.get("VOILUTSequence"):
        values, first, last = apply_voi(values, header), 0, 2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1
    elif "WindowCenter" in header:
        values = apply_windowing(values, header)
    grey = np.floor(np.clip((values - first) / (last - first), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.stack([255 - grey if header.PhotometricInterpretation == "MONOCHROME1" else grey] * 3, axis=-1)


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_each_shipped_file_is_read_as_pydicom_does_or_refused_with_its_reason() -> None:
    refused: dict[str, list[str]] = {}
    for path in SHIPPED:
        try:
            for frame in range(1, len(dicom.frame_keys(path.parent, path.name)) + 1)[-2:]:
                image = decode_frame(path, frame, AUTO)
                assert image.mode == "RGB"
                assert np.array_equal(np.asarray(image), by_pydicom(path, frame)), path.name
        except DatasetError as error:
            refused.setdefault(str(error), []).append(path.stem)
    expected = {name: reason for reason, names in REFUSED.items() for name in names}
    assert {
        name: expected[name] for reason, names in refused.items() for name in names if expected[name] in reason
    } == (expected)
    assert sum(map(len, refused.values())) == len(expected) < len(SHIPPED) / 2 + 1


def texts_of_patients() -> dict[bytes, str]:
    """By PatientName, and each long part of one, as bytes: the file that has it."""
    texts = {}
    for path in SHIPPED:
        name = str(pydicom.dcmread(path, force=True).get("PatientName", ""))
        for text in (name, *name.replace("=", "^").split("^")):
            if len(text) > 5 or (not text.isascii() and len(text) > 2):
                texts[text.encode()] = path.name
    return texts


@pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
def test_no_name_of_a_shipped_patient_is_in_home_storage_log_or_page(
    tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    for number, path in enumerate(SHIPPED):  # One of them bears the name of its patient, Test.
        target = tmp_path / "scans/all" / "ab"[number % 2] / path.name.replace("test-SR", "report")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    study = write_study(
        tmp_path / "dicoms",
        images=tmp_path / "scans",
        encoder={"kind": "phantom"},
        splits=["all"],
        vocabulary={},
        extraction={"limit": 3, "on_bad_image": "skip"},
    )
    with caplog.at_level(logging.DEBUG):
        database = ccassets.build(study)
    assert database is not None
    with pytest.raises(DatasetError) as caught:
        read_manifest(open_dataset(study, Store.of(study)), "all")
    everything = {
        "log": (caplog.text + "".join(capfd.readouterr()) + str(caught.value)).encode(),
        **{str(path): path.read_bytes() for path in home.rglob("*") if path.is_file()},
    }
    assert any(name.endswith(".html") for name in everything)
    texts = texts_of_patients()
    assert len(texts) > 20
    assert [(texts[text], where) for where, content in everything.items() for text in texts if text in content] == []


# --- pixels ------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Write pixels as a DICOM file; keyword arguments are elements of its header."""

    def write(
        pixels: Any, path: str | Path = "a.dcm", *, syntax: str = ExplicitVRLittleEndian, **elements: Any
    ) -> Path:
        array = np.asarray(pixels)
        header = Header()
        header.file_meta = FileMetaDataset()
        header.file_meta.TransferSyntaxUID = syntax
        header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
        header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["test"])
        colour = array.ndim > 2 and array.shape[-1] == 3
        frames = array.ndim - colour == 3
        header.Rows, header.Columns = array.shape[frames : frames + 2]
        if frames:
            header.NumberOfFrames = len(array)
        header.SamplesPerPixel = 3 if colour else 1
        header.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            header.PlanarConfiguration = 0
        header.BitsAllocated = header.BitsStored = 8 * array.dtype.itemsize
        header.PixelRepresentation = int(array.dtype.kind == "i")
        header.PixelData = array.tobytes() + b"\0" * (array.nbytes % 2)
        for name, value in elements.items():
            setattr(header, name, value)
        header.HighBit = elements.get("HighBit", header.BitsStored - 1)
        target = tmp_path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        header.save_as(target, enforce_file_format=True)
        return target

    return write


def lut(first: int, bits: int, *values: int) -> Header:
    table = Header()
    table.LUTDescriptor = [len(values), first, bits]
    table.add_new("LUTData", "OW", np.array(values, "<u2").tobytes())
    return table


def palette(bits: int, **colours: list[int]) -> dict[str, Any]:
    elements: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for colour, values in colours.items():
        elements[f"{colour}PaletteColorLookupTableDescriptor"] = [len(values), 0, bits]
        elements[f"{colour}PaletteColorLookupTableData"] = np.array(values, f"<u{bits // 8}").tobytes()
    return elements


M1 = {"PhotometricInterpretation": "MONOCHROME1"}
U8, U16, I16 = np.uint8, np.uint16, np.int16
WINDOW = {"WindowCenter": "50.5", "WindowWidth": "101"}
NONE = [0] * 4
RAMP = np.array([[0, 1, 2, 3]], U8)


@pytest.mark.parametrize(
    ("pixels", "elements", "expected"),
    [
        pytest.param(np.array([[0, 128, 255]], U8), {}, [0, 128, 255], id="8 bits as they are"),
        pytest.param(np.array([[0, 128, 255]], U8), M1, [255, 127, 0], id="MONOCHROME1"),
        pytest.param(np.array([[0, 2048, 4095]], U16), {"BitsStored": 12}, [0, 128, 255], id="12 bits, full range"),
        pytest.param(np.array([[0x700F]], U16), {"BitsStored": 12}, [1], id="an overlay in the unused bits"),
        pytest.param(np.array([[-32768, 0, 32767]], I16), {}, [0, 128, 255], id="signed, the full range"),
        pytest.param(np.array([[0, 50, 100, 200]], U8), WINDOW, [0, 128, 255, 255], id="window of the file"),
        pytest.param(
            np.array([[0, 50, 100, 200]], U8), {**M1, **WINDOW}, [255, 127, 0, 0], id="window, MONOCHROME1",
        ),
        pytest.param(
            np.array([[0, 50, 100]], U8), {"WindowCenter": ["50.5", "9"], "WindowWidth": ["101", "3"]}, [0, 128, 255],
            id="the first of several windows",
        ),
        pytest.param(
            np.array([[-2000, -950, 1000]], I16), {"RescaleSlope": "1", "RescaleIntercept": "1000", **WINDOW},
            [0, 128, 255], id="window in units of the modality, signed",
        ),
        pytest.param(
            np.array([[0, 255]], U8), {"RescaleSlope": "-1", "RescaleIntercept": "255"}, [255, 0], id="negative slope"
        ),
        pytest.param(
            np.array([[205, 180, 0]], U8), {"RescaleSlope": "-1", "RescaleIntercept": "255", **WINDOW}, [128, 191, 255],
            id="negative slope and window",
        ),
        pytest.param(RAMP, {"VOILUTSequence": [lut(1, 8, 10, 20, 255)]}, [10, 10, 20, 255], id="VOI LUT"),
        pytest.param(
            RAMP, {"VOILUTSequence": [lut(0, 16, 0, 257, 65535, 0)], **WINDOW}, [0, 1, 255, 0],
            id="VOI LUT before a window",
        ),
        pytest.param(RAMP, {"ModalityLUTSequence": [lut(0, 8, 9, 8, 7, 255)]}, [9, 8, 7, 255], id="modality LUT"),
        pytest.param(
            np.array([[0, 50, 100]], U8),
            {"WindowCenter": "50", "WindowWidth": "100", "VOILUTFunction": "LINEAR_EXACT"}, [0, 128, 255],
            id="linear exact",
        ),
        pytest.param(
            np.array([[0, 50, 100]], U8), {"VOILUTFunction": "SIGMOID", "WindowCenter": "50", "WindowWidth": "100"},
            [30, 128, 225], id="SIGMOID",
        ),
        pytest.param(RAMP, palette(16, Red=[0, 256, 65535, 1], Green=NONE, Blue=NONE), [0, 1, 255, 0], id="palette"),
        pytest.param(
            np.array([[[18, 0, 0], [255, 0, 0]]], U8), {"ICCProfile": b"no profile", **WINDOW}, [18, 255],
             id="colour: neither window nor ICC profile",
        ),
        pytest.param(np.array([[[0x12FF, 0, 0]]], U16), {}, [0x12], id="16 bits of colour, the upper 8"),
        pytest.param(
            np.array([[[255, 128, 128]]], U8), {"PhotometricInterpretation": "YBR_FULL"}, [255], id="YBR as RGB"
        ),
        pytest.param(
            np.array([[0b0101]], U8), {"BitsAllocated": 1, "BitsStored": 1, "Columns": 4}, [255, 0, 255, 0], id="1 bit"
        ),
    ],
)  # fmt: skip
def test_what_a_header_says_of_its_pixels_is_honoured(
    save: Callable[..., Path], pixels: np.ndarray, elements: dict[str, Any], expected: list[int]
) -> None:
    assert np.asarray(decode_frame(save(pixels, **elements), 1, AUTO))[0, :, 0].tolist() == expected


SIGNED = np.linspace(-(2**15), 2**15 - 1, 64 * 64).reshape(64, 64).astype(I16)
COLOUR = {"ICCProfile": b"no profile"}


@pytest.mark.parametrize(
    ("pixels", "elements"),
    [
        pytest.param(SIGNED, {}, id="signed"),
        pytest.param(SIGNED.view(U16) % 4, palette(8, Red=[9, 8, 7, 6], Green=NONE, Blue=NONE), id="palette"),
        pytest.param(np.tile(np.array([200, 30, 60], U8), (64, 64, 1)), COLOUR, id="ICC profile"),
    ],
)
def test_compression_by_jpeg_2000_changes_nothing(
    save: Callable[..., Path], pixels: np.ndarray, elements: dict[str, Any]
) -> None:
    plain = save(pixels, **elements)
    header = pydicom.dcmread(plain)
    header.compress(JPEG2000Lossless, generate_instance_uid=False)
    header.save_as(compressed := plain.with_name("b.dcm"))
    images = [np.asarray(decode_frame(path, 1, AUTO)) for path in (plain, compressed)]
    assert pydicom.dcmread(compressed).file_meta.TransferSyntaxUID == JPEG2000Lossless
    assert np.array_equal(*images)


def test_a_deflated_file_is_read(save: Callable[..., Path]) -> None:
    assert decode_frame(save(RAMP, syntax=DeflatedExplicitVRLittleEndian), 1, AUTO).size == (4, 1)


@pytest.mark.parametrize(
    ("pixels", "elements", "reason"),
    [
        (RAMP, {"PhotometricInterpretation": "SECRET"}, "photometric interpretation is none that is read"),
        (np.zeros((1, 2), np.uint32), {}, "more than 16 bits"),
        (np.array([[0]], U16), {"BitsStored": 12, "HighBit": 15}, "lowest bit"),
        (RAMP, {"RescaleSlope": "0", "RescaleIntercept": "0"}, "RescaleSlope is 0"),
        (np.zeros((1, 1, 3), I16), {}, "signed"),
        (RAMP, palette(16, Red=NONE, Green=NONE, Blue=NONE, Alpha=NONE), "transparent colours"),
        (RAMP, {"Rows": 60_000, "Columns": 60_000}, "more than the 89478485"),
        (RAMP, {"NumberOfFrames": 200_000}, "more than 100,000"),
        (RAMP, {"Columns": 400}, "damaged or cut off"),
        (RAMP, {"WindowCenter": "1", "WindowWidth": "0"}, "cannot be decoded"),
    ],
)
def test_pixels_without_an_agreed_meaning_are_refused_in_words_of_our_own(
    save: Callable[..., Path], pixels: np.ndarray, elements: dict[str, Any], reason: str
) -> None:
    with pytest.raises(DatasetError, match=reason) as caught:
        decode_frame(save(pixels, **elements), 1, AUTO)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_window_of_the_study_takes_the_place_of_the_file_s(save: Callable[..., Path]) -> None:
    path = save(np.array([[0, 50, 100]], U8), **{**WINDOW, "VOILUTSequence": [lut(0, 8, 1, 2)]})
    assert np.asarray(decode_frame(path, 1, DicomConfig(window=(100.5, 101))))[0, :, 0].tolist() == [0, 0, 128]
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DicomConfig(window=(40, 0))


def test_a_functional_group_of_a_frame_replaces_what_the_file_says(save: Callable[..., Path]) -> None:
    def group(**sequences: dict[str, Any]) -> Header:
        item = Header()
        for name, elements in sequences.items():
            values = Header()
            values.update(elements)
            setattr(item, name, [values])
        return item

    path = save(
        np.array([[[0, 50, 100, 200]]] * 2, U8),
        SharedFunctionalGroupsSequence=[
            group(PixelValueTransformationSequence={"RescaleSlope": "2", "RescaleIntercept": "0"})
        ],
        PerFrameFunctionalGroupsSequence=[
            group(FrameVOILUTSequence={"WindowCenter": "100.5", "WindowWidth": "201"}),
            group(FrameVOILUTSequence={"WindowCenter": "200.5", "WindowWidth": "201"}),
        ],
    )
    frames = [np.asarray(decode_frame(path, frame, AUTO))[0, :, 0].tolist() for frame in (1, 2)]
    assert frames == [[0, 128, 255, 255], [0, 0, 128, 255]]


# --- rows --------------------------------------------------------------------------------------------


def test_frames_are_rows_of_folder_and_table(save: Callable[..., Path], tmp_path: Path) -> None:
    save(np.arange(12, dtype=U8).reshape(3, 2, 2), "scans/train/a/run.dcm")
    save(np.zeros((2, 2), U8), "scans/train/b/one.DCM")
    save_image(tmp_path / "scans/train/b/plain.png", 1)
    folder = dataset_of(tmp_path, kind="folder", root="scans", splits=["train"])
    rows = folder.rows("train")
    runs = [f"train/a/run.dcm#{frame}" for frame in (1, 2, 3)]
    assert list(rows.keys) == [*runs, "train/b/one.DCM", "train/b/plain.png"]
    assert (rows.labels.tolist(), len(set(rows.fingerprints))) == ([0, 0, 0, 1, 1], 3)
    assert np.asarray(folder.read("train", 2))[..., 0].tolist() == [[8, 9], [10, 11]]
    assert read_manifest(folder, "train").image_digest.shape == (5, 32)

    lines = "path,label,split\ntrain/a/run.dcm#3,x,test\ntrain/b/one.DCM,y,train\ntrain/a/run.dcm,x,train\n"
    (tmp_path / "scans/t.csv").write_text(lines + "train/a/run.dcm#9,x,test\n")
    table = dataset_of(tmp_path, kind="table", file="scans/t.csv", splits=["train", "test"])
    assert list(table.rows("train").keys) == ["train/b/one.DCM", *runs]
    assert table.rows("train").labels.tolist() == [1, 0, 0, 0]
    assert np.asarray(table.read("test", 0))[0, 0, 0] == 8
    with pytest.raises(DatasetError, match="no frame 9"):
        table.read("test", 1)


def test_a_dicom_file_is_known_by_its_mark_whatever_it_is_called(save: Callable[..., Path], tmp_path: Path) -> None:
    names = ["1.2.840.113619.2.55", "IM0001", "scan.ima"]
    for name in names:
        save(np.arange(8, dtype=U8).reshape(2, 2, 2), f"scans/train/a/{name}")
    (tmp_path / "scans/train/DICOMDIR").write_bytes((tmp_path / "scans/train/a/IM0001").read_bytes())
    frames = [f"train/a/{name}#{frame}" for name in names for frame in (1, 2)]
    folder = dataset_of(tmp_path, kind="folder", root="scans", splits=["train"])
    assert list(folder.rows("train").keys) == frames
    (tmp_path / "t.csv").write_text("path,split\ntrain/a/IM0001,train\ntrain/a/scan.ima#2,train\n")
    table = dataset_of(tmp_path, kind="table", file="t.csv", root="scans", splits=["train"])
    assert list(table.rows("train").keys) == [*frames[2:4], frames[5]]
    assert np.asarray(table.read("train", 2))[..., 0].tolist() == [[4, 5], [6, 7]]

    for name in ("notes", "IM0001#3"):  # The second would be taken for a frame.
        (tmp_path / "scans/train/a" / name).write_bytes(b"\0" * 128 + (b"DICM" if "#" in name else b"text"))
        with pytest.raises(DatasetError, match=f"train/a/{name}.* or are DICOM files"):
            dataset_of(tmp_path, kind="folder", root="scans", splits=["train"]).fetch(silent)
        (tmp_path / "scans/train/a" / name).unlink()
    save(RAMP, "scans/train/a/quirin", PatientName=NAME)
    with pytest.raises(DatasetError, match="carry the PatientName"):
        dataset_of(tmp_path, kind="folder", root="scans", splits=["train"]).fetch(silent)


def test_another_window_is_another_fingerprint_and_the_defaults_are_in_no_digest(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    save(RAMP, "scans/train/a.dcm")
    kind = {"kind": "folder", "root": "scans", "splits": ["train"]}
    prints = [
        dataset_of(tmp_path, **kind, dicom={"window": window}).rows("train").fingerprints
        for window in ("auto", [40, 400], [50, 400])
    ]
    assert len({tuple(of_window) for of_window in prints}) == 3
    for config in (FolderConfig(kind="folder", root=Path()), TableConfig(kind="table", file=Path("t.csv"))):
        assert "dicom" not in config.model_dump_json()


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("train/Xylander Quirin/1.dcm", "train/…/1.dcm"),
        ("train/a/quirin_2.dcm", "train/a/…"),
        ("train/a/XYLANDERQUIRIN7.dcm", "train/a/…"),
        ("train/a/scan px4711 b.dcm", "train/a/…"),
        ("train/PX_4711/1.dcm", "train/…/1.dcm"),
    ],
)
def test_a_path_that_carries_a_patient_is_refused_and_not_shown(
    save: Callable[..., Path], tmp_path: Path, path: str, shown: str
) -> None:
    save(RAMP, f"scans/{path}", PatientName=NAME, PatientID=NUMBER)
    save(RAMP, "scans/train/b/2.dcm", PatientName=NAME, PatientID=NUMBER)
    (tmp_path / "t.csv").write_text(f"path,split\n{path},train\n")
    for config in ({"kind": "folder", "root": "scans"}, {"kind": "table", "file": "t.csv", "root": "scans"}):
        with pytest.raises(DatasetError, match=f"carry the PatientName .* the first is {shown} ") as caught:
            dataset_of(tmp_path, splits=["train"], **config).fetch(silent)
        message = str(caught.value).replace(str(tmp_path), "").lower()
        assert not any(part in message for part in ("xylander", "quirin", "4711"))


def test_a_data_set_that_carries_a_patient_is_refused_and_a_split_that_is_called_like_one_is_not(
    save: Callable[..., Path], tmp_path: Path
) -> None:
    save(RAMP, "Xylander/train/1.dcm", PatientName=NAME)
    with pytest.raises(DatasetError, match="under the data set's folder or table"):
        dataset_of(tmp_path, kind="folder", root="Xylander", splits=["train"]).fetch(silent)
    save(RAMP, "scans/test/fibrosis/1.dcm", PatientName="Test^Fibro", PatientID="1")
    dataset_of(tmp_path, kind="folder", root="scans", splits=["test"]).fetch(silent)


def test_patients_are_groups_by_a_key_of_the_home(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, patient in enumerate([NUMBER, "other", f"{NUMBER} "]):
        save(RAMP, f"scans/train/{number}.dcm", PatientID=patient)
    kind = {"kind": "folder", "root": "scans", "splits": ["train"], "dicom": {"group": "patient"}}

    def groups(name: str) -> list[str]:
        monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / name))
        names = dataset_of(tmp_path, **kind).rows("train").groups
        assert names is not None
        return list(names)

    here = groups("home")
    assert here[0] == here[2] != here[1]
    assert here == groups("home")
    assert not set(here) & set(groups("other"))
    key = tmp_path / "home" / GROUP_KEY_FILE
    assert (key.stat().st_mode & 0o777, len(key.read_bytes())) == (0o600, 32)
    assert [path.name for path in key.parent.iterdir()] == [GROUP_KEY_FILE]

    Image.new("RGB", (2, 2)).save(tmp_path / "scans/train/3.png")
    with pytest.raises(DatasetError, match=r"3\.png has no PatientID"):
        groups("home")
    with pytest.raises(ValueError, match=r"columns\.group or from dicom\.group"):
        TableConfig(kind="table", file=Path("t.csv"), columns={"group": "p"}, dicom={"group": "patient"})


def test_what_is_wrong_in_a_header_is_neither_warned_of_nor_logged(
    save: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    dicom._library.cache_clear()
    path = save(RAMP)
    header = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header.WindowCenter = header.WindowWidth = "12"
        header.SpecificCharacterSet = "Secret"
        header.PatientName = "Sécret"
        header.save_as(path)
    path.write_bytes(path.read_bytes().replace(b"12", b"1X"))
    with warnings.catch_warnings(record=True) as warned, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        dicom._library()
        assert dicom.frame_keys(path.parent, path.name) == [path.name]
        with pytest.raises(DatasetError, match="cannot be decoded"):
            decode_frame(path, 1, AUTO)
    assert ([str(warning.message) for warning in warned], caplog.records) == ([], [])


def test_without_the_extra_it_is_named(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(RAMP, "scans/train/a.dcm")
    dicom._library.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(DatasetError, match=r"pip install 'ccassets\[dicom\]'"):
        dataset_of(tmp_path, kind="folder", root="scans", splits=["train"]).fetch(silent)
