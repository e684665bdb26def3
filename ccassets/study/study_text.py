"""The text of a study file: a loaded study with some values changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from ccassets.study.loading import COMPONENT_TYPE
from ccassets.study.schema import Study, StudyConfig


def study_text(study: Study, changes: Mapping[str, Mapping[str, Any] | str], *, header: str) -> str:
    """Write a study as YAML, with other values of some keys.

    Args:
        study: The study; what it leaves at defaults is left out.
        changes: By section, the other values; None leaves a key out. For a key that is no section, its new text.
        header: The comment that the file starts with, a line.

    Returns:
        The text of a `defs.yaml`.
    """
    attributes = study.model_dump(mode="json", include=set(StudyConfig.model_fields), exclude_unset=True)
    for section, values in changes.items():
        if isinstance(values, str):
            attributes[section] = values
            continue
        merged = {**attributes.get(section, {}), **values}
        attributes[section] = {key: value for key, value in merged.items() if value is not None}
    content = {"type": COMPONENT_TYPE, "attributes": attributes}
    return header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)
