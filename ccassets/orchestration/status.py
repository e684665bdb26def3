"""What Dagster's records and the disk say of a study's assets: built, stale, failed, lost or missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import dagster as dg
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest
from dagster._core.storage.event_log.base import AssetRecord
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from sqlalchemy.exc import DBAPIError

from ccassets.definitions import definitions_of
from ccassets.errors import StorageError
from ccassets.files import exclusive
from ccassets.orchestration.assets.common import asset_key
from ccassets.orchestration.missing_files import absent
from ccassets.study.loading import load_study, study_files
from ccassets.study.schema import Study
from ccassets.study.storage import Store, home

State = Literal["built", "stale", "failed", "lost", "missing"]

SHIPPED_DAGSTER_YAML = Path(__file__).parent / "dagster.yaml"
_STATES: dict[StaleStatus, State] = {
    StaleStatus.FRESH: "built",
    StaleStatus.STALE: "stale",
    StaleStatus.MISSING: "missing",
}


@contextmanager
def dagster_instance() -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of the home, which is made with our `dagster.yaml` if it has none.

    Raises `StorageError` where the home cannot be written or used, or its disk is full.
    """
    folder = home()
    try:
        with _refusals_named(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Dagster makes its tables when it opens a home first; two that do so at once spoil them for good.
            with exclusive(folder):
                if not (folder / "dagster.yaml").exists():
                    shutil.copyfile(SHIPPED_DAGSTER_YAML, folder / "dagster.yaml")
                instance = _opened(folder)
        with instance:
            yield instance
    except DBAPIError as error:
        raise StorageError(
            f"Dagster's records of the home {folder} cannot be written or read ({error.orig}). Free some space there, "
            "see that their server runs, or choose another home with --home; features and databases are not touched."
        ) from error


@contextmanager
def _refusals_named(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The home {folder} cannot be written ({error.strerror}); choose another with --home."
        ) from error


def _opened(folder: Path) -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.from_config(str(folder))
    except DBAPIError:
        raise
    except Exception as error:  # What a foreign dagster.yaml names may raise anything.
        first = error
        while first.__cause__ is not None:
            first = first.__cause__  # type: ignore[assignment]
        reason = str(first).strip() or type(first).__name__
        raise StorageError(
            f"Dagster cannot use the home {folder}: {reason}\nCorrect {folder / 'dagster.yaml'}, or choose another "
            "home with --home or CCASSETS_HOME."
        ) from error


class Look:
    """One look at Dagster's records of some definitions; what happens later takes another one."""

    def __init__(self, instance: dg.DagsterInstance, definitions: dg.Definitions) -> None:
        self._instance = instance
        self._graph = definitions.resolve_asset_graph()
        self._context = LoadingContextForTest(instance)
        AssetRecord.prepare(self._context, self._graph.materializable_asset_keys)  # One query for all of them.
        self._resolver = CachingStaleStatusResolver(instance, self._graph, self._context)

    def state(self, key: dg.AssetKey, split: str | None = None) -> State:
        """The state of an asset, or of one split of it, as the UI shows it."""
        return "failed" if self._failed_last(key, split) else _STATES[self._resolver.get_status(key, split)]

    def is_fresh(self, key: dg.AssetKey, split: str | None = None) -> bool:
        """Whether the newest materialization is of the current versions, whatever failed since."""
        return self._resolver.get_status(key, split) == StaleStatus.FRESH

    def _failed_last(self, key: dg.AssetKey, split: str | None) -> bool:
        partitions = self._graph.get(key).partitions_def
        if partitions is not None and split is not None:
            statuses = self._instance.get_status_by_partition(key, [split], partitions) or {}
            return statuses.get(split) == AssetPartitionStatus.FAILED
        record = AssetRecord.blocking_get(self._context, key)
        entry = record.asset_entry if record else None
        if entry is None or entry.last_run_id is None:
            return False
        if entry.last_materialization is not None and entry.last_materialization.run_id == entry.last_run_id:
            return False
        run = self._instance.get_run_by_id(entry.last_run_id)
        return run is not None and run.status == dg.DagsterRunStatus.FAILURE


def study_states() -> dict[str, dict[State, list[str]]]:
    """The states of every study found by name."""
    with dagster_instance() as instance:
        return {name: states_of(instance, load_study(path)) for name, path in study_files().items()}


def states_of(instance: dg.DagsterInstance, study: Study) -> dict[State, list[str]]:
    """A study's assets, split by split, by state; names are those of the UI without the study's prefix.

    What Dagster calls fresh and the disk does not hold any more is lost.
    """
    definitions = definitions_of(study)
    look = Look(instance, definitions)
    lost = _known_as_made(look, study, absent(study, Store.of(study)))
    found: dict[State, list[str]] = {"built": [], "stale": [], "failed": [], "lost": [], "missing": []}
    for node in definitions.resolve_asset_graph().asset_nodes:
        asset = "/".join(node.key.path[1:])
        for split in node.partitions_def.get_partition_keys() if node.partitions_def else [None]:
            name = f"{asset}:{split}" if split else asset
            state = look.state(node.key, split)
            found["lost" if state == "built" and name in lost else state].append(name)
    return found


def lost_assets(instance: dg.DagsterInstance, study: Study, place: Store) -> dict[str, str]:
    """What Dagster calls fresh and the disk does not hold any more, in the order of the graph, and in what way."""
    not_there = absent(study, place)
    return _known_as_made(Look(instance, definitions_of(study)), study, not_there) if not_there else {}


def _known_as_made(look: Look, study: Study, not_there: dict[str, str]) -> dict[str, str]:
    found = {}
    for name, reason in not_there.items():
        asset, _, split = name.partition(":")
        if look.is_fresh(asset_key(study, *asset.split("/")), split or None):
            found[name] = reason
    return found
