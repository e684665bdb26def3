"""The assets of a study, one file each, named like their key; a body is a few calls into the library."""

from __future__ import annotations

import re
from pathlib import Path

import dagster as dg

from ccassets.analysis.results import available_analyses
from ccassets.orchestration.assets.concept_atlas import concept_atlas
from ccassets.orchestration.assets.concept_bottleneck import concept_bottleneck
from ccassets.orchestration.assets.concept_scores import concept_scores
from ccassets.orchestration.assets.encoder import encoder
from ccassets.orchestration.assets.feature_database import feature_database
from ccassets.orchestration.assets.image_features import image_features
from ccassets.orchestration.assets.images import images
from ccassets.orchestration.assets.label_errors import label_errors
from ccassets.orchestration.assets.projection import projection
from ccassets.orchestration.assets.template_features import template_features
from ccassets.orchestration.assets.zero_shot import zero_shot
from ccassets.study.schema import Study

_ANALYSES = {
    "concept_scores": concept_scores,
    "zero_shot": zero_shot,
    "concept_bottleneck": concept_bottleneck,
    "label_errors": label_errors,
    "projection": projection,
    "concept_atlas": concept_atlas,
}


def study_assets(study: Study) -> list[dg.AssetsDefinition]:
    """Every asset of a study, sources first; of the analyses only those whose inputs the study has.

    All carry the study's owners, and its data set and model as tags, by which the UI finds them among many studies.
    """
    assets = [
        images(study),
        encoder(study),
        *([template_features(study)] if study.vocabulary.templates() else []),
        image_features(study),
        feature_database(study),
        *(_ANALYSES[name](study) for name in available_analyses(study)),
    ]
    return [asset.map_asset_specs(lambda spec: _with_tags(spec, study)) for asset in assets]


def _with_tags(spec: dg.AssetSpec, study: Study) -> dg.AssetSpec:
    tags = {
        "dataset": _short_name(study.dataset, "name", "file", "root", "kind"),
        "model": _short_name(study.encoder, "weights", "target", "kind"),
    }
    return spec.merge_attributes(owners=list(study.owners), tags=tags)


def _short_name(section: object, *fields: str) -> str:
    """The first field that is set, in the characters that a tag allows; of a hub id the last part.

    Of the path of a data set the last two, since every other folder is called `images`.
    """
    value = next(value for field in fields if (value := getattr(section, field, None)))
    name = "-".join(value.parts[-2:]) if isinstance(value, Path) else str(value).rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-63:]
