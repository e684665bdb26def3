"""Checks of a file's structure: profile and version, and the agreement of attributes and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, ROW_DATASETS, VERSION
from ccassets.database.validation.contents import TEXT_ONLY_VERSION, Contents, TemplateContents
from ccassets.database.validation.finding_collector import FindingCollector, listed, shortened
from ccassets.database.validation.safe_reading import read_integer


def check_structure(contents: Contents, findings: FindingCollector) -> None:
    """Profile, version, times, and every length and width against the others."""
    _check_profile(contents, findings)
    _check_version(contents, findings)
    if contents.kind != "text-only":
        _check_row_counts(contents, findings)
        _check_dimensions(contents, findings)
    if contents.kind != "text-only" or "created_at" in contents.attributes:
        _check_created_at(contents.attributes, "/", findings)
    for template in contents.templates.values():
        _check_template(template, contents, findings)


def _check_profile(contents: Contents, findings: FindingCollector) -> None:
    images = [name for name in ROW_DATASETS if name in contents.members]
    if contents.kind == "image-part":
        if contents.split is not None and len(contents.split.names) > 1:
            names = listed([repr(name) for name in contents.split.names])
            findings.add("profile", "/split", f"expected rows of one split in an image part, found {names}")
        if "templates" in contents.members:
            findings.add("profile", "/templates", "expected no templates in an image part, found some")
    elif contents.kind == "template-part":
        if len(contents.templates) != 1:
            names = listed(list(contents.templates)) or "none"
            findings.add("profile", "/templates", f"expected one template in a template part, found {names}")
        if images:
            findings.add("profile", "/", f"expected no images in a template part, found {', '.join(images)}")
    elif contents.kind == "text-only" and images:
        findings.add(
            "profile", "/@version", f"expected no images in a {TEXT_ONLY_VERSION} file, found {listed(images)}"
        )


def _check_version(contents: Contents, findings: FindingCollector) -> None:
    expected = TEXT_ONLY_VERSION if contents.kind == "text-only" else VERSION
    stored = contents.attributes.get("version")
    if stored not in (expected, VERSION):
        text = "no such attribute" if stored is None else shortened(stored) if isinstance(stored, str) else repr(stored)
        findings.add("version", "/@version", f"expected version {expected!r}, found {text}")


def _check_row_counts(contents: Contents, findings: FindingCollector) -> None:
    lengths = {name: len(dataset) for name, dataset in contents.datasets.items()}
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{name} {length}" for name, length in lengths.items())
        findings.add("row_counts", "/", f"expected one number of rows in all row data sets, found {text}")


def _check_dimensions(contents: Contents, findings: FindingCollector) -> None:
    dim = read_integer(contents.attributes, "D", "/", findings)
    tokens = read_integer(contents.attributes, "T_img", "/", findings)
    for name, value in (("D", dim), ("T_img", tokens)):
        if name not in contents.attributes:
            findings.add("dimensions", f"/@{name}", f"expected the attribute {name}, found none")
        elif value is not None and value < 1 and (name, value) != ("T_img", -1):
            findings.add("dimensions", f"/@{name}", f"expected {name} of 1 or more, found {value}")
    for name, axes in (
        (IMAGE_FEATURES, {"D": (1, dim)}),
        (IMAGE_TOKEN_FEATURES, {"T_img": (1, tokens), "D": (2, dim)}),
    ):
        dataset = contents.datasets.get(name)
        for attribute, (axis, value) in axes.items():
            if dataset is not None and value is not None and dataset.shape[axis] != value:
                findings.add(
                    "dimensions",
                    f"/{name}",
                    f"the attribute {attribute} says {value}; the data set has the shape {dataset.shape}",
                )


def _check_created_at(attributes: Mapping[str, Any], where: str, findings: FindingCollector) -> None:
    stored = attributes.get("created_at")
    if not isinstance(stored, str) or not re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", stored):
        text = "none" if stored is None else shortened(str(stored))
        findings.add("created_at", f"{where}@created_at", f"expected a time as YYYY-MM-DD HH:MM:SS, found {text}")


def _check_template(template: TemplateContents, contents: Contents, findings: FindingCollector) -> None:
    shapes = {name: dataset.shape for name, dataset in template.datasets.items()}
    features, tokens = shapes.get("text_features"), shapes.get("text_token_features")
    expected = {
        "K": next((shape[0] for shape in shapes.values()), None),
        "D": None if features is None else features[1],
        "T_txt": tokens[1] if tokens is not None else None if "text_token_features" in template.broken else -1,
    }
    for name, value in expected.items():
        stored = read_integer(template.attributes, name, template.where, findings)
        if name not in template.attributes:
            if contents.kind != "text-only":
                findings.add("template_shapes", f"{template.where}@{name}", f"expected the attribute {name}")
        elif stored is not None and value is not None and stored != value:
            findings.add(
                "template_shapes", f"{template.where}@{name}", f"expected {name} = {value} by shape, found {stored}"
            )
    for axis, lengths in {
        "K": {name: shape[0] for name, shape in shapes.items()},
        "D": {name: shape[-1] for name, shape in shapes.items() if name in {"text_features", "text_token_features"}},
        "T": {name: shape[1] for name, shape in shapes.items() if name in {"input_ids", "attention_mask"}},
    }.items():
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{name} {length}" for name, length in lengths.items())
            findings.add("template_shapes", template.where, f"expected one {axis} in all arrays, found {text}")
    if contents.kind != "text-only":
        _check_created_at(template.attributes, template.where, findings)
    images = contents.datasets.get(IMAGE_FEATURES)
    dim = images.shape[1] if images is not None else contents.attributes.get("D")
    if features is not None and isinstance(dim, int) and features[1] != dim:
        findings.add("template_dim", template.where, f"expected D = {dim}, as in the images, found {features[1]}")
