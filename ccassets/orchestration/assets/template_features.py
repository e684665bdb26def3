"""The assets `template_features/<template_id>`: one template's prompts, encoded; each template ages alone."""

import dagster as dg

from ccassets.extraction import extract_template
from ccassets.extraction.sources import recorded_card
from ccassets.orchestration.assets.common import GPU_POOL, ExtractionRun, asset_key, code_version, errors_as_sentences
from ccassets.orchestration.assets.conditions import REBUILD_STALE
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import alive
from ccassets.study.schema import PromptTemplate, Study


def template_features(study: Study, template: PromptTemplate) -> dg.AssetsDefinition:
    template_id = template.template_id

    @dg.asset(
        key=asset_key(study, "template_features", template_id),
        deps=[asset_key(study, "encoder")],
        group_name=study.name,
        automation_condition=REBUILD_STALE,
        kinds={"hdf5"},
        pool=GPU_POOL,
        code_version=code_version(template.texts_hash, template.subjects),
        description=f"The {len(template.prompts)} prompts of this template, such as “{template.prompts[0]}”, encoded.",
    )
    def _template_features(
        context: dg.AssetExecutionContext, config: ExtractionRun, store: StoreResource, encoder: EncoderResource
    ) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences(), alive(place.runs, context.run.run_id):
            card = recorded_card(study, place)
            done = extract_template(
                study, template_id, encoder=lambda: encoder.load(study, card, place), store=place, fresh=config.fresh
            )
        return dg.MaterializeResult(
            data_version=dg.DataVersion(done.digest),
            metadata={
                "prompts": done.prompts,
                "encoded": done.encoded,
                "origin": done.origin,
                "seconds": round(done.seconds, 3),
                "texts_hash": template.texts_hash,
                "part": place.relative(done.part),
                "texts": dg.MetadataValue.json(list(template.prompts)),
            },
        )

    return _template_features
