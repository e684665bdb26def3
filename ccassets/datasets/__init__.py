"""Data sets: where images, labels and keys come from, and the manifest that fixes their order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ccassets.study.schema import FolderConfig, MedmnistConfig, Study, TableConfig
from ccassets.study.storage import Store

if TYPE_CHECKING:
    from ccassets.datasets.dataset_contract import Dataset


def open_dataset(study: Study, store: Store) -> Dataset:
    """The data set of a study, nothing of it read yet: `fetch` makes it readable.

    Listings are cached in the object; open it again to see files that came later.
    """
    config = study.dataset
    words = study.vocabulary.labels.words
    if isinstance(config, FolderConfig):
        from ccassets.datasets.folder import FolderDataset

        return FolderDataset(config, root=study.resolve(config.root), words=words)
    if isinstance(config, TableConfig):
        from ccassets.datasets.table import TableDataset

        file = study.resolve(config.file)
        root = study.resolve(config.root) if config.root else file.parent
        return TableDataset(config, file=file, root=root, words=words)
    if isinstance(config, MedmnistConfig):
        from ccassets.datasets.medmnist import MedmnistDataset

        root = study.resolve(config.root or "~/.medmnist")
        return MedmnistDataset(config, root=root, unpacked_root=store.downloads)
    from ccassets.datasets.phantom import PhantomDataset

    return PhantomDataset(config)
