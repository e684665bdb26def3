"""The asset `image_features`: the images of a split, encoded into parts; each image once, whatever it is called."""

from collections.abc import Sequence

import dagster as dg

from ccassets.extraction import extract_images
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.orchestration.checks import image_checks
from ccassets.orchestration.names import encoder_pool
from ccassets.orchestration.partitions import split_partitions
from ccassets.orchestration.resources import EncoderResource, StoreResource
from ccassets.orchestration.run_locks import hold_run_lock
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import ExtractionRun, SplitStep, data_version, study_asset
from ccassets.progress import StageTimes
from ccassets.study.schema import Study


def image_features(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "image_features",
        deps=["images", "encoder"],
        partitions=split_partitions(study),
        kinds={"hdf5", "pytorch"},
        pool=encoder_pool(),
        checks=image_checks(study),
        description=(
            "The global vector and the patch tokens of every image of a split. Only images that no part holds are "
            "encoded; a run that was stopped goes on at the last finished shard."
        ),
    )
    def _image_features(
        context: dg.AssetExecutionContext, config: ExtractionRun, store: StoreResource, encoder: EncoderResource
    ) -> SplitStep:
        study_store = store.of(study)

        def encode(splits: Sequence[str]) -> dg.MaterializeResult[None]:
            times = StageTimes()
            with hold_run_lock(study_store.runs, context.run.run_id):
                card = recorded_card(study, study_store)
                for split in splits:
                    recorded_manifest(study, split, study_store)
                extraction = extract_images(
                    study,
                    splits,
                    runner=encoder.choose_runner(study, card, study_store),
                    store=study_store,
                    fresh=config.is_fresh(context),
                    progress=log_progress(context, f"encode images of {', '.join(splits[:3])}", lambda: str(times)),
                    times=times,
                )
            for name in sorted(extraction.damaged):
                context.log.warning(f"The part {name} is not what was written; its images were encoded again.")
            return dg.MaterializeResult(
                data_version=data_version(extraction.digests),
                metadata={
                    "dagster/row_count": extraction.rows,
                    "encoded": extraction.encoded,
                    "adopted": extraction.adopted,
                    "seconds": round(extraction.seconds, 3),
                    "rows_per_second": round(extraction.rows_per_second, 2),
                    "encoder_busy": round(times.share(times.encoding), 3),
                    "waited_for_images": round(times.share(times.decoding), 3),
                    "waited_for_disk": round(times.share(times.writing), 3),
                    "bytes": extraction.encoded * 2 * card.dim * (1 + card.token_count),
                },
            )

        return encode

    return _image_features
