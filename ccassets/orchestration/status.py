"""Status of a study's assets by Dagster's records and the disk: built, stale, failed, lost, missing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import dagster as dg

from ccassets.extraction.sources import changed_splits, current_identity, recorded_identity
from ccassets.orchestration.dagster_internals import AssetRecords, StaleStatus
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.missing_files import missing_files
from ccassets.orchestration.names import asset_key, asset_name
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import EncoderResource
from ccassets.study.schema import Study
from ccassets.study.storage import Store

State = Literal["built", "stale", "failed", "lost", "missing"]

_STATES: dict[StaleStatus, State] = {
    StaleStatus.FRESH: "built",
    StaleStatus.STALE: "stale",
    StaleStatus.MISSING: "missing",
}


class StatusSnapshot:
    """Dagster's records of the assets of a repository at one moment; later events need a new snapshot."""

    def __init__(self, instance: dg.DagsterInstance, repository: dg.RepositoryDefinition) -> None:
        self.repository = repository
        self._instance = instance
        self._records = AssetRecords(instance, repository)

    def state(self, key: dg.AssetKey, split: str | None = None) -> State:
        """The state of an asset, or of one split of it, as the UI shows it."""
        return "failed" if self._failed_last(key, split) else _STATES[self._records.stale_status(key, split)]

    def is_fresh(self, key: dg.AssetKey, split: str | None = None) -> bool:
        """Whether the newest materialization is of the current versions, whatever failed since."""
        return self._records.stale_status(key, split) == StaleStatus.FRESH

    def _failed_last(self, key: dg.AssetKey, split: str | None) -> bool:
        partitions = self.repository.asset_graph.get(key).partitions_def
        if partitions is not None and split is not None:
            statuses = self._instance.get_status_by_partition(key, [split], partitions) or {}
            return statuses.get(split) == dg.AssetPartitionStatus.FAILED
        entry = self._records.entry(key)
        if entry is None or entry.last_run_id is None:
            return False
        if entry.last_materialization is not None and entry.last_materialization.run_id == entry.last_run_id:
            return False
        run = self._instance.get_run_by_id(entry.last_run_id)
        return run is not None and run.status == dg.DagsterRunStatus.FAILURE


def status_of_studies(studies: Sequence[Study], definitions: dg.Definitions) -> dict[str, dict[State, list[str]]]:
    """The status of every study, as the records of the home and the default storage have it.

    Args:
        studies: The studies.
        definitions: Definitions that hold the assets of all of them.

    Returns:
        For each study's name what `study_status` says of it.
    """
    with dagster_instance() as instance:
        snapshot = StatusSnapshot(instance, definitions.get_repository_def())
        return {study.name: study_status(snapshot, study, Store.of(study)) for study in studies}


def study_status(snapshot: StatusSnapshot, study: Study, store: Store) -> dict[State, list[str]]:
    """The assets of a study, split by split, by state; names are those of the UI without the study's prefix.

    An asset is lost when Dagster considers it fresh but its file is gone: Dagster tracks versions, not files.
    """
    lost = lost_assets(snapshot, study, store)
    status: dict[State, list[str]] = {"built": [], "stale": [], "failed": [], "lost": [], "missing": []}
    for node in sorted(snapshot.repository.asset_graph.asset_nodes, key=lambda node: node.key.to_user_string()):
        if node.key.path[0] != study.name:
            continue
        for split in node.partitions_def.get_partition_keys() if node.partitions_def else [None]:
            name = asset_name(node.key, split)
            state = snapshot.state(node.key, split)
            status["lost" if state == "built" and name in lost else state].append(name)
    return status


def lost_assets(snapshot: StatusSnapshot, study: Study, store: Store) -> dict[str, str]:
    """What Dagster considers fresh although its file is gone, in the order of the graph, each with the reason."""
    lost = {}
    for name, reason in missing_files(study, store).items():
        asset, _, split = name.partition(":")
        if snapshot.is_fresh(asset_key(study, asset), split or None):
            lost[name] = reason
    return lost


def changed_encoder(study: Study, store: Store, encoder: EncoderResource) -> dict[str, str]:
    """The asset of the encoder with its new identity, where that is not the recorded one; else nothing."""
    identity = current_identity(study, store, device=encoder.device, hf_token=encoder.hf_token)
    return {} if identity == recorded_identity(store) else {"encoder": identity}


def changed_images(study: Study, store: Store, splits: Sequence[str]) -> dict[str, str]:
    """The assets of images whose files are not what was recorded, each with a digest of what they are now."""
    changed = changed_splits(study, store, splits)
    if is_partitioned(study) or not changed:
        return {f"images:{split}": digest for split, digest in changed.items()}
    return {"images": hashlib.sha256(repr(changed).encode()).hexdigest()}
