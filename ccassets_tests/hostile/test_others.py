"""Hostile weights, archives, pictures and studies: a sentence, no code run, memory bounded."""

from __future__ import annotations

import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path

import medmnist
import pytest

from ccassets.datasets.image_decoding import decode_image
from ccassets.encoders import inspect_encoder
from ccassets.errors import DatasetError, EncoderError, StudyError
from ccassets.progress import silent
from ccassets.study.loading import load_study
from ccassets_tests.datasets.made_datasets import dataset_of
from ccassets_tests.hostile.case import Case
from ccassets_tests.hostile.others import ARCHIVES, MARK, PICTURES, STUDIES, WEIGHTS
from ccassets_tests.made_studies import DATA, write_study


@pytest.fixture(autouse=True)
def nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that a file got run would leave its mark in the working directory."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARK).exists()


@pytest.fixture(autouse=True)
def memory_is_bounded(nothing_is_run: None) -> Iterator[None]:
    """300 MB more than now; what asks for more gets a `MemoryError`, which is no answer to a test."""
    data = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, ((int(data.split()[1]) << 10) + (300 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


@pytest.mark.parametrize("case", WEIGHTS, ids=lambda case: case.name)
def test_hostile_weights_are_refused(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    config = json.loads((DATA / "conceptclip" / "tiny_a.json").read_text())
    (folder / "architecture.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(config["text"]["vocab"]) + "\n")
    case.make(folder)
    study = write_study(tmp_path / "study", images=tmp_path, encoder=folder)
    with pytest.raises(EncoderError) as caught:
        inspect_encoder(study)
    assert case.sentence in str(caught.value)


@pytest.mark.parametrize("case", ARCHIVES, ids=lambda case: case.name)
def test_a_hostile_archive_is_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "medmnist"
    root.mkdir()
    archive = case.make(root)
    dataset = dataset_of(tmp_path, kind="medmnist", name="bloodmnist", root=root)
    with pytest.raises(DatasetError, match="has the MD5"):  # What a changed archive meets first.
        dataset.fetch(silent)
    monkeypatch.setitem(medmnist.INFO["bloodmnist"], "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    with pytest.raises(DatasetError) as caught:
        dataset.fetch(silent)
    assert case.sentence in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["medmnist", "storage"]


@pytest.mark.parametrize("case", PICTURES, ids=lambda case: case.name)
def test_a_hostile_picture_is_refused(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    with pytest.raises(DatasetError) as caught:
        decode_image(path)
    assert case.sentence in str(caught.value)


@pytest.mark.parametrize("case", STUDIES, ids=lambda case: case.name)
def test_a_hostile_study_is_refused(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    with pytest.raises(StudyError) as caught:
        load_study(path)
    assert str(path) in str(caught.value)
    assert case.sentence in str(caught.value)
