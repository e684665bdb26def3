"""The jobs of a study: what a full rebuild asks Dagster for, and what the runs of one do."""

from __future__ import annotations

import dagster as dg

from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import FRESH, asset_key, job_name
from ccassets.study.schema import Study
from ccassets_tests.orchestration.study_runs import run_job


def encoded(study: Study, job: str, split: str | None, tags: dict[str, str]) -> int:
    """Run a job with tags; how many rows its first asset encoded."""
    with dagster_instance() as instance:
        resolved = definitions_of(study).resolve_job_def(job_name(study, job))
        result = resolved.execute_in_process(instance=instance, partition_key=split, tags=tags)
    count = result.get_asset_materialization_events()[0].materialization.metadata["encoded"].value
    assert isinstance(count, int)
    return count


def test_a_full_rebuild_is_a_backfill_of_every_asset_and_split(study: Study) -> None:
    assert run_job(study, "rebuild_everything").success
    graph = definitions_of(study).resolve_asset_graph()
    with dagster_instance() as instance:
        [backfill] = instance.get_backfills()
        assert not instance.get_materialized_partitions(asset_key(study, "images")), "the daemon starts its runs"
        target = backfill.get_asset_backfill_data(graph).target_subset
    assert target.asset_keys == graph.materializable_asset_keys
    for name in ("images", "image_features"):
        assert set(target.get_partitions_subset(asset_key(study, name)).get_partition_keys()) == set(study.splits)
    assert backfill.title == "Rebuild everything of cells"
    assert backfill.tags == {FRESH: "true", "ccassets/started_by": "cells__rebuild_everything"}


def test_a_run_with_the_tag_of_a_rebuild_encodes_again_what_parts_hold(study: Study) -> None:
    assert run_job(study, "read_encoder").success
    assert run_job(study, "read_images", "val").success
    assert encoded(study, "extract_images", "val", {}) == 5
    assert encoded(study, "extract_images", "val", {}) == 0
    assert encoded(study, "extract_images", "val", {FRESH: "true"}) == 5
    assert encoded(study, "extract_text", None, {}) == 3
    assert encoded(study, "extract_text", None, {FRESH: "true"}) == 3


def test_the_schedule_of_a_full_rebuild_starts_its_job(study: Study) -> None:
    schedules = [one for one in definitions_of(study).schedules or () if isinstance(one, dg.ScheduleDefinition)]
    assert ("cells__full_rebuild", "cells__rebuild_everything") in {(one.name, one.job_name) for one in schedules}
