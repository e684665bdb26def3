"""Compute logs of a home: the output of every step in `<home>/logs`, apart from the folders of the studies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ccassets.orchestration.dagster_internals import ConfigurableClassData, LocalComputeLogManager
from ccassets.study.storage import home


class HomeComputeLogManager(LocalComputeLogManager):
    """Dagster's own log manager in a folder that moves with the home; a path in dagster.yaml would not."""

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        """No settings."""
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> HomeComputeLogManager:
        """Make the log manager of the home in use, as Dagster asks for it."""
        return cls(base_dir=str(home() / "logs"), inst_data=inst_data)
