"""The asset `validation_report`: every check of the finished database, as JSON and as a page to read."""

import dagster as dg

from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.study_asset import study_asset
from ccassets.pages.report_page import write_validation_report
from ccassets.study.schema import Study

REPORT_VERSION = 1


def validation_report(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "validation_report",
        deps=["feature_database"],
        kinds={"html", "json"},
        version=(REPORT_VERSION,),
        description="What the validator found in the database: `validation.json`, and `validation.html` to read.",
    )
    def _validation_report(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        study_store = store.of(study)
        report = write_validation_report(study, study_store)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(report.digest),
            metadata={
                "ok": report.ok,
                "errors": sum(finding.severity == "error" for finding in report.findings),
                "warnings": sum(finding.severity == "warning" for finding in report.findings),
                "page": study_store.relative(report.page),
                "findings": dg.MetadataValue.md(report.markdown),
            },
        )

    return _validation_report
