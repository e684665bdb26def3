"""Every row of the table in docs/lineage.md: what the UI calls stale after an event, why, and what is encoded again.

The events happen one after another to one study, each followed by a build that makes everything fresh.
"""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.orchestration.build import run_build
from ccassets.orchestration.instance import dagster_instance
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import edit_study, picture, save_golden_weights, save_images, write_study
from ccassets_tests.orchestration.graphql import stale
from ccassets_tests.orchestration.study_runs import encoded_by_runs, lost_of, run_job

Attributes = dict[str, Any]
CONCEPTS = ["template_features/concept_prompts_t01", "template_features/concept_prompts_t02"]
LABELS = ["template_features/label_prompts_t01", "template_features/label_prompts_t02"]
FEATURES = ["image_features:dev", "image_features:test", "image_features:train"]
ROWS = {"train": 4, "dev": 3, "test": 3}
"""No `val`, and fewer than five images a class: no classifier is fitted, which no row of the table is about."""
NEW_CODE = "STALE: {0} has a new code version"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, weights, studies and home of the one study."""
    folder = tmp_path_factory.mktemp("lineage")
    save_images(folder / "pictures", ROWS)
    save_golden_weights(folder / "weights")
    return folder


@pytest.fixture
def study(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study, built and fresh, its file as it was at first."""
    monkeypatch.setenv("CCASSETS_HOME", str(workspace / "home"))
    monkeypatch.setenv("CCASSETS_STUDIES", str(workspace / "studies"))
    study = write_study(
        workspace / "studies" / "cells",
        images=workspace / "pictures",
        encoder=workspace / "weights",
        splits=tuple(ROWS),
    )
    run_build(study)
    return study


def read_again(study: Study, job: str, split: str | None = None) -> None:
    """What the nightly condition and the watch over the sources start, and a person may press."""
    assert run_job(study, job, split).success


def encoded_by_build(study: Study, *, allow_loss: bool = False) -> tuple[int, int]:
    """Build; how many images and how many prompts were really encoded."""
    with dagster_instance() as instance:
        before = len(instance.get_runs())
    run_build(study, allow_loss=allow_loss)
    with dagster_instance() as instance:
        runs = instance.get_runs()
        counts = encoded_by_runs(instance, runs[: len(runs) - before])
    assert stale(study.name) == {}
    return counts["image_features"], counts["template_features"]


def scale_weights(path: Path) -> None:
    """Other weights of the same shapes."""
    tensors = load_file(path)
    save_file({name: np.asarray(values * np.float32(1.01)) for name, values in tensors.items()}, path)


def new_code(*names: str) -> dict[str, str]:
    return {name: NEW_CODE.format(name) for name in names}


def test_one_word_of_a_template_edited(study: Study) -> None:
    edited = edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].__setitem__(1, "an image of {}"))
    assert stale("cells") == new_code(LABELS[1])
    assert encoded_by_build(edited) == (0, 3)


@pytest.mark.slow
def test_a_template_added_and_removed(study: Study) -> None:
    edited = edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].append("a {} cell"))
    added = "template_features/label_prompts_t03"
    assert stale("cells") == {
        added: "MISSING: ",
        "feature_database": f"STALE: feature_database has a new dependency on cells/{added}",
    }
    assert encoded_by_build(edited) == (0, 3)
    removed = edit_study(study, lambda a: a["vocabulary"]["labels"]["templates"].pop())
    assert list(stale("cells")) == ["feature_database"]
    assert "removed dependency" in stale("cells")["feature_database"]
    assert encoded_by_build(removed) == (0, 0)


@pytest.mark.slow
def test_templates_reordered(study: Study) -> None:
    edited = edit_study(study, lambda a: a["vocabulary"]["concepts"]["templates"].reverse())
    assert stale("cells") == new_code(*CONCEPTS)
    assert encoded_by_build(edited) == (0, 0)


def test_the_word_list_extended(study: Study) -> None:
    edited = edit_study(study, lambda a: a["vocabulary"]["concepts"]["words"].append("blue"))
    assert {name: cause for name, cause in stale("cells").items() if name in CONCEPTS} == new_code(*CONCEPTS)
    assert set(stale("cells")) == {*CONCEPTS, "feature_database"}
    assert encoded_by_build(edited) == (0, 8)


def test_the_group_of_a_concept_edited(study: Study) -> None:
    word = {"word": "red cell", "group": "cells"}
    edited = edit_study(study, lambda a: a["vocabulary"]["concepts"]["words"].__setitem__(1, word))
    assert stale("cells") == new_code("feature_database")
    assert encoded_by_build(edited) == (0, 0)


def test_the_precision_changed(study: Study) -> None:
    edited = edit_study(study, lambda a: a["encoder"].update(dtype="bfloat16"))
    assert stale("cells") == new_code("encoder")
    read_again(edited, "read_encoder")
    cause = "STALE: encoder has a new data version"
    assert stale("cells") == dict.fromkeys([*CONCEPTS, *LABELS, *FEATURES], cause)
    assert encoded_by_build(edited) == (10, 12)


