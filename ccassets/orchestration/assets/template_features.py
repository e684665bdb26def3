"""The assets `template_features/<template_id>`: one template's prompts, encoded; each template ages alone."""

import dagster as dg

from ccassets.extraction import extract_template
from ccassets.extraction.sources import recorded_card
from ccassets.orchestration.names import ENCODER_POOL
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import hold_run_lock
from ccassets.orchestration.study_asset import ExtractionRun, study_asset
from ccassets.study.schema import PromptTemplate, Study


def template_features(study: Study, template: PromptTemplate) -> dg.AssetsDefinition:
    template_id = template.template_id

    @study_asset(
        study,
        f"template_features/{template_id}",
        deps=["encoder"],
        kinds={"hdf5"},
        pool=ENCODER_POOL,
        version=(template.texts_hash, template.subjects),
        description=f"The {len(template.prompts)} prompts of this template, such as “{template.prompts[0]}”, encoded.",
    )
    def _template_features(
        context: dg.AssetExecutionContext, config: ExtractionRun, store: StoreResource, encoder: EncoderResource
    ) -> dg.MaterializeResult[None]:
        study_store = store.of(study)
        with hold_run_lock(study_store.runs, context.run.run_id):
            card = recorded_card(study, study_store)
            done = extract_template(
                study,
                template_id,
                encoder=lambda: encoder.load(study, card, study_store),
                store=study_store,
                fresh=config.is_fresh(context),
            )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(done.digest),
            metadata={
                "prompts": done.prompts,
                "encoded": done.encoded,
                "origin": done.origin,
                **({} if done.cosine_to_database is None else {"cosine_to_database": done.cosine_to_database}),
                "seconds": round(done.seconds, 3),
                "texts_hash": template.texts_hash,
                "part": dg.MetadataValue.path(done.part),
                "texts": dg.MetadataValue.json(list(template.prompts)),
            },
        )

    return _template_features
