"""The asset `projection`: every image as a point of a plane, for maps."""

import dagster as dg

from ccassets.analysis.results import RESULT_FILES
from ccassets.files import digest_files
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, study_asset
from ccassets.study.schema import Study


def projection(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "projection",
        deps=["feature_database"],
        kinds={"parquet"},
        version=(ANALYSIS_VERSION,),
        description=(
            "Every image as a point of a plane, near to images like it (`projection.parquet`): by openTSNE where the "
            "extra `map` is installed and there are at least 500 images, else the first two principal components."
        ),
    )
    def _projection(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.analysis import write_projection

        study_store = store.of(study)
        made = write_projection(study_store, progress=log_progress(context, "project images"))
        path = study_store.analysis / RESULT_FILES["projection"]
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest_files(path)),
            metadata={
                "dagster/row_count": len(made.points),
                "method": made.method,
                **{f"version_{name}": version for name, version in made.versions.items()},
                "file": dg.MetadataValue.path(path),
            },
        )

    return _projection
