"""The asset `concept_atlas`: the page that shows the images of each concept, and the analyses based on concepts."""

import dagster as dg

from ccassets.analysis.results import unavailable_analyses
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, study_asset
from ccassets.study.schema import Study


def concept_atlas(study: Study) -> dg.AssetsDefinition:
    results = [name for name in ("zero_shot", "concept_bottleneck") if name not in unavailable_analyses(study)]

    @study_asset(
        study,
        "concept_atlas",
        deps=["feature_database", *results],
        kinds={"html", "plotly"},
        version=(ANALYSIS_VERSION, study.description),
        description=(
            "One page, `concept_atlas.html`: for each concept the images that score highest with heat maps over them, "
            "a map of all images, classes by concepts, what accuracies are worth, single images and errors."
        ),
    )
    def _concept_atlas(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.pages.atlas import write_atlas

        study_store = store.of(study)
        atlas = write_atlas(study, study_store, log_progress(context, "draw concepts"))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(atlas.digest),
            metadata={
                "page": dg.MetadataValue.path(atlas.page.as_uri()),
                "bytes": atlas.page.stat().st_size,
                **atlas.metrics,
                "concepts": dg.MetadataValue.md(atlas.markdown),
            },
        )

    return _concept_atlas
