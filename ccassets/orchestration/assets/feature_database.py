"""The asset `feature_database`: all parts of a study assembled into one file, which replaces the old one at the end.

Its step makes the report as well.
"""

from collections.abc import Iterator

import dagster as dg

from ccassets.database.reader import open_database
from ccassets.extraction import assemble_database
from ccassets.orchestration.assets.validation_report import validation_report, write_report
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ExtractionRun, label_scale, study_asset
from ccassets.study.schema import Study
from ccassets.study.storage import Store


class DatabaseRun(ExtractionRun):
    """The options of one run: with `allow_loss` it replaces a file although nothing else holds some of its rows."""

    allow_loss: bool = False


def feature_database(study: Study) -> dg.AssetsDefinition:
    splits = dg.AssetDep(
        asset_key(study, "image_features"),
        partition_mapping=dg.AllPartitionMapping() if is_partitioned(study) else None,
    )
    report = validation_report(study)
    templates = [f"template_features/{name}" for name in study.vocabulary.templates()]

    @study_asset(
        study,
        "feature_database",
        deps=[splits, *templates],
        kinds={"hdf5"},
        version=(_grouping(study), study.splits, study.storage, study.extraction.limit, *label_scale(study)),
        description=_description(study),
        companions=[report],
    )
    def _feature_database(
        context: dg.AssetExecutionContext, config: DatabaseRun, store: StoreResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        study_store = store.of(study)
        if asset_key(study, "feature_database") in context.selected_asset_keys:
            progress = log_progress(context, "assemble the database")
            done = assemble_database(
                study,
                store=study_store,
                fresh=config.is_fresh(context),
                allow_loss=config.allow_loss,
                progress=progress,
            )
            if done.unchanged:
                context.log.info("The database already is what it should be; it was left as it is.")
            yield dg.MaterializeResult(
                asset_key=asset_key(study, "feature_database"),
                data_version=dg.DataVersion(done.digest),
                metadata={
                    "dagster/row_count": done.rows,
                    "bytes": done.bytes,
                    "seconds": round(done.seconds, 3),
                    "digest": done.digest,
                    "file": study_store.relative(done.path),
                    "dagster/column_schema": _schema(study_store),
                },
            )
        if report.key in context.selected_asset_keys:
            yield write_report(study, study_store)

    return _feature_database


def _description(study: Study) -> str:
    """What the asset is, and what the study says of itself: a group of assets has no text of its own in the UI."""
    own = (
        f"The database `{study.database_file}`: every image, label, prompt and their features, with digests and "
        "provenance. Refused while a split or a template is missing; the old file stays readable until the end."
    )
    return "\n\n".join(text for text in (own, study.description, study.readme) if text)


def _grouping(study: Study) -> list[tuple[str | None, int | None, int]]:
    """What the file says of concepts beyond their prompts; an edited word makes its templates stale, not this."""
    return [(concept.group, concept.level, len(concept.synonyms)) for concept in study.vocabulary.concepts.words]


def _schema(store: Store) -> dg.TableSchema:
    """Every data set of the file with its shape and dtype, as the UI shows columns."""
    columns = []

    def add(name: str, item: object) -> None:
        shape, dtype = getattr(item, "shape", None), getattr(item, "dtype", None)
        if shape is not None and dtype is not None:
            kind = "string" if dtype.kind == "O" else dtype
            columns.append(dg.TableColumn(name=f"/{name}", type=f"{kind} {tuple(shape)}"))

    with open_database(store.database) as database:
        database.file.visititems(add)
    return dg.TableSchema(columns=columns)
