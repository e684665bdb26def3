"""A new study says what was found, loads as it is, and replaces nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ccassets.datasets import open_dataset
from ccassets.encoders.presets import load_presets
from ccassets.errors import DatasetError, StudyError
from ccassets.study.loading import load_study
from ccassets.study.schema import FolderConfig, Study
from ccassets.study.storage import Store
from ccassets.tools.new_study import (
    write_folder_study,
    write_huggingface_study,
    write_medmnist_study,
    write_table_study,
)
from ccassets_tests.datasets.made_datasets import save_parquet
from ccassets_tests.made_studies import picture


@pytest.fixture
def save_images(tmp_path: Path) -> Callable[..., Path]:
    """Make a folder `images` with a small picture under each of the given keys."""

    def make(*keys: str) -> Path:
        for number, key in enumerate(keys):
            path = tmp_path / "images" / key
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(path)
        return tmp_path / "images"

    return make


def folder_of(study: Study) -> FolderConfig:
    assert isinstance(study.dataset, FolderConfig)
    return study.dataset


def test_a_new_study_of_splits_and_classes_loads_and_says_what_was_found(image_folder: Path, tmp_path: Path) -> None:
    new = write_folder_study("mine", image_folder, tmp_path / "studies")
    assert new.summary == "18 images of 3 classes in 3 splits"
    assert new.splits == [
        "train: 9 images, 3 blood, 3 platelet, 3 white",
        "val: 5 images, 2 blood, 2 platelet, 1 white",
        "test: 4 images, 2 blood, 1 platelet, 1 white",
    ]
    text = new.path.read_text(encoding="utf-8")
    assert all(line in text for line in (new.summary, *new.splits))

    study = load_study(new.path)
    assert study.name == "mine"
    assert study.splits == ("train", "val", "test")
    assert study.vocabulary.labels.words == folder_of(study).classes == ("blood", "platelet", "white")
    dataset = open_dataset(study, Store.of(study))
    assert [len(dataset.rows(split)) for split in study.splits] == [9, 5, 4]


@pytest.mark.parametrize(
    ("keys", "root", "splits", "classes"),
    [
        (["a/x.png", "b/y.png"], "", ("images",), ("a", "b")),
        (["x.png", "y.png"], "", ("images",), None),
        (["test/x.png", "train/y.png"], "images", ("train", "test"), None),
        (["a/p1/x.png", "a/p2/y.png", "b/p3/z.png"], "", ("images",), ("a", "b")),
        (["site 2/a/x.png", "site 1/a/y.png", "site 1/b/y.png"], "images", ("site 1", "site 2"), ("a", "b")),
        (["Train/yes/x.png", "Valid/no/y.png"], "images", ("Train", "Valid"), ("no", "yes")),
        (["a/x.png", "b/y.png", ".thumbnails/c/x.png"], "", ("images",), ("a", "b")),
    ],
)
def test_layouts_are_told_apart(
    save_images: Callable[..., Path],
    tmp_path: Path,
    keys: list[str],
    root: str,
    splits: tuple[str, ...],
    classes: tuple[str, ...] | None,
) -> None:
    study = load_study(write_folder_study("mine", save_images(*keys), tmp_path / "studies").path)
    assert study.resolve(folder_of(study).root) == tmp_path / root
    assert study.splits == splits
    assert folder_of(study).classes == classes


def test_names_that_yaml_would_read_otherwise_stay_names(save_images: Callable[..., Path], tmp_path: Path) -> None:
    classes = ("#3", "007", "Zelle “ä”", "[x]", "a: b", "no", "null")
    new = write_folder_study("mine", save_images(*(f"train/{name}/1.png" for name in classes)), tmp_path / "studies")
    study = load_study(new.path)
    assert study.vocabulary.labels.words == classes
    assert folder_of(study).classes == classes


def test_a_relative_folder_stays_relative_to_the_study(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new = write_folder_study("mine", Path("pictures"), Path("studies"))
    study = load_study(new.path)
    assert str(folder_of(study).root) == "../../pictures"
    assert study.resolve(folder_of(study).root).samefile(image_folder)


@pytest.mark.parametrize("key", ["images/a/x.png", "images/x.png"])
def test_the_commented_lines_are_right_when_they_are_uncommented(
    save_images: Callable[..., Path], tmp_path: Path, key: str
) -> None:
    path = write_folder_study("mine", save_images(key) / "images", tmp_path / "studies").path
    text = path.read_text(encoding="utf-8")
    keys = "vocabulary|concepts|words|templates|extraction"
    path.write_text(re.sub(rf"^( *)# ( *(?:{keys}):)", r"\1\2", text, flags=re.MULTILINE), encoding="utf-8")
    study = load_study(path)
    assert study.vocabulary.concepts.texts == ("round nucleus", "pale cytoplasm")
    assert len(study.vocabulary.concepts.templates) == 1
    assert study.extraction.limit == 100


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_new_study_of_a_table_finds_columns_images_splits_and_classes(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.chdir(tmp_path)
    keys = [path.relative_to(image_folder).as_posix() for path in sorted(image_folder.rglob("*.png"))]
    rows = [f"{key};{key.split('/')[1]};{number};{key.split('/')[0]}\n" for number, key in enumerate(keys)]
    Path("cells.csv").write_text("File_Name;Diagnosis;Patient ID;fold\n" + "".join(rows), encoding=encoding)
    new = write_table_study("mine", Path("cells.csv"), Path("studies"))
    assert new.summary == "18 images of 3 classes in 3 splits"
    assert new.splits[0] == "train: 9 images, 3 blood, 3 platelet, 3 white"
    study = load_study(new.path)
    assert study.splits == ("train", "val", "test")
    assert study.vocabulary.labels.words == ("blood", "platelet", "white")
    rows_read = open_dataset(study, Store.of(study)).rows("train")
    assert (len(rows_read), rows_read.groups is not None) == (9, True)
    assert "file: ../../cells.csv" in new.path.read_text()
    assert "root: ../../pictures" in new.path.read_text()


def test_a_new_study_of_numbered_classes_names_them_by_number(image_folder: Path, tmp_path: Path) -> None:
    (image_folder / "t.csv").write_text("image,grade,split\ntrain/white/002.png,3,all\n")
    study = load_study(write_table_study("mine", image_folder / "t.csv", tmp_path).path)
    assert study.vocabulary.labels.words == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "picture,label,split",
            "hold the path of an image: expected one of path, image.* it has picture, label, split",
        ),
        ("path,label", "hold the split of an image"),
    ],
)
def test_a_table_without_paths_or_splits_says_what_was_expected(tmp_path: Path, header: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(f"{header}\n{header}\n")
    with pytest.raises(DatasetError, match=message):
        write_table_study("mine", tmp_path / "t.csv", tmp_path)


def test_a_new_study_of_a_hugging_face_folder_finds_columns_splits_and_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_parquet(Path("hf"), {"train": ["a", "b", "b"], "validation": ["a"], "test": ["b"]})
    new = write_huggingface_study("mine", "hf", Path("studies"))
    assert new.summary == "5 images of 2 classes in 3 splits"
    assert new.splits == ["train: 3 images, 1 a, 2 b", "validation: 1 image, 1 a, 0 b", "test: 1 image, 0 a, 1 b"]
    study = load_study(new.path)
    assert study.splits == ("train", "validation", "test")
    assert open_dataset(study, Store.of(study)).rows("train").labels.tolist() == [0, 1, 1]


def test_a_new_study_of_medmnist_knows_its_published_splits_and_classes(tmp_path: Path) -> None:
    new = write_medmnist_study("blood", "bloodmnist", tmp_path)
    assert new.summary == "17,092 images of 8 classes in 3 splits"
    study = load_study(new.path)
    assert study.vocabulary.labels.words[0] == "basophil"
    assert yaml.safe_load(new.path.read_text(encoding="utf-8"))["attributes"]["dataset"] == {
        "kind": "medmnist",
        "name": "bloodmnist",
        "size": 224,
        "download": True,
        "splits": ["train", "val", "test"],
    }


def test_a_study_that_is_there_is_never_overwritten(image_folder: Path, tmp_path: Path) -> None:
    path = write_folder_study("mine", image_folder, tmp_path).path
    path.write_text("edited", encoding="utf-8")
    with pytest.raises(StudyError, match="exists and was not changed"):
        write_folder_study("mine", image_folder, tmp_path)
    with pytest.raises(StudyError, match="exists and was not changed"):
        write_medmnist_study("mine", "bloodmnist", tmp_path)
    assert path.read_text(encoding="utf-8") == "edited"


def test_what_cannot_be_a_study_is_refused_before_anything_is_written(
    save_images: Callable[..., Path], tmp_path: Path
) -> None:
    images = save_images("train/a/x.png")
    (images / "notes").mkdir()
    studies = tmp_path / "studies"
    with pytest.raises(StudyError, match="cannot name a study"):
        write_folder_study("my study", images, studies)
    with pytest.raises(DatasetError, match="There is no folder"):
        write_folder_study("mine", images / "nowhere", studies)
    with pytest.raises(DatasetError, match="no images"):
        write_folder_study("mine", images / "notes", studies)
    with pytest.raises(DatasetError, match="no 2D set 'cells'"):
        write_medmnist_study("mine", "cells", studies)
    (images / "train" / "a" / "slide.svs").touch()
    with pytest.raises(DatasetError, match=r"slide\.svs"):
        write_folder_study("mine", images, studies)
    assert not studies.exists()


@pytest.mark.parametrize("name", list(load_presets()))
def test_a_preset_becomes_the_encoder_section(image_folder: Path, tmp_path: Path, name: str) -> None:
    preset = load_presets()[name]
    path = write_folder_study("mine", image_folder, tmp_path / "studies", encoder=name).path
    encoder, text = load_study(path).encoder, path.read_text(encoding="utf-8")
    assert {key: getattr(encoder, key) for key in preset.section} == preset.section
    assert (f"https://huggingface.co/{preset.weights} and set HF_TOKEN" in text) == bool(preset.gated)
    assert (f"ccassets[{preset.needed_extra}]" in text) == (preset.needed_extra is not None)


def test_the_folder_of_a_model_becomes_the_encoder_section(image_folder: Path, tmp_path: Path) -> None:
    for kind, file in (("open_clip", "open_clip_config.json"), ("transformers", "config.json")):
        folder = tmp_path / f"my {kind}"
        folder.mkdir()
        (folder / file).write_text("{}")
        encoder = load_study(write_folder_study(kind, image_folder, tmp_path, encoder=str(folder)).path).encoder
        assert (encoder.kind, getattr(encoder, "weights", "")) == (kind, str(folder))
    with pytest.raises(StudyError, match=r"'biomed' is not a preset \(conceptclip, biomedclip, "):
        write_folder_study("mine", image_folder, tmp_path, encoder="biomed")


def test_every_fact_of_a_preset_has_a_source() -> None:
    """What no source says is left out, and no model claims to have been run."""
    presets = load_presets()
    assert len(presets) <= 10
    for name, preset in presets.items():
        sourced = {fact for facts in preset.sources for fact in facts.split(" and ")}
        stated = {
            fact for fact in ("license", "gated", "image_size", "parameters") if getattr(preset, fact) is not None
        }
        assert sourced == stated, name
        assert all(preset.sources.values()), name
        assert not preset.run_by_us, name
