"""The code location: every study that ships or lies under `CCASSETS_STUDIES`, with the location-wide resources."""

from __future__ import annotations

import dagster as dg

from ccassets.orchestration.component import FeatureDatabaseComponent
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.study.loading import load_study, study_files
from ccassets.study.schema import Study


def definitions_of(*studies: Study) -> dg.Definitions:
    """Definitions of the given studies. Steps run in the process of their run: the model is loaded once."""
    return dg.Definitions.merge(
        *(FeatureDatabaseComponent(study).definitions() for study in studies),
        dg.Definitions(
            resources={"store": StoreResource(), "encoder": EncoderResource()},
            executor=dg.in_process_executor,
        ),
    )


@dg.definitions
def defs() -> dg.Definitions:
    return definitions_of(*(load_study(path) for path in study_files().values()))
