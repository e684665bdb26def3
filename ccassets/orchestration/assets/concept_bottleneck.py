"""The asset `concept_bottleneck`: a classifier one can read, on concept scores, with all that stands beside it."""

import dagster as dg

from ccassets.analysis.bottleneck import bottleneck_metrics, count_test_accesses, write_bottleneck
from ccassets.orchestration.assets.common import ANALYSIS_VERSION, asset_key, code_version, errors_as_sentences
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import StoreResource
from ccassets.study.schema import Study


def concept_bottleneck(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "concept_bottleneck"),
        deps=[asset_key(study, "feature_database")],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"json", "scikitlearn"},
        code_version=code_version(ANALYSIS_VERSION),
        description=(
            "A logistic regression on concept scores, fitted on train and chosen on val, with its sparse path, a tree "
            "and its controls (`concept_bottleneck.json`, `model.json`). Every look at test is logged (`looks.jsonl`)."
        ),
    )
    def _concept_bottleneck(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences():
            result = write_bottleneck(study, place)
        if result.unavailable_reason:
            context.log.warning(result.unavailable_reason)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(result.digest),
            metadata={
                **bottleneck_metrics(result.content),
                "looks_at_test": count_test_accesses(place),
                "file": place.relative(result.path),
                **({"obstacle": result.unavailable_reason} if result.unavailable_reason else {}),
            },
        )

    return _concept_bottleneck
