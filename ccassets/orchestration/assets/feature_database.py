"""The asset `feature_database`: the parts of a study assembled into one file, which then replaces the old one.

Its step makes the report as well.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from ccassets.database.layout import DATASET_DESCRIPTIONS
from ccassets.database.reader import open_database
from ccassets.extraction import assemble_database
from ccassets.orchestration.assets.validation_report import validation_report, write_report
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ExtractionRun, asset_spec, label_scale, study_asset
from ccassets.study.schema import Study
from ccassets.study.storage import Store


class DatabaseRun(ExtractionRun):
    """The options of one run: `allow_loss` lets it replace a file that has the only copy of some rows."""

    allow_loss: bool = False


def feature_database(study: Study) -> dg.AssetsDefinition:
    splits = dg.AssetDep(
        asset_key(study, "image_features"),
        partition_mapping=dg.AllPartitionMapping() if is_partitioned(study) else None,
    )
    report = validation_report(study)
    templates = [f"template_features/{name}" for name in study.vocabulary.templates()]

    database = asset_spec(
        study,
        "feature_database",
        deps=[splits, *templates],
        kinds={"hdf5"},
        version=(_grouping(study), study.splits, study.storage, study.extraction.limit, *label_scale(study)),
        description=_description(study),
    )

    @study_asset(study, "feature_database", specs=[database, report])
    def _feature_database(
        context: dg.AssetExecutionContext, config: DatabaseRun, store: StoreResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        study_store = store.of(study)
        if database.key in context.selected_asset_keys:
            progress = log_progress(context, "assemble the database")
            done = assemble_database(
                study,
                store=study_store,
                fresh=config.is_fresh(context),
                allow_loss=config.allow_loss,
                progress=progress,
            )
            if done.unchanged:
                context.log.info("The database is up to date; it was not changed.")
            yield dg.MaterializeResult(
                asset_key=database.key,
                data_version=dg.DataVersion(done.digest),
                metadata={
                    "dagster/row_count": done.rows,
                    "bytes": done.bytes,
                    "seconds": round(done.seconds, 3),
                    "digest": done.digest,
                    "file": dg.MetadataValue.path(done.path),
                    **_contents(study, study_store),
                },
            )
        if report.key in context.selected_asset_keys:
            yield write_report(study, study_store)

    return _feature_database


def _description(study: Study) -> str:
    """What the asset is, and the study's description: the UI shows no text for a group of assets."""
    own = (
        f"The database `{study.database_file}`: every image, label, prompt and their features, with digests and "
        "provenance. Refused while a split or a template is missing; the old file stays readable until the end."
    )
    return "\n\n".join(text for text in (own, study.description, study.readme) if text)


def _grouping(study: Study) -> list[tuple[str | None, int | None, int]]:
    """The facts about concepts that are in no prompt; words are not among them, since they belong to the templates."""
    return [(concept.group, concept.level, len(concept.synonyms)) for concept in study.vocabulary.concepts.words]


def _contents(study: Study, store: Store) -> dict[str, Any]:
    """Numbers of the file for plots, and every data set with its shape and dtype, as the UI shows columns."""
    columns = []

    def add(name: str, item: object) -> None:
        shape, dtype = getattr(item, "shape", None), getattr(item, "dtype", None)
        if shape is not None and dtype is not None:
            kind = "string" if dtype.kind == "O" else dtype
            description = DATASET_DESCRIPTIONS.get(name.rpartition("/")[2])
            columns.append(dg.TableColumn(f"/{name}", type=f"{kind} {tuple(shape)}", description=description))

    with open_database(store.database) as database:
        database.file.visititems(add)
        splits = database.splits if is_partitioned(study) else {}
        templates = database.templates
        return {
            **{f"rows_{name}": rows.stop - rows.start for name, rows in splits.items()},
            "templates": len(templates),
            "prompts": sum(len(template.texts) for template in templates.values()),
            "dagster/column_schema": dg.TableSchema(columns=columns),
        }
