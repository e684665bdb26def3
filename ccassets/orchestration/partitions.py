"""Splits as Dagster partitions, where a study does not have too many of them."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from ccassets.orchestration.names import FIRST_PARTITION, LAST_PARTITION, PARTITION
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


def splits_of(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext, study: Study) -> Sequence[str]:
    """The splits of this run: the one or the range of its partition; all of the study where it names none."""
    tags = context.run.tags
    first, last = (tags.get(PARTITION, tags.get(tag)) for tag in (FIRST_PARTITION, LAST_PARTITION))
    if not is_partitioned(study) or first is None or last is None:
        return study.splits
    return study.splits[study.splits.index(first) : study.splits.index(last) + 1]


def has_several_partitions(context: dg.AssetExecutionContext | dg.AssetCheckExecutionContext) -> bool:
    """Whether a run covers a range of partitions, so that its results are recorded for each of them separately."""
    return FIRST_PARTITION in context.run.tags
