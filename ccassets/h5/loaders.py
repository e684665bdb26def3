"""Data loaders of (images, labels) batches: building and reading them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from ccassets.h5.exceptions import ArgumentError
from ccassets.h5.prompts import PromptConfig, get_bloodmnist_prompts

if TYPE_CHECKING:
    import torch
    from torch.utils.data import DataLoader, Dataset


@dataclass
class DatasetBundle:
    """The three splits of a data set, each a map-style torch data set of (image, label) items.

    Attributes:
        train: The training split.
        val: The validation split.
        test: The test split.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]


def build_dataloader(
    dataset: Dataset[Any], *, batch_size: int = 64, shuffle: bool = False, num_workers: int = 0
) -> DataLoader[Any]:
    """Build a loader of (images, labels) batches in the data set's own order.

    Unlike the original: `shuffle=True` is refused, since rows are stored in the data set's own order; values outside
    0…1 are no longer clamped (a normalised image became black), but refused; 8-bit images are always divided by
    255, dark ones too; several labels of one image, or labels of some images only, are refused.

    Args:
        dataset: Items are (image, label), or an image alone in a data set without labels. Images are floats in 0…1 or
            whole numbers in 0…255.
        batch_size: B, the images of a batch.
        shuffle: Must be False.
        num_workers: Worker processes of the loader.

    Returns:
        A loader of images (B, …) float32 in 0…1 and labels (B, 1) int64; labels are 0 in a data set without, and the
        database records that it has none.

    Raises:
        ArgumentError: `shuffle` is set; while loading, an image or label is not as described.
    """
    import torch
    from torch.utils.data import DataLoader

    if shuffle:
        raise ArgumentError(
            "shuffle=True: rows are stored in the data set's own order, and a resume relies on it. "
            "Shuffle when the features are read."
        )
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=Collate(_has_labels(dataset)),
    )


def build_dataloaders(
    datasets: DatasetBundle | Mapping[str, Dataset[Any]],
    *,
    batch_size: int = 64,
    shuffle: bool = False,
    num_workers: int = 0,
) -> dict[str, DataLoader[Any]]:
    """Build a loader for every split with `build_dataloader`.

    Args:
        datasets: The splits; new: any mapping of names to data sets.
        batch_size: B, the images of a batch.
        shuffle: Must be False.
        num_workers: Worker processes of each loader.

    Returns:
        Loaders by split, in the order of `datasets`.

    Raises:
        ArgumentError: `shuffle` is set.
    """
    if isinstance(datasets, DatasetBundle):
        datasets = {field.name: getattr(datasets, field.name) for field in fields(datasets)}
    return {
        split: build_dataloader(dataset, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers)
        for split, dataset in datasets.items()
    }


def load_bloodmnist_datasets(
    *,
    image_size: int = 224,
    as_rgb: bool = True,
    download: bool = True,
    data_root: str | os.PathLike[str] | None = None,
) -> DatasetBundle:
    """BloodMNIST through the medmnist package; for other data sets write a study.

    Args:
        image_size: Width and height of the images in pixels.
        as_rgb: Give every image three channels.
        download: Download the data set where it is missing.
        data_root: The folder of the data set; by default that of medmnist.

    Returns:
        The three splits, images as float32 tensors in 0…1.

    Raises:
        RuntimeError: The folder is missing, or the data set is missing and was not downloaded.
    """
    import medmnist
    from torchvision.transforms import ToTensor

    root = {} if data_root is None else {"root": os.fspath(data_root)}
    splits = {
        split: medmnist.BloodMNIST(
            split=split,
            size=image_size,
            as_rgb=as_rgb,
            mmap_mode="r",
            transform=ToTensor(),
            download=download,
            **root,
        )
        for split in ("train", "val", "test")
    }
    return DatasetBundle(**splits)


def prepare_bloodmnist_artifacts(
    *,
    image_size: int = 224,
    batch_size: int = 64,
    num_workers: int = 0,
    shuffle: bool = False,
    download: bool = True,
    data_root: str | os.PathLike[str] | None = None,
) -> tuple[dict[str, DataLoader[Any]], PromptConfig]:
    """The loaders of BloodMNIST and its prompts.

    Args:
        image_size: Width and height of the images in pixels.
        batch_size: B, the images of a batch.
        num_workers: Worker processes of each loader.
        shuffle: Must be False.
        download: Download the data set where it is missing.
        data_root: The folder of the data set; by default that of medmnist.

    Returns:
        Loaders by split, and the words and templates.

    Raises:
        ArgumentError: `shuffle` is set.
    """
    datasets = load_bloodmnist_datasets(image_size=image_size, download=download, data_root=data_root)
    loaders = build_dataloaders(datasets, batch_size=batch_size, shuffle=shuffle, num_workers=num_workers)
    return loaders, get_bloodmnist_prompts()


