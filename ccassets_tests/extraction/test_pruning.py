"""What `prune` removes, and above all what it keeps: nothing that any known study needs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ccassets.errors import CcassetsError
from ccassets.extraction import assemble_database, extract_images, extract_text
from ccassets.extraction.parts import held_rows
from ccassets.extraction.plan import plan_study
from ccassets.extraction.pruning import prune
from ccassets.extraction.sources import identify_encoder, read_images, recorded_card
from ccassets.files import exclusive
from ccassets.study.schema import Study
from ccassets.study.storage import Store
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
    unneeded = prune(half, dry_run=True)
    assert {item.path for item in unneeded} == {path for path in files(store.root) if f"/{old}/" in path}
    assert {item.reason for item in unneeded} == {"of an encoder that no study uses"}
    assert sum(item.bytes for item in unneeded) == sum((store.root / item.path).stat().st_size for item in unneeded)
    assert {item.path for item in unneeded} <= files(store.root), "a dry run removes nothing"

    assert prune(half) == unneeded
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
    unneeded = prune(finished)
    assert {item.reason for item in unneeded} == {"of images that are in no study"}
    assert 1 <= len(unneeded) < len(list(store.image_parts(identity).glob("*.h5"))) + len(unneeded)
    assert plan_study(finished).to_encode == 0
    assert assemble_database(finished).unchanged


def test_what_another_study_needs_is_kept_whether_its_file_is_known_or_not(
    finished: Study, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = variant(finished, image_folder, name="others", vocabulary={"custom": {"odd": ["a sailing boat"]}})
    identify_encoder(other)
    read_images(other, "train")
    extract_text(other)
    store = Store.of(finished)
    before = files(store.root)

    shutil.rmtree(store.folder)
    unknown = prune(finished)
    assert all("/rows/" in item.path for item in unknown), "the vocabulary of a study without a file cannot be told"
    index = held_rows(store, recorded_card(other, Store.of(other)).identity)
    assert plan_study(other, ["train"]).to_encode == 0
    assert len(index.sources) < len([path for path in before if "/rows/" in path])

    monkeypatch.setenv("CCASSETS_STUDIES", str(finished.folder.parent))
    known = prune(finished)
    assert {item.reason for item in known} == {"of a template that no study has"}
    assert len([path for path in files(store.root) if "/templates/" in path]) == 1
    assert plan_study(other, ["train"]).templates == []


def test_a_first_try_with_a_limit_costs_nothing_of_the_whole(finished: Study, image_folder: Path) -> None:
    store = Store.of(finished)
    store.database.unlink()
    limited = variant(finished, image_folder, extraction={"limit": 1})
    finish(limited)
    assert prune(limited) == []
    again = variant(finished, image_folder)
    identify_encoder(again)
    for split in again.splits:
        read_images(again, split)
    assert plan_study(again).to_encode == 0


def test_a_template_that_was_edited_is_removed_in_its_old_form(finished: Study, image_folder: Path) -> None:
    vocabulary = {"labels": {"words": ["blood"], "templates": ["a photo of {} cell"]}}
    edited = variant(finished, image_folder, vocabulary=vocabulary)
    extract_text(edited)
    unneeded = prune(edited)
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
    assert prune(finished) == []


@pytest.mark.parametrize("name", ["manifest/val.parquet", "conceptclip_features.h5"])
def test_nothing_is_removed_while_it_cannot_be_told_what_a_study_needs(finished: Study, name: str) -> None:
    store = Store.of(finished)
    foreign = store.root / "features" / "0" / "rows" / "a.h5"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"unneeded")
    (store.folder / name).write_bytes(b"damaged")
    with pytest.raises(CcassetsError, match=name):
        prune(finished)
    assert foreign.exists()


def test_pruning_waits_for_an_extraction_and_looking_does_not(finished: Study) -> None:
    store = Store.of(finished)
    with exclusive(store.image_parts(recorded_card(finished, store).identity)):
        assert prune(finished, dry_run=True) == []
