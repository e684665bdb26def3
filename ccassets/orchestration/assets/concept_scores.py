"""The asset `concept_scores`: how well every image fits every concept, as a table that any other tool reads."""

import dagster as dg

from ccassets.analysis.results import RESULT_FILES
from ccassets.database.reader import open_database
from ccassets.files import digest_files
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ANALYSIS_VERSION, study_asset
from ccassets.study.schema import Study


def concept_scores(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "concept_scores",
        deps=["feature_database"],
        kinds={"parquet"},
        version=(ANALYSIS_VERSION,),
        description=(
            "The cosine of every image with every concept, the mean over templates and synonyms: one row an image "
            "with id, key, split, label and group, one column a concept (`concept_scores.parquet`)."
        ),
    )
    def _concept_scores(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        from ccassets.exports.tables import write_concept_scores

        study_store = store.of(study)
        path = study_store.analysis / RESULT_FILES["concept_scores"]
        with open_database(study_store.database) as database:
            write_concept_scores(database, path, log_progress(context, "score concepts"))
            rows, concepts = len(database), len(database.concepts)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest_files(path)),
            metadata={"dagster/row_count": rows, "concepts": concepts, "file": dg.MetadataValue.path(path)},
        )

    return _concept_scores
