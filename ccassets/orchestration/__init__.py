"""Dagster: the definitions of a study, and everything that drives its runs."""

from ccassets.orchestration.build import run_build
from ccassets.orchestration.builder import BuildResult
from ccassets.orchestration.component import FeatureDatabaseComponent, definitions_of
from ccassets.orchestration.instance import dagster_instance
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.resources import EncoderResource, StoreResource

__all__ = [
    "BuildResult",
    "EncoderResource",
    "FeatureDatabaseComponent",
    "StoreResource",
    "asset_key",
    "dagster_instance",
    "definitions_of",
    "run_build",
]
