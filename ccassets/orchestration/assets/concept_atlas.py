"""The asset `concept_atlas`: the page on which one sees what concepts find, and what is built on them."""

import dagster as dg

from ccassets.analysis.results import unavailable_analyses
from ccassets.orchestration.assets.common import ANALYSIS_VERSION, asset_key, code_version, errors_as_sentences, logged
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import StoreResource
from ccassets.pages.atlas import write_atlas
from ccassets.study.schema import Study


def concept_atlas(study: Study) -> dg.AssetsDefinition:
    results = [name for name in ("zero_shot", "concept_bottleneck") if name not in unavailable_analyses(study)]

    @dg.asset(
        key=asset_key(study, "concept_atlas"),
        deps=[asset_key(study, name) for name in ("feature_database", *results)],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"html", "plotly"},
        code_version=code_version(ANALYSIS_VERSION, study.description),
        description=(
            "One page, `concept_atlas.html`: for each concept the images that score highest with heat maps over them, "
            "a map of all images, classes by concepts, what accuracies are worth, single images and errors."
        ),
    )
    def _concept_atlas(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences():
            atlas = write_atlas(study, place, logged(context, "draw concepts"))
        return dg.MaterializeResult(
            data_version=dg.DataVersion(atlas.digest),
            metadata={
                "page": place.relative(atlas.page),
                "bytes": atlas.page.stat().st_size,
                **atlas.metrics,
                "concepts": dg.MetadataValue.md(atlas.markdown),
            },
        )

    return _concept_atlas
