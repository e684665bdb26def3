"""FeatureDatabaseComponent, the Dagster component of a study, and the definitions of studies with their resources."""

from __future__ import annotations

import warnings

import dagster as dg
from pydantic import BaseModel

from ccassets.orchestration.assets import study_assets
from ccassets.orchestration.automation import study_schedules, study_sensors
from ccassets.orchestration.checks import study_checks
from ccassets.orchestration.jobs import study_jobs
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.study.schema import Study, StudyConfig


class FeatureDatabaseComponent(dg.Component):
    """A study in Dagster: images and encoder, features of templates and splits, the database and its report.

    Its attributes are those of a study file. The location that loads it provides the resources `store` and
    `encoder`, as `ccassets.definitions` does.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self.study = study

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Name the model of the attributes, which is that of a study file.

        Returns:
            The pydantic model that Dagster reads the YAML's `attributes` with.
        """
        return StudyConfig

    @classmethod
    def load(cls, attributes: BaseModel | None, context: dg.ComponentLoadContext) -> FeatureDatabaseComponent:
        """Make the component of a study file.

        Args:
            attributes: The attributes, read by the model of `get_model_cls`.
            context: Dagster's context; its `path` is the folder of the study, which names it.

        Returns:
            The component.

        Raises:
            StudyError: The folder's name cannot be that of a study.
        """
        assert isinstance(attributes, StudyConfig)
        return cls(Study.from_config(attributes, folder=context.path))

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Make the definitions of the study, as Dagster asks a component for them.

        Args:
            context: Dagster's context; it is not read.

        Returns:
            What `definitions` returns.
        """
        return self.definitions()

    def definitions(self) -> dg.Definitions:
        """Make the definitions of the study.

        Returns:
            Its assets, checks, jobs, schedules and sensors, without resources.
        """
        with warnings.catch_warnings():
            # Sensors that run in the code server are in beta; Dagster is pinned to one minor version for that reason.
            warnings.simplefilter("ignore", dg.BetaWarning)
            assets = study_assets(self.study)
            jobs = study_jobs(self.study, assets)
            return dg.Definitions(
                assets=assets,
                asset_checks=study_checks(self.study),
                jobs=jobs,
                schedules=study_schedules(self.study),
                sensors=study_sensors(self.study, jobs),
            )


FeatureDatabase = FeatureDatabaseComponent
"""The name that the `type:` of a study's YAML has, under `ccassets`."""


def definitions_of(
    *studies: Study, store: StoreResource | None = None, encoder: EncoderResource | None = None
) -> dg.Definitions:
    """Give the definitions of studies with their resources, as the code location of `ccassets ui` has them.

    Args:
        studies: The studies.
        store: Where their files lie, by default below `CCASSETS_STORAGE`.
        encoder: Where encoders run, by default on this machine's devices.

    Returns:
        Assets, checks, jobs, schedules, sensors, and the resources `store` and `encoder`. The steps of a run share its
        process, so that the model is loaded once.
    """
    return dg.Definitions.merge(
        *(FeatureDatabaseComponent(study).definitions() for study in studies),
        dg.Definitions(
            resources={"store": store or StoreResource(), "encoder": encoder or EncoderResource()},
            executor=dg.in_process_executor,
        ),
    )
