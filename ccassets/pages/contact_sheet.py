"""The contact sheet of a split: a few of its images as Markdown, for the asset's page in the UI."""

from __future__ import annotations

import numpy as np

from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest, read_image
from ccassets.pages.thumbnails import data_uri, image_strip

SHEET_IMAGES = 8
SHEET_SIDE = 68


def contact_sheet(dataset: Dataset, manifest: Manifest) -> str:
    """Show evenly spaced images of a split side by side, as Markdown that embeds them; a sentence without images."""
    count = min(SHEET_IMAGES, len(manifest.keys))
    if not count:
        return "no images"
    rows = np.linspace(0, len(manifest.keys) - 1, count).round().astype(int).tolist()
    sheet = image_strip([read_image(dataset, manifest, row) for row in rows], SHEET_SIDE)
    return f"![samples]({data_uri(sheet)})"
