"""New studies of some rows: built without encoding, relabelled where somebody corrected labels, refused where wrong."""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import pytest

from ccassets import open_database
from ccassets.analysis import explain_rows
from ccassets.datasets import open_dataset
from ccassets.errors import AnalysisError, CcassetsError
from ccassets.exports.study_of_rows import LABELS_FILE, SUBSET_FILE, key_lines, label_overrides, study_of_rows
from ccassets.extraction.sources import changed_splits, find_source_problems
from ccassets.study.loading import load_study
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets.tools.offline_bundle import write_bundle
from ccassets_tests.cli.command_line import run
from ccassets_tests.database.made_files import write_database
from ccassets_tests.extraction.made_parts import COLOURS, arrays, build
from ccassets_tests.made_studies import edit_study, write_study

KEYS = ["train/white/002.png", "train/blood/000.png", "val/platelet/001.png"]


def with_labels(study: Study, labels: str) -> Study:
    """The study with these lines of corrected labels."""
    (study.folder / "labels.csv").write_text(f"key,label\n{labels}")
    return edit_study(study, lambda a: a["dataset"].update(labels_override="labels.csv"))


def written(
    study: Study,
    database: Path,
    folder: Path,
    keys: Sequence[str] = KEYS,
    labels: Mapping[str, str] | None = None,
    name: str = "chosen",
) -> Study:
    """The study of these rows, written into a folder of that name."""
    with open_database(database) as opened:
        row_of = {key: row for row, key in enumerate(opened.keys.tolist())}
        corrected = {row_of[key]: label for key, label in (labels or {}).items()}
        files = study_of_rows(study, opened, [row_of[key] for key in keys], name, corrected)
    (folder / name).mkdir(parents=True)
    for file, content in files.items():
        (folder / name / file).write_bytes(content)
    return load_study(folder / name)


def override_lines(study: Study) -> list[list[str]]:
    """Key and label of every corrected label of a study."""
    with (study.folder / LABELS_FILE).open(encoding="utf-8") as file:
        return [line[:2] for line in csv.reader(file)][1:]


def test_chosen_rows_become_a_study_that_encodes_nothing(study: Study, image_folder: Path, tmp_path: Path) -> None:
    relative = os.path.relpath(image_folder, study.folder)
    study = edit_study(study, lambda a: a["dataset"].update(root=relative))
    whole = build(study)

    chosen = written(study, whole.path, tmp_path / "my" / "own", labels={KEYS[0]: "blood"})
    built = build(chosen)

    assert (chosen.splits, built.encoded, built.prompts_encoded) == (study.splits, 0, {})
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


def test_rows_of_a_study_with_a_limit_are_those_rows_alone(study: Study, tmp_path: Path) -> None:
    limited = edit_study(study, lambda a: a["extraction"].update(limit=2))
    whole = build(limited)
    with open_database(whole.path) as database:
        keys = database.keys[[1, 2]].tolist()

    built = build(written(limited, whole.path, tmp_path / "my", keys))

    assert built.encoded == 0
    with open_database(built.path) as database:
        assert (database.keys.tolist(), database.attributes.get("limit")) == (keys, None)


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


def test_a_study_of_rows_keeps_what_the_study_corrected_in_them(study: Study, tmp_path: Path) -> None:
    whole = build(study)
    corrected = with_labels(study, f"{KEYS[0]},blood\ntrain/{KEYS[1]},white\n{KEYS[2]},white\n")

    chosen = written(corrected, whole.path, tmp_path, KEYS[:2], {KEYS[1]: "platelet", KEYS[2]: "blood"})

    assert override_lines(chosen) == [[KEYS[0], "blood"], [KEYS[1], "platelet"]]
    assert "labels_override" not in (written(study, whole.path, tmp_path / "other").folder / "defs.yaml").read_text()


def test_a_corrected_label_of_another_image_is_a_warning(study: Study, tmp_path: Path) -> None:
    whole = build(study)
    chosen = written(study, whole.path, tmp_path, labels={KEYS[0]: "blood"})
    path = study.resolve(study.dataset.root) / KEYS[0]
    shutil.copy(path.parents[1] / "blood" / "003.png", path)

    build(chosen)

    (problem,) = find_source_problems(chosen, Store.of(chosen))
    assert problem.check == "labels_override_unneeded"
    assert "another image is" in problem.message


def test_wrong_rows_and_names_are_refused(study: Study, tmp_path: Path) -> None:
    path = build(study).path
    with open_database(path) as database:
        for name, labels in (("../x", {}), ("x" * 81, {}), ("demo", {}), ("chosen", {0: "no class"})):
            with pytest.raises(CcassetsError):
                study_of_rows(study, database, [0], name, labels)
    with pytest.raises(AnalysisError, match="line break"):
        key_lines(["a.png", "b\n.png"])


def test_a_key_of_two_splits_is_written_with_its_split(study: Study, tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 2, "test": 2}, tokens=0)
    with h5py.File(path, "r+") as file:
        file["keys"][...] = ["0", "=1", "0", "2"]
        del file["image_digest"]
    with open_database(path) as database:
        labels = label_overrides(database, {1: "monocyte", 2: "basophil"})
        subset = study_of_rows(study, database, [0, 2], "chosen")[SUBSET_FILE]
    assert labels.decode().split() == ["key,label,image_digest", "train/=1,monocyte,", "test/0,basophil,"]
    assert subset.decode().split() == ["train/0", "test/0"]


def test_a_bundle_takes_the_files_that_name_rows_along(study: Study, tmp_path: Path) -> None:
    chosen = written(study, build(study).path, tmp_path / "my", labels={KEYS[0]: "blood"})

    bundle = write_bundle(chosen, tmp_path / "bundle")

    shutil.rmtree(tmp_path / "my")
    bundled = load_study(bundle.study)
    rows = open_dataset(bundled, Store.of(bundled)).rows("train")
    assert len(list((tmp_path / "bundle" / "data").rglob("*.png"))) == len(KEYS)
    assert (rows.keys, rows.labels.tolist()) == ([KEYS[1], KEYS[0]], [0, 0])


def test_an_encoder_of_ones_own_comes_along(tmp_path: Path, image_folder: Path) -> None:
    folder = tmp_path / "studies" / "greys"
    folder.mkdir(parents=True)
    (folder / "colours.py").write_text(COLOURS)
    study = write_study(
        folder, images=image_folder, encoder={"kind": "python", "target": "colours:Colours"}, vocabulary={}
    )
    built = build(written(study, build(study).path, tmp_path / "my"))

    assert built.encoded == 0
    with open_database(built.path) as database:
        assert sorted(database.keys) == sorted(KEYS)
