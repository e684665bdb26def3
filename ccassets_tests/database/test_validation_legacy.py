"""Files of the original scripts: every trace is told by name, with the rows it concerns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.database.validation import validate_database
from ccassets.findings import Finding, has_errors
from ccassets_tests.database.made_files import study
from ccassets_tests.database.original_scripts import (
    CONCEPT_TEMPLATES,
    CONCEPTS,
    LABEL_TEMPLATES,
    LABELS,
    append,
    finish,
    start,
    write_all_templates,
    write_runs,
    write_templates,
)
from ccassets_tests.executed_lines import count_executed_lines

LEGACY = Path(__file__).parent.parent / "data" / "legacy"
FULL = {"train": 36, "val": 20, "test": 14}
ALWAYS = {"no_provenance"}


def by_check(findings: Sequence[Finding]) -> dict[str, Finding]:
    assert len({finding.check for finding in findings}) == len(findings), findings
    return {finding.check: finding for finding in findings if finding.check not in ALWAYS}


def findings_by_check(path: Path, **arguments: Any) -> dict[str, Finding]:
    findings = validate_database(path, **arguments)
    assert {finding.check for finding in findings} >= ALWAYS
    return by_check(findings)


# --- the fixtures -------------------------------------------------------------------------------------


def test_a_finished_file_of_the_original_scripts_is_valid() -> None:
    assert findings_by_check(LEGACY / "legacy_good.h5") == {}
    assert not has_errors(validate_database(LEGACY / "legacy_good.h5", deep=True))


def test_a_stopped_file_is_told_by_its_missing_counts_and_what_is_there() -> None:
    findings = findings_by_check(LEGACY / "legacy_partial.h5")
    assert set(findings) == {"stopped_extraction"}
    assert "'train' 36, 'val' 8" in findings["stopped_extraction"].message
    assert has_errors(findings.values())


def test_a_resumed_file_names_the_rows_that_were_written_twice() -> None:
    findings = findings_by_check(LEGACY / "legacy_duplicated.h5")
    assert set(findings) == {"doubled_rows", "split_counts", "contiguous_splits"}
    doubled = findings["doubled_rows"]
    assert doubled.where == "/image_features rows 44-87"
    assert "rows 44-79 repeat rows 0-35 ('train'), rows 80-87 repeat rows 36-43 ('val')" in doubled.message
    assert "70 in all" in doubled.message


def test_missing_labels_are_told_from_wrong_ones() -> None:
    findings = findings_by_check(LEGACY / "legacy_no_labels.h5")
    assert set(findings) == {"missing_labels"}
    assert findings["missing_labels"].where == "/labels rows 0-69"


def test_labels_that_are_all_zero_are_a_warning() -> None:
    findings = findings_by_check(LEGACY / "legacy_no_labels_zero.h5")
    assert set(findings) == {"labels_all_zero"}
    assert not has_errors(findings.values())
    assert "basophil" in findings["labels_all_zero"].message


# --- doubled rows -------------------------------------------------------------------------------------

RESUMES: Mapping[str, tuple[list[dict[str, int]], Mapping[str, int] | None, str]] = {
    "stopped in the first split": ([{"train": 16}, FULL], FULL, "rows 16-31"),
    "stopped after one row": ([{"train": 1}, FULL], FULL, "row 1"),
    "stopped before the second split": ([{"train": 36}, FULL], FULL, "rows 36-71"),
    "stopped in the last split": ([{"train": 36, "val": 20, "test": 3}, FULL], FULL, "rows 59-117"),
    "stopped twice in the first split": ([{"train": 16}, {"train": 24}, FULL], FULL, "rows 16-31, 40-63"),
    "the second stop earlier": ([{"train": 24}, {"train": 16}, FULL], FULL, "rows 24-63"),
    "stopped twice at one place": ([{"train": 16}, {"train": 16}, FULL], FULL, "rows 16-47"),
    "stopped in two splits": ([{"train": 16}, {"train": 36, "val": 8}, FULL], FULL, "rows 16-31, 60-103"),
    "three runs to the last split": (
        [{"train": 36, "val": 20, "test": 2}, {"train": 36, "val": 20, "test": 9}, FULL],
        FULL,
        "rows 58-115, 123-187",
    ),
    "a finished file written again": ([FULL, FULL], FULL, "rows 70-139"),
    "a finished file, stopped when written again": ([FULL, {"train": 24}], FULL, "rows 70-93"),
    "the resume stopped as well": ([{"train": 36, "val": 8}, {"train": 36, "val": 16}], None, "rows 44-87"),
    "the resume stopped in the first split": ([{"train": 16}, {"train": 24}], None, "rows 16-31"),
}


@pytest.mark.parametrize("name", RESUMES)
def test_rows_that_a_resume_wrote_again_are_named(name: str, tmp_path: Path) -> None:
    runs, counts, rows = RESUMES[name]
    findings = findings_by_check(write_runs(tmp_path / "file.h5", runs, counts))
    assert findings["doubled_rows"].where == f"/image_features {rows}"
    assert ("stopped_extraction" in findings) == (counts is None)
    distinct = len({(split, row) for run in runs for split, number in run.items() for row in range(number)})
    assert f"{distinct} in all" in findings["doubled_rows"].message
    assert set(findings) <= {"doubled_rows", "split_counts", "contiguous_splits", "stopped_extraction"}


def test_copies_that_differ_in_the_last_digits_are_copies(tmp_path: Path) -> None:
    # Other batches move float32 by some 2e-6; a hundred times that is still no other picture.
    for noise in (2e-6, 2e-4):
        path = write_runs(tmp_path / "file.h5", [{"train": 13}, FULL], FULL, noise=noise)
        with h5py.File(path) as file:
            assert (file["image_features"][0:13] != file["image_features"][13:26]).any() or noise < 1e-4
        assert findings_by_check(path)["doubled_rows"].where == "/image_features rows 13-25"


def test_equal_pictures_in_a_data_set_are_not_doubled_rows(tmp_path: Path) -> None:
    with start(tmp_path / "file.h5") as file:
        write_all_templates(file)
        append(file, "train", [0, 0, 1, 2, 0, 1, 5, 6])
        append(file, "val", [3, 3, 3])
    assert set(findings_by_check(tmp_path / "file.h5")) == {"stopped_extraction"}


def test_a_split_in_two_places_with_other_rows_is_not_doubled(tmp_path: Path) -> None:
    with start(tmp_path / "file.h5") as file:
        write_all_templates(file)
        append(file, "train", range(8))
        append(file, "val", range(4))
        append(file, "train", range(8, 12))
        finish(file, {"train": 12, "val": 4})
    findings = findings_by_check(tmp_path / "file.h5")
    assert set(findings) == {"contiguous_splits"}
    assert "'train' stands at rows 0-7 and at rows 12-15" in findings["contiguous_splits"].message


def write_small_splits(path: Path, splits: int, written_twice: int) -> Path:
    """A file of many small splits; an extraction was resumed after the first of them, and began anew."""
    nodules = {f"LIDC-IDRI-{number:04d}_0": 1 + number % 6 for number in range(splits)}
    first = dict(list(nodules.items())[:written_twice])
    with start(path) as file:
        write_all_templates(file)
        rows = [(split, row) for run in (first, nodules) for split, number in run.items() for row in range(number)]
        for name in ("image_features", "image_token_features", "ids", "labels", "split"):
            file[name].resize(len(rows), axis=0)
        features = np.random.default_rng(0).standard_normal((len(set(rows)), 16))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        position = {row: number for number, row in enumerate(dict.fromkeys(rows))}
        file["image_features"][...] = features[[position[row] for row in rows]]
        file["image_token_features"][...] = 1
        file["ids"][...] = np.arange(len(rows))
        file["labels"][...] = 1
        file["split"][...] = [split for split, _ in rows]
        finish(file, nodules)
    return path


def test_hundreds_of_small_splits_written_twice_are_told_with_their_rows(tmp_path: Path) -> None:
    findings = findings_by_check(write_small_splits(tmp_path / "file.h5", 678, 300))
    copies = sum(1 + number % 6 for number in range(300))
    assert findings["doubled_rows"].where == f"/image_features rows {copies}-{2 * copies - 1}"
    assert len(findings["doubled_rows"].message) < 700


def test_the_work_of_finding_copies_grows_with_the_number_of_splits_and_not_with_its_square(tmp_path: Path) -> None:
    def work(splits: int) -> int:
        path = write_small_splits(tmp_path / f"{splits}.h5", splits, splits // 2)
        return count_executed_lines(lambda: findings_by_check(path))

    work(2)  # What is imported and cached at first use.
    assert work(240) < 2.2 * work(120)


# --- torn and foreign rows ----------------------------------------------------------------------------


def test_a_refused_batch_leaves_torn_rows(tmp_path: Path) -> None:
    with start(tmp_path / "file.h5") as file:
        write_all_templates(file)
        append(file, "train", range(16))
        append(file, "train", range(16, 24), torn=True)
    findings = findings_by_check(tmp_path / "file.h5")
    assert set(findings) == {"torn_rows", "stopped_extraction"}
    assert findings["torn_rows"].where == "/split rows 16-23"


def test_torn_rows_between_two_runs_hide_nothing(tmp_path: Path) -> None:
    with start(tmp_path / "file.h5") as file:
        write_all_templates(file)
        append(file, "train", range(16))
        append(file, "train", range(16, 24), torn=True)
        for split, rows in FULL.items():
            append(file, split, range(rows))
        finish(file, FULL)
    findings = findings_by_check(tmp_path / "file.h5")
    assert set(findings) == {"torn_rows", "doubled_rows", "split_counts"}
    assert findings["torn_rows"].where == "/split rows 16-23"
    assert findings["doubled_rows"].where == "/image_features rows 24-39"


def test_rows_without_labels_are_torn(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 16}], None)
    with h5py.File(path, "r+") as file:
        file["labels"].resize(12, axis=0)
    findings = findings_by_check(path)
    assert set(findings) == {"torn_rows", "row_counts", "stopped_extraction"}
    assert findings["torn_rows"].where == "/split rows 12-15"
    assert "labels ends at row 12" in findings["torn_rows"].message


def test_rows_that_were_made_room_for_and_never_written_are_zero_and_torn(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 16}], None)
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features", "ids", "labels", "split"):
            file[name].resize(24, axis=0)
    findings = validate_database(path)
    assert {(f.check, f.where) for f in findings if f.check in {"torn_rows", "zero_rows", "ids"}} == {
        ("torn_rows", "/split rows 16-23"),
        ("zero_rows", "/image_features rows 16-23"),
        ("zero_rows", "/image_token_features rows 16-23"),
        ("ids", "/ids rows 16-23"),
    }


def test_rows_of_another_run_are_foreign(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 8, "val": 4}, {"extern": 5}], {"extern": 5})
    findings = findings_by_check(path)
    assert set(findings) == {"foreign_split", "split_counts"}
    assert "'train' (rows 0-7), 'val' (rows 8-11)" in findings["foreign_split"].message


def test_a_split_that_the_study_does_not_declare_is_foreign(tmp_path: Path) -> None:
    counts = {"train": 8, "extern": 5}
    path = write_runs(tmp_path / "file.h5", [counts], counts)
    findings = [f for f in validate_database(path, study(["train"])) if f.check == "foreign_split"]
    assert len(findings) == 1
    assert "'extern' (rows 8-12)" in findings[0].message


# --- splits, labels, forms ----------------------------------------------------------------------------


def test_any_split_names_are_read_also_where_the_counts_escape_them(tmp_path: Path) -> None:
    counts = {"training set": 5, "验证": 3, "Prüfung é": 4}
    path = write_runs(tmp_path / "file.h5", [counts], counts)
    with h5py.File(path) as file:
        assert "\\u" in file.attrs["split_counts"]
    assert findings_by_check(path) == {}


def test_text_attributes_may_be_bytes(tmp_path: Path) -> None:
    counts = {"train": 5}
    path = write_runs(tmp_path / "file.h5", [counts], counts)
    with h5py.File(path, "r+") as file:
        for name in ("split_counts", "version", "created_at", "concept_texts"):
            file.attrs[name] = np.bytes_(file.attrs[name].encode())
        for template in file["templates"].values():
            template.attrs["texts_hash"] = np.bytes_(template.attrs["texts_hash"].encode())
    assert findings_by_check(path) == {}


def test_a_run_that_stopped_before_its_first_image_has_no_rows(tmp_path: Path) -> None:
    findings = findings_by_check(write_runs(tmp_path / "file.h5", [{}], None))
    assert set(findings) == {"stopped_extraction"}
    assert "none" in findings["stopped_extraction"].message


def test_rows_that_lack_their_labels_only_in_part_are_named(tmp_path: Path) -> None:
    with start(tmp_path / "file.h5") as file:
        write_all_templates(file)
        append(file, "train", range(6))
        append(file, "test", range(4), labels=[-1, -1, 3, -1])
        finish(file, {"train": 6, "test": 4})
    findings = findings_by_check(tmp_path / "file.h5")
    assert set(findings) == {"missing_labels", "labels"}
    assert findings["missing_labels"].where == "/labels rows 6-7, 9"
    assert findings["labels"].where == "/labels row 8"


def test_tokens_that_their_writer_added_to_a_store_without_are_zero(tmp_path: Path) -> None:
    counts = {"train": 5}
    path = write_runs(tmp_path / "file.h5", [counts], counts)
    with h5py.File(path, "r+") as file:
        file["image_token_features"][...] = 0
    findings = findings_by_check(path)
    assert set(findings) == {"zero_rows"}
    assert findings["zero_rows"].where == "/image_token_features rows 0-4"


# --- templates ----------------------------------------------------------------------------------------


def test_a_shorter_template_list_leaves_a_stale_template_behind(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 5}], {"train": 5})
    with h5py.File(path, "r+") as file:
        write_all_templates(file, CONCEPT_TEMPLATES[:2])
    findings = findings_by_check(path)
    assert set(findings) == {"stale_template"}
    assert findings["stale_template"].where == "/templates/concept_prompts_t03"
    assert not has_errors(findings.values())
    shorter = {
        "concepts": {"words": CONCEPTS, "templates": CONCEPT_TEMPLATES[:2]},
        "labels": {"words": LABELS, "templates": LABEL_TEMPLATES},
    }
    assert not has_errors(validate_database(path, study(["train"], vocabulary=shorter)))


def test_a_changed_text_under_the_old_hash_is_named(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 5}], {"train": 5})
    with h5py.File(path, "r+") as file:
        file["templates/label_prompts_t01/texts"][1] = "a photo of 淋巴细胞"
    findings = findings_by_check(path)
    assert set(findings) == {"texts_hash", "texts"}
    assert "expected 'a photo of 单核细胞' at 1, found 'a photo of 淋巴细胞'" in findings["texts"].message


def test_lists_that_were_overwritten_without_encoding_are_named(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 5}], {"train": 5})
    with h5py.File(path, "r+") as file:
        file.attrs["concept_texts"] = json.dumps(["runder Kern", "颗粒", "vacuoles"])
    findings = validate_database(path)
    assert [f.where for f in findings if f.check == "texts"] == [
        f"/templates/concept_prompts_t{number:02d}/texts" for number in (1, 2, 3)
    ]
    assert "expected 3 texts, found 4" in next(f.message for f in findings if f.check == "texts")


def test_a_file_without_lists_is_checked_by_its_hashes(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "file.h5", [{"train": 5}], {"train": 5})
    with h5py.File(path, "r+") as file:
        for name in ("concept_texts", "prompt_temp_for_concepts", "label_texts", "prompt_temp_for_labels"):
            del file.attrs[name]
    findings = validate_database(path)
    assert {finding.check for finding in findings} == {"vocabulary_unknown", "no_provenance"}


def test_a_text_only_file_is_named_and_its_templates_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "conceptclip_features_20.h5"
    with h5py.File(path, "w") as file:
        file.create_group("templates")
        write_templates(file, {f"concept20_prompts_t{n:02d}": [f"nodule {n}", "实性结节"] for n in range(1, 4)})
        for template in file["templates"].values():
            del template["text_token_features"], template.attrs["T_txt"], template.attrs["D"]
        file.attrs["version"] = "text-only-1.0"
        file.attrs["created_at"] = "2026-11-24 06:13:11"
    assert [finding.check for finding in validate_database(path)] == ["text_only"]
    assert "study_splits" in {finding.check for finding in validate_database(path, study())}
    with h5py.File(path, "r+") as file:
        file["templates/concept20_prompts_t02/texts"][0] = "changed"
        del file.attrs["version"]
    findings = validate_database(path)
    assert {finding.check for finding in findings} == {"text_only", "texts_hash", "version"}
