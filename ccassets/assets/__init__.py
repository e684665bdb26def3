"""The assets of a study, one file each, named like their key; a body is a few calls into the library."""

from __future__ import annotations

import dagster as dg

from ccassets.assets.encoder import encoder
from ccassets.assets.feature_database import feature_database
from ccassets.assets.image_features import image_features
from ccassets.assets.images import images
from ccassets.assets.template_features import template_features
from ccassets.assets.validation_report import validation_report
from ccassets.study import Study


def study_assets(study: Study) -> list[dg.AssetsDefinition]:
    """Every asset of a study, sources first."""
    return [
        images(study),
        encoder(study),
        *(template_features(study, template) for template in study.vocabulary.templates().values()),
        image_features(study),
        feature_database(study),
        validation_report(study),
    ]
