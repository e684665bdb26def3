"""The asset `validation_report`: every check of the finished database, as JSON and as a page to read.

It is made in the step of the database. A step of its own would not run after failed checks of the database, when the
report is needed most.
"""

import dagster as dg

from ccassets.findings import count_errors
from ccassets.orchestration.conditions import report_stale
from ccassets.orchestration.names import asset_key
from ccassets.orchestration.study_asset import asset_spec
from ccassets.study.schema import Study
from ccassets.study.storage import Store

REPORT_VERSION = 1


def validation_report(study: Study) -> dg.AssetSpec:
    return asset_spec(
        study,
        "validation_report",
        deps=["feature_database"],
        condition=report_stale,
        kinds={"html", "json"},
        version=(REPORT_VERSION,),
        description="What the validator found in the database: `validation.json`, and `validation.html` to read.",
    )


def write_report(study: Study, store: Store) -> dg.MaterializeResult[None]:
    """Validate the database, write the report, and give what Dagster records of it."""
    from ccassets.pages.report_page import write_validation_report

    report = write_validation_report(study, store)
    errors = count_errors(report.findings)
    return dg.MaterializeResult(
        asset_key=asset_key(study, "validation_report"),
        data_version=dg.DataVersion(report.digest),
        metadata={
            "ok": report.ok,
            "errors": errors,
            "warnings": len(report.findings) - errors,
            "page": dg.MetadataValue.path(report.page.as_uri()),
            "findings": dg.MetadataValue.md(report.markdown),
        },
    )
