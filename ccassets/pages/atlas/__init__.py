"""The concept atlas: one page on which one sees what the concepts of a study find, and what is built on them."""

from ccassets.pages.atlas.atlas_page import Atlas, write_atlas

__all__ = ["Atlas", "write_atlas"]
