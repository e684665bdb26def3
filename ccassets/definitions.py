"""The code location: the studies that ship and the user's own, with the resources that they share."""

from __future__ import annotations

import dagster as dg

from ccassets.orchestration.component import definitions_of
from ccassets.study.loading import load_studies


@dg.definitions
def defs() -> dg.Definitions:
    studies, errors = load_studies()
    for error in errors:
        dg.get_dagster_logger().error(f"A study is left out: {error}")
    return definitions_of(*studies)
