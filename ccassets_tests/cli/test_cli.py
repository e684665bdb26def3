"""The commands in use: what each prints, on which stream, and its exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import pytest
from huggingface_hub import constants

import ccassets
from ccassets.database.validation.registry import CHECKS
from ccassets.study.schema import Study
from ccassets_tests.cli.command_line import COMMANDS, Result, run, run_in_process
from ccassets_tests.made_studies import DATA, edit_study, save_golden_weights, save_images, write_study

TOKEN = "hf_marker0that0must0be0nowhere"


@dataclass(frozen=True)
class Built:
    """A study and its database, and what was printed when it was planned and built the first time, with a token."""

    folder: Path
    study: Study
    database: Path
    plan: Result
    first: Result


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Built:
    root = tmp_path_factory.mktemp("cli")
    save_images(root / "pictures")
    weights = save_golden_weights(root / "weights")
    study = write_study(root / "studies" / "cells", images=root / "pictures", encoder=weights)
    environment = {"CCASSETS_HOME": str(root / "home"), "HF_TOKEN": TOKEN}
    plan = run_in_process("build", study.folder, "--plan", **environment)
    first = run_in_process("build", study.folder, **environment)
    return Built(root, study, root / "home" / "storage" / "cells" / "conceptclip_features.h5", plan, first)


@pytest.fixture
def built(once: Built, monkeypatch: pytest.MonkeyPatch) -> Built:
    monkeypatch.setenv("CCASSETS_HOME", str(once.folder / "home"))
    return once


# --- help and wrong use ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_refuses_what_it_does_not_know(command: str) -> None:
    helped = run(command, "--help")
    assert (helped.code, helped.err) == (0, "")
    assert "Usage: " in helped.out
    wrong = run(command, "--nonsense")
    assert (wrong.code, wrong.out) == (2, "")
    assert "No such option" in wrong.err  # Releases of Click and Typer differ in what follows.
    assert "--nonsense" in wrong.err.partition("No such option")[2]


@pytest.mark.parametrize("command", sorted({*COMMANDS} - {"ui", "studies", "doctor", "encoders"}))
def test_every_command_says_what_it_lacks(command: str) -> None:
    result = run(command)
    assert (result.code, result.out) == (2, "")
    assert "Missing argument" in result.err


def test_help_and_version_load_no_heavy_library() -> None:
    assert run("--version").out.strip() == ccassets.__version__
    script = (
        "import sys\nfrom ccassets.cli import main\nsys.argv = ['ccassets', '--help']\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(*sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = result.stdout.splitlines()[-1].split()
    assert {"torch", "dagster", "transformers", "h5py", "numpy", "pandas", "pydantic"}.isdisjoint(loaded)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new-study", "mine"], "one of --folder, --table, --huggingface and --medmnist"),
        (
            ["new-study", "mine", "--folder", "a", "--medmnist", "b"],
            "one of --folder, --table, --huggingface and --medmnist",
        ),
        (["search", "a.h5"], "--text, --concept and --row"),
        (["search", "a.h5", "--text", "a cell"], "need --study"),
        (["search", "a.h5", "--row", "1", "--output-images", "hits"], "need --study"),
        (["bundle", "demo"], "Missing option '--output'"),
        (["build", "demo", "--plan", "--output", "copy.h5"], "--output needs a whole build"),
        (["build", "demo", "--split", "train", "--output", "copy.h5"], "--output needs a whole build"),
        (["extract", "demo", "--shards", "3"], "such as 3/8, found '3'"),
        (["extract", "demo", "--shards", "4/3"], "such as 3/8, found '4/3'"),
    ],
)
def test_options_that_do_not_go_together_are_explained(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert (result.code, result.out) == (2, "")
    assert said in result.err


# --- errors -------------------------------------------------------------------------------------------


def test_a_wrong_key_in_a_study_is_named_with_file_and_line(study: Study) -> None:
    path = study.folder / "defs.yaml"
    path.write_text(path.read_text().replace("batch_size:", "batchsize:"))
    result = run("build", study.folder, "--plan")
    assert result.code == 2
    assert f"{path}:" in result.err
    assert "batchsize" in result.err
    assert "Traceback" not in result.err


def test_a_traceback_is_shown_on_demand_only(tmp_path: Path) -> None:
    plain = run_in_process("info", tmp_path / "nowhere.h5")
    debug = run_in_process("--debug", "info", tmp_path / "nowhere.h5")
    assert (plain.code, "Traceback" in plain.err) == (2, False)
    assert (debug.code, "Traceback" in debug.err) == (2, True)
    assert "nowhere.h5" in debug.err


# --- building and looking ----------------------------------------------------------------------------


def test_a_plan_says_what_would_be_encoded(built: Built) -> None:
    assert built.plan.code == 0
    assert "train: 9 of 9 images to encode, in 3 shards" in built.plan.out
    assert "concept_prompts_t01" in built.plan.out
    assert "0 of 9 images to encode" in run("build", built.study.folder, "--plan").out


def test_a_build_prints_the_path_last_and_a_second_one_that_nothing_is_stale(built: Built) -> None:
    assert built.first.code == 0, built.first.err
    assert built.first.out.splitlines()[-1] == str(built.database)
    assert "Nothing is stale" not in built.first.err
    atlas = built.database.parent / "analysis" / "concept_atlas.html"
    assert f"concept atlas: {atlas.as_uri()}" in built.first.err.splitlines()
    second = run("build", built.study.folder)
    assert (second.code, second.out) == (0, f"{built.database}\n")
    assert "Nothing is stale: cells is up to date." in second.err


def test_a_build_can_leave_a_copy_and_stop_after_a_split(built: Built, tmp_path: Path) -> None:
    copied = run("build", built.study.folder, "--output", tmp_path / "copy.h5")
    assert copied.out.splitlines()[-1] == str(tmp_path / "copy.h5")
    assert ccassets.validate_database(tmp_path / "copy.h5", study=built.study, deep=True) == []
    assert run("build", built.study.folder, "--split", "val").out == ""
    wrong = run("build", built.study.folder, "--split", "dev")
    assert (wrong.code, wrong.out) == (2, "")
    assert "no split 'dev'" in wrong.err


def test_what_is_in_a_file_fits_one_screen_and_json(built: Built) -> None:
    text = run("info", built.database)
    assert text.code == 0
    assert len(text.out.splitlines()) < 25
    assert "train 9, val 5, test 4" in text.out
    facts = json.loads(run("info", built.database, "--json").out)
    assert facts["rows"] == 18
    assert facts["splits"] == {"train": 9, "val": 5, "test": 4}


def test_validation_ends_with_1_for_errors_and_prints_findings_as_json(built: Built) -> None:
    good = run("validate", built.database, "--json", "--study", built.study.folder, "--deep")
    assert good.code == 0
    assert json.loads(good.out) == {"ok": True, "findings": []}

    bad = run("validate", DATA / "legacy" / "legacy_duplicated.h5", "--json")
    content = json.loads(bad.out)
    assert bad.code == 1
    assert set(content) == {"ok", "findings"}
    assert content["ok"] is False
    assert all(set(finding) == {"check", "severity", "message", "where"} for finding in content["findings"])
    assert {finding["severity"] for finding in content["findings"]} <= {"error", "warning"}
    shown = run("validate", DATA / "legacy" / "legacy_duplicated.h5")
    assert shown.code == 1
    assert "is not valid" in shown.out
    for check in {finding["check"] for finding in content["findings"]}:
        assert shown.out.count(f"to mend {check}: {CHECKS[check].advice}\n") == 1


def test_studies_are_listed_one_a_line(built: Built, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(built.study.folder.parent))
    lines = run("studies").out.splitlines()
    assert [line.split()[0] for line in lines] == ["cells", "bloodmnist", "bloodmnist_90", "demo", "wbcatt"]
    assert re.fullmatch(r"cells +\d+ built", lines[0])
    assert set(json.loads(run("studies", "--json").out)["cells"]) >= {"built", "stale", "failed", "missing"}


def test_doctor_prune_and_bundle_end_well_for_a_built_study(built: Built, tmp_path: Path) -> None:
    diagnosed = run("doctor", built.study.folder)
    assert diagnosed.code == 0
    assert "problem" not in diagnosed.out
    assert json.loads(run("doctor", built.study.folder, "--json").out)["ok"] is True
    pruned = run("prune", built.study.folder, "--dry-run")
    assert (pruned.code, pruned.out) == (0, "Would remove 0 files of 0 bytes.\n")
    assert built.database.is_file()
    bundled = run("bundle", built.study.folder, "--output", tmp_path / "bundle")
    assert bundled.out == f"{tmp_path / 'bundle' / 'cells' / 'defs.yaml'}\n"


def test_doctor_ends_with_1_when_a_build_cannot_start(study: Study, weights: Path) -> None:
    shutil.rmtree(weights)
    result = run("doctor", study.folder)
    assert result.code == 1
    assert "problem  weights: There is no folder" in result.out


def test_without_a_token_there_is_a_way_forward(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default encoder is gated. Nothing is downloaded, and no token lies on the machine."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    study = write_study(tmp_path / "mine", images=image_folder, encoder={"kind": "conceptclip"})
    ways = (
        "JerrryNie/ConceptCLIP is gated and no token is set",
        "`encoder: {kind: open_clip, weights: microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224}`",
        "`encoder: {kind: phantom}`",
    )

    planned = run("build", study.folder, "--plan")
    assert planned.code == 0
    assert "train: 9 of 9 images to encode" in planned.out
    assert "database: 0.030 GB" in planned.out  # 18 rows of 730 vectors of 1152 numbers in float16
    diagnosed = run("doctor", study.folder)
    assert diagnosed.code == 1
    assert "token: not set, and JerrryNie/ConceptCLIP is gated" in diagnosed.out
    for text in (planned.err, diagnosed.out):
        assert all(way in text for way in ways)
    edit_study(study, lambda attributes: attributes["encoder"].update(kind="transformers", weights="lab/unknown"))
    unknown = run("build", study.folder, "--plan")
    assert unknown.code == 1
    assert "gated" not in unknown.err


def test_known_encoders_are_listed_with_their_sources() -> None:
    listed, facts = run("encoders"), json.loads(run("encoders", "--json").out)
    assert listed.code == 0
    assert "biomedclip: figures of biomedical articles" in listed.out
    assert "run by us: never" in listed.out
    assert facts["encoders"]["conceptclip"]["gated"] is True
    assert facts["encoders"]["quiltnet"]["extra"] == "open-clip"
    assert all(preset["sources"] and not preset["run_by_us"] for preset in facts["encoders"].values())


def test_a_new_study_says_what_it_found_and_what_to_do_next(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("new-study", "mine", "--folder", "pictures")
    assert result.code == 0
    assert result.out.splitlines()[0] == "studies/mine/defs.yaml: 18 images of 3 classes in 3 splits"
    assert result.out.splitlines()[-1] == "  ccassets build studies/mine/defs.yaml"
    again = run("new-study", "mine", "--folder", "pictures")
    assert again.code == 2
    assert "exists and was not changed" in again.err
    monkeypatch.setenv("CCASSETS_STUDIES", str(tmp_path / "others"))
    assert run("new-study", "blood", "--medmnist", "bloodmnist").code == 0
    assert (tmp_path / "others" / "blood" / "defs.yaml").is_file()
    assert run("new-study", "blood", "--medmnist", "bloodmnist", "--output", tmp_path).code == 0
    assert (tmp_path / "blood" / "defs.yaml").is_file()


# --- facts for programs ------------------------------------------------------------------------------


def facts_of(*arguments: object, code: int = 0) -> Any:
    """The JSON that a command prints."""
    result = run(*arguments, "--json")
    assert result.code == code, result
    return json.loads(result.out)


def test_a_plan_and_a_build_are_printed_as_json(built: Built) -> None:
    plan = facts_of("build", built.study.folder, "--plan", "--fresh", "--split", "train")
    assert plan["splits"] == [{"split": "train", "rows": 9, "to_encode": 9, "shards": 3}]
    assert plan["templates"] == list(built.study.vocabulary.templates())
    assert plan["part_bytes"] > 0
    assert plan["seconds"] > 0
    assert facts_of("build", built.study.folder) == {"database": str(built.database), "materialized": [], "notices": []}
    assert facts_of("extract", built.study.folder) == {"images": 0, "shards": 0, "shards_left_to_others": 0}


def test_what_is_pruned_is_printed_as_json(built: Built) -> None:
    features = built.folder / "home" / "storage" / "features"
    unneeded = features / ("0" * 32) / "rows" / "part.h5"
    unneeded.parent.mkdir(parents=True)
    part = next(features.glob("*/rows/*.h5"))
    shutil.copy(part, unneeded)
    with h5py.File(unneeded, "r+") as file:
        file.attrs["provenance"] = file.attrs["provenance"].replace(part.parent.parent.name, "0" * 32)
    size = unneeded.stat().st_size
    files = [
        {
            "path": f"features/{'0' * 32}/rows/part.h5",
            "bytes": size,
            "reason": "of an encoder that no study uses",
            "recent": True,
        }
    ]
    kept: dict[str, object] = {"bytes": 0, "files": [], "kept": files}
    removed = {"bytes": size, "files": files, "kept": []}
    assert facts_of("prune", built.study.folder, "--dry-run") == {"removed": False, **kept}
    assert facts_of("prune", built.study.folder) == {"removed": True, **kept}
    assert facts_of("prune", built.study.folder, "--dry-run", "--now") == {"removed": False, **removed}
    assert facts_of("prune", built.study.folder, "--now") == {"removed": True, **removed}
    assert not unneeded.exists()


def test_new_studies_and_bundles_are_printed_as_json(built: Built, tmp_path: Path) -> None:
    new = facts_of("new-study", "blood", "--medmnist", "bloodmnist", "-o", tmp_path)
    assert Path(new["study"]) == tmp_path / "blood" / "defs.yaml"
    assert new["summary"] == "17,092 images of 8 classes in 3 splits"
    assert new["splits"][0] == "train: 11,959 images"
    bundle = facts_of("bundle", built.study.folder, "-o", tmp_path / "bundle")
    assert Path(bundle["study"]) == tmp_path / "bundle" / "cells" / "defs.yaml"
    assert bundle["files"] == 18 + 3 + 1


def test_an_adoption_is_printed_as_json(built: Built) -> None:
    facts = facts_of("adopt", built.database, built.study.folder)
    assert facts["adopted"] is True
    assert facts["splits"][0] == {"split": "train", "rows": 9, "imported": 0, "missing": [], "missing_keys": []}
    assert facts["findings"] == []
    refused = facts_of("adopt", DATA / "legacy" / "legacy_good.h5", built.study.folder, code=1)
    assert refused["adopted"] is False
    assert {finding["severity"] for finding in refused["findings"]} >= {"error"}


def test_precision_drift_is_a_table_or_json(built: Built) -> None:
    drifts = facts_of("precision-drift", built.study.folder, "--image-count", "2")
    assert [(drift["dtype"], drift["images"]) for drift in drifts] == [
        ("float32", 2), ("tf32", 2), ("bfloat16", 2), ("float16", 2)
    ]  # fmt: skip
    table = run("precision-drift", built.study.folder, "--image-count", "2").out.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["float32", "tf32", "bfloat16", "float16"]
    assert table[5].startswith("2 images; ")


def test_the_tables_of_a_paper_are_files_that_are_named(built: Built, tmp_path: Path) -> None:
    facts = facts_of("table", built.study.folder, "-o", tmp_path / "tables")
    assert [Path(path).name for path in facts["files"]][:2] == ["results.csv", "results.tex"]
    assert run("table", built.study.folder, "-o", tmp_path / "tables").out.splitlines() == facts["files"]
    assert (tmp_path / "tables" / "results.csv").read_text().startswith("method,split,images,")


# --- homes and secrets -------------------------------------------------------------------------------


def test_the_home_is_the_option_else_ours_else_dagsters_else_here(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "ours"))
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagsters"))

    def used(*option: object) -> set[str]:
        assert run("build", study.folder, "--plan", *option).code == 0
        homes = {path.name for path in tmp_path.iterdir() if (path / "storage").is_dir()}
        for name in homes:
            shutil.rmtree(tmp_path / name)
        return homes

    assert used("--home", "option") == {"option"}
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "ours"))
    assert used() == {"ours"}
    monkeypatch.delenv("CCASSETS_HOME")
    assert used() == {"dagsters"}
    monkeypatch.delenv("DAGSTER_HOME")
    assert used() == {".ccassets"}
    monkeypatch.setenv("CCASSETS_STORAGE", str(tmp_path / "large"))
    run("build", study.folder, "--plan")
    assert (tmp_path / "large" / "cells").is_dir()


FAILED_RUN = """
import sys
from ccassets.orchestration import steps
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.names import job_name
from ccassets.orchestration.instance import dagster_instance
from ccassets.study.loading import load_study

