"""The contact sheet of a split: a few of its images as Markdown, for the asset's page in the UI."""

from __future__ import annotations

from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import Manifest, evenly_spaced_positions, read_image
from ccassets.pages.thumbnails import data_uri, image_strip

SHEET_IMAGES = 8
SHEET_SIDE = 68


def contact_sheet(dataset: Dataset, manifest: Manifest) -> str:
    """Show evenly spaced images of a split side by side, as Markdown that embeds them; a sentence without images."""
    rows = evenly_spaced_positions(len(manifest.keys), SHEET_IMAGES).tolist()
    if not rows:
        return "no images"
    sheet = image_strip([read_image(dataset, manifest, row) for row in rows], SHEET_SIDE)
    return f"![samples]({data_uri(sheet)})"
