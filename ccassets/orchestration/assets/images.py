"""The asset `images`: every image of a split read once, into a manifest of keys, labels, groups and image digests."""

import dagster as dg

from ccassets.extraction import read_images
from ccassets.extraction.sources import fetched
from ccassets.orchestration.assets.common import (
    asset_key,
    code_version,
    combined,
    errors_as_sentences,
    logged,
    split_partitions,
    splits_of,
)
from ccassets.orchestration.assets.conditions import READ_SOURCES
from ccassets.orchestration.resources import StoreResource
from ccassets.pages.contact_sheet import contact_sheet
from ccassets.study.schema import Study


def images(study: Study) -> dg.AssetsDefinition:
    @dg.asset(
        key=asset_key(study, "images"),
        partitions_def=split_partitions(study),
        group_name=study.name,
        automation_condition=READ_SOURCES,
        kinds={"parquet", study.dataset.kind},
        code_version=code_version(study.dataset, study.extraction.limit, study.extraction.on_bad_image),
        description=(
            "Fetches or finds the images of a split and decodes each of them once: a manifest with key, label, "
            "group and image digest of every row. Images that did not change since are not decoded again."
        ),
    )
    def _images(context: dg.AssetExecutionContext, store: StoreResource) -> dg.MaterializeResult[None]:
        place = store.of(study)
        with errors_as_sentences():
            dataset = fetched(study, place, logged(context, f"fetch {study.dataset.kind}"))
            manifests = {
                split: read_images(
                    study, split, store=place, dataset=dataset, progress=logged(context, f"read images of {split}")
                )
                for split in splits_of(context, study)
            }
        samples = next(iter(manifests.values()))
        skipped = [f"{key}: {reason}" for manifest in manifests.values() for key, reason in manifest.skipped]
        return dg.MaterializeResult(
            data_version=dg.DataVersion(combined({split: manifest.digest for split, manifest in manifests.items()})),
            metadata={
                "dagster/row_count": sum(len(manifest.keys) for manifest in manifests.values()),
                "blank": sum(int(manifest.blank.sum()) for manifest in manifests.values()),
                "skipped": len(skipped),
                **({"skipped_images": skipped} if skipped else {}),
                "manifest": store.of(study).relative(place.manifest(samples.split)),
                "samples": dg.MetadataValue.md(contact_sheet(dataset, samples)),
            },
        )

    return _images
