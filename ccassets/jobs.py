"""The jobs of a study: the steps of a build, each on its own, so that no run mixes one split with the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from ccassets.assets.common import asset_key, split_partitions
from ccassets.study import Study

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition


def study_jobs(study: Study) -> list[UnresolvedAssetJobDefinition]:
    """`read_images` and `extract_images` run split by split, `read_encoder`, `extract_text`, `build_database` once."""
    templates = [asset_key(study, "template_features", name) for name in study.vocabulary.templates()]
    splits = split_partitions(study)
    jobs = {
        "read_images": ([asset_key(study, "images")], splits, "Read the images of a split into its manifest."),
        "read_encoder": ([asset_key(study, "encoder")], None, "Find or fetch the weights and record their identity."),
        "extract_text": (templates, None, "Encode every template."),
        "extract_images": ([asset_key(study, "image_features")], splits, "Encode the images of a split."),
        "build_database": (
            [asset_key(study, "feature_database"), asset_key(study, "validation_report")],
            None,
            "Assemble the database from the parts and validate it.",
        ),
    }
    return [
        dg.define_asset_job(
            job_name(study, name),
            selection=dg.AssetSelection.assets(*keys),
            partitions_def=partitions,
            description=description,
        )
        for name, (keys, partitions, description) in jobs.items()
        if keys
    ]


def job_name(study: Study, name: str) -> str:
    return f"{study.name}__{name}"
