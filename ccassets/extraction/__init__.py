"""Extraction: the steps from a study to its database, one by one, and the runners that encode its images."""

from ccassets.extraction.adoption import AdoptedSplit, Adoption, adopt
from ccassets.extraction.assembly import Assembly, assemble_database
from ccassets.extraction.image_extraction import (
    ImageExtraction,
    ShardsExtraction,
    SplitExtraction,
    extract_images,
    extract_shards,
)
from ccassets.extraction.plan import ImagePlan, StudyPlan, plan_study
from ccassets.extraction.pruning import Unneeded, prune
from ccassets.extraction.runners import InThisProcess, LocalWorkers, RayWorkers, Runner, choose_runner
from ccassets.extraction.sources import identify_encoder, read_images
from ccassets.extraction.text_extraction import TemplateExtraction, extract_template, extract_text
from ccassets.progress import StageTimes

__all__ = [
    "AdoptedSplit",
    "Adoption",
    "Assembly",
    "ImageExtraction",
    "ImagePlan",
    "InThisProcess",
    "LocalWorkers",
    "RayWorkers",
    "Runner",
    "ShardsExtraction",
    "SplitExtraction",
    "StageTimes",
    "StudyPlan",
    "TemplateExtraction",
    "Unneeded",
    "adopt",
    "assemble_database",
    "choose_runner",
    "extract_images",
    "extract_shards",
    "extract_template",
    "extract_text",
    "identify_encoder",
    "plan_study",
    "prune",
    "read_images",
]
