"""The names under which Dagster knows a study: asset keys, jobs, the encoders' pool, the tag of a build's runs."""

from __future__ import annotations

import os

import dagster as dg

from ccassets.study.schema import Study

ENCODER_POOL = "ccassets_encoder"
"""Steps that run an encoder take a slot of this pool; `dagster.yaml` gives it one."""

POOL_VARIABLE = "CCASSETS_ENCODER_POOL"
"""The environment variable that names another pool, where several machines with GPUs share one Dagster."""

STARTED_BY, BUILD = "ccassets/started_by", "build"
"""The tag of runs that are steps of a whole build, and its value where `ccassets build` started them."""

CODE_LOCATION = "ccassets"
"""The name of the code location, as in workspace.yaml: Dagster keeps switches and shows runs under it."""

FRESH = "ccassets/fresh"
"""The tag of runs that keep nothing of what parts or the old database hold."""

PARTITION, FIRST_PARTITION, LAST_PARTITION = (
    "dagster/partition",
    "dagster/asset_partition_range_start",
    "dagster/asset_partition_range_end",
)
"""Dagster's tags of runs: that of the one partition, and those of a range of several."""


def asset_key(study: Study, *parts: str) -> dg.AssetKey:
    """Give the key of an asset of a study.

    Args:
        study: The study; its name is the first part of the key.
        parts: The other parts, each by itself or joined with `/` as the UI shows them.

    Returns:
        The key, to depend on the asset or to look up its records.
    """
    return dg.AssetKey([study.name, *"/".join(parts).split("/")])


def asset_name(key: dg.AssetKey, split: str | None = None) -> str:
    """Name an asset, or one split of it, outside Dagster: without the study, and with its split as `asset:split`."""
    name = "/".join(key.path[1:])
    return f"{name}:{split}" if split else name


def encoder_pool() -> str:
    """Return the name of the pool for the encoders of this machine's code location."""
    return os.environ.get(POOL_VARIABLE) or ENCODER_POOL


def job_name(study: Study, name: str) -> str:
    return f"{study.name}__{name}"
