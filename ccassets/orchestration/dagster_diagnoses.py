"""The doctor's two questions to Dagster: can the home be used, and what do its records say about a study?"""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import yaml

from ccassets.errors import StorageError
from ccassets.files import read_package_yaml
from ccassets.orchestration.component import definitions_of
from ccassets.orchestration.instance import SHIPPED_DAGSTER_YAML, dagster_instance
from ccassets.orchestration.names import encoder_pool
from ccassets.orchestration.status import StatusSnapshot, study_status
from ccassets.study.loading import command_argument
from ccassets.study.schema import Study
from ccassets.study.storage import Store, home
from ccassets.tools.doctor import Diagnosis

_WITHOUT = {
    "concurrency": "no limit for the pool {pool} (two runs would share the device)",
    "run_monitoring": "no run monitoring (a killed run would keep its place in the pool)",
}
"""What a home without these settings lacks."""


def diagnose_home() -> Diagnosis:
    """Whether Dagster can use the home, and whether its settings keep one encoder on the device at a time."""
    shipped = read_package_yaml(__package__, SHIPPED_DAGSTER_YAML.name)
    missing = {}
    try:
        with dagster_instance() as instance:
            if not _limits_pool(instance):
                missing["concurrency"] = shipped["concurrency"]
            if not instance.run_monitoring_enabled:
                missing["run_monitoring"] = shipped["run_monitoring"]
    except StorageError as error:
        return Diagnosis("home", "problem", str(error))
    if not missing:
        return Diagnosis("home", "ok", f"{home()}, one encoder at a time")
    lines = yaml.safe_dump(missing, sort_keys=False)
    without = " and ".join(_WITHOUT[name] for name in missing).format(pool=encoder_pool())
    message = f"{home() / 'dagster.yaml'} sets {without}"
    return Diagnosis("home", "warning", message, f"Merge these lines into it:\n{lines}".rstrip())


def _limits_pool(instance: dg.DagsterInstance) -> bool:
    """Whether the encoders' pool has a limit: of its own, set in the UI, or by default."""
    own = {limit.name for limit in instance.event_log_storage.get_pool_limits()}
    return encoder_pool() in own or instance.get_concurrency_config().pool_config.default_pool_limit is not None


def diagnose_records(study: Study) -> Iterator[Diagnosis]:
    """What Dagster's records and the disk say of a study's assets; nothing where the home cannot be used."""
    try:
        with dagster_instance() as instance:
            snapshot = StatusSnapshot(instance, definitions_of(study).get_repository_def())
            status = study_status(snapshot, study, Store.of(study))
    except StorageError:
        return  # `diagnose_home` reports it.
    command = f"`ccassets build {command_argument(study)}`"
    if status["failed"]:
        advice = f"{command} tries again; the run's log in `ccassets ui` says why it failed."
        yield Diagnosis("assets", "warning", f"failed when they were last run: {', '.join(status['failed'])}", advice)
    if status["lost"]:
        advice = f"{command} makes them again."
        yield Diagnosis("assets", "warning", f"deleted or replaced by hand: {', '.join(status['lost'])}", advice)
    counts = ", ".join(f"{len(names)} {state}" for state, names in status.items() if names)
    yield Diagnosis("assets", "ok", counts)
