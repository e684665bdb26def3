"""Automation: what runs by itself once its switch is turned on in the UI. Everything here ships switched off."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import date

import dagster as dg

from ccassets.errors import CcassetsError
from ccassets.files import own_error
from ccassets.orchestration.dagster_internals import Job
from ccassets.orchestration.jobs import JobRun, first_runs
from ccassets.orchestration.names import asset_key, job_name
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.status import StatusSnapshot, changed_encoder, changed_images, lost_assets
from ccassets.study.loading import load_study
from ccassets.study.schema import Study, StudyConfig
from ccassets.study.storage import Store

WEEKLY = "0 4 * * 0"
MONTHLY = "0 5 1 * *"
SOURCES_SECONDS = 300


def study_sensors(study: Study, jobs: Sequence[Job]) -> list[dg.SensorDefinition]:
    """The sensors that rebuild stale assets every night and watch the source files; `jobs` are those of the study."""
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
        _watch_sensor(study, jobs),
    ]


def study_schedules(study: Study) -> list[dg.ScheduleDefinition]:
    """The full rebuild, which a study needs only to have canonical batches, and the search for damaged bytes."""
    return [
        dg.ScheduleDefinition(
            name=job_name(study, "full_rebuild"),
            job_name=job_name(study, "rebuild_everything"),
            cron_schedule=WEEKLY,
            execution_timezone=study.timezone,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Encodes everything again every Sunday at 04:00, stale or not: hours for a large study.",
        ),
        dg.ScheduleDefinition(
            name=job_name(study, "deep_check"),
            job_name=job_name(study, "check_deeply"),
            cron_schedule=MONTHLY,
            execution_timezone=study.timezone,
            default_status=dg.DefaultScheduleStatus.STOPPED,
            description="Reads every byte of the database and its parts on the first of a month at 05:00; damage fails "
            "the run, which names the parts and what to do.",
        ),
    ]


def _watch_sensor(study: Study, jobs: Sequence[Job]) -> dg.SensorDefinition:
    @dg.sensor(
        name=job_name(study, "watch_sources"),
        minimum_interval_seconds=SOURCES_SECONDS,
        default_status=dg.DefaultSensorStatus.STOPPED,
        jobs=[job for job in jobs if not isinstance(job, dg.JobDefinition)],
        description=(
            "Looks at files every five minutes, by size and time: reads source files that changed, and images that "
            "could not be read before and now can, into their manifest or identity card, and makes again what was "
            "deleted or replaced by hand, a part, the database or a page. "
            "Makes no run while nothing changes."
        ),
    )
    def _watch(
        context: dg.SensorEvaluationContext, store: StoreResource, encoder: EncoderResource
    ) -> dg.SensorResult | dg.SkipReason:
        study_store = store.of(study)
        notices = [notice] if (notice := changed_study_file(study)) else []
        try:
            requests = list(_changed_sources(study, study_store, encoder))
            if not requests:
                assert context.repository_def is not None  # Of a sensor that Dagster evaluates.
                lost = lost_assets(StatusSnapshot(context.instance, context.repository_def), study, study_store)
                requests = _remake_requests(study, lost, context.instance)
                notices += [f"{name} is lost, {reason}: it is made again." for name, reason in lost.items()]
        except (CcassetsError, OSError) as error:
            refusal = own_error(error)
            if refusal is None:
                raise
            return dg.SkipReason(" ".join([*notices, str(refusal)]))
        for notice in notices:
            context.log.warning(notice)
        if not requests:
            return dg.SkipReason(" ".join(notices) or "Sources and files have not changed since they were last read.")
        return dg.SensorResult(run_requests=requests)

    return _watch


def _changed_sources(study: Study, store: Store, encoder: EncoderResource) -> Iterator[dg.RunRequest]:
    """A run for every source that differs from its record; the key allows one run per change, even if it fails."""
    changed = changed_encoder(study, store, encoder) | changed_images(study, store, study.splits)
    for name, version in changed.items():
        for run in first_runs([name]):
            yield _request(study, run, ":".join([*run.splits, version]))


def _remake_requests(study: Study, lost: Iterable[str], instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    """Runs that make lost assets again, upstream assets first: one run for each loss, and one a day if it fails."""
    requests = []
    for run in first_runs(lost):
        made = []
        for asset in run.assets:
            records = dg.AssetRecordsFilter(asset_key(study, asset), run.splits or None)
            made += [record.storage_id for record in instance.fetch_materializations(records, limit=1).records]
        requests.append(_request(study, run, f"{date.today()}:{':'.join(run.splits)}:{made}"))
    return requests


def _request(study: Study, run: JobRun, run_key: str) -> dg.RunRequest:
    return dg.RunRequest(
        run_key=run_key,
        job_name=job_name(study, run.job),
        asset_selection=[asset_key(study, asset) for asset in run.assets],
        partition_key=run.splits[0] if run.splits else None,
    )


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
