"""Rot: bytes that change while size, times and inode stay. What finds it, and that the printed advice mends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS, validate_database
from ccassets.errors import StorageError
from ccassets.extraction import assemble_database, extract_images, extract_text
from ccassets.extraction.damage_tracing import trace_damage
from ccassets.extraction.parts import VerifiedFiles
from ccassets.extraction.plan import plan_study
from ccassets.extraction.sources import current_identity, identify_encoder
from ccassets.files import DIGEST_CACHE
from ccassets.findings import Finding
from ccassets.orchestration.build import run_build
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.extraction.made_parts import arrays, build, deep_errors, errors, parts, read_sources
from ccassets_tests.made_studies import edit_study, write_study
from ccassets_tests.orchestration.study_runs import run_job


def rot(path: Path, change: Callable[[h5py.File], object] | None = None) -> None:
    """Change a file, by default one bit of its last token feature; its record says what it said before."""
    record = VerifiedFiles(path.parent)
    assert record.has(path)
    was_read = record.was_read(path)
    with h5py.File(path, "r+") as file:
        (change or flip_the_last_row)(file)
    VerifiedFiles(path.parent).add(path, read=was_read)


def flip_the_last_row(file: h5py.File) -> None:
    row = file["image_token_features"][-1]
    row.view(np.uint16)[0, 0] ^= 1
    file["image_token_features"][-1] = row


def deep(path: Path) -> list[Finding]:
    return errors(validate_database(path, deep=True))


@pytest.fixture
def encoded(study: Study) -> Study:
    """A study whose images and texts are encoded and in no database yet."""
    read_sources(study)
    extract_text(study)
    extract_images(study)
    return study


def test_a_part_that_rots_before_it_enters_a_database_is_encoded_again(encoded: Study) -> None:
    rotten = parts(encoded)[0]
    rot(rotten)
    rows = len(open_database(rotten))
    assert plan_study(encoded).to_encode == 0, "it keeps its fingerprint"
    with pytest.raises(StorageError, match=rf"{rows} of \d+ images of split 'train' are not encoded yet"):
        assemble_database(encoded)
    assert not Store.of(encoded).database.exists()
    assert plan_study(encoded).to_encode == rows
    assert deep_errors(build(encoded), encoded) == []


def exchange_two_images(file: h5py.File) -> None:
    digests = file["image_digest"][...]
    digests[[0, -1]] = digests[[-1, 0]]
    file["image_digest"][...] = digests


def test_a_known_part_whose_rows_change_images_gives_none_of_them(study: Study) -> None:
    path = build(study).path
    before = arrays(path)
    path.unlink()
    known = parts(study)[0]
    rot(known, exchange_two_images)
    rows = len(open_database(known))
    again = build(study)
    assert again.encoded == rows
    assert np.array_equal(arrays(again.path)["feature_digest"], before["feature_digest"])
    assert deep_errors(again, study) == []


def test_rows_of_a_rotten_part_are_taken_from_another_database(
    encoded: Study, image_folder: Path, weights: Path
) -> None:
    other = build(write_study(encoded.folder.parent / "other", images=image_folder, encoder=weights))
    for part in parts(encoded):
        VerifiedFiles(part.parent).add(part)  # As if they had entered none.
    rot(parts(encoded)[0])
    assembly = assemble_database(encoded)
    assert deep(assembly.path) == []
    with open_database(assembly.path) as database:
        assert other.path.name in {part["name"] for part in (database.provenance or {})["parts"]}


def test_every_part_is_read_once_and_a_database_once_written_is_not_read_again(encoded: Study) -> None:
    record = Store.of(encoded).image_parts(parts(encoded)[0].parent.parent.name)
    assert not any(VerifiedFiles(record).was_read(part) for part in parts(encoded))
    path = assemble_database(encoded).path
    assert all(VerifiedFiles(record).was_read(part) for part in parts(encoded))
    assert VerifiedFiles(path.parent).was_read(path)


def test_records_of_an_older_version_hold(encoded: Study) -> None:
    path = assemble_database(encoded).path
    for folder in (path.parent, parts(encoded)[0].parent):
        lines = [json.loads(line) for line in (folder / "verified.jsonl").read_text().splitlines() if line]
        (folder / "verified.jsonl").write_text("".join(json.dumps(line[:2]) + "\n" for line in lines))
    assert assemble_database(encoded).unchanged
    assert plan_study(encoded).to_encode == 0
    edited = edit_study(encoded, lambda a: a["vocabulary"].update(custom={"odd": ["a sailing boat"]}))
    extract_text(edited)
    assemble_database(edited)
    assert VerifiedFiles(path.parent).was_read(path)


def test_a_database_that_rotted_before_its_rows_were_read_is_not_copied(encoded: Study) -> None:
    path = assemble_database(encoded).path
    rot(path)
    VerifiedFiles(path.parent).add(path)
    edited = edit_study(encoded, lambda a: a["vocabulary"].update(custom={"odd": ["a sailing boat"]}))
    extract_text(edited)
    assert deep(assemble_database(edited).path) == []


def test_a_line_that_is_forgotten_is_forgotten_after_a_torn_one(encoded: Study) -> None:
    part = parts(encoded)[0]
    record = part.parent / "verified.jsonl"
    with record.open("a") as lines:
        lines.write('["torn')
    VerifiedFiles(part.parent).forget(part)
    assert not VerifiedFiles(part.parent).has(part)


def test_later_rot_is_named_with_its_part_and_only_its_rows_are_encoded_again(encoded: Study) -> None:
    path = assemble_database(encoded).path
    rotten = parts(encoded)[1]
    with open_database(rotten) as part:
        keys, rows = set(part.keys), len(part)

    def flip_the_same_row(file: h5py.File) -> None:
        number = next(i for i, key in enumerate(file["keys"].asstr()[:]) if key in keys)
        file["image_features"][number] = file["image_features"][number][::-1]

    rot(rotten)
    rot(path, flip_the_same_row)
    findings = deep(path)
    assert {finding.check for finding in findings} >= {"feature_digest"}
    traced = trace_damage(path, findings)
    assert [finding.where for finding in traced] == [Store.of(encoded).relative(rotten)]
    assert plan_study(encoded).to_encode == rows
    built = build(encoded)
    assert built.encoded == rows
    assert deep_errors(built, encoded) == []
    assert trace_damage(path, deep(path)) == []


@pytest.mark.parametrize("in_database", [False, True])
def test_the_scheduled_deep_check_names_a_part_that_rotted_later_and_its_advice_mends_it(
    encoded: Study, in_database: bool
) -> None:
    path = assemble_database(encoded).path
    rotten = parts(encoded)[0]
    assert run_job(encoded, "check_deeply").success
    rot(rotten)
    if in_database:
        rot(path)

    result = run_job(encoded, "check_deeply")

    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert failure.step_failure_data.user_failure_data is not None
    description = failure.step_failure_data.user_failure_data.description
    assert Store.of(encoded).relative(rotten) in str(description)
    assert CHECKS["feature_digest"].advice in str(description)
    if in_database:
        assert "the next build encodes its images again" in str(description)
    else:
        assert "remove it; a build takes its rows from a database that holds them" in str(description)
        rotten.unlink()
    assert (build(encoded).encoded > 0) == in_database
    assert run_job(encoded, "check_deeply").success


def test_a_part_that_is_validated_itself_is_encoded_again(encoded: Study) -> None:
    rotten = parts(encoded)[0]
    rot(rotten)
    assert trace_damage(rotten, deep(rotten)) == []
    assert plan_study(encoded).to_encode == len(open_database(rotten))


def test_nothing_is_written_beside_a_file_of_no_storage(encoded: Study, tmp_path: Path) -> None:
    path = assemble_database(encoded).path
    copy = tmp_path / "alone" / "features.h5"
    copy.parent.mkdir()
    copy.write_bytes(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        flip_the_last_row(file)
    assert trace_damage(copy, deep(copy)) == []
    assert list(copy.parent.iterdir()) == [copy]


@pytest.mark.slow
def test_fresh_keeps_nothing(study: Study) -> None:
    path = run_build(study).path
    assert path is not None
    for part in parts(study):
        rot(part)
    rot(path)
    inode = path.stat().st_ino
    assert run_build(study).materialized == []
    result = run_build(study, fresh=True)
    assert result.path is not None
    assert deep(result.path) == []
    assert result.path.stat().st_ino != inode
    assert {"feature_database", "validation_report", "concept_atlas"} <= set(result.materialized)


def change_an_attribute(file: h5py.File) -> None:
    file.attrs["dataset"] = "another"


def change_a_template(file: h5py.File) -> None:
    features = next(iter(file["templates"].values()))["text_features"]
    features[0] = features[0][::-1]


def change_a_label(file: h5py.File) -> None:
    file["labels"][0] = (file["labels"][0] + 1) % 3


def change_a_digest(file: h5py.File) -> None:
    file["image_digest"][0, 0] ^= 1


def change_a_word(file: h5py.File) -> None:
    words = json.loads(file.attrs["concept_texts"])
    file.attrs["concept_texts"] = json.dumps([*words[:-1], "another"])


@pytest.mark.parametrize(
    ("check", "change"),
    [
        ("feature_digest", flip_the_last_row),
        ("rows_digest", change_a_digest),
        ("attribute_digest", change_an_attribute),
        ("template_digest", change_a_template),
        ("split_digest", change_a_label),
        ("database_digest", change_a_word),
    ],
)
def test_the_advice_mends_what_a_deep_validation_finds(
    encoded: Study, check: str, change: Callable[[h5py.File], object]
) -> None:
    assert check in CHECKS
    assert CHECKS[check].advice.startswith(("Build the study again", "Build again"))
    path = assemble_database(encoded).path
    rot(path, change)
    findings = deep(path)
    assert check in {finding.check for finding in findings}
    trace_damage(path, findings)
    built = build(encoded)
    assert built.encoded == 0
    assert deep_errors(built, encoded) == []


# --- the cache of digests ----------------------------------------------------------------------------


@pytest.mark.parametrize("is_older", [False, True])
def test_no_change_of_the_digest_cache_changes_an_identity(study: Study, is_older: bool) -> None:
    store = Store.of(study)
    identity = identify_encoder(study).identity
    cache = store.cache / DIGEST_CACHE
    text = cache.read_text()
    if is_older:
        text = json.dumps({key: entry.split()[0] for key, entry in json.loads(text).items()})
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(text.encode())
        position = int(random.integers(len(damaged)))
        damaged[position] = b"0123456789abcdef"[int(random.integers(16))]
        cache.write_bytes(damaged)
        assert identify_encoder(study).identity == identity
        assert current_identity(study, store) == identity


def test_a_first_identity_is_not_taken_from_a_damaged_cache_of_another_study(study: Study) -> None:
    store = Store.of(study)
    identity = identify_encoder(study).identity
    cache = store.cache / DIGEST_CACHE
    cache.write_text(json.dumps(dict.fromkeys(json.loads(cache.read_text()), "0" * 64)))
    store.encoder_card.unlink()
    assert identify_encoder(study).identity == identity
