"""Small pictures for the asset pages, embedded so that the UI shows them without a server of ours."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest, read_image

_TILE = 72
_TILES = 8


def contact_sheet(dataset: Dataset, manifest: Manifest) -> str:
    """A row of evenly spaced images of a split as Markdown with an embedded PNG; a sentence when there is none."""
    count = min(_TILES, len(manifest.keys))
    if not count:
        return "no images"
    sheet = Image.new("RGB", (count * _TILE, _TILE), "white")
    for place, row in enumerate(np.linspace(0, len(manifest.keys) - 1, count).round().astype(int).tolist()):
        image = read_image(dataset, manifest, row)
        image.thumbnail((_TILE - 4, _TILE - 4))
        sheet.paste(image, (place * _TILE + (_TILE - image.width) // 2, (_TILE - image.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return f"![samples](data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()})"
