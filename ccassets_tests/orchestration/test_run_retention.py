"""Old runs are forgotten, and lineage, checks and data versions of every asset and split are what they were."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest
from typer.testing import CliRunner

from ccassets.cli import app
from ccassets.orchestration.build import run_build
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.run_retention import forget_old_runs
from ccassets.study.schema import Study
from ccassets.study.storage import home
from ccassets_tests.made_studies import edit_study
from ccassets_tests.orchestration.graphql import stale
from ccassets_tests.orchestration.study_runs import run_job, status_of


def lineage(study: Study) -> dict[str, Any]:
    """Of every asset, split and check: the last materialization with its data versions, the last evaluation."""
    graph = definitions_of(study).get_repository_def().asset_graph
    states = {state: sorted(names) for state, names in status_of(study).items()}
    facts: dict[str, Any] = {"status": states, "stale": stale(study.name)}
    with dagster_instance() as instance:
        for key in graph.materializable_asset_keys:
            definition = graph.get(key).partitions_def
            for split in definition.get_partition_keys() if definition else [None]:
                records = dg.AssetRecordsFilter(key, asset_partitions=[split] if split else None)
                facts[f"{key}:{split}"] = [
                    (record.run_id, record.timestamp, record.asset_materialization.tags)
                    for record in instance.fetch_materializations(records, limit=2).records
                    if record.asset_materialization
                ]
        for check in graph.asset_check_keys:
            history = instance.event_log_storage.get_asset_check_execution_history(check, limit=1)
            facts[str(check)] = [(record.run_id, record.status, record.event) for record in history]
    return facts


def run_ids() -> set[str]:
    with dagster_instance() as instance:
        return {run.run_id for run in instance.get_runs()}


@pytest.fixture
def built(study: Study) -> Study:
    """A study that is built, whose sources were then read again and again, and once could not be read."""
    run_build(study)
    for _ in range(3):
        assert run_job(study, "read_encoder").success
        assert run_job(study, "read_images", "val").success
    root = study.dataset.root  # type: ignore[union-attr]
    missing = edit_study(study, lambda a: a["dataset"].update(root=f"{root}-away"))
    assert not run_job(missing, "read_images", "train").success
    return edit_study(study, lambda a: a["dataset"].update(root=str(root)))


def test_what_holds_the_last_of_anything_stays(built: Study) -> None:
    before, runs = lineage(built), run_ids()
    with dagster_instance() as instance:
        listed = forget_old_runs(instance, 0, dry_run=True)
        assert run_ids() == runs
        forgotten = forget_old_runs(instance, 0)
        assert forget_old_runs(instance, 0) == []

    assert forgotten == listed
    assert len(forgotten) == 2  # One run of each job: neither of the last two, and nothing was made from it.
    assert run_ids() == runs - set(forgotten)
    assert lineage(built) == before
    assert run_build(built).materialized == ["images:train"]  # Which could not be read the last time.
    left = "".join(path.as_posix() for path in home().rglob("*"))
    assert not any(run_id in left for run_id in forgotten)


def test_the_command_forgets_runs_of_a_number_of_days(study: Study) -> None:
    for _ in range(4):
        assert run_job(study, "read_encoder").success
    for split in study.splits:
        assert run_job(study, "read_images", split).success
    runs = run_ids()

    def pruned(days: str, *options: str) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["prune", str(study.folder), "--runs", days, "--json", *options])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert pruned("1")["runs"] == []
    listed = pruned("0", "--dry-run")["runs"]
    assert listed
    assert run_ids() == runs
    assert pruned("0")["runs"] == listed
    assert run_ids() == runs - set(listed)
