"""The asset `concept_bottleneck`: a readable classifier on concept scores, with its controls."""

import dagster as dg

from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, analysis_result, label_scale, study_asset
from ccassets.study.schema import Study


def concept_bottleneck(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "concept_bottleneck",
        deps=["feature_database"],
        kinds={"json", "scikitlearn"},
        version=(ANALYSIS_VERSION, *label_scale(study)),
        description=(
            "A logistic regression on concept scores, fitted on train and chosen on val, with its sparse path, a tree "
            "and its controls (`concept_bottleneck.json`, `model.json`). Each access to test is logged (`looks.jsonl`)."
        ),
    )
    def _concept_bottleneck(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.analysis.bottleneck import bottleneck_metrics, count_test_accesses, write_bottleneck

        study_store = store.of(study)
        result = write_bottleneck(study, study_store)
        metadata = {**bottleneck_metrics(result.content), "looks_at_test": count_test_accesses(study_store)}
        return analysis_result(context, result, metadata)

    return _concept_bottleneck
