"""The concept atlas: one page that shows the images that fit each concept, and how good the concepts are."""

from ccassets.pages.atlas.atlas_page import Atlas, write_atlas

__all__ = ["Atlas", "write_atlas"]
