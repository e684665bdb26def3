"""The asset `images`: every image of a split read once, into a manifest of keys, labels, groups and image digests."""

from collections.abc import Sequence
from dataclasses import asdict

import dagster as dg

from ccassets.datasets.manifest import Manifest, compare_manifests
from ccassets.extraction import read_images
from ccassets.extraction.sources import fetch_dataset
from ccassets.orchestration.conditions import read_sources
from ccassets.orchestration.partitions import split_partitions
from ccassets.orchestration.resources import StoreResource
from ccassets.orchestration.steps import log_progress
from ccassets.orchestration.study_asset import SplitStep, data_version, study_asset
from ccassets.pages.contact_sheet import contact_sheet
from ccassets.study.schema import Study


def images(study: Study) -> dg.AssetsDefinition:
    @study_asset(
        study,
        "images",
        partitions=split_partitions(study),
        condition=read_sources,
        kinds={"parquet", study.dataset.kind},
        version=(study.dataset, study.extraction.limit, study.extraction.on_bad_image),
        description=(
            "Fetches or finds the images of a split and decodes each of them once: a manifest with key, label, "
            "group and image digest of every row. Images that did not change since are not decoded again."
        ),
    )
    def _images(context: dg.AssetExecutionContext, store: StoreResource) -> SplitStep:
        study_store = store.of(study)
        dataset = fetch_dataset(study, study_store, log_progress(context, f"fetch {study.dataset.kind}"))

        def read(splits: Sequence[str]) -> dg.MaterializeResult[None]:
            paths = {split: study_store.manifest(split) for split in splits}
            earlier = {split: Manifest.load(path) if path.exists() else None for split, path in paths.items()}
            manifests = {
                split: read_images(
                    study,
                    split,
                    store=study_store,
                    dataset=dataset,
                    progress=log_progress(context, f"read images of {split}"),
                )
                for split in paths
            }
            samples = next(iter(manifests.values()))
            changes = [asdict(compare_manifests(earlier[split], manifest)) for split, manifest in manifests.items()]
            skipped = [f"{key}: {reason}" for manifest in manifests.values() for key, reason in manifest.skipped]
            return dg.MaterializeResult(
                data_version=data_version({split: manifest.digest for split, manifest in manifests.items()}),
                metadata={
                    "dagster/row_count": sum(len(manifest.keys) for manifest in manifests.values()),
                    **{name: sum(change[name] for change in changes) for name in changes[0]},
                    "blank": sum(int(manifest.blank.sum()) for manifest in manifests.values()),
                    "skipped": len(skipped),
                    **({"skipped_images": skipped} if skipped else {}),
                    "manifest": dg.MetadataValue.path(paths[samples.split]),
                    "samples": dg.MetadataValue.md(contact_sheet(dataset, samples)),
                },
            )

        return read

    return _images
