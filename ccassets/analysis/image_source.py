"""The images behind the rows of a database, read from the study's data set."""

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
    """Open a study's data set to read the images of a database.

    Args:
        study: The study that the database was built from.
        database: The database.

    Returns:
        A function from the number of a row to its image, 8-bit RGB: the one that was encoded. It raises
        `DatasetError` where the data set has no such key, cannot decode it, or holds other pixels by now.

    Raises:
        DatasetError: The file has no keys, or the data set is not there.
    """
    if database.keys is None:
        raise DatasetError(f"{database.path.name} does not say where its rows came from: they have no pictures.")
    keys, splits, digests = database.keys, database.split, database.image_digest
    dataset = open_dataset(study, Store.of(study))
    dataset.fetch(silent)
    indices: dict[str, dict[str, int]] = {}

    def read(row: int) -> Image.Image:
        split, key = splits[row], keys[row]
        if split not in indices:
            indices[split] = {known: index for index, known in enumerate(dataset.rows(split).keys)}
        if key not in indices[split]:
            raise DatasetError(f"{study.name} has no image {key!r} in the split {split!r} (row {row}).")
        try:
            image = dataset.read(split, indices[split][key])
        except DatasetError as error:
            raise DatasetError(f"{split}, {key!r} (row {row}): {error}") from error
        if digests is not None and image_digest(image) != digests[row].tobytes():
            raise DatasetError(f"{split}, {key!r} (row {row}): the image is not the one that was encoded. Build again.")
        return image

    return read
