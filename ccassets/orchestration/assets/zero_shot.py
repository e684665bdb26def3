"""The asset `zero_shot`: how far the label words alone tell the classes, with intervals and calibration."""

import dagster as dg

from ccassets.analysis.results import headline_metrics
from ccassets.analysis.zero_shot_scores import write_zero_shot
from ccassets.orchestration.assets.common import ANALYSIS_VERSION, asset_key, code_version, errors_as_sentences, logged
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import StoreResource
from ccassets.study.schema import Study


def zero_shot(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "zero_shot"),
        deps=[asset_key(study, "feature_database")],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"json"},
        code_version=code_version(ANALYSIS_VERSION),
        description=(
            "The authors' zero-shot score, nothing fitted: from whole images and, where the encoder gives them, their "
            "best patches. Measured on val and test, or on all images of a study that has neither (`zero_shot.json`)."
        ),
    )
    def _zero_shot(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences():
            result = write_zero_shot(place, logged(context, "score classes"))
        if result.unavailable_reason:
            context.log.warning(result.unavailable_reason)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(result.digest),
            metadata={
                **headline_metrics(result.content),
                "rule": result.content.get("rule") or "whole images alone",
                "file": place.relative(result.path),
                **({"obstacle": result.unavailable_reason} if result.unavailable_reason else {}),
            },
        )

    return _zero_shot