def test_the_batch_changed(study: Study) -> None:
    edited = edit_study(study, lambda a: a["extraction"].update(batch_size=1))
    assert stale("cells") == {}
    assert encoded_by_build(edited) == (0, 0)
    edit_study(edited, lambda a: a["extraction"].update(strict=True))
    assert stale("cells") == new_code("encoder")


@pytest.mark.slow
def test_the_weights_replaced_under_the_same_name(study: Study, workspace: Path) -> None:
    scale_weights(workspace / "weights" / "model.safetensors")
    assert stale("cells") == {}, "Dagster learns of a file when it is read again"
    read_again(study, "read_encoder")
    cause = "STALE: encoder has a new data version"
    assert stale("cells") == dict.fromkeys([*CONCEPTS, *LABELS, *FEATURES], cause)
    assert encoded_by_build(study) == (10, 12)


@pytest.mark.slow
def test_the_revision_changed_and_a_branch_of_the_hub_moved_on(
    study: Study, workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, third = "1" * 40, "2" * 40, "3" * 40
    cache = tmp_path / "models--lab--tiny"
    for commit in (first, second, third):
        shutil.copytree(workspace / "weights", cache / "snapshots" / commit)
    scale_weights(cache / "snapshots" / second / "model.safetensors")
    refs = {"main": first, "v2": second, "v3": third}
    (cache / "refs").mkdir()
    for name, commit in refs.items():
        (cache / "refs" / name).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    features = ["template_features/own", "image_features:dev"]
    cause = "STALE: encoder has a new data version"
    fetched = write_study(
        workspace / "studies" / "fetched",
        images=workspace / "pictures",
        encoder={"kind": "conceptclip", "weights": "lab/tiny"},
        splits=["dev"],
        vocabulary={"custom": {"own": ["a red cell"]}},
    )
    run_build(fetched)
    edited = edit_study(fetched, lambda a: a["encoder"].update(revision="v2"))
    assert stale("fetched") == new_code("encoder")
    read_again(edited, "read_encoder")
    assert stale("fetched") == dict.fromkeys(features, cause)
    assert encoded_by_build(edited) == (3, 1)

    (cache / "refs" / "v2").write_text(first)
    assert stale("fetched") == {}, "Dagster learns of a commit when the encoder is read again"
    read_again(edited, "read_encoder")
    assert stale("fetched") == dict.fromkeys(features, cause)
    assert encoded_by_build(edited) == (0, 0), "features of the first commit are there"
    equal = edit_study(edited, lambda a: a["encoder"].update(revision="v3"))
    assert stale("fetched") == new_code("encoder")
    read_again(equal, "read_encoder")
    assert stale("fetched") == {}
    for folder in (fetched.folder, Store.of(fetched).folder):
        shutil.rmtree(folder)


def test_sources_read_again_and_equal(study: Study) -> None:
    read_again(study, "read_encoder")
    for split in study.splits:
        read_again(study, "read_images", split)
    assert stale("cells") == {}


def test_one_image_changed(study: Study, workspace: Path) -> None:
    picture(900).save(workspace / "pictures" / "dev" / "blood" / "000.png")
    read_again(study, "read_images", "dev")
    assert stale("cells") == {"image_features:dev": "STALE: images has a new data version"}
    assert encoded_by_build(study) == (1, 0)


def test_images_added_and_removed(study: Study, workspace: Path) -> None:
    folder = workspace / "pictures" / "train" / "platelet"
    for number in range(3):
        picture(910 + number).save(folder / f"00{number}b.png")
    (folder / "001.png").unlink()
    read_again(study, "read_images", "train")
    assert stale("cells") == {"image_features:train": "STALE: images has a new data version"}
    assert encoded_by_build(study) == (3, 0)


@pytest.mark.slow
def test_an_image_moved_to_another_split(study: Study, workspace: Path) -> None:
    image_folder = workspace / "pictures"
    shutil.move(image_folder / "train" / "blood" / "000.png", image_folder / "test" / "blood" / "100.png")
    for split in study.splits:
        read_again(study, "read_images", split)
    cause = "STALE: images has a new data version"
    assert stale("cells") == {"image_features:test": cause, "image_features:train": cause}
    assert encoded_by_build(study) == (0, 0)


@pytest.mark.slow
def test_images_renamed_and_so_reordered(study: Study, workspace: Path) -> None:
    folder = workspace / "pictures" / "test" / "platelet"
    (folder / "001.png").rename(folder / "z.png")
    read_again(study, "read_images", "test")
    assert stale("cells") == {"image_features:test": "STALE: images has a new data version"}
    assert encoded_by_build(study) == (0, 0)


def test_a_label_corrected(study: Study, workspace: Path) -> None:
    folder = workspace / "pictures" / "dev"
    shutil.move(folder / "white" / "002.png", folder / "blood" / "002.png")
    read_again(study, "read_images", "dev")
    assert stale("cells") == {"image_features:dev": "STALE: images has a new data version"}
    assert encoded_by_build(study) == (0, 0)


def test_a_label_overridden_by_the_study(study: Study) -> None:
    (study.folder / "labels.csv").write_text("key,label\ntrain/white/002.png,blood\n")
    edited = edit_study(study, lambda a: a["dataset"].update(labels_override="labels.csv"))
    assert stale("cells") == {f"images:{split}": NEW_CODE.format("images") for split in ROWS}
    for split in ROWS:
        read_again(edited, "read_images", split)
    assert stale("cells") == {"image_features:train": "STALE: images has a new data version"}
    assert encoded_by_build(edited) == (0, 0)


def test_an_image_saved_again_with_equal_pixels(study: Study, workspace: Path) -> None:
    path = workspace / "pictures" / "train" / "white" / "002.png"
    with Image.open(path) as image:
        pixels = image.copy()
    pixels.save(path, compress_level=0)
    read_again(study, "read_images", "train")
    assert stale("cells") == {}


def test_the_database_deleted_and_replaced(study: Study) -> None:
    path = Store.of(study).database
    before = path.read_bytes()
    path.unlink()
    assert stale("cells") == {}
    assert lost_of(study) == {"feature_database": "its file is gone"}
    assert encoded_by_build(study) == (0, 0)
    path.unlink()
    path.write_bytes(before)
    assert lost_of(study) == {"feature_database": "its file is not the one that was written"}
    assert encoded_by_build(study) == (0, 0)
    assert lost_of(study) == {}


def test_a_part_deleted_by_hand(study: Study) -> None:
    store = Store.of(study)
    for part in (store.root / "features").glob("*/*/*.h5"):
        part.unlink()
    assert stale("cells") == {}, "Dagster knows versions, not files"
    assert set(lost_of(study)) == {*CONCEPTS, *LABELS}, "the rows of images are in the database as well"
    assert encoded_by_build(study) == (0, 12)
    assert lost_of(study) == {}


@pytest.mark.slow
def test_the_splits_reordered(study: Study) -> None:
    edited = edit_study(study, lambda a: a["dataset"]["splits"].reverse())
    read = [name for name in stale("cells") if name.startswith("images")]
    assert set(stale("cells")) == {*read, "feature_database"}
    assert encoded_by_build(edited) == (0, 0)


@pytest.mark.slow
def test_our_own_extraction_code_raised(study: Study, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ccassets.encoders.encoder_contract.EXTRACTION_VERSION", 2)
    monkeypatch.setattr("ccassets.orchestration.study_asset.EXTRACTION_VERSION", 2)
    names = [field.name for field in fields(EncoderCard)]
    defaults = EncoderCard.__init__.__defaults__ or ()
    raised = [
        2 if name == "extraction_version" else default
        for name, default in zip(names[-len(defaults) :], defaults, strict=True)
    ]
    monkeypatch.setattr(EncoderCard.__init__, "__defaults__", tuple(raised))
    assert {"encoder", *CONCEPTS, *LABELS, *FEATURES} <= set(stale("cells"))
    # A test before it removed parts: the database alone has the features of the former code.
    assert encoded_by_build(study, allow_loss=True) == (len(list((workspace / "pictures").rglob("*.png"))), 12)


@pytest.mark.slow
def test_a_hundred_templates_still_see_one_change(study: Study, workspace: Path) -> None:
    concepts = {"words": ["red cell"], "templates": [f"{a}{b} {{}}" for a in "abcdefghij" for b in "abcdefghij"]}
    many = write_study(
        workspace / "studies" / "wordy",
        images=workspace / "pictures",
        encoder=workspace / "weights",
        splits=["dev"],
        vocabulary={"concepts": concepts},
    )
    run_build(many)
    assert stale("wordy") == {}
    edited = edit_study(many, lambda a: a["vocabulary"]["concepts"]["templates"].__setitem__(41, "another {}"))
    assert stale("wordy") == new_code("template_features/concept_prompts_t42")
    read_again(edited, "extract_text")
    assert stale("wordy") == {"feature_database": "STALE: template_features/concept_prompts_t42 has a new data version"}
    assert encoded_by_build(edited) == (0, 0)
    shutil.rmtree(many.folder)


@pytest.mark.slow
@pytest.mark.parametrize("count", [100, 678])
def test_many_splits_still_see_one_change(
    count: int, study: Study, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workspace / "studies" / "many" / "pictures"
    for number in range(count):
        target = folder / f"nodule {number}" / "blood"
        target.mkdir(parents=True, exist_ok=True)
        picture(2000 + number % 50).save(target / "a.png")
    splits = [f"nodule {number}" for number in range(count)]
    many = write_study(folder.parent, images=folder, encoder=workspace / "weights", splits=splits)
    run_build(many)
    assert stale("many") == {}
    picture(9000 + count).save(folder / "nodule 7" / "blood" / "a.png")
    read_again(many, "read_images")
    assert stale("many") == {"image_features": "STALE: images has a new data version"}
    assert encoded_by_build(many) == (1, 0)
    shutil.rmtree(folder)
