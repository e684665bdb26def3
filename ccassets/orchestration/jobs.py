"""The jobs of a study: the steps of a build, each on its own, so that no run mixes one split with the whole.

Assets are named here as everywhere outside Dagster: without the study, and with their split as `asset:split`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import dagster as dg

from ccassets.analysis.results import RESULT_FILES, available_analyses, unavailable_analyses
from ccassets.extraction.damage_tracing import check_deeply
from ccassets.findings import has_errors
from ccassets.orchestration.checks import describe_findings
from ccassets.orchestration.dagster_internals import Job, start_backfill
from ccassets.orchestration.names import (
    FIRST_PARTITION,
    FRESH,
    LAST_PARTITION,
    PARTITION,
    STARTED_BY,
    asset_key,
    job_name,
)
from ccassets.orchestration.partitions import is_partitioned
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import errors_as_failures
from ccassets.study.schema import Study

_STAGES = (
    {"encoder": "read_encoder", "images": "read_images"},
    {"template_features": "extract_text", "image_features": "extract_images"},
    {"feature_database": "build_database", "validation_report": "build_database"},
    dict.fromkeys(RESULT_FILES, "analyse"),
)
"""The job that makes an asset, by the first part of its name; what is made of others stands in a later stage."""


@dataclass(frozen=True)
class JobRun:
    """A run of one job of a study. It makes assets of one split, of neighbouring splits, or of the whole study."""

    job: str
    splits: Sequence[str]
    assets: Sequence[str]

    @property
    def tags(self) -> dict[str, str]:
        """The tags by which Dagster knows the splits."""
        if len(self.splits) > 1:
            return {FIRST_PARTITION: self.splits[0], LAST_PARTITION: self.splits[-1]}
        return {PARTITION: self.splits[0]} if self.splits else {}


def asset_names(study: Study) -> list[str]:
    """The assets of a study, split by split, in the order in which a build makes them."""
    splits = [f":{split}" for split in study.splits] if is_partitioned(study) else [""]
    templates = [f"template_features/{name}" for name in study.vocabulary.templates()]
    images, features = ([f"{asset}{split}" for split in splits] for asset in ("images", "image_features"))
    database = ["feature_database", "validation_report"]
    return ["encoder", *images, *templates, *features, *database, *available_analyses(study)]


def first_runs(names: Iterable[str]) -> list[JobRun]:
    """The runs that make assets: those of the first stage that has any, since later stages may need it."""
    for stage in _STAGES:
        runs: dict[tuple[str, str | None], list[str]] = {}
        for name in names:
            asset, _, split = name.partition(":")
            if job := stage.get(asset.partition("/")[0]):
                runs.setdefault((job, split or None), []).append(asset)
        if runs:
            return [JobRun(job, [split] if split else [], assets) for (job, split), assets in runs.items()]
    return []


def join_splits(study: Study, runs: Iterable[JobRun]) -> list[JobRun]:
    """Join the runs of a job for neighbouring splits, so that one run loads the model once; keep all others."""
    joined: list[JobRun] = []
    for run in runs:
        last = joined[-1] if joined else run
        splits = [*last.splits, *run.splits]
        first = study.splits.index(splits[0]) if splits else 0
        if joined and last.job == run.job and splits == list(study.splits[first : first + len(splits)]):
            joined[-1] = replace(run, splits=splits)
        else:
            joined.append(run)
    return joined


def study_jobs(study: Study, assets: Sequence[dg.AssetsDefinition]) -> list[Job]:
    """The jobs of a study with these assets.

    `read_images` and `extract_images` run split by split; the others, once, are `read_encoder`, `extract_text`,
    `build_database` and `analyse`.
    """
    templates = [f"template_features/{name}" for name in study.vocabulary.templates()]
    database = ["feature_database", "validation_report"]
    analysis = " ".join(["Analyse the database and draw the concept atlas.", *_left_out(study)])
    jobs = {
        "read_images": (["images"], "Read the images of a split into its manifest."),
        "read_encoder": (["encoder"], "Find or fetch the weights and record their identity."),
        "extract_text": (templates, "Encode every template."),
        "extract_images": (["image_features"], "Encode the images of a split."),
        "build_database": (database, "Assemble the database from the parts and validate it."),
        "analyse": (available_analyses(study), analysis),
    }
    return [
        _rebuild_everything(study, assets),
        _check_deeply(study),
        *(
            dg.define_asset_job(
                job_name(study, name),
                selection=dg.AssetSelection.assets(*(asset_key(study, asset) for asset in assets)),
                description=description,
            )
            for name, (assets, description) in jobs.items()
            if assets
        ),
    ]


def _left_out(study: Study) -> list[str]:
    return [f"No {name}: {reason}" for name, reason in unavailable_analyses(study).items()]


def _rebuild_everything(study: Study, assets: Sequence[dg.AssetsDefinition]) -> dg.JobDefinition:
    @dg.op(name=job_name(study, "rebuild"), description="Makes Dagster materialize everything again, stage by stage.")
    def _rebuild(context: dg.OpExecutionContext) -> None:
        # Runs of splits and of the whole cannot be one job: a backfill has them in their order, with all that is
        # Dagster's and the project's, and shows them together.
        tags = {FRESH: "true", STARTED_BY: context.run.job_name}
        backfill = start_backfill(context.instance, assets, title=f"Rebuild everything of {study.name}", tags=tags)
        context.log.info(f"The backfill {backfill} encodes everything again; the daemon starts its runs.")

    @dg.job(name=job_name(study, "rebuild_everything"), description="Encode everything again, stale or not.")
    def _job() -> None:
        _rebuild()

    return _job


def _check_deeply(study: Study) -> dg.JobDefinition:
    @dg.op(name=job_name(study, "find_damage"), description="Compares every stored byte with its recorded digest.")
    def _find(context: dg.OpExecutionContext, store: StoreResource) -> None:
        with errors_as_failures():
            findings = check_deeply(study, store.of(study))
        if has_errors(findings):
            raise dg.Failure(describe_findings(findings), allow_retries=False)
        context.log.info(describe_findings(findings) or "Every byte is as it was written.")

    description = "Find bytes of the database and the parts that are not those that were written."

    @dg.job(name=job_name(study, "check_deeply"), description=description)
    def _job() -> None:
        _find()

    return _job
