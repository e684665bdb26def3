"""The asset `zero_shot`: how well label words alone separate the classes, with intervals and calibration."""

import dagster as dg

from ccassets.analysis.results import headline_metrics
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, analysis_result, label_scale, study_asset
from ccassets.study.schema import Study


def zero_shot(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "zero_shot",
        deps=["feature_database"],
        kinds={"json"},
        version=(ANALYSIS_VERSION, *label_scale(study)),
        description=(
            "The authors' zero-shot score, nothing fitted: from whole images and, where the encoder gives them, their "
            "best patches. Measured on val and test, or on all images of a study that has neither (`zero_shot.json`)."
        ),
    )
    def _zero_shot(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.analysis.zero_shot_scores import write_zero_shot

        study_store = store.of(study)
        result = write_zero_shot(study_store, log_progress(context, "score classes"))
        metadata = {**headline_metrics(result.content), "rule": result.content.get("rule") or "whole images alone"}
        return analysis_result(context, result, metadata)

    return _zero_shot
