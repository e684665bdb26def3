"""What `prune` removes, and above all what it keeps: nothing that any known study needs."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest

from ccassets.errors import CcassetsError, DatabaseError, DatasetError, EncoderError, StorageError
from ccassets.extraction import assemble_database, extract_images, extract_text
from ccassets.extraction.parts import held_rows
from ccassets.extraction.plan import plan_study
from ccassets.extraction.pruning import PRUNE_LOG, prune
from ccassets.extraction.sources import identify_encoder, read_images, recorded_card
from ccassets.files import exclusive, lock_file
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import read_sources
from ccassets_tests.made_studies import save_golden_weights, save_images, write_study

WEIGHTS = {"kind": "conceptclip", "weights": "../../weights"}


def finish(study: Study) -> None:
    """Every step of a study, without Dagster."""
    identify_encoder(study)
    for split in study.splits:
        read_images(study, split)
        extract_images(study, split)
    extract_text(study)
    assemble_database(study)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*.h5")}


def variant(study: Study, image_folder: Path, name: str = "cells", **changes: object) -> Study:
    """The study written again with other sections, by default in its own place."""
    sections = {"images": image_folder, "encoder": WEIGHTS, **changes}
    return write_study(study.folder.parent / name, **sections)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def finished_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, weights, a study and its finished storage, for every test to copy."""
    root = tmp_path_factory.mktemp("pruning")
    save_images(root / "pictures")
    save_golden_weights(root / "weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCASSETS_STORAGE", str(root / "storage"))
        finish(write_study(root / "studies" / "cells", images=root / "pictures", encoder=WEIGHTS))
    shutil.rmtree(root / "studies")  # What every test has is this study, moved, and not another one of its name.
    return root


