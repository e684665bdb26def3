"""New studies of some rows: built without encoding, relabelled where somebody corrected labels, refused where wrong."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ccassets import open_database
from ccassets.analysis import explain_rows
from ccassets.datasets import open_dataset
from ccassets.errors import CcassetsError
from ccassets.extraction.sources import changed_splits, find_source_problems
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets.tools.offline_bundle import write_bundle
from ccassets.tools.study_of_rows import new_study_of_rows
from ccassets_tests.cli.command_line import run
from ccassets_tests.extraction.made_parts import arrays, build
from ccassets_tests.made_studies import edit_study

KEYS = ["train/white/002.png", "train/blood/000.png", "val/platelet/001.png"]


def with_labels(study: Study, labels: str) -> Study:
    """The study with these lines of corrected labels."""
    (study.folder / "labels.csv").write_text(f"key,label\n{labels}")
    return edit_study(study, lambda a: a["dataset"].update(labels_override="labels.csv"))


def test_chosen_rows_become_a_study_that_encodes_nothing(study: Study, image_folder: Path, tmp_path: Path) -> None:
    relative = os.path.relpath(image_folder, study.folder)
    study = edit_study(study, lambda a: a["dataset"].update(root=relative))
    whole = build(study)

    chosen = load_study(new_study_of_rows(study, "chosen", KEYS, {KEYS[0]: "blood"}, studies=tmp_path / "my" / "own"))
    built = build(chosen)

    assert (chosen.splits, built.encoded, built.prompts_encoded) == (("train", "val"), 0, {})
    with open_database(whole.path) as before, open_database(built.path) as after:
        assert list(after.keys) == [KEYS[1], KEYS[0], KEYS[2]]
        assert after.labels.tolist() == [0, 0, 1]
        rows = [list(before.keys).index(key) for key in after.keys]
        assert (before.image_features[rows] == after.image_features[:]).all()
        (row,) = explain_rows(after, KEYS[0])
        assert (row["class"], row["label_in_dataset"]) == ("blood", "white")
        assert "label_in_dataset" not in explain_rows(after, KEYS[1])[0]
    assert find_source_problems(chosen, Store.of(chosen)) == []
    assert "overridden by the study; the data set says white" in run("explain", built.path, KEYS[0]).out
    assert run("validate", built.path).code == 0


def test_a_corrected_label_makes_the_database_anew_and_encodes_nothing(study: Study) -> None:
    before = build(study)
    old = arrays(before.path)
    corrected = with_labels(study, f"{KEYS[0]},blood\n")
    store = Store.of(corrected)

    assert list(changed_splits(corrected, store, study.splits)) == ["train"]
    after = build(corrected)

    new = arrays(after.path)
    assert after.encoded == 0
    assert [name for name in new if not (old[name] == new[name]).all()] == ["labels"]
    assert changed_splits(corrected, store, study.splits) == {}
    with_labels(study, f"{KEYS[0]},platelet\n")
    assert list(changed_splits(corrected, store, study.splits)) == ["train"]


def test_a_study_of_rows_keeps_what_the_study_corrected(study: Study, tmp_path: Path) -> None:
    corrected = with_labels(study, f"{KEYS[0]},blood\n{KEYS[1]},white\n")

    path = new_study_of_rows(corrected, "chosen", KEYS, {KEYS[1]: "platelet"}, studies=tmp_path)

    lines = (path.parent / "labels_override.csv").read_text().splitlines()
    assert lines == ["key,label,image_digest", f"{KEYS[0]},blood,", f"{KEYS[1]},platelet,"]


def test_wrong_rows_leave_no_folder(study: Study, tmp_path: Path) -> None:
    for keys, labels in (([], {}), (["train/no.png"], {}), (KEYS, {KEYS[0]: "no class"})):
        with pytest.raises(CcassetsError):
            new_study_of_rows(study, "chosen", keys, labels, studies=tmp_path / "new")
    assert not list((tmp_path / "new").glob("*"))


def test_a_bundle_takes_the_files_that_name_rows_along(study: Study, tmp_path: Path) -> None:
    path = new_study_of_rows(study, "chosen", KEYS, {KEYS[0]: "blood"}, studies=tmp_path / "my")

    bundle = write_bundle(load_study(path), tmp_path / "bundle")

    shutil.rmtree(tmp_path / "my")
    bundled = load_study(bundle.study)
    rows = open_dataset(bundled, Store.of(bundled)).rows("train")
    assert len(list((tmp_path / "bundle" / "data").rglob("*.png"))) == len(KEYS)
    assert (rows.keys, rows.labels.tolist()) == ([KEYS[1], KEYS[0]], [0, 0])
