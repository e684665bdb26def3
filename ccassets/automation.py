"""Automation: what runs by itself once its switch is turned on in the UI. Everything here ships switched off."""

import hashlib
from collections.abc import Iterator, Sequence

import dagster as dg

from ccassets.assets.common import is_partitioned
from ccassets.errors import CcassetsError
from ccassets.extraction.sources import changed_splits, current_identity, recorded_identity
from ccassets.jobs import Job, job_name
from ccassets.resources import EncoderResource, StoreResource
from ccassets.storage import Store
from ccassets.study import Study, StudyConfig, load_study

WEEKLY = "0 4 * * 0"
SOURCES_SECONDS = 300


def study_sensors(study: Study, jobs: Sequence[Job]) -> list[dg.SensorDefinition]:
    """The nightly re-extraction of what is stale, and the watch over the source files; `jobs` are the study's."""
    return [
        dg.AutomationConditionSensorDefinition(
            name=job_name(study, "rebuild_stale"),
            target=dg.AssetSelection.key_prefixes(study.name),
            default_status=dg.DefaultSensorStatus.STOPPED,
            use_user_code_server=True,  # Where our own condition is evaluated.
            description=(
                "Reads the sources again every night at 03:00 and rebuilds only what is stale, at any hour: an edited "
                "template costs its prompts, a changed image costs that image, equal sources cost nothing."
            ),
        ),
        _source_sensor(study, jobs),
    ]


def study_schedules(study: Study) -> list[dg.ScheduleDefinition]:
    """The full rebuild: everything encoded again, which a study needs only to have canonical batches."""
    return [
        dg.ScheduleDefinition(
            name=job_name(study, "full_rebuild"),
            job_name=job_name(study, "rebuild_everything"),
            cron_schedule=WEEKLY,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Encodes everything again every Sunday at 04:00, stale or not: hours for a large study.",
        )
    ]


def _source_sensor(study: Study, jobs: Sequence[Job]) -> dg.SensorDefinition:
    read_images, read_encoder = job_name(study, "read_images"), job_name(study, "read_encoder")

    @dg.sensor(
        name=job_name(study, "watch_sources"),
        minimum_interval_seconds=SOURCES_SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        jobs=[job for job in jobs if job.name in {read_images, read_encoder}],
        description=(
            "Looks at the source files every five minutes, by size and time, and reads those that changed into their "
            "manifest or identity card. Makes no run while nothing changes."
        ),
    )
    def _watch(store: StoreResource, encoder: EncoderResource) -> dg.SensorResult | dg.SkipReason:
        notice = changed_study_file(study)
        try:
            requests = list(_requests(study, store.of(study), encoder))
        except CcassetsError as error:
            return dg.SkipReason(str(error))
        if not requests:
            return dg.SkipReason(notice or "The sources are what they were when they were last read.")
        return dg.SensorResult(run_requests=requests)

    return _watch


def _requests(study: Study, place: Store, encoder: EncoderResource) -> Iterator[dg.RunRequest]:
    """A run for every source that is not what was recorded; its key makes it one run per change, also if it fails."""
    identity = current_identity(study, place, device=encoder.device, hf_token=encoder.hf_token)
    if identity != recorded_identity(place):
        yield dg.RunRequest(run_key=identity, job_name=job_name(study, "read_encoder"))
    sources = changed_splits(study, place, study.splits)
    if not sources:
        return
    if is_partitioned(study):
        keys: dict[str | None, str] = {split: f"{split}:{digest}" for split, digest in sources.items()}
    else:
        keys = {None: hashlib.sha256(repr(sources).encode()).hexdigest()}
    for split, run_key in keys.items():
        yield dg.RunRequest(run_key=run_key, job_name=job_name(study, "read_images"), partition_key=split)


def changed_study_file(study: Study) -> str | None:
    """A sentence when the study file on disk is not the one that was loaded; a study is code and takes a reload."""
    try:
        now = load_study(study.folder)
    except CcassetsError as error:
        return f"The study file changed and cannot be loaded: {error}"
    fields = list(StudyConfig.model_fields)
    if all(getattr(now, name) == getattr(study, name) for name in fields):
        return None
    return f"The study file of {study.name} changed since it was loaded: reload the definitions to use it."