@pytest.fixture
def finished(finished_storage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study of the test's own."""
    shutil.copytree(finished_storage, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("CCASSETS_STORAGE", str(tmp_path / "storage"))
    return write_study(tmp_path / "studies" / "cells", images=tmp_path / "pictures", encoder=WEIGHTS)


@pytest.fixture
def image_folder(finished: Study, tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def test_a_finished_study_needs_everything(finished: Study) -> None:
    root = Store.of(finished).root
    before = files(root)
    assert prune(finished) == []
    assert files(root) == before


def test_the_parts_of_an_encoder_that_was_left_behind_are_removed(finished: Study, image_folder: Path) -> None:
    store = Store.of(finished)
    old = recorded_card(finished, store).identity
    half = variant(finished, image_folder, encoder={**WEIGHTS, "tokens": False})

    identify_encoder(half)
    assert prune(half) == [], "the database still is of the old encoder"

    finish(half)
    unneeded = prune(half, dry_run=True, now=True)
    assert {item.path for item in unneeded} == {path for path in files(store.root) if f"/{old}/" in path}
    assert {item.reason for item in unneeded} == {"of an encoder that no study uses"}
    assert sum(item.bytes for item in unneeded) == sum((store.root / item.path).stat().st_size for item in unneeded)
    assert {item.path for item in unneeded} <= files(store.root), "a dry run removes nothing"

    assert prune(half, now=True) == unneeded
    assert not {item.path for item in unneeded} & files(store.root)
    assert assemble_database(half).unchanged
    assert prune(half) == []


def test_images_that_left_the_study_and_its_database_are_removed(finished: Study, image_folder: Path) -> None:
    store = Store.of(finished)
    identity = recorded_card(finished, store).identity
    for path in sorted((image_folder / "train").glob("*/*.png"))[:8]:
        path.unlink()
    read_images(finished, "train")
    assert prune(finished) == [], "the database still holds them"

    assemble_database(finished)
    unneeded = prune(finished, now=True)
    assert {item.reason for item in unneeded} == {"of images that are in no study"}
    assert 1 <= len(unneeded) < len(list(store.image_parts(identity).glob("*.h5"))) + len(unneeded)
    assert plan_study(finished).to_encode == 0
    assert assemble_database(finished).unchanged


def test_what_another_study_needs_is_kept_whether_its_file_is_known_or_not(
    finished: Study, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"custom": {"odd": ["a sailing boat"]}}
    other = variant(finished, image_folder, name="others", splits=["train"], vocabulary=words)
    third = variant(finished, image_folder, name="third", splits=["train"], vocabulary={"custom": {"odd": ["a tree"]}})
    for study in (other, third):
        identify_encoder(study)
        read_images(study, "train")
    extract_text(other)
    store = Store.of(finished)
    before = files(store.root)

    shutil.rmtree(store.folder)
    unknown = prune(third, now=True)
    assert all("/rows/" in item.path for item in unknown), "the vocabulary of a study without a file cannot be told"
    index = held_rows(store, recorded_card(other, Store.of(other)).identity)
    assert plan_study(other, ["train"]).to_encode == 0
    assert len(index.sources) < len([path for path in before if "/rows/" in path])

    monkeypatch.setenv("CCASSETS_STUDIES", str(finished.folder.parent))
    known = prune(third, now=True)
    assert {item.reason for item in known} == {"of a template that no study has"}
    assert len([path for path in files(store.root) if "/templates/" in path]) == 1
    assert plan_study(other, ["train"]).templates == []


def test_a_first_try_with_a_limit_costs_nothing_of_the_whole(finished: Study, image_folder: Path) -> None:
    store = Store.of(finished)
    store.database.unlink()
    limited = variant(finished, image_folder, extraction={"limit": 1})
    finish(limited)
    assert prune(limited, now=True) == []
    again = variant(finished, image_folder)
    identify_encoder(again)
    for split in again.splits:
        read_images(again, split)
    assert plan_study(again).to_encode == 0


def test_a_template_that_was_edited_is_removed_in_its_old_form(finished: Study, image_folder: Path) -> None:
    vocabulary = {"labels": {"words": ["blood"], "templates": ["a photo of {} cell"]}}
    edited = variant(finished, image_folder, vocabulary=vocabulary)
    extract_text(edited)
    unneeded = prune(edited, now=True)
    assert len(unneeded) == 4
    assert {item.reason for item in unneeded} == {"of a template that no study has"}
    assert plan_study(edited).templates == []


def test_leftovers_of_dead_processes_go_and_other_files_stay(finished: Study) -> None:
    store = Store.of(finished)
    dead = store.folder / ".conceptclip_features.h5.0123abcd.partial"
    dead.write_bytes(b"half a file")
    theirs = store.folder / ".theirs.partial"
    theirs.write_bytes(b"")
    assert [(item.path, item.bytes) for item in prune(finished, dry_run=True)] == [(store.relative(dead), 11)]
    assert dead.exists()
    prune(finished)
    assert not dead.exists()
    assert theirs.exists()


def test_a_part_that_cannot_be_read_is_kept(finished: Study) -> None:
    store = Store.of(finished)
    part = sorted(store.image_parts(recorded_card(finished, store).identity).glob("*.h5"))[0]
    part.write_bytes(b"not an HDF5 file")
    assert prune(finished, now=True) == []


@pytest.mark.parametrize("name", ["manifest/val.parquet", "conceptclip_features.h5"])
def test_nothing_is_removed_while_it_cannot_be_told_what_a_study_needs(finished: Study, name: str) -> None:
    store = Store.of(finished)
    foreign = store.root / "features" / "0" / "rows" / "a.h5"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"unneeded")
    (store.folder / name).write_bytes(b"damaged")
    with pytest.raises(CcassetsError, match=name):
        prune(finished, now=True)
    assert foreign.exists()


def test_pruning_waits_for_an_extraction_and_looking_does_not(finished: Study) -> None:
    store = Store.of(finished)
    with exclusive(store.image_parts(recorded_card(finished, store).identity)):
        assert prune(finished, dry_run=True) == []


# --- what is not understood --------------------------------------------------------------------------


def flip_a_key(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"dim"', b'"dhm"'))


def change_a_digit(path: Path) -> None:
    text = path.read_text()
    scale = json.loads(text)["card"]["logit_scale"]
    path.write_text(text.replace(str(scale), str(scale + 1)))


def forget_the_identity(path: Path) -> None:
    record = json.loads(path.read_text())
    del record["card"]["identity"]
    path.write_text(json.dumps(record))


def change_a_recorded_fact(path: Path) -> None:
    record = json.loads(path.read_text())
    record["card"]["recorded"]["weights"] = "others"
    path.write_text(json.dumps(record))


def leave_nothing_behind(path: Path) -> None:
    path.unlink()
    path.symlink_to("a disk that is away")


DAMAGES: list[Callable[[Path], object]] = [
    flip_a_key,
    change_a_digit,
    forget_the_identity,
    change_a_recorded_fact,
    leave_nothing_behind,
    Path.unlink,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"[]"),
    lambda path: path.write_bytes(b"null"),
    lambda path: path.write_bytes(path.read_bytes()[:-9]),
    lambda path: path.write_bytes(b"\xff" + path.read_bytes()),
]


@pytest.mark.parametrize("is_known", [True, False])
def test_a_damaged_card_removes_no_part(finished: Study, image_folder: Path, is_known: bool) -> None:
    store = Store.of(finished)
    pruned = finished
    if not is_known:
        pruned = variant(finished, image_folder, "others", splits=["train"])
        read_sources(pruned)
    store.database.unlink()
    before = files(store.root)
    card = store.encoder_card.read_bytes()
    for damage in DAMAGES:
        damage(store.encoder_card)
        for dry_run in (True, False):
            with pytest.raises(EncoderError, match=r"encoder\.json .*(damaged|missing).*build \S*cells --plan"):
                prune(pruned, dry_run=dry_run, now=True)
        assert files(store.root) == before
        store.encoder_card.unlink(missing_ok=True)
        store.encoder_card.write_bytes(card)
    Path.unlink(store.encoder_card)
    read_sources(finished)
    assert prune(pruned, now=True) == []


@pytest.mark.parametrize("names", [["val"], ["train", "val", "test"]])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_missing_manifest_removes_no_part(
    finished: Study, image_folder: Path, names: list[str], is_known: bool
) -> None:
    store = Store.of(finished)
    pruned = finished
    if not is_known:
        pruned = variant(finished, image_folder, "others", splits=["train"])
        read_sources(pruned)
    store.database.unlink()
    before = files(store.root)
    for name in names:
        store.manifest(name).unlink()
    with pytest.raises(DatasetError, match=r"manifest/\w*(\.parquet)? is missing.*ccassets build \S*cells --plan"):
        prune(pruned, now=True)
    assert files(store.root) == before


@pytest.mark.parametrize(
    ("kept", "is_known"), [((), True), ((".lock",), True), (("study.json",), True), (("study.json",), False)]
)
def test_a_study_without_card_manifests_and_database_removes_no_part(
    finished: Study, image_folder: Path, kept: tuple[str, ...], is_known: bool
) -> None:
    """Somebody emptied its folder, or a build ended before it named its encoder; its needs are as unknown."""
    store = Store.of(finished)
    pruned = finished
    if not is_known:
        pruned = variant(finished, image_folder, "others", splits=["train"])
        read_sources(pruned)
    for path in store.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in kept:
            path.unlink()
    before = files(store.root)
    with pytest.raises(EncoderError, match=r"encoder\.json is missing.*ccassets build \S*cells --plan"):
        prune(pruned, now=True)
    assert files(store.root) == before


@pytest.mark.parametrize("with_card", [True, False])
def test_a_manifest_of_another_split_removes_no_part(finished: Study, with_card: bool) -> None:
    store = Store.of(finished)
    store.database.unlink()
    store.manifest("val").write_bytes(store.manifest("test").read_bytes())
    if not with_card:
        store.encoder_card.unlink()
    before = files(store.root)
    with pytest.raises(CcassetsError, match=r"val\.parquet is the manifest of split 'test'|encoder\.json is missing"):
        prune(finished, now=True)
    assert files(store.root) == before


def test_a_card_of_an_older_version_is_understood(finished: Study) -> None:
    store = Store.of(finished)
    record = json.loads(store.encoder_card.read_text())
    del record["digest"], record["splits"]
    store.encoder_card.write_text(json.dumps(record))
    assert prune(finished, now=True) == []
    assert recorded_card(finished, store).identity == record["card"]["identity"]


@pytest.mark.parametrize("what", ["folder", "manifest folder"])
def test_a_folder_behind_a_link_to_nothing_stops_pruning(finished: Study, image_folder: Path, what: str) -> None:
    other = variant(finished, image_folder, "others")
    read_sources(other)
    store = Store.of(finished)
    folder = store.folder if what == "folder" else store.folder / "manifest"
    away = folder.rename(store.root.parent / "away")
    folder.symlink_to(away)
    assert prune(other, now=True) == [], "what a link leads to is read"
    away.rename(store.root.parent / "unmounted")
    before = files(store.root)
    with pytest.raises(CcassetsError, match=r"leads to nothing|is missing"):
        prune(other, now=True)
    assert files(store.root) == before


def test_a_study_that_was_never_built_here_stops_pruning(finished: Study, image_folder: Path) -> None:
    with pytest.raises(StorageError, match=r"others is missing.*ccassets build \S*others --plan"):
        prune(variant(finished, image_folder, "others"), now=True)


def test_an_edited_encoder_that_was_not_identified_yet_stops_pruning(finished: Study, image_folder: Path) -> None:
    edited = variant(finished, image_folder, encoder={**WEIGHTS, "tokens": False})
    with pytest.raises(EncoderError, match=r"encoder section of cells changed"):
        prune(edited, now=True)


def test_a_run_under_way_stops_pruning(finished: Study) -> None:
    runs = Store.of(finished).runs
    runs.mkdir()
    (runs / "dead.lock").touch()
    assert prune(finished) == []
    with (runs / "alive.lock").open("w") as lock:
        assert lock_file(lock.fileno(), runs / "alive.lock")
        with pytest.raises(StorageError, match=r"Run alive is in progress"):
            prune(finished)


@pytest.mark.parametrize("name", ["image_digest", "feature_digest", "provenance", "identity"])
def test_a_database_whose_rows_or_encoder_are_not_its_own_stops_pruning(finished: Study, name: str) -> None:
    store = Store.of(finished)
    with h5py.File(store.database, "r+") as file:
        if name in file:
            file[name][0, 0] ^= 1
        elif name == "provenance":
            file.attrs[name] = file.attrs[name][:-1]
        else:
            identity = recorded_card(finished, store).identity
            file.attrs["provenance"] = file.attrs["provenance"].replace(identity, "0" * 32)
    before = files(store.root)
    with pytest.raises(DatabaseError, match=r"conceptclip_features\.h5"):
        prune(finished, now=True)
    assert files(store.root) == before


def test_files_that_are_no_parts_of_their_encoder_stay(finished: Study) -> None:
    store = Store.of(finished)
    part = sorted(store.image_parts(recorded_card(finished, store).identity).glob("*.h5"))[0]
    folder = store.image_parts("0" * 32)
    folder.mkdir(parents=True)
    shutil.copy(part, folder / "of_another_encoder.h5")
    shutil.copy(store.database, folder / "a_database.h5")
    (folder / "damaged.h5").write_bytes(b"not an HDF5 file")
    assert prune(finished, now=True) == []


# --- what is removed ---------------------------------------------------------------------------------


def test_parts_younger_than_a_day_are_kept_and_older_ones_are_logged(finished: Study, image_folder: Path) -> None:
    vocabulary = {"labels": {"words": ["blood"], "templates": ["a photo of {} cell"]}}
    edited = variant(finished, image_folder, vocabulary=vocabulary)
    store = Store.of(edited)
    before = files(store.root)
    young = prune(edited)
    assert all(file.recent for file in young)
    assert len(young) == 4
    assert files(store.root) == before

    old = store.root / young[0].path
    os.utime(old, (time.time() - 25 * 3600,) * 2)
    assert [file.path for file in prune(edited, dry_run=True) if not file.recent] == [young[0].path]
    assert not (store.root / PRUNE_LOG).exists()
    prune(edited)
    assert before - files(store.root) == {young[0].path}
    prune(edited, now=True)
    lines = [json.loads(line) for line in (store.root / PRUNE_LOG).read_text().splitlines()]
    assert sorted(line["path"] for line in lines) == sorted(before - files(store.root))
    assert {(line["study"], line["reason"]) for line in lines} == {("cells", "of a template that no study has")}


def test_what_cannot_be_logged_is_not_removed(finished: Study, image_folder: Path) -> None:
    vocabulary = {"labels": {"words": ["blood"], "templates": ["a photo of {} cell"]}}
    edited = variant(finished, image_folder, vocabulary=vocabulary)
    store = Store.of(edited)
    before = files(store.root)
    (store.root / PRUNE_LOG).mkdir()
    with pytest.raises(StorageError, match=PRUNE_LOG):
        prune(edited, now=True)
    assert files(store.root) == before
