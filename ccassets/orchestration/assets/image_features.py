"""The asset `image_features`: the images of a split, encoded into parts; each image once, whatever it is called."""

import dagster as dg

from ccassets.extraction import extract_splits
from ccassets.extraction.image_shards import StageTimes
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.orchestration.names import ENCODER_POOL
from ccassets.orchestration.partitions import split_partitions, splits_of
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import hold_run_lock
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ExtractionRun, data_version, study_asset
from ccassets.study.schema import Study


def image_features(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "image_features",
        deps=["images", "encoder"],
        partitions=split_partitions(study),
        kinds={"hdf5", "pytorch"},
        pool=ENCODER_POOL,
        description=(
            "The global vector and the patch tokens of every image of a split. Only images that no part holds are "
            "encoded; a run that was stopped goes on at the last finished shard."
        ),
    )
    def _image_features(
        context: dg.AssetExecutionContext, config: ExtractionRun, store: StoreResource, encoder: EncoderResource
    ) -> dg.MaterializeResult[None]:
        study_store = store.of(study)
        with hold_run_lock(study_store.runs, context.run.run_id):
            card = recorded_card(study, study_store)
            splits = splits_of(context, study)
            for split in splits:
                recorded_manifest(study, split, study_store)
            times = StageTimes()
            done = extract_splits(
                study,
                splits,
                runner=encoder.choose_runner(study, card, study_store),
                store=study_store,
                fresh=config.fresh,
                progress=log_progress(context, f"encode images of {', '.join(splits[:3])}", lambda: str(times)),
                times=times,
            )
        for name in sorted({name for part in done for name in part.damaged}):
            context.log.warning(f"The part {name} is not what was written; its images were encoded again.")
        encoded = sum(part.encoded for part in done)
        seconds = sum(part.seconds for part in done)
        return dg.MaterializeResult(
            data_version=data_version({part.split: part.digest for part in done}),
            metadata={
                "dagster/row_count": sum(part.rows for part in done),
                "encoded": encoded,
                "adopted": sum(part.adopted for part in done),
                "seconds": round(seconds, 3),
                "rows_per_second": round(encoded / seconds, 2) if encoded else 0.0,
                "encoder_busy": round(times.share(times.encoding), 3),
                "waited_for_images": round(times.share(times.decoding), 3),
                "waited_for_disk": round(times.share(times.writing), 3),
                "bytes": encoded * 2 * card.dim * (1 + card.token_count),
            },
        )

    return _image_features