study = load_study(sys.argv[1])
steps.RETRY_SECONDS = (0,)
with dagster_instance() as instance:
    job = definitions_of(study).resolve_job_def(job_name(study, "read_encoder"))
    assert not job.execute_in_process(instance=instance, raise_on_error=False).success
"""


def holding_the_token(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_token_is_nowhere_after_a_good_build(built: Built) -> None:
    assert list((built.folder / "home").rglob("*.db")), "Dagster's records are looked at"
    assert holding_the_token(built.folder) == []
    assert not [result for result in (built.plan, built.first) if TOKEN in result.out + result.err]


def test_the_token_is_nowhere_after_a_failed_build_and_a_failed_run(study: Study, tmp_path: Path) -> None:
    edit_study(study, lambda a: a["encoder"].update(weights="nobody/nothing"))
    hub = {"HF_TOKEN": TOKEN, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    result = run_in_process("build", study.folder, **hub)
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("ccassets: nobody/nothing at 'main' is not in the local cache")
    assert "http://127.0.0.1:9 cannot be reached" in result.err
    failed = subprocess.run(
        [sys.executable, "-c", FAILED_RUN, str(study.folder)],
        env={**os.environ, **hub},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be reached" in failed.stderr
    assert list((tmp_path / "home").rglob("*.db")), "Dagster's records are looked at"
    assert holding_the_token(tmp_path) == []
    assert TOKEN not in result.err + failed.stdout + failed.stderr
