"""Pictures: the images behind the rows of a database, read from the study's data set."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from ccassets.database.reader import Database
from ccassets.datasets import open_dataset
from ccassets.datasets.image_decoding import image_digest
from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def image_reader(study: Study, database: Database) -> Callable[[int], Image.Image]:
    """A function from the number of a row to its picture, 8-bit RGB.

    A picture is found by split and key, and is the one that was encoded or none: the function raises `DatasetError`
    where the data set has no such key, cannot decode it, or holds other pixels by now.
    """
    if database.keys is None:
        raise DatasetError(f"{database.path.name} does not say where its rows came from: they have no pictures.")
    keys, splits, digests = database.keys, database.split, database.image_digest
    dataset = open_dataset(study, Store.of(study))
    dataset.fetch(silent)
    places: dict[str, dict[str, int]] = {}

    def read(row: int) -> Image.Image:
        split, key = splits[row], keys[row]
        if split not in places:
            places[split] = {found: place for place, found in enumerate(dataset.rows(split).keys)}
        if key not in places[split]:
            raise DatasetError(f"{study.name} has no image {key!r} in the split {split!r} (row {row}).")
        try:
            picture = dataset.read(split, places[split][key])
        except DatasetError as error:
            raise DatasetError(f"{split}, {key!r} (row {row}): {error}") from error
        if digests is not None and image_digest(picture) != digests[row].tobytes():
            raise DatasetError(f"{split}, {key!r} (row {row}): the image is not the one that was encoded. Build again.")
        return picture

    return read
