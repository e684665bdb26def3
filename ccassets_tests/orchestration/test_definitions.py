"""The code location as Dagster sees it: its names are a promise, and it loads without the heavy libraries."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from ccassets.cli.build_commands import studies
from ccassets.definitions import defs
from ccassets.errors import StudyError
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.names import ENCODER_POOL, asset_key
from ccassets.study.loading import load_study, study_files
from ccassets.study.schema import Study
from ccassets_tests.made_studies import edit_study

SNAPSHOT = Path(__file__).parents[1] / "data" / "definitions.json"


def snapshot(definitions: dg.Definitions) -> dict[str, object]:
    """Keys, dependencies, partitions, checks, pools, jobs, schedules and sensors, as plain values."""
    graph = definitions.resolve_asset_graph()
    assets = {
        node.key.to_user_string(): {
            "deps": sorted(key.to_user_string() for key in node.parent_keys),
            "partitions": node.partitions_def.get_partition_keys() if node.partitions_def else None,
            "checks": sorted(key.name for key in node.check_keys),
            "pools": sorted(node.pools or ()),
            "group": node.group_name,
            "kinds": sorted(node.kinds),
            "tags": {key: value for key, value in node.tags.items() if not key.startswith("dagster/kind/")},
            "automation": node.automation_condition.get_label() if node.automation_condition else None,
        }
        for node in graph.asset_nodes
    }
    return {
        "assets": dict(sorted(assets.items())),
        "jobs": {
            job.name: job.description for job in definitions.resolve_all_job_defs() if not job.name.startswith("__")
        },
        "schedules": {s.name: s.default_status.value for s in definitions.schedules or ()},
        "sensors": {s.name: s.default_status.value for s in definitions.sensors or ()},
    }


def test_names_dependencies_checks_and_switches_are_what_they_were() -> None:
    names = snapshot(definitions_of(load_study("demo")))
    # After a change on purpose: python -m ccassets_tests.orchestration.test_definitions
    assert names == json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def test_a_study_tells_its_owners_and_shows_its_readme(study: Study, image_folder: Path) -> None:
    (study.folder / "README.md").write_text("# Cells\nOf two hospitals.\n")
    owned = edit_study(study, lambda a: a.update(owners=["team:hematology", "ada@example.org"], description="Smears."))
    graph = definitions_of(owned).resolve_asset_graph()
    assert all(graph.get(key).owners == ["team:hematology", "ada@example.org"] for key in graph.get_all_asset_keys())
    node = graph.get(asset_key(owned, "feature_database"))
    assert (node.tags["dataset"], node.tags["model"]) == (f"{image_folder.parent.name}-pictures", "weights")
    description = node.description or ""
    assert description.endswith("\n\nSmears.\n\n# Cells\nOf two hospitals.\n")
    with pytest.raises(StudyError, match=r"defs\.yaml:\d+: owners"):
        edit_study(study, lambda a: a.update(owners=["somebody"]))


def test_a_broken_study_file_takes_only_its_own_study_out(
    study: Study, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    broken = study.folder.parent / "broken" / "defs.yaml"
    broken.parent.mkdir()
    broken.write_text("type: ccassets.FeatureDatabase\nattribute: {}\n")
    monkeypatch.setattr(logging.getLogger("dagster"), "propagate", True)

    keys = defs().resolve_asset_graph().get_all_asset_keys()

    assert {"cells", "demo", "bloodmnist"} <= {key.path[0] for key in keys}
    assert "broken" not in {key.path[0] for key in keys}
    assert f"A study is left out: {broken}:2: attribute" in caplog.text
    with pytest.raises(StudyError, match=r"broken/defs\.yaml:2: attribute"):
        studies()


def test_everything_that_runs_by_itself_is_switched_off() -> None:
    names = snapshot(defs())
    assert set(names["schedules"].values()) == {"STOPPED"}  # type: ignore[attr-defined]
    assert set(names["sensors"].values()) == {"STOPPED"}  # type: ignore[attr-defined]


def test_every_asset_has_a_description_and_encoders_run_in_their_pool() -> None:
    graph = defs().resolve_asset_graph()
    assert all(node.description for node in graph.asset_nodes)
    pooled = {key for key in graph.materializable_asset_keys if graph.get(key).pools}
    assert all(graph.get(key).pools == {ENCODER_POOL} for key in pooled)
    assert {key.path[1] for key in pooled} == {"template_features", "image_features"}


def test_a_machine_with_a_pool_of_its_own_names_it(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_ENCODER_POOL", "second_host")
    graph = definitions_of(study).resolve_asset_graph()
    pooled = {key.path[1]: graph.get(key).pools for key in graph.materializable_asset_keys if graph.get(key).pools}
    assert pooled == {"template_features": {"second_host"}, "image_features": {"second_host"}}


def test_definitions_load_offline_without_torch() -> None:
    script = (
        "import socket, sys\n"
        "def refuse(*args, **kwargs): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "import ccassets.definitions\n"
        "ccassets.definitions.defs()\n"
        "heavy = ('torch', 'transformers', 'sklearn', 'scipy', 'plotly', 'matplotlib', 'medmnist')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert "Warning" not in result.stderr


def test_all_studies_are_loaded_together(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CCASSETS_STUDIES", str(study.folder.parent))
    assert {key.path[0] for key in defs().resolve_asset_graph().materializable_asset_keys} == set(study_files())
    assert next(iter(study_files())) == "cells", "one's own come first"


if __name__ == "__main__":
    content = snapshot(definitions_of(load_study("demo")))
    SNAPSHOT.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
