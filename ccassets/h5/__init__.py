"""The functions of the original scripts and notebooks under their names and arguments, without their faults.

They build a growing file step by step, chunked and legal in the format, which `finalize` publishes. `docs/h5.md` lists
the changes. A study and its build (`ccassets build`) need none of them.
"""

from ccassets.h5.artifacts import ModelArtifacts, load_conceptclip_model
from ccassets.h5.batch_appending import append_batch
from ccassets.h5.exceptions import ArgumentError, MissingFileError, NameMissingError, RowError
from ccassets.h5.growing_file import init_file
from ccassets.h5.growing_templates import load_model_params, save_model_params, write_template
from ccassets.h5.loaders import (
    DatasetBundle,
    build_dataloader,
    build_dataloaders,
    load_bloodmnist_datasets,
    prepare_bloodmnist_artifacts,
)
from ccassets.h5.pipeline import (
    FeatureStoreSummary,
    encode_and_store_image_features,
    run_full_pipeline,
    store_prompt_features,
)
from ccassets.h5.prompts import PromptConfig, get_bloodmnist_prompts
from ccassets.h5.publishing import clear_all_templates, finalize
from ccassets.h5.sample_access import (
    access_batch,
    access_sample_by_index,
    fetch_template_features,
    get_template_names,
    summarize_h5,
    validate_h5,
)

init_feature_store = init_file

__all__ = [
    "ArgumentError",
    "DatasetBundle",
    "FeatureStoreSummary",
    "MissingFileError",
    "ModelArtifacts",
    "NameMissingError",
    "PromptConfig",
    "RowError",
    "access_batch",
    "access_sample_by_index",
    "append_batch",
    "build_dataloader",
    "build_dataloaders",
    "clear_all_templates",
    "encode_and_store_image_features",
    "fetch_template_features",
    "finalize",
    "get_bloodmnist_prompts",
    "get_template_names",
    "init_feature_store",
    "init_file",
    "load_bloodmnist_datasets",
    "load_conceptclip_model",
    "load_model_params",
    "prepare_bloodmnist_artifacts",
    "run_full_pipeline",
    "save_model_params",
    "store_prompt_features",
    "summarize_h5",
    "validate_h5",
    "write_template",
]
