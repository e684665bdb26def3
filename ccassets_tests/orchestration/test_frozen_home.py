"""A home and a table made by older code: what users have on their disks stays valid, fresh and switched on."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import ccassets
from ccassets.analysis.results import RESULT_FILES
from ccassets.cli import main
from ccassets.datasets import open_dataset
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Manifest
from ccassets.extraction import identify_encoder
from ccassets.files import fingerprint
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.dagster_internals import rename_location
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.ui_server import CODE_LOCATION
from ccassets.study.loading import load_study, study_files
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.made_studies import DATA, save_golden_weights
from ccassets_tests.orchestration.graphql import stale, switched_on
from ccassets_tests.orchestration.study_runs import status_of

FROZEN = DATA / "frozen"
NEW_ANALYSES = {"label_errors", "projection"}
"""Analyses that came since the home and the table were made: missing there, and nothing else is stale for it."""
FROZEN_ANALYSES = set(RESULT_FILES) - NEW_ANALYSES
TABLE: dict[str, dict[str, Any]] = json.loads((FROZEN / "table.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("frozen")
    with tarfile.open(FROZEN / "home.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    trust_files(folder)
    return folder


def trust_files(folder: Path) -> None:
    """Record the files of a copied home as verified: copies have other times and inodes, as no user's disk does."""
    for record in folder.rglob("verified.jsonl"):
        lines = [json.dumps([path.name, fingerprint(path)]) for path in sorted(record.parent.glob("*.h5"))]
        record.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def frozen(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study of the frozen home, with the home in use."""
    monkeypatch.setenv("CCASSETS_HOME", str(unpacked / "home"))
    monkeypatch.setenv("CCASSETS_STUDIES", str(unpacked / "studies"))
    return load_study("frozen")


def test_the_database_opens_and_has_no_findings(frozen: Study) -> None:
    path = Store.of(frozen).database
    with ccassets.open_database(path) as database:
        assert {name: rows.stop - rows.start for name, rows in database.splits.items()} == frozen.dataset.rows  # type: ignore[union-attr]
        assert set(database.templates) == set(frozen.vocabulary.templates())
    assert ccassets.validate_database(path, study=frozen, deep=True) == []


def test_the_analyses_are_stale_on_purpose_and_nothing_else_is_stale_failed_or_missing(frozen: Study) -> None:
    expected = {name: f"STALE: {name} has a new code version" for name in FROZEN_ANALYSES}
    assert stale("frozen") == expected | dict.fromkeys(NEW_ANALYSES, "MISSING: ")
    assert {state: set(names) for state, names in status_of(frozen).items() if names and state != "built"} == {
        "stale": FROZEN_ANALYSES,
        "missing": NEW_ANALYSES,
    }


def draws_what_is_there(study: Study) -> bool:
    """Whether the phantoms of a study, drawn now, are the images of its manifests to the bit."""
    store = Store.of(study)
    dataset = open_dataset(study, store)
    manifests = [Manifest.load(store.manifest(split)) for split in study.splits]
    return all(
        image_digest(dataset.read(manifest.split, row)) == digest.tobytes()
        for manifest in manifests
        for row, digest in zip(manifest.rows.tolist(), manifest.image_digest, strict=True)
    )


def test_a_build_makes_the_analyses_again_and_then_nothing(
    frozen: Study, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not draws_what_is_there(frozen):
        pytest.skip("this release of Pillow or NumPy draws other phantoms, which a build encodes anew")
    shutil.copytree(unpacked / "home", tmp_path / "home")
    trust_files(tmp_path / "home")
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.argv", ["ccassets", "build", "frozen"])

    def runs_of_a_build() -> list[str]:
        with dagster_instance() as instance:
            before = len(instance.get_runs())
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        with dagster_instance() as instance:
            runs = instance.get_runs()
            return [run.job_name for run in runs[: len(runs) - before]]

    database = Store.of(frozen).database.read_bytes()
    assert runs_of_a_build() == ["frozen__analyse"]
    assert stale("frozen") == {}
    assert runs_of_a_build() == []
    assert "Nothing is stale" in capsys.readouterr().err
    assert Store.of(frozen).database.read_bytes() == database


def test_what_was_switched_on_is_on_under_the_location_where_it_was_switched(frozen: Study) -> None:
    assert switched_on("ccassets.definitions") == {"frozen__rebuild_stale", "frozen__full_rebuild"}
    assert switched_on("ccassets") == {"frozen__watch_sources"}


@pytest.fixture
def copied(frozen: Study, unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The study of the frozen home, with a copy of its records in use that may be changed."""
    shutil.copytree(unpacked / "home", tmp_path / "copy", ignore=shutil.ignore_patterns("*.h5"))
    monkeypatch.setenv("CCASSETS_HOME", str(tmp_path / "copy"))
    return frozen


def test_switches_of_the_former_code_location_stay_on(copied: Study) -> None:
    former = {"frozen__rebuild_stale", "frozen__full_rebuild"}
    with dagster_instance() as instance:
        before = {state.name: state.instigator_data for state in instance.all_instigator_state()}
        assert set(rename_location(instance, "ccassets.definitions", CODE_LOCATION)) == former
        after = {state.name: state.instigator_data for state in instance.all_instigator_state()}
        assert rename_location(instance, "ccassets.definitions", CODE_LOCATION) == []
    assert after == before, "cursors move with the switches: nothing is requested a second time"
    assert switched_on(CODE_LOCATION) == {*former, "frozen__watch_sources"}
    assert switched_on("ccassets.definitions") == set()


def test_what_was_switched_off_since_the_code_location_was_renamed_stays_off(copied: Study) -> None:
    with dagster_instance() as instance:
        old = instance.all_instigator_state()
        rename_location(instance, "ccassets.definitions", CODE_LOCATION)
        for state in instance.all_instigator_state():
            instance.update_instigator_state(state.with_status(type(state.status).STOPPED))
        for state in old:
            if state.selector.location_name == "ccassets.definitions":
                instance.add_instigator_state(state)
        assert rename_location(instance, "ccassets.definitions", CODE_LOCATION) == []
    assert switched_on(CODE_LOCATION) == set()


def test_records_are_of_assets_splits_and_jobs_that_there_still_are(frozen: Study) -> None:
    definitions = definitions_of(frozen)
    graph = definitions.resolve_asset_graph()
    jobs = {job.name for job in definitions.resolve_all_job_defs()}
    with dagster_instance() as instance:
        new = {asset_key(frozen, name) for name in NEW_ANALYSES}
        assert set(instance.all_asset_keys()) == set(graph.materializable_asset_keys) - new
        assert {run.job_name for run in instance.get_runs()} <= jobs
        for node in graph.asset_nodes:
            splits = set(node.partitions_def.get_partition_keys()) if node.partitions_def else set()
            assert instance.get_materialized_partitions(node.key) == splits
    steps = ("read_images", "read_encoder", "extract_text", "extract_images", "build_database", "analyse")
    assert {f"frozen__{name}" for name in (*steps, "rebuild_everything")} <= jobs


# --- the table ---------------------------------------------------------------------------------------


def versions(study: Study) -> dict[str, Any]:
    """What decides whether Dagster calls the assets of a study stale."""
    graph = definitions_of(study).resolve_asset_graph()
    return {
        "code_versions": {node.key.to_user_string(): node.code_version for node in graph.asset_nodes},
        "texts_hashes": {name: template.texts_hash for name, template in study.vocabulary.templates().items()},
    }


def assert_only_analyses_differ(now: dict[str, Any], table: dict[str, Any]) -> None:
    """Analyses say something else of the same database since the table was made; all else is as it was."""
    assert now["texts_hashes"] == table["texts_hashes"]
    versions = {key: version for key, version in now["code_versions"].items() if key.split("/")[1] not in NEW_ANALYSES}
    assert versions.keys() == table["code_versions"].keys()
    differing = {key for key, version in versions.items() if version != table["code_versions"][key]}
    assert differing == {key for key in table["code_versions"] if key.split("/")[1] in FROZEN_ANALYSES}


@pytest.mark.parametrize("name", sorted(TABLE["studies"]))
def test_code_versions_and_text_hashes_of_shipped_studies_are_those_of_the_table(name: str, frozen: Study) -> None:
    assert_only_analyses_differ(versions(load_study(study_files()[name])), TABLE["studies"][name])


@pytest.fixture
def make_study(tmp_path: Path) -> Callable[[str, dict[str, Any]], Study]:
    def make(name: str, attributes: dict[str, Any]) -> Study:
        folder = tmp_path / name
        folder.mkdir()
        content = {"type": "ccassets.FeatureDatabase", "attributes": attributes}
        (folder / "defs.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
        return load_study(folder)

    return make


@pytest.mark.parametrize("name", sorted(TABLE["variants"]))
def test_code_versions_and_text_hashes_of_every_kind_of_study_are_those_of_the_table(
    name: str, make_study: Callable[[str, dict[str, Any]], Study]
) -> None:
    attributes, expected = TABLE["variants"][name]["attributes"], dict(TABLE["variants"][name])
    del expected["attributes"]
    assert_only_analyses_differ(versions(make_study(name, attributes)), expected)


@pytest.mark.parametrize("name", sorted(TABLE["encoders"]))
def test_identities_and_cards_of_encoders_are_those_of_the_table(
    name: str, make_study: Callable[[str, dict[str, Any]], Study], tmp_path: Path
) -> None:
    section = dict(TABLE["encoders"][name]["section"])
    if section["kind"] == "conceptclip":
        section["weights"] = str(save_golden_weights(tmp_path / "golden"))
    study = make_study(f"encoder_{name}", {"dataset": {"kind": "phantom"}, "encoder": section})
    store = Store.of(study)
    card = identify_encoder(study, store=store)
    recorded = json.loads(store.encoder_card.read_text(encoding="utf-8"))
    expected = TABLE["encoders"][name]["card"]
    assert card.identity == expected["card"]["identity"]
    assert {key: recorded[key] for key in expected} == expected
