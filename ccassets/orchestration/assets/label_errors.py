"""The asset `label_errors`: the images whose label is in doubt, for an expert to check."""

import dagster as dg

from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, analysis_result, study_asset
from ccassets.study.schema import Study


def label_errors(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "label_errors",
        deps=["feature_database"],
        kinds={"json", "html", "scikitlearn"},
        version=(ANALYSIS_VERSION,),
        description=(
            "The images whose label is in doubt by confident learning on concept scores, of all splits, the least "
            "believed first (`label_errors.json`, `label_errors.csv`), with their pictures (`label_errors.html`)."
        ),
    )
    def _label_errors(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.analysis import judge_labels
        from ccassets.pages.label_errors_page import write_label_errors_page

        study_store = store.of(study)
        result = judge_labels(study_store)
        page = write_label_errors_page(study, study_store, result)
        metadata: dict[str, object] = {"page": dg.MetadataValue.path(page.as_uri())}
        if result.unavailable_reason is None:
            metadata |= {"label_errors": len(result.content["errors"]), "unjudged": dict(result.content["unjudged"])}
        return analysis_result(context, result, metadata)

    return _label_errors
