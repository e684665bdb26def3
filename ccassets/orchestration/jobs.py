"""The jobs of a study: the steps of a build, each on its own, so that no run mixes one split with the whole."""

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from ccassets.analysis.results import available_analyses, unavailable_analyses
from ccassets.orchestration.assets.common import asset_key, errors_as_sentences
from ccassets.study.schema import Study

Job = dg.JobDefinition | UnresolvedAssetJobDefinition


def study_jobs(study: Study) -> list[Job]:
    """`read_images` and `extract_images` run split by split; the others, once, are `read_encoder`, `extract_text`,
    `build_database` and `analyse`.
    """
    templates = [asset_key(study, "template_features", name) for name in study.vocabulary.templates()]
    jobs = {
        "read_images": ([asset_key(study, "images")], "Read the images of a split into its manifest."),
        "read_encoder": ([asset_key(study, "encoder")], "Find or fetch the weights and record their identity."),
        "extract_text": (templates, "Encode every template."),
        "extract_images": ([asset_key(study, "image_features")], "Encode the images of a split."),
        "build_database": (
            [asset_key(study, "feature_database"), asset_key(study, "validation_report")],
            "Assemble the database from the parts and validate it.",
        ),
        "analyse": (
            [asset_key(study, name) for name in available_analyses(study)],
            " ".join(["Analyse the database and draw the concept atlas.", *_left_out(study)]),
        ),
    }
    return [
        _rebuild_everything(study),
        *(
            dg.define_asset_job(
                job_name(study, name),
                selection=dg.AssetSelection.assets(*keys),
                description=description,
            )
            for name, (keys, description) in jobs.items()
            if keys
        ),
    ]


def _left_out(study: Study) -> list[str]:
    return [f"No {name}: {reason}" for name, reason in unavailable_analyses(study).items()]


def _rebuild_everything(study: Study) -> dg.JobDefinition:
    @dg.op(name=job_name(study, "rebuild"), description="Builds the study afresh, run by run.")
    def _rebuild(context: dg.OpExecutionContext) -> None:
        # Runs of splits and of the whole cannot be one job: this one starts them in their order.
        from ccassets.orchestration.build import Build

        with errors_as_sentences():
            done = Build(study, context.instance, fresh=True, started_by=context.job_name).run(None)
        context.log.info(f"materialized {', '.join(done.materialized)}")

    @dg.job(name=job_name(study, "rebuild_everything"), description="Encode everything again, stale or not.")
    def _job() -> None:
        _rebuild()

    return _job


def job_name(study: Study, name: str) -> str:
    return f"{study.name}__{name}"
