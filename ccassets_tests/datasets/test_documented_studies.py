"""The studies in the page on data sets: each is valid, and those over files are read as the page says."""

import re
from pathlib import Path

import pytest

from ccassets.datasets import open_dataset
from ccassets.datasets.manifest import read_manifest
from ccassets.progress import silent
from ccassets.study.loading import load_study
from ccassets.study.storage import Store
from ccassets_tests.datasets.made_datasets import save_folder

PAGE = Path(__file__).parents[2] / "docs" / "data.md"


@pytest.fixture(scope="module")
def blocks() -> dict[str, str]:
    """The page's code blocks by the heading they stand under, YAML and listing apart."""
    blocks: dict[str, str] = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        heading = section.partition("\n")[0]
        for language, text in re.findall(r"```(\w*)\n(.*?)```", section, re.DOTALL):
            blocks[f"{heading} {language}".strip()] = text
    return blocks


def study_from(text: str, folder: Path):
    (folder / "defs.yaml").write_text(text, encoding="utf-8")
    return load_study(folder)


def read_all(study, folder: Path) -> dict[str, list[tuple[str, int]]]:
    dataset = open_dataset(study, Store.of(study, folder / "storage"))
    dataset.fetch(silent)
    manifests = {split: read_manifest(dataset, split) for split in study.splits}
    return {
        split: list(zip(manifest.keys, manifest.labels.tolist(), strict=True)) for split, manifest in manifests.items()
    }


def test_the_folder_study_reads_its_folder(blocks: dict[str, str], tmp_path: Path):
    study = study_from(blocks["A folder of images yaml"], tmp_path)
    keys = ["train/RBC/smear_01.png", "train/WBC/smear_02.png", "val/RBC/a.png", "test/WBC/patient 7/smear_09.png"]
    assert all(f"cells/{key}" in blocks["A folder of images text"] for key in keys if not key.startswith("val"))
    save_folder(tmp_path / "cells", keys)
    assert read_all(study, tmp_path) == {
        "train": [(keys[0], 0), (keys[1], 1)],
        "val": [(keys[2], 0)],
        "test": [(keys[3], 1)],
    }


def test_the_table_study_reads_its_table(blocks: dict[str, str], tmp_path: Path):
    study = study_from(blocks["A table yaml"], tmp_path)
    (tmp_path / "cells.csv").write_text(blocks["A table text"])
    save_folder(tmp_path / "images", ["smear_01.png", "smear_02.png", "smear_09.png"])
    assert read_all(study, tmp_path) == {
        "train": [("smear_01.png", 0), ("smear_02.png", 1)],
        "test": [("smear_09.png", 1)],
    }


def test_the_medmnist_study_is_valid(blocks: dict[str, str], tmp_path: Path):
    study = study_from(blocks["MedMNIST yaml"], tmp_path)
    assert open_dataset(study, Store.of(study, tmp_path)).classes == ("normal", "pneumonia")