@dataclass(frozen=True)
class Collate:
    """Collates items to a batch; `labelled` says whether every item has a label."""

    labelled: bool

    def __call__(self, items: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        import torch

        pairs = [_pair(item) for item in items]
        return torch.stack([_image(image) for image, _ in pairs]), torch.stack(
            [self._label(label) for _, label in pairs]
        )

    def _label(self, label: Any) -> torch.Tensor:
        import torch

        if (label is not None) != self.labelled:
            raise ArgumentError(
                f"The first item of this data set has {'a' if self.labelled else 'no'} label, and a later one has "
                f"{'none' if self.labelled else 'one'}; a stored 0 would be ambiguous."
            )
        if label is None:
            return torch.zeros(1, dtype=torch.int64)
        tensor = torch.as_tensor(label).reshape(-1)
        if tensor.numel() != 1:
            raise ArgumentError(
                f"Expected one label for each image, found {tensor.numel()}. Multi-label data sets are built from a "
                "study, which stores their label matrix."
            )
        return tensor.long()


def _has_labels(dataset: Any) -> bool:
    if not hasattr(dataset, "__getitem__") or not len(dataset):
        return True
    return _pair(dataset[0])[1] is not None


def _pair(item: Any) -> tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, (tuple, list)) and len(item) >= 2 else (item, None)


def _image(image: Any) -> torch.Tensor:
    """An image as floats in 0…1, from floats in 0…1 or whole numbers in 0…255."""
    import numpy as np
    import torch
    from PIL import Image

    if isinstance(image, Image.Image):
        raise ArgumentError("Expected a tensor, found a PIL image. Give the data set `transform=ToTensor()`.")
    tensor = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image)
    low, high = (float(tensor.min()), float(tensor.max())) if tensor.numel() else (0.0, 0.0)
    if tensor.is_floating_point() and low >= 0 and high <= 1:
        return tensor.float()
    if low >= 0 and high <= 255 and (not tensor.is_floating_point() or bool((tensor == tensor.round()).all())):
        return tensor.float() / 255
    raise ArgumentError(
        f"Expected image values in 0…1, or whole numbers in 0…255, found {low:.4g} to {high:.4g}. "
        "Normalising is the processor's work: give it the image as `ToTensor()` makes it."
    )


# --- reading a loader ---------------------------------------------------------------------------------


def row_count(loader: Any) -> int | None:
    """The number of rows of a loader; None where it is unknown."""
    dataset: Any = getattr(loader, "dataset", None)
    return len(dataset) if hasattr(dataset, "__len__") else None


def has_labels(loader: Any) -> bool:
    """False for a loader of ours over a data set without labels, whose batches carry zeros."""
    collate = getattr(loader, "collate_fn", None)
    return collate.labelled if isinstance(collate, Collate) else True


def require_order(split: str, loader: Any) -> None:
    """Refuse a torch loader that leaves the data set's own order, or leaves rows out."""
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return
    plain = type(loader.batch_sampler) in (BatchSampler, type(None)) and isinstance(loader.sampler, SequentialSampler)
    if not plain:
        raise ArgumentError(
            f"The loader of {split!r}: expected the data set's own order, found {type(loader.sampler).__name__}. "
            "Set shuffle=False and no sampler. Choose rows with torch.utils.data.Subset."
        )
    if loader.drop_last:
        raise ArgumentError(f"The loader of {split!r} has drop_last=True, which would leave rows out.")


def batches(loader: Any, recorded: int) -> Iterator[tuple[int, Any, Any]]:
    """(first row, images, labels) of every batch that holds a row from `recorded` on; earlier batches may come too.

    Batches are whole and the same as without a resume, since features depend on them in their last digits. A torch
    loader starts at the first batch with such a row, so that no earlier image is decoded.
    """
    from torch.utils.data import DataLoader, IterableDataset, Subset

    first = 0
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset) and loader.batch_size:
        first = recorded // loader.batch_size * loader.batch_size
        if first:
            loader = DataLoader(
                Subset(loader.dataset, range(first, len(loader.dataset))),  # type: ignore[arg-type]
                batch_size=loader.batch_size,
                num_workers=loader.num_workers,
                collate_fn=loader.collate_fn,
                pin_memory=loader.pin_memory,
            )
    for batch in loader:
        images, labels = (batch[0], batch[1]) if isinstance(batch, (tuple, list)) and len(batch) >= 2 else (batch, None)
        yield first, images, labels
        first += len(images)
