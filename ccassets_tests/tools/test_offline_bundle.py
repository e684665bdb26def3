"""Offline bundles: a study is built from one folder, on any machine, without any connection."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import ccassets
from ccassets.encoders import inspect_encoder
from ccassets.errors import CcassetsError, DatasetError, EncoderError, StorageError
from ccassets.extraction.sources import recorded_card
from ccassets.files import leftovers, replacing_folder, write_text
from ccassets.study.loading import load_study
from ccassets.study.schema import FolderConfig, MedmnistConfig, Study
from ccassets.study.storage import Store
from ccassets.tools.offline_bundle import changed_files, write_bundle
from ccassets_tests.datasets.made_datasets import BLOOD_WORDS, MedMnistSite, save_image
from ccassets_tests.encoders.conftest import (
    clip,  # noqa: F401
    config,  # noqa: F401
)
from ccassets_tests.encoders.hub import COMMIT, TOKEN, Hub, hub_of
from ccassets_tests.made_studies import edit_study, write_study
from ccassets_tests.tools.doctor_lines import doctor_lines

BLOCKED = """
import socket, sys
def refuse(*arguments, **options):
    raise AssertionError("a connection was tried")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
from ccassets.cli import main
main()
"""


def run(*command: str, blocked: bool = False, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, with every connection blocked if `blocked`."""
    start = ["-c", BLOCKED] if blocked else ["-m", "ccassets.cli"]
    result = subprocess.run(
        [sys.executable, *start, *command],
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert TOKEN not in result.stdout + result.stderr
    return result


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def keys(study: Study) -> dict[str, Sequence[str]]:
    from ccassets.datasets import open_dataset

    dataset = open_dataset(study, Store.of(study))
    return {split: dataset.rows(split).keys for split in study.splits}


@pytest.fixture
def hub(weights: Path) -> Iterator[Hub]:
    with hub_of(weights) as hub:
        yield hub


def test_a_bundle_is_built_elsewhere_with_every_connection_blocked(
    study: Study, image_folder: Path, weights: Path, hub: Hub, tmp_path: Path
) -> None:
    identity = inspect_encoder(study).identity
    edit_study(study, lambda a: a["encoder"].update(weights="lab/tiny"))
    hf = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    result = run("bundle", str(study.folder), "--output", str(tmp_path / "bundle"), **hf)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == tmp_path / "bundle" / "cells" / "defs.yaml"

    copy = tmp_path / "another" / "folder"
    shutil.move(tmp_path / "bundle", copy)
    for gone in (image_folder, weights, study.folder, tmp_path / "hf"):
        shutil.rmtree(gone)
    model = {f"models/tiny/{name}" for name in ("model.safetensors", "architecture.json", "vocab.txt")}
    assert {name for name in files(copy) if not name.startswith("data/")} == {
        "bundle.json",
        "cells/defs.yaml",
        *model,
    }
    record = json.loads((copy / "bundle.json").read_text(encoding="utf-8"))
    assert set(record["files"]) == files(copy) - {"bundle.json"}
    assert record["encoder"]["identity"] == identity
    assert record["encoder"]["commit"] == COMMIT
    assert str(tmp_path) not in (copy / "bundle.json").read_text() + (copy / "cells/defs.yaml").read_text()

    offline = {"HF_HOME": str(tmp_path / "nothing"), "HF_ENDPOINT": hub.url}
    hub.requested_paths.clear()
    built = run("build", str(copy / "cells"), blocked=True, **offline)
    assert built.returncode == 0, built.stderr
    assert hub.requested_paths == []
    bundled = load_study(copy / "cells")
    database = built.stdout.splitlines()[-1]
    assert ccassets.validate_database(database, study=bundled, deep=True) == []
    assert recorded_card(bundled, Store.of(bundled)).identity == identity
    with ccassets.open_database(database) as db:
        assert len(db) == 18


def test_a_changed_or_lost_file_of_a_bundle_is_found(study: Study, tmp_path: Path) -> None:
    bundle = write_bundle(study, tmp_path / "bundle")
    bundled = load_study(bundle.study)
    assert changed_files(tmp_path / "bundle") == []
    assert bundle.files == 18 + 3 + 1
    assert [line.message for line in doctor_lines(bundled) if line.what == "bundle"] == ["every file is unchanged"]

    vocabulary = tmp_path / "bundle" / "models" / "weights" / "vocab.txt"
    vocabulary.write_bytes(vocabulary.read_bytes().swapcase())
    lost = tmp_path / "bundle" / "data" / "pictures" / "val" / "white" / "002.png"
    lost.unlink()
    assert changed_files(tmp_path / "bundle") == ["models/weights/vocab.txt", "data/pictures/val/white/002.png"]
    problem = next(line for line in doctor_lines(bundled) if line.what == "bundle")
    assert problem.level == "problem"
    assert "2 files are missing or changed" in problem.message
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(StorageError, match="not the record of a bundle"):
        changed_files(tmp_path / "bundle")


def test_the_study_in_a_bundle_says_the_same_with_other_paths(study: Study, tmp_path: Path) -> None:
    (study.folder / "README.md").write_text("About these cells.")
    bundled = load_study(write_bundle(study, tmp_path / "bundle").study)
    assert bundled.readme == "About these cells."
    assert (bundled.vocabulary, bundled.extraction, bundled.storage) == (
        study.vocabulary,
        study.extraction,
        study.storage,
    )
    assert keys(bundled) == keys(study)
    assert isinstance(bundled.dataset, FolderConfig)
    assert str(bundled.dataset.root) == "../data/pictures"


def test_empty_splits_and_empty_class_folders_keep_their_place(
    study: Study, image_folder: Path, tmp_path: Path
) -> None:
    shutil.rmtree(image_folder / "test")
    (image_folder / "test" / "artefact").mkdir(parents=True)
    edited = edit_study(study, lambda a: a["vocabulary"].pop("labels"))
    bundled = load_study(write_bundle(edited, tmp_path / "bundle").study)
    assert keys(bundled)["test"] == []
    assert isinstance(bundled.dataset, FolderConfig)
    assert bundled.dataset.classes == ("artefact", "blood", "platelet", "white")


def test_an_architecture_and_a_tokenizer_of_their_own_come_along(
    study: Study, image_folder: Path, weights: Path, tmp_path: Path
) -> None:
    (weights / "architecture.json").rename(tmp_path / "other.json")
    words = tmp_path / "words"
    words.mkdir()
    (weights / "vocab.txt").rename(words / "vocab.txt")
    own = {"architecture": str(tmp_path / "other.json"), "tokenizer": str(words)}
    for name, section in {"mine": {"weights": str(weights)}, "none": {"weights": "random", "seed": 3}}.items():
        edited = write_study(
            study.folder.parent / name, images=image_folder, encoder={"kind": "conceptclip", **section, **own}
        )
        bundle = write_bundle(edited, tmp_path / "bundles" / name)
        assert inspect_encoder(load_study(bundle.study)).identity == inspect_encoder(edited).identity


def test_a_model_of_transformers_is_bundled_whole(
    study: Study,
    image_folder: Path,
    clip: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    edited = write_study(study.folder, images=image_folder, encoder={"kind": "transformers", "weights": str(clip)})
    bundled = load_study(write_bundle(edited, tmp_path / "bundle").study)
    expected = inspect_encoder(edited).identity
    shutil.rmtree(clip)
    assert inspect_encoder(bundled).identity == expected
    assert ccassets.load_encoder(bundled, device="cpu").encode_texts(["cell"]).features.shape == (1, 24)


def table_study(study: Study, table: Path, text: str) -> Study:
    table.write_text(text)
    dataset = {"kind": "table", "file": str(table), "root": str(table.parent / "images"), "splits": ["train"]}
    return edit_study(study, lambda a: a.update(dataset=dataset))


def test_a_table_is_bundled_with_its_images(study: Study, tmp_path: Path) -> None:
    save_image(tmp_path / "images" / "smears" / "a.png", 1)
    save_image(tmp_path / "images" / "b.png", 2)
    save_image(tmp_path / "images" / "unused.png", 3)
    text = "path,label,split\nsmears/a.png,blood,train\nb.png,white,train\nunused.png,white,other\n"
    edited = table_study(study, tmp_path / "cells.csv", text)
    bundled = load_study(write_bundle(edited, tmp_path / "bundle").study)
    assert keys(bundled) == {"train": ["smears/a.png", "b.png"]}
    assert {name for name in files(tmp_path / "bundle") if name.startswith("data/")} == {
        "data/cells.csv",
        "data/smears/a.png",
        "data/b.png",
    }


@pytest.mark.parametrize("where", ["../images/a.png", "{root}/images/a.png"])
def test_a_table_whose_paths_lead_elsewhere_is_refused_and_nothing_is_left(
    study: Study, tmp_path: Path, where: str
) -> None:
    save_image(tmp_path / "images" / "a.png", 1)
    text = f"path,label,split\n{where.format(root=tmp_path)},blood,train\n"
    edited = table_study(study, tmp_path / "cells.csv", text)
    before = files(tmp_path)
    with pytest.raises(DatasetError):
        write_bundle(edited, tmp_path / "bundle")
    assert {name for name in files(tmp_path) - before if not name.startswith("home/")} == set()


def test_an_archive_of_medmnist_is_bundled_as_it_is(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = MedMnistSite(tmp_path, monkeypatch)
    site.archive("bloodmnist")
    dataset = {"kind": "medmnist", "name": "bloodmnist", "size": 28, "root": str(site.root), "download": True}
    edit_study(study, lambda a: a["vocabulary"]["labels"].update(words=BLOOD_WORDS))
    bundled = load_study(
        write_bundle(edit_study(study, lambda a: a.update(dataset=dataset)), tmp_path / "bundle").study
    )
    shutil.rmtree(site.root)
    assert isinstance(bundled.dataset, MedmnistConfig)
    assert not bundled.dataset.download
    manifest = ccassets.read_images(bundled, "train")
    assert len(manifest) == 6


def test_the_demo_needs_nothing_but_its_study_file(tmp_path: Path) -> None:
    bundle = write_bundle(load_study("demo"), tmp_path / "bundle")
    assert files(tmp_path / "bundle") == {"bundle.json", "demo/defs.yaml"}
    shipped = load_study("demo")
    bundled = load_study(bundle.study)
    assert (bundled.dataset, bundled.encoder) == (shipped.dataset, shipped.encoder)


def test_a_folder_that_is_in_use_is_not_written_to(study: Study, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(StorageError, match="not empty"):
        write_bundle(study, tmp_path / "mine")
    assert files(tmp_path / "mine") == {"notes.txt"}
    (tmp_path / "new").mkdir()
    assert write_bundle(study, tmp_path / "new").study.is_file()


def test_what_cannot_be_had_is_named_and_nothing_is_left(study: Study, image_folder: Path, tmp_path: Path) -> None:
    own = write_study(
        study.folder.parent / "own", images=image_folder, encoder={"kind": "python", "target": "mine:Mine"}
    )
    before = files(tmp_path)
    with pytest.raises(EncoderError, match="only that knows which files it reads"):
        write_bundle(own, tmp_path / "bundle")
    assert files(tmp_path) == before
    (image_folder / "val" / "notes.docx").touch()
    with pytest.raises(CcassetsError, match=r"notes\.docx"):
        write_bundle(study, tmp_path / "bundle")
    assert files(tmp_path) == before | {"pictures/val/notes.docx"}


def test_what_a_killed_bundle_left_harms_no_neighbour_and_is_removed_by_the_next(study: Study, tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    pid = os.fork()
    if not pid:
        try:
            write_bundle(study, folder / "one", progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    [leftover] = folder.iterdir()
    assert leftover.name.endswith(".partial")
    write_text(folder / "hits.csv", "key\n")
    assert list(leftovers(folder)) == []

    others = folder / ".others.01234567.partial"
    others.mkdir()
    with replacing_folder(folder / "alive") as alive:
        write_bundle(study, folder / "two")
        assert alive.is_dir()
    assert sorted(path.name for path in folder.iterdir()) == [others.name, "alive", "hits.csv", "two"]
    assert changed_files(folder / "two") == []
    assert not (folder / "two" / ".lock").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link"])
def test_what_only_looks_like_a_temporary_file_stops_no_writer(tmp_path: Path, kind: str) -> None:
    odd = tmp_path / ".hits.csv.01234567.partial"
    if kind == "folder":
        odd.mkdir()
    elif kind == "pipe":
        os.mkfifo(odd)
    else:
        (tmp_path / "target").touch()
        odd.symlink_to(tmp_path / "target")
    write_text(tmp_path / "hits.csv", "key\n")
    assert odd.exists()


@pytest.mark.parametrize("linked", ["file", "folder"])
def test_a_link_that_leaves_the_data_set_is_not_bundled(
    study: Study, image_folder: Path, tmp_path: Path, linked: str
) -> None:
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret.png").write_text("secret")
    if linked == "file":
        (image_folder / "train" / "blood" / "zz.png").symlink_to(tmp_path / "private" / "secret.png")
    else:
        (image_folder / "train" / "blood" / "zz").symlink_to(tmp_path / "private")
    with pytest.raises(DatasetError, match=r"links to files outside .*train/blood/zz"):
        write_bundle(study, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_links_inside_the_data_set_and_to_its_root_are_bundled(
    study: Study, image_folder: Path, tmp_path: Path
) -> None:
    picture = next((image_folder / "train" / "blood").glob("*.png"))
    (picture.parent / "zz.png").symlink_to(picture)
    (study.folder / "README.md").symlink_to("/etc/hostname")
    image_folder.rename(tmp_path / "moved")
    image_folder.symlink_to(tmp_path / "moved")
    write_bundle(study, tmp_path / "bundle")
    assert any(name.endswith("train/blood/zz.png") for name in files(tmp_path / "bundle"))
    assert not any(name.endswith("README.md") for name in files(tmp_path / "bundle"))
