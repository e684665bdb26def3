"""Data sets: where images, labels and keys come from, and the manifest that fixes their order."""

from __future__ import annotations

from ccassets.datasets.dataset_contract import Dataset, Rows
from ccassets.datasets.folder import FolderDataset
from ccassets.datasets.huggingface import HuggingfaceDataset
from ccassets.datasets.manifest import Manifest, read_image, read_manifest
from ccassets.datasets.medmnist import MedmnistDataset
from ccassets.datasets.phantom import PhantomAnnotations, PhantomDataset
from ccassets.datasets.revised_rows import RevisedDataset
from ccassets.study.schema import (
    FolderConfig,
    HuggingfaceConfig,
    MedmnistConfig,
    PhantomDatasetConfig,
    Study,
    TableConfig,
)
from ccassets.study.storage import Store

__all__ = [
    "Dataset",
    "Manifest",
    "PhantomAnnotations",
    "PhantomDataset",
    "PhantomDatasetConfig",
    "Rows",
    "open_dataset",
    "read_image",
    "read_manifest",
]


def open_dataset(study: Study, store: Store) -> Dataset:
    """Open the data set of a study; nothing of it is read yet, `fetch` makes it readable.

    Listings are cached in the object; open it again to see files that came later.

    Args:
        study: The study; relative paths in it start at its folder.
        store: Where downloaded archives are unpacked.

    Returns:
        The data set of the kind that the study names, with the rows that the study takes and the labels it corrects.
    """
    config = study.dataset
    dataset = _open_source(study, store)
    if config.subset is None and config.labels_override is None:
        return dataset
    return RevisedDataset(
        dataset,
        study.splits,
        study.vocabulary.labels.words,
        subset=study.resolve(config.subset) if config.subset else None,
        labels_override=study.resolve(config.labels_override) if config.labels_override else None,
    )


def _open_source(study: Study, store: Store) -> Dataset:
    config = study.dataset
    words = study.vocabulary.labels.words
    if isinstance(config, FolderConfig):
        return FolderDataset(config, root=study.resolve(config.root), words=words)
    if isinstance(config, TableConfig):
        from ccassets.datasets.table import TableDataset  # Brings pyarrow, which nothing else needs before a manifest.

        file = study.resolve(config.file)
        root = study.resolve(config.root) if config.root else file.parent
        return TableDataset(config, file=file, root=root, words=words)
    if isinstance(config, MedmnistConfig):
        root = study.resolve(config.root or "~/.medmnist")
        return MedmnistDataset(config, root=root, unpacked_root=store.downloads)
    if isinstance(config, HuggingfaceConfig):
        path = study.resolve(config.path)
        # A hub id is `owner/name`: anything else is a path, whether something is there or not.
        local = path if path.exists() or config.path.startswith((".", "/", "~")) or config.path.count("/") > 1 else None
        return HuggingfaceDataset(config, local=local, cache=store.downloads / "huggingface", words=words)
    return PhantomDataset(config)
