"""Histories of rows: part, encoder, reuse, labels and repeated images, after builds that really reused rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ccassets import open_database
from ccassets.analysis import explain_rows, row_histories
from ccassets.errors import AnalysisError
from ccassets.study.schema import Study
from ccassets_tests.cli.command_line import run
from ccassets_tests.database.made_files import write_database
from ccassets_tests.exports.test_formats import legacy
from ccassets_tests.extraction.made_parts import build, parts


def test_a_row_says_where_its_features_come_from(study: Study, image_folder: Path) -> None:
    build(study)
    kept, moved = sorted((image_folder / "train").rglob("*.png"))[:2]
    other = next(folder for folder in sorted((image_folder / "train").iterdir()) if folder != moved.parent)
    target = other / "moved.png"
    moved.rename(target)
    copy = image_folder / "test" / kept.parent.name / "copy.png"
    shutil.copy(kept, copy)

    built = build(study)

    kept_key, moved_key, copy_key = (path.relative_to(image_folder).as_posix() for path in (kept, target, copy))
    with open_database(built.path) as database:
        table = row_histories(database).set_index("key")
        (row,) = explain_rows(database, moved_key)
        (same,) = explain_rows(database, kept_key)
        with pytest.raises(AnalysisError, match=r"no row of the key 'train/no.png'; its keys are like"):
            explain_rows(database, "train/no.png")
    assert built.encoded == 0
    assert set(table["part"]) <= {path.name for path in parts(study)}
    assert (table["part_origin"] == "extracted").all()
    assert table["encoded_at"].str.endswith("Z").all()
    assert table.index[table["reused"].astype(bool)].tolist() == sorted(
        [moved_key, copy_key], key=list(table.index).index
    )
    assert row["part_key"] == moved.relative_to(image_folder).as_posix()
    assert (row["class"], row["label_when_encoded"]) == (other.name, moved.parent.name)
    assert row["encoder"]["kind"] == "conceptclip"
    assert [(one["key"], one["split"]) for one in same["same_image"]] == [(copy_key, "test")]

    result = run("explain", built.path, moved_key)
    assert result.code == 0, result.err
    assert f"reused: encoded as {row['part_key']} of train" in result.out
    assert f"label       {other.name}, was {moved.parent.name} when the image was encoded" in result.out


def test_a_file_that_was_moved_away_knows_no_part(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "elsewhere" / "a.h5")) as database:
        assert row_histories(database)["part"].isna().all()
        (row,) = explain_rows(database, str(database.keys[0]))
    assert "part" not in row


def test_a_file_without_keys_has_no_history(tmp_path: Path) -> None:
    with (
        open_database(legacy(tmp_path / "a.h5")) as database,
        pytest.raises(AnalysisError, match="no keys and digests"),
    ):
        row_histories(database)
