"""What tests ask Dagster of a study: the status of its assets, and runs of its jobs as the UI starts them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import dagster as dg

from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import FIRST_PARTITION, LAST_PARTITION, asset_key, job_name
from ccassets.orchestration.status import State, StatusSnapshot, lost_assets, study_status
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def status_of(study: Study) -> dict[State, list[str]]:
    """The assets of a study by state, as `ccassets studies` counts them."""
    with dagster_instance() as instance:
        return study_status(_snapshot(instance, study), study, Store.of(study))


def state_of(study: Study, *parts: str, split: str | None = None) -> State:
    """The state that the UI shows of an asset, or of one split of it."""
    with dagster_instance() as instance:
        return _snapshot(instance, study).state(asset_key(study, *parts), split)


def lost_of(study: Study) -> dict[str, str]:
    """What the watch over the files makes again, `ccassets studies` lists, and the doctor names."""
    with dagster_instance() as instance:
        return lost_assets(_snapshot(instance, study), study, Store.of(study))


def _snapshot(instance: dg.DagsterInstance, study: Study) -> StatusSnapshot:
    return StatusSnapshot(instance, definitions_of(study).get_repository_def())


def run_job(
    study: Study,
    job: str,
    split: str | tuple[str, str] | None = None,
    *assets: str,
    ops: Mapping[str, Any] | None = None,
) -> dg.ExecuteInProcessResult:
    """What the UI does when somebody presses Materialize, on the whole job or on some of its assets.

    With the first and the last of several splits it is the run that *Pass partition ranges to single run* makes. `ops`
    is the config of steps as the Launchpad takes it.
    """
    splits = dict(zip((FIRST_PARTITION, LAST_PARTITION), split, strict=True)) if isinstance(split, tuple) else None
    with dagster_instance() as instance:
        resolved = definitions_of(study).resolve_job_def(job_name(study, job))
        return resolved.execute_in_process(
            instance=instance,
            partition_key=split if isinstance(split, str) else None,
            tags=splits,
            asset_selection=[asset_key(study, asset) for asset in assets] or None,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, "ops": dict(ops or {})},
            raise_on_error=False,
        )


def encoded_by_runs(instance: dg.DagsterInstance, runs: Iterable[dg.DagsterRun]) -> dict[str, int]:
    """How many images and how many prompts runs really encoded."""
    counts = {"image_features": 0, "template_features": 0}
    for run in runs:
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            materialization = entry.asset_materialization
            assert materialization is not None
            kind = materialization.asset_key.path[1]
            if kind in counts:
                counts[kind] += int(materialization.metadata["encoded"].value)  # type: ignore[call-overload]
    return counts
