"""The asset `encoder`: the weights, found or downloaded and verified, and the identity card."""

import dagster as dg

from ccassets.extraction import identify_encoder
from ccassets.orchestration.conditions import read_sources
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.study_asset import study_asset
from ccassets.study.schema import Study


def encoder(study: Study) -> dg.AssetsDefinition:
    strict = study.extraction if study.extraction.strict else None

    @study_asset(
        study,
        "encoder",
        condition=read_sources,
        kinds={"pytorch", study.encoder.kind},
        version=(study.encoder, strict),
        description=(
            "Finds or fetches the encoder's weights, verifies that they fit, and records its identity: a digest of "
            "everything that determines numbers. Features belong to an identity."
        ),
    )
    def _encoder(
        context: dg.AssetExecutionContext, store: StoreResource, encoder: EncoderResource
    ) -> dg.MaterializeResult[None]:
        card = identify_encoder(study, store=store.of(study), device=encoder.device, hf_token=encoder.hf_token)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(card.identity),
            metadata={
                "identity": card.identity,
                "dim": card.dim,
                "token_count": card.token_count,
                "image_size": card.image_size,
                "dtype": card.dtype,
                "compiled": card.compiled,
                "weights_digest": card.weights_digest,
                "recorded": dg.MetadataValue.json(dict(card.recorded)),
            },
        )

    return _encoder
