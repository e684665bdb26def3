"""The names, dtypes and constants of feature database format 1.0, and nothing that opens a file."""

from __future__ import annotations

from typing import Literal

import numpy as np

VERSION = "1.0"
ALIGNMENT = 4096
"""Image features and token features start at a multiple of this, so that file systems can share their blocks."""
SMALL_ALIGNMENT = 64
"""Every other numeric data set starts at a multiple of this, so that it can be mapped whatever D is."""

Profile = Literal["database", "image-part", "template-part"]

IMAGE_FEATURES = "image_features"
IMAGE_TOKEN_FEATURES = "image_token_features"
BULK = (IMAGE_FEATURES, IMAGE_TOKEN_FEATURES)
DATASET_DESCRIPTIONS = {
    IMAGE_FEATURES: "one vector per image, unit length",
    IMAGE_TOKEN_FEATURES: "one vector per patch; absent when T_img is -1",
    "ids": "0 … N-1",
    "labels": "position in the list of labels",
    "split": "train, val, test or any other name",
    "keys": "where the row came from",
    "groups": "patient, slide, …",
    "label_matrix": "several labels an image",
    "image_digest": "SHA-256 of the picture",
    "feature_digest": "XXH3-128 of the row",
    "text_features": "one vector per prompt, unit length",
    "text_token_features": "one vector per token; absent when T_txt is -1",
    "texts": "the prompts",
    "input_ids": "the tokens as they were encoded",
    "attention_mask": "1 for a token, 0 for padding",
    "subject_span": "where the word stands among the tokens",
}
"""What every data set of a file holds, by its name."""

ROW_DATASETS = (*BULK, "ids", "labels", "split")
"""The row data sets that every writer of the format makes, the original scripts included."""

STORED_IMAGE_DTYPE = np.dtype("<f2")
STORED_TEXT_DTYPE = np.dtype("<f4")

WORD_LISTS = ("label_texts", "prompt_temp_for_labels", "concept_texts", "prompt_temp_for_concepts")
"""Root attributes with the words of labels and concepts, and their template strings."""

JSON_ATTRIBUTES = (
    "split_counts",
    *WORD_LISTS,
    "concepts",
    "label_classes",
    "label_ordinal",
    "provenance",
    "dataset",
    "attribute_digests",
)
"""Root attributes that hold JSON text; `dataset` a JSON string, quotes included."""

LOGIT_PARAMETERS = ("logit_scale", "logit_bias", "concept_logit_scale", "concept_logit_bias")
LOGIT_SCALE_SPACE = "log"

NORM_TOLERANCE = 2e-3
"""How far the length of a feature vector may be from 1."""

UNSPECIFIED_SPLIT = "unspecified"
