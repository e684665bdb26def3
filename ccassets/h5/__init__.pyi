from .artifacts import ModelArtifacts as ModelArtifacts, load_conceptclip_model as load_conceptclip_model
from .batch_appending import append_batch as append_batch
from .exceptions import (
    ArgumentError as ArgumentError,
    MissingFileError as MissingFileError,
    NameMissingError as NameMissingError,
    RowError as RowError,
)
from .growing_file import init_feature_store as init_feature_store, init_file as init_file
from .growing_templates import (
    load_model_params as load_model_params,
    save_model_params as save_model_params,
    write_template as write_template,
)
from .loaders import (
    DatasetBundle as DatasetBundle,
    build_dataloader as build_dataloader,
    build_dataloaders as build_dataloaders,
    load_bloodmnist_datasets as load_bloodmnist_datasets,
    prepare_bloodmnist_artifacts as prepare_bloodmnist_artifacts,
)
from .pipeline import (
    FeatureStoreSummary as FeatureStoreSummary,
    encode_and_store_image_features as encode_and_store_image_features,
    run_full_pipeline as run_full_pipeline,
    store_prompt_features as store_prompt_features,
)
from .prompts import PromptConfig as PromptConfig, get_bloodmnist_prompts as get_bloodmnist_prompts
from .publishing import clear_all_templates as clear_all_templates, finalize as finalize
from .sample_access import (
    access_batch as access_batch,
    access_sample_by_index as access_sample_by_index,
    fetch_template_features as fetch_template_features,
    get_template_names as get_template_names,
    summarize_h5 as summarize_h5,
    validate_h5 as validate_h5,
)
