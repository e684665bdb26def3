"""Splits as Dagster partitions, where a study does not have too many of them."""

from __future__ import annotations

import dagster as dg

from ccassets.study.schema import Study

MOST_PARTITIONS = 50
"""Dagster stops seeing changes of 100 upstream partitions: studies with more splits than this have none."""


def is_partitioned(study: Study) -> bool:
    """Whether the study's splits are Dagster partitions: as it says itself, else when there are not too many."""
    if study.extraction.partitioned is not None:
        return study.extraction.partitioned
    return len(study.splits) <= MOST_PARTITIONS


def split_partitions(study: Study) -> dg.StaticPartitionsDefinition | None:
    return dg.StaticPartitionsDefinition(list(study.splits)) if is_partitioned(study) else None


def splits_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, study: Study) -> tuple[str, ...]:
    """The split of this run, or all splits of a study that has no partitions."""
    if not is_partitioned(study):
        return study.splits
    if isinstance(context, dg.AssetCheckExecutionContext):
        return (context.partition_key,) if context.has_partition_key else study.splits
    return (context.partition_key,)
