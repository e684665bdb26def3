"""The asset `validation_report`: every check of the finished database, as JSON and as a page to read."""

import dagster as dg

from ccassets.orchestration.assets.common import asset_key, code_version, errors_as_sentences
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import StoreResource
from ccassets.pages.report_page import write_validation_report
from ccassets.study.schema import Study

REPORT_VERSION = 1


def validation_report(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "validation_report"),
        deps=[asset_key(study, "feature_database")],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"html", "json"},
        code_version=code_version(REPORT_VERSION),
        description="What the validator found in the database: `validation.json`, and `validation.html` to read.",
    )
    def _validation_report(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences():
            report = write_validation_report(study, place)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(report.digest),
            metadata={
                "ok": report.ok,
                "errors": sum(finding.severity == "error" for finding in report.findings),
                "warnings": sum(finding.severity == "warning" for finding in report.findings),
                "page": place.relative(report.page),
                "findings": dg.MetadataValue.md(report.markdown),
            },
        )

    return _validation_report
