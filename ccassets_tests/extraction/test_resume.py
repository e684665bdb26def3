"""Builds that were broken off, or run twice at once: what comes out has the bits of an undisturbed build."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ccassets
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import (
    COLOURS,
    StoppedError,
    arrays,
    build,
    build_in_storage,
    deep_errors,
    differences,
    parts,
    stop_after,
)
from ccassets_tests.made_studies import save_images, write_study


# Shards are of four rows, batches of two.
@pytest.mark.parametrize(("rows", "held"), [(2, 0), (6, 4), (9, 8)])
def test_a_build_that_was_broken_off_goes_on_after_its_last_finished_shard(
    study: Study, tmp_path: Path, rows: int, held: int
) -> None:
    for split in study.splits:
        ccassets.read_images(study, split)
    with pytest.raises(StoppedError):
        ccassets.extract_images(study, "train", progress=stop_after(rows))
    assert sum(len(arrays(part)["ids"]) for part in parts(study)) == held

    built = build(study)

    assert built.images["train"].encoded == 9 - held
    assert deep_errors(built, study) == []
    assert differences(built.path, build_in_storage(study, tmp_path / "undisturbed").path) == []


def test_progress_counts_only_what_is_still_to_be_encoded(study: Study) -> None:
    with pytest.raises(StoppedError):
        ccassets.extract_images(study, "train", progress=stop_after(6))
    said: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        said.append((done, total))

    ccassets.extract_images(study, "train", progress=progress)

    assert said == [(2, 5), (4, 5), (5, 5)]


def test_an_assembly_that_was_broken_off_leaves_the_old_database(
    study: Study, image_folder: Path, tmp_path: Path
) -> None:
    before = build(study).path.read_bytes()
    undisturbed = tmp_path / "undisturbed"
    build_in_storage(study, undisturbed)  # Both encode the new rows by themselves: other batches may round otherwise.
    save_images(image_folder, {"train": 12})
    for split in study.splits:
        ccassets.read_images(study, split)
        ccassets.extract_images(study, split)

    with pytest.raises(StoppedError):
        ccassets.assemble_database(study, progress=stop_after(20))

    store = Store.of(study)
    assert store.database.read_bytes() == before
    assert not list(store.folder.glob("*.partial"))
    assert differences(build(study).path, build_in_storage(study, undisturbed).path) == []


def test_two_processes_that_extract_the_same_study_encode_each_image_once_in_all(
    tmp_path: Path, image_folder: Path
) -> None:
    encoder = {"kind": "python", "target": "colours:Colours"}
    study = write_study(tmp_path / "studies" / "cells", images=image_folder, encoder=encoder, vocabulary={})
    (study.folder / "colours.py").write_text(COLOURS)
    code = (
        "import sys\nimport ccassets\n"
        "from ccassets_tests.extraction.made_parts import build\n"
        "study = ccassets.load_study(sys.argv[1])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "built = build(study)\n"
        "print(built.encoded)"
    )
    command = [sys.executable, "-c", code, str(study.folder)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, env=os.environ, **pipes) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()

    encoded = [int(process.communicate()[0]) for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert sum(encoded) == 18
    path = Store.of(study).database
    assert ccassets.validate_database(path, study=study, deep=True) == []
    assert differences(path, build_in_storage(study, tmp_path / "alone").path) == []
