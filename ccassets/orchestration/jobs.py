"""The jobs of a study: the steps of a build, each on its own, so that no run mixes one split with the whole."""

import dagster as dg

from ccassets.analysis.results import available_analyses, unavailable_analyses
from ccassets.extraction.damage_tracing import check_deeply
from ccassets.findings import has_errors
from ccassets.orchestration.builder import Build
from ccassets.orchestration.checks import describe_findings
from ccassets.orchestration.dagster_internals import Job
from ccassets.orchestration.names import asset_key, job_name
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.steps import errors_as_failures
from ccassets.study.schema import Study


def study_jobs(study: Study) -> list[Job]:
    """`read_images` and `extract_images` run split by split; the others, once, are `read_encoder`, `extract_text`,
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
        _rebuild_everything(study),
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


def _rebuild_everything(study: Study) -> dg.JobDefinition:
    @dg.op(name=job_name(study, "rebuild"), description="Builds the study afresh, run by run.")
    def _rebuild(context: dg.OpExecutionContext, store: StoreResource, encoder: EncoderResource) -> None:
        # Runs of splits and of the whole cannot be one job: this one starts them in their order.
        with errors_as_failures():
            result = Build(
                study,
                context.repository_def,
                context.instance,
                store=store.of(study),
                encoder=encoder,
                fresh=True,
                started_by=context.job_name,
            ).run(None)
        context.log.info(f"materialized {', '.join(result.materialized)}")

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
