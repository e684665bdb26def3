"""The asset `concept_scores`: how well every image fits every concept, as a table that any other tool reads."""

import dagster as dg

from ccassets.analysis.results import RESULT_FILES
from ccassets.database.reader import open_database
from ccassets.exports.tables import export
from ccassets.files import digest_files
from ccassets.orchestration.assets.common import ANALYSIS_VERSION, asset_key, code_version, errors_as_sentences, logged
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import StoreResource
from ccassets.study.schema import Study


def concept_scores(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "concept_scores"),
        deps=[asset_key(study, "feature_database")],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"parquet"},
        code_version=code_version(ANALYSIS_VERSION),
        description=(
            "The cosine of every image with every concept, the mean over templates and synonyms: one row an image "
            "with id, key, split, label and group, one column a concept (`concept_scores.parquet`)."
        ),
    )
    def _concept_scores(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        path = place.analysis / RESULT_FILES["concept_scores"]
        with errors_as_sentences(), open_database(place.database) as database:
            export(database, path, "scores", logged(context, "score concepts"))
            rows, concepts = len(database), len(database.concepts)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest_files([path])),
            metadata={"dagster/row_count": rows, "concepts": concepts, "file": place.relative(path)},
        )

    return _concept_scores
