"""Good files of every kind are valid, files that are none are refused, and a large file takes no more memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest

from ccassets.database.reader import open_database
from ccassets.database.validation import CHECKS, GROUPS, run_checks, validate_database, value_rules
from ccassets.database.validation.finding_collector import rows_text
from ccassets.database.validation.registry import checks_page
from ccassets.database.validation.text_rules import cleaned_text
from ccassets.errors import DatabaseError
from ccassets.findings import Finding
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.refusals import AVAILABLE, READ_FAULTS, Fault
from ccassets_tests.database.made_files import (
    SPLITS,
    VOCABULARY,
    study,
    write_database,
    write_image_part,
    write_template_part,
)
from ccassets_tests.executed_lines import count_executed_lines

PAGE = Path(__file__).parents[2] / "docs" / "checks.md"


def names(path: Path, **arguments: object) -> set[str]:
    return {finding.check for finding in validate_database(path, **arguments)}  # type: ignore[arg-type]


# --- good files ---------------------------------------------------------------------------------------


def test_a_good_database_has_no_finding(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    assert validate_database(path, study(), deep=True) == []


def test_parts_are_checked_by_the_rules_of_their_profile(tmp_path: Path) -> None:
    assert validate_database(write_image_part(tmp_path / "image.h5"), study(), deep=True) == []
    assert validate_database(write_template_part(tmp_path / "template.h5"), study(), deep=True) == []


def test_tokens_templates_and_rows_may_be_absent(tmp_path: Path) -> None:
    assert validate_database(write_database(tmp_path / "a.h5", tokens=0), deep=True) == []
    assert validate_database(write_database(tmp_path / "b.h5", templates=False), deep=True) == []
    assert validate_database(write_database(tmp_path / "c.h5", matrix=True), deep=True) == []
    assert validate_database(write_database(tmp_path / "d.h5", {"train": 0, "val": 0}), deep=True) == []
    assert validate_database(write_database(tmp_path / "e.h5", {"train": 0, "val": 2}), deep=True) == []
    assert validate_database(write_image_part(tmp_path / "f.h5", 0), deep=True) == []


def test_chunked_and_compressed_data_is_legal(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        for name, compression in (("image_features", "lzf"), ("image_token_features", "gzip"), ("labels", "gzip")):
            values = file[name][...]
            del file[name]
            file.create_dataset(name, data=values, chunks=(3, *values.shape[1:]), compression=compression)
    assert validate_database(path, deep=True) == []


def test_the_work_of_validating_grows_with_the_number_of_splits_and_not_with_its_square(tmp_path: Path) -> None:
    def work(number: int) -> int:
        splits = {f"LIDC IDRI-{split:04d}_结节": 1 + split % 6 for split in range(number)}
        path = write_database(tmp_path / f"{number}.h5", splits)
        return count_executed_lines(lambda: clean(validate_database(path, study(list(splits)), deep=True)))

    def clean(findings: Sequence[Finding]) -> None:
        assert findings == []

    work(1)  # What is imported and cached at first use.
    assert work(240) < 2.2 * work(120)


# --- no database --------------------------------------------------------------------------------------


def test_what_is_no_hdf5_file_is_refused(tmp_path: Path) -> None:
    good = write_database(tmp_path / "good.h5").read_bytes()
    (tmp_path / "text.h5").write_text("not a database")
    (tmp_path / "empty.h5").touch()
    (tmp_path / "cut.h5").write_bytes(good[: len(good) * 2 // 3])
    (tmp_path / "folder.h5").mkdir()
    for name in ("text.h5", "empty.h5", "cut.h5", "folder.h5", "absent.h5"):
        with pytest.raises(DatabaseError, match=name):
            validate_database(tmp_path / name)


def test_any_hdf5_file_gets_findings(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    assert {"datasets", "version", "dimensions", "stopped_extraction"} <= names(tmp_path / "empty.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["templates"] = np.zeros(3)
        file["image_features"] = "text"
        file["split"] = np.zeros((2, 2))
        file.create_group("labels")
        file["ids"] = h5py.SoftLink("/nowhere")
        file["named"] = np.dtype("f4")
        file.attrs["provenance"] = np.zeros(4)
        file.attrs["concept_texts"] = '["\\ud800"]'
    assert {"datasets", "shapes", "self_contained", "provenance", "attributes"} <= names(
        tmp_path / "other.h5", deep=True
    )


@pytest.mark.parametrize("odd", [b"\xff\x00", "", "null", -1, float("nan"), [1, 2], ["a"], h5py.Empty("f4")])
def test_attributes_may_be_anything(odd: object, tmp_path: Path) -> None:
    good = write_database(tmp_path / "good.h5").read_bytes()
    path = tmp_path / "odd.h5"
    with h5py.File(tmp_path / "good.h5") as file:
        places = [(where, name) for where in ("/", "templates/free_text") for name in file[where].attrs]
    for where, name in places:
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            file[where].attrs[name] = np.bytes_(odd) if isinstance(odd, bytes) else odd
        findings = validate_database(path, study(), deep=True)
        assert findings or name in {"logit_scale", "logit_bias", "concept_logit_scale", "concept_logit_bias"}, name
        json.dumps([finding.as_dict() for finding in findings], ensure_ascii=False).encode()


@pytest.mark.parametrize("odd", [None, [], "", 3, [None], {"train": None}])
def test_provenance_may_be_anything(odd: object, tmp_path: Path) -> None:
    good = write_database(tmp_path / "good.h5").read_bytes()
    path = tmp_path / "odd.h5"
    with h5py.File(tmp_path / "good.h5") as file:
        provenance = json.loads(file.attrs["provenance"])
    fields = [(section, None) for section in provenance] + [
        (section, name) for section, values in provenance.items() if isinstance(values, dict) for name in values
    ]
    fields += [("dataset splits train", name) for name in ("rows", "skipped", "blank")]
    for owner, name in fields:
        changed = json.loads(json.dumps(provenance))
        target = changed
        for step in owner.split() if name else ():
            target = target[step]
        target[name or owner] = odd
        path.write_bytes(good)
        with h5py.File(path, "r+") as file:
            file.attrs["provenance"] = json.dumps(changed)
        validate_database(path, study(), deep=True)


# --- findings -----------------------------------------------------------------------------------------


def test_all_faults_are_reported_at_once_and_as_json(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["ids"][3] = 0
        file["labels"][5] = 7
        file["image_features"][2, 0] = np.nan
        file["image_token_features"][8] = 0
        file["templates/free_text/texts"][0] = b"Bl\xe4schen"
        file.attrs["D"] = 11
    findings = validate_database(path)
    checks = {finding.check for finding in findings}
    assert checks == {"ids", "labels", "finite", "zero_rows", "utf8", "texts_hash", "dimensions"}
    assert json.loads(json.dumps([finding.as_dict() for finding in findings], ensure_ascii=False).encode().decode())
    assert [finding.check for finding in findings] == sorted(
        (finding.check for finding in findings), key=list(CHECKS).index
    )


def test_many_faulty_rows_are_one_finding(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 3000}, tokens=0)
    with h5py.File(path, "r+") as file:
        file["labels"][::2] = -1
        file["image_features"][:100] = 0
    findings = {finding.check: finding for finding in validate_database(path)}
    assert set(findings) == {"missing_labels", "zero_rows"}
    assert findings["missing_labels"].where == "/labels rows 0, 2, 4, 6 and 1496 more"
    assert findings["zero_rows"].where == "/image_features rows 0-99"


def test_findings_do_not_depend_on_how_rows_are_divided_among_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 300})
    with h5py.File(path, "r+") as file:
        file["image_features"][::7, 0] = np.nan
        file["image_features"][3::11] = 0
        file["image_features"][20:280:50] *= 1.5
        file["image_features"][150] *= 1.75
        file["image_token_features"][::9, 1, 2] = -np.inf
        file["image_token_features"][5::13, 1] = 0
        file["feature_digest"][250, 0] ^= 1
    with open_database(path) as database:
        whole = run_checks(database, deep=True)
    assert {"finite", "zero_rows", "zero_tokens", "norms", "feature_digest"} <= {f.check for f in whole.findings}

    monkeypatch.setattr(value_rules, "_BLOCK_BYTES", 1)
    for rows_at_a_time in (1, 7):
        monkeypatch.setattr(value_rules, "_RANGE_BYTES", rows_at_a_time * path.stat().st_size // 300)
        with open_database(path) as database:
            divided = run_checks(database, deep=True)
        assert divided.findings == whole.findings
        assert divided.values.unsound_rows.tolist() == whole.values.unsound_rows.tolist()
        assert divided.values.not_finite == whole.values.not_finite
        assert divided.values.norm_deviation == whole.values.norm_deviation


def test_rows_are_named_as_ranges() -> None:
    assert rows_text([5]) == "row 5"
    assert rows_text(range(44, 80)) == "rows 44-79"
    assert rows_text([1, 3, 4, 9]) == "rows 1, 3-4, 9"
    assert rows_text([1, 3, 5, 7, 9, 10, 20]) == "rows 1, 3, 5, 7 and 3 more"


def test_only_the_wanted_checks_report(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["ids"][3] = 0
        file["image_features"][2, 0] = np.nan
    assert names(path, only={"ids", "labels"}) == {"ids"}
    assert names(path, only={"finite"}) == {"finite"}
    assert names(path, only=()) == set()
    with pytest.raises(DatabaseError, match="spelling"):
        validate_database(path, only={"spelling"})


# --- studies ------------------------------------------------------------------------------------------


def test_splits_that_the_study_asks_for_are_missed(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5")
    findings = validate_database(path, study([*SPLITS, "extern"]))
    assert [finding.check for finding in findings] == ["study_splits"]
    assert "'extern'" in findings[0].message


def test_splits_in_another_order_than_the_study_are_told(tmp_path: Path) -> None:
    findings = validate_database(write_database(tmp_path / "a.h5"), study(["val", "train", "test"]))
    assert [finding.check for finding in findings] == ["study_splits"]


def test_a_split_that_the_study_does_not_declare_is_foreign(tmp_path: Path) -> None:
    findings = validate_database(write_database(tmp_path / "a.h5"), study(["train", "val"]))
    assert [finding.check for finding in findings] == ["foreign_split"]
    assert "'test' (rows 14-19)" in findings[0].message


def test_tokens_are_compared_with_the_study(tmp_path: Path) -> None:
    encoder = {"kind": "python", "target": "mine:Encoder", "tokens": False}
    findings = validate_database(write_database(tmp_path / "a.h5"), study(encoder=encoder))
    assert [finding.check for finding in findings] == ["study_tokens"]


def test_a_different_template_of_the_study_is_named_with_both_texts(tmp_path: Path) -> None:
    changed = {
        **VOCABULARY,
        "concepts": {**VOCABULARY["concepts"], "templates": ["a cell with {}", "{} there", "x {}"]},
    }
    findings = validate_database(write_database(tmp_path / "a.h5"), study(vocabulary=changed))
    assert {finding.check for finding in findings} == {"study_vocabulary"}
    of_t02 = next(finding for finding in findings if finding.where == "/templates/concept_prompts_t02")
    assert "expected 'round nucleus there' at 0, found 'round nucleus in a cell' (and 2 more)" in of_t02.message


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_wrong_norms_are_those_that_float64_gives(tmp_path: Path, dtype: type[np.floating]) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 300}, dim=64, tokens=0)
    rng = np.random.default_rng(3)
    with h5py.File(path, "r+") as file:
        values = file["image_features"][...].astype(np.float64)
        values[100:200] *= 1 + rng.uniform(-0.004, 0.004, (100, 1))  # Half of them are right.
        values[200:204] *= [[1e-4], [0.5], [100], [5e4]]
        del file["image_features"]
        file.create_dataset("image_features", data=values.astype(dtype))
        norms = np.linalg.norm(values.astype(dtype).astype(np.float64), axis=1)

    with open_database(path) as database:
        scan = run_checks(database, only=["norms"]).values

    wrong = np.flatnonzero(np.abs(norms - 1) > 2e-3)
    assert 20 < len(wrong) < 90
    assert scan.unsound_rows.tolist() == wrong.tolist()
    assert scan.norm_deviation == pytest.approx(norms.max() - 1, rel=1e-5)


# --- memory -------------------------------------------------------------------------------------------

_PEAK = """
import resource, sys
from ccassets.database.validation import validate_database
findings = validate_database(sys.argv[1], deep=sys.argv[2] == "deep")
assert not findings, findings
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_memory(path: Path, depth: str) -> int:
    """The most KiB that validating a file takes, in a process of its own."""
    command = [sys.executable, "-c", _PEAK, path, depth]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    small = write_database(tmp_path / "small.h5", {"train": 12}, dim=256, tokens=400)
    large = write_database(tmp_path / "large.h5", {"train": 600}, dim=256, tokens=400)
    assert large.stat().st_size > 100 << 20
    assert peak_memory(large, "deep") - peak_memory(small, "deep") < 12 << 10


