"""The assets `template_features/<template_id>`: encoded prompts. One step makes all; each becomes stale alone."""

from collections.abc import Iterator

import dagster as dg

from ccassets.extraction import extract_template
from ccassets.extraction.sources import recorded_card
from ccassets.orchestration.checks import template_checks
from ccassets.orchestration.names import asset_key, encoder_pool
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import hold_run_lock
from ccassets.orchestration.steps import make_each
from ccassets.orchestration.study_asset import ExtractionRun, asset_spec, study_asset
from ccassets.study.schema import PromptTemplate, Study


def template_features(study: Study) -> dg.AssetsDefinition:
    templates = study.vocabulary.templates()
    keys = {name: asset_key(study, "template_features", name) for name in templates}

    @study_asset(
        study,
        "template_features",
        specs=[_spec(study, name, template) for name, template in templates.items()],
        pool=encoder_pool(),
        checks=template_checks(study),
    )
    def _template_features(
        context: dg.AssetExecutionContext, config: ExtractionRun, store: StoreResource, encoder: EncoderResource
    ) -> Iterator[dg.MaterializeResult[None]]:
        study_store = store.of(study)

        def encode(name: str) -> dg.MaterializeResult[None]:
            done = extract_template(
                study,
                name,
                encoder=lambda: encoder.load(study, card, study_store),
                store=study_store,
                fresh=config.is_fresh(context),
            )
            return dg.MaterializeResult(
                asset_key=keys[name],
                data_version=dg.DataVersion(done.digest),
                metadata={
                    "prompts": done.prompts,
                    "encoded": done.encoded,
                    "origin": done.origin,
                    **({} if done.cosine_to_database is None else {"cosine_to_database": done.cosine_to_database}),
                    "seconds": round(done.seconds, 3),
                    "texts_hash": templates[name].texts_hash,
                    "part": dg.MetadataValue.path(done.part),
                    "texts": dg.MetadataValue.json(list(templates[name].prompts)),
                },
            )

        with hold_run_lock(study_store.runs, context.run.run_id):
            card = recorded_card(study, study_store)
            yield from make_each([name for name in keys if keys[name] in context.selected_asset_keys], encode)

    return _template_features


def _spec(study: Study, name: str, template: PromptTemplate) -> dg.AssetSpec:
    return asset_spec(
        study,
        f"template_features/{name}",
        deps=["encoder"],
        kinds={"hdf5"},
        version=(template.texts_hash, template.subjects),
        description=f"The {len(template.prompts)} prompts of this template, such as “{template.prompts[0]}”, encoded.",
    )
