"""Extraction: what is still to be encoded, encoding it into parts, and assembling the parts into the database."""

from ccassets.extraction.assembly import Assembly, assemble_database
from ccassets.extraction.image_extraction import (
    ImageExtraction,
    ShardsExtraction,
    SplitExtraction,
    extract_images,
    extract_shards,
)
from ccassets.extraction.plan import StudyPlan, plan_study
from ccassets.extraction.sources import identify_encoder, read_images
from ccassets.extraction.text_extraction import TemplateExtraction, extract_template, extract_text

__all__ = [
    "Assembly",
    "ImageExtraction",
    "ShardsExtraction",
    "SplitExtraction",
    "StudyPlan",
    "TemplateExtraction",
    "assemble_database",
    "extract_images",
    "extract_shards",
    "extract_template",
    "extract_text",
    "identify_encoder",
    "plan_study",
    "read_images",
]
