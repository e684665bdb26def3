"""What docs/checks.md says to do about a database is done, fault by fault, and mends it."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from ccassets.database.validation import CHECKS, validate_database
from ccassets.errors import DatabaseError, StorageError
from ccassets.extraction import assemble_database
from ccassets.study.schema import Study
from ccassets_tests.database.test_validation_faults import FAULTS, Fault
from ccassets_tests.extraction.made_parts import build, deep_errors
from ccassets_tests.made_studies import edit_study, save_golden_weights, save_images, write_study

pytestmark = pytest.mark.slow

BUILD = ("Build", "Restore the file from a copy, or build it again", "Encode the template again", "Remove the file and")
"""The beginnings of advices that a build follows."""

UNKNOWN_ROWS = {"no image_digest", "another identity"}
"""Faults after which nobody can tell what the rows are: a build replaces them when it is told to."""

MENDED_BY_A_BUILD = [
    fault for fault in FAULTS if fault.file == "database" and CHECKS[fault.check].advice.startswith(BUILD)
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, bytes]:
    """A study with its database."""
    folder = tmp_path_factory.mktemp("advice")
    study = write_study(
        folder / "studies" / "cells", images=save_images(folder / "images"), encoder=save_golden_weights(folder / "w")
    )
    study = edit_study(study, lambda a: a["vocabulary"].update(custom={"free_text": ["a red cell", "a sailing boat"]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CCASSETS_HOME", str(folder / "home"))
        return study, build(study).path.read_bytes()


@pytest.mark.parametrize("fault", MENDED_BY_A_BUILD, ids=lambda fault: fault.name)
def test_a_build_mends_what_it_is_advised_for(
    fault: Fault, built: tuple[Study, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, content = built
    home = study.folder.parents[1] / "home"
    monkeypatch.setenv("CCASSETS_HOME", str(home))
    path = Path(home / "storage" / study.name / study.database_file)
    path.write_bytes(content)
    with h5py.File(path, "r+") as file:
        try:
            fault.inject(file)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            pytest.skip(f"this database has nothing to break in that way: {error}")
    try:
        checks = {finding.check for finding in validate_database(path, study=study)}
    except DatabaseError:
        checks = {fault.check}
    if fault.check not in checks:
        pytest.skip("in this database it is no fault")

    if fault.name in UNKNOWN_ROWS:
        with pytest.raises(StorageError, match="--allow-loss"):
            build(study)
        assemble_database(study, allow_loss=True)
    again = build(study)

    assert again.encoded == 0
    assert deep_errors(again, study) == []
