"""What the UI asks Dagster's webserver, asked in this process: staleness with its causes, per asset and split."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dagster._core.remote_origin import InProcessCodeLocationOrigin
from dagster._core.test_utils import InProcessTestWorkspaceLoadTarget
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster_graphql.schema import create_schema

from ccassets.orchestration.instance import dagster_instance

_STALENESS = """
query Staleness($group: AssetGroupSelector!) {
  assetNodes(group: $group) {
    assetKey { path }
    staleStatus
    staleCauses { category reason key { path } }
    partitionKeys
  }
}
"""
_BY_SPLIT = """
query BySplit($key: AssetKeyInput!, $partition: String!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode { staleStatus(partition: $partition) staleCauses(partition: $partition) { reason key { path } } }
  }
}
"""
_SWITCHES = """
query Switches($repository: RepositorySelector!) {
  sensorsOrError(repositorySelector: $repository) { ... on Sensors { results { name sensorState { status } } } }
  schedulesOrError(repositorySelector: $repository) { ... on Schedules { results { name scheduleState { status } } } }
}
"""


def switched_on(location: str) -> set[str]:
    """The sensors and schedules that the UI shows as running, where it knows our definitions under a name."""
    selector = {"repositoryName": "__repository__", "repositoryLocationName": location}
    with _asking(location) as ask:
        answer = ask(_SWITCHES, {"repository": selector})
    switches = [(one["name"], one["sensorState"]) for one in answer["sensorsOrError"]["results"]]
    switches += [(one["name"], one["scheduleState"]) for one in answer["schedulesOrError"]["results"]]
    return {name for name, state in switches if state["status"] == "RUNNING"}


def stale(study: str) -> dict[str, str]:
    """Every asset (`name` or `name:split`) of a study that the UI does not call fresh, with the causes it shows."""
    found = {}
    with _asking("ccassets") as ask:
        selector = {"groupName": study, "repositoryName": "__repository__", "repositoryLocationName": "ccassets"}
        for node in ask(_STALENESS, {"group": selector})["assetNodes"]:
            path = node["assetKey"]["path"]
            name = "/".join(path[1:])
            if not node["partitionKeys"]:
                _note(found, name, node)
            for split in node["partitionKeys"]:
                by_split = ask(_BY_SPLIT, {"key": {"path": path}, "partition": split})["assetNodeOrError"]
                _note(found, f"{name}:{split}", by_split)
    return found


def _note(found: dict[str, str], name: str, node: dict[str, Any]) -> None:
    if node["staleStatus"] != "FRESH":
        causes = [f"{'/'.join(cause['key']['path'][1:])} {cause['reason']}" for cause in node["staleCauses"]]
        found[name] = f"{node['staleStatus']}: {'; '.join(causes)}"


@contextmanager
def _asking(location: str) -> Iterator[Any]:
    """The definitions loaded afresh, as after Reload in the UI, behind Dagster's own GraphQL schema."""
    target = LoadableTargetOrigin(executable_path=sys.executable, module_name="ccassets.definitions")
    origin = InProcessCodeLocationOrigin(loadable_target_origin=target, location_name=location)
    schema = create_schema()
    with (
        dagster_instance() as instance,
        WorkspaceProcessContext(instance, InProcessTestWorkspaceLoadTarget(origin), version="") as process,
    ):
        context = process.create_request_context()

        def ask(query: str, variables: dict[str, Any]) -> Any:
            result = schema.execute(query, context_value=context, variable_values=variables)
            assert result.errors is None, result.errors
            return result.data

        yield ask