def test_the_digests_of_many_small_rows_take_no_memory(tmp_path: Path) -> None:
    path = write_database(tmp_path / "a.h5", {"train": 200_000}, dim=8, tokens=0)
    assert peak_memory(path, "deep") - peak_memory(path, "shallow") < 24 << 10


# --- the page -----------------------------------------------------------------------------------------


def test_the_page_of_checks_is_the_registry() -> None:
    assert PAGE.read_text(encoding="utf-8") == checks_page(), "python -m ccassets.database.validation > docs/checks.md"
    assert {check.group for check in CHECKS.values()} == set(GROUPS)


@pytest.mark.parametrize(
    ("written", "cleaned"),
    [
        ("the “Reed–Sternberg” cell’s edge", 'the "Reed–Sternberg" cell\'s edge'),
        ("conﬂuent", "confluent"),
        ("ｍｉｔｏｓｉｓ", "mitosis"),
        ("black &amp;amp; white", "black & white"),
        ("5 µm, naïve, Gänge, α, 颗粒", "5 µm, naïve, Gänge, α, 颗粒"),
    ],
)
def test_a_prompt_is_cleaned_as_the_authors_of_conceptclip_do(written: str, cleaned: str) -> None:
    assert cleaned_text(written) == cleaned


@pytest.mark.skipif(not AVAILABLE, reason="the kernel cannot be asked to refuse")
@pytest.mark.parametrize("fault", READ_FAULTS, ids=lambda fault: fault.name)
@pytest.mark.parametrize("deep", [False, True])
def test_a_disk_that_fails_in_the_middle_of_a_file_is_no_damage(tmp_path: Path, fault: Fault, deep: bool) -> None:
    path = write_database(tmp_path / "a.h5")

    def check() -> dict[str, object]:
        with open_database(path) as database:
            fault.start()
            return {"findings": [finding.as_dict() for finding in run_checks(database, deep=deep).findings]}

    code, answer = Fork(check).end()
    assert code == 1, answer
    assert answer["sentence"].startswith(f"{path} cannot be read: Input/output error.")
