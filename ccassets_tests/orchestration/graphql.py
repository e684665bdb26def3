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
_CHECKS = """
query Checks($group: AssetGroupSelector!) {
  assetNodes(group: $group) {
    assetKey { path }
    assetChecksOrError { ... on AssetChecks { checks { name blocking canExecuteIndividually } } }
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


def executable_checks(study: str) -> dict[str, set[str]]:
    """The checks that the UI has an Execute button for, by asset; those that stop what is downstream with a `!`."""
    with _asking("ccassets") as ask:
        nodes = ask(_CHECKS, {"group": _group(study)})["assetNodes"]
    return {
        "/".join(node["assetKey"]["path"][1:]): {
            f"{check['name']}{'!' if check['blocking'] else ''}"
            for check in node["assetChecksOrError"]["checks"]
            if check["canExecuteIndividually"] == "CAN_EXECUTE"
        }
        for node in nodes
    }


def _group(study: str) -> dict[str, str]:
    return {"groupName": study, "repositoryName": "__repository__", "repositoryLocationName": "ccassets"}


def stale(study: str) -> dict[str, str]:
    """Every asset (`name` or `name:split`) of a study that the UI does not call fresh, with the causes it shows."""
    not_fresh = {}
    with _asking("ccassets") as ask:
        for node in ask(_STALENESS, {"group": _group(study)})["assetNodes"]:
            path = node["assetKey"]["path"]
            name = "/".join(path[1:])
            if not node["partitionKeys"]:
                _note(not_fresh, name, node)
            for split in node["partitionKeys"]:
                by_split = ask(_BY_SPLIT, {"key": {"path": path}, "partition": split})["assetNodeOrError"]
                _note(not_fresh, f"{name}:{split}", by_split)
    return not_fresh


def _note(not_fresh: dict[str, str], name: str, node: dict[str, Any]) -> None:
    if node["staleStatus"] != "FRESH":
        causes = [f"{'/'.join(cause['key']['path'][1:])} {cause['reason']}" for cause in node["staleCauses"]]
        not_fresh[name] = f"{node['staleStatus']}: {'; '.join(causes)}"


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
