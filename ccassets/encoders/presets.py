"""Presets: known models with their licence, gate, input and the encoder section that names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ccassets.files import read_package_yaml

READ_ON = "2026-11-28"
"""The day on which the sources of all presets were read."""

_EXTRAS = {"open_clip": "open-clip"}


@dataclass(frozen=True)
class Preset:
    """A model that a study can name; what no source says is None.

    Attributes:
        section: The encoder section of a study.
        domain: The images that it was trained on.
        license: The licence of its weights.
        gated: Whether its terms have to be accepted first.
        image_size: Height and width of its input in pixels.
        dim: D, the length of its feature vectors.
        token_count: T_img, the number of its patches.
        parameters: Number of parameters.
        patch_tokens: Whether patches become tokens, and what for.
        sources: Where each fact was read, on `READ_ON`.
        extra: The extra of ccassets that it needs besides that of its kind.
        run_by_us: Whether it was ever run with its own weights by the makers of this package.
    """

    section: Mapping[str, str]
    domain: str
    license: str | None
    gated: bool | None
    image_size: int
    dim: int
    token_count: int
    parameters: int | None
    patch_tokens: str
    sources: Mapping[str, str]
    extra: str | None = None
    run_by_us: bool = False

    @property
    def weights(self) -> str:
        """The hub id."""
        return self.section["weights"]

    @property
    def needed_extra(self) -> str | None:
        """The extra of ccassets that has to be installed."""
        return self.extra or _EXTRAS.get(self.section["kind"])

    @property
    def line(self) -> str:
        """The encoder section on one line of YAML."""
        pairs = ", ".join(f"{key}: {value}" for key, value in self.section.items())
        return f"encoder: {{{pairs}}}"


@cache
def load_presets() -> Mapping[str, Preset]:
    """Load the presets by name.

    Returns:
        The presets, in the order in which they are shown.
    """
    loaded: dict[str, Any] = read_package_yaml(__package__, "presets.yaml")
    return {name: Preset(**facts) for name, facts in loaded.items()}


def preset_of(repo: str) -> Preset | None:
    """The preset of a hub id; None where there is none."""
    return next((preset for preset in load_presets().values() if preset.weights == repo), None)


def alternatives(repository: str, gated: bool) -> str:
    """What to do without a token for a model that is gated; empty for one that is not known to be.

    Args:
        repository: The hub id.
        gated: Whether the hub itself says that the model is gated.

    Returns:
        Sentences with the lines to write, after a blank.
    """
    preset = preset_of(repository)
    if not gated and not (preset and preset.gated):
        return ""
    open_model = load_presets()["biomedclip"]
    return (
        f" {repository} is gated and no token is set. Without one an open model does: `{open_model.line}` "
        f"(pip install 'ccassets[{open_model.needed_extra}]'); or, to try everything out with features that mean "
        "nothing, `encoder: {kind: phantom}`. `ccassets encoders` lists more."
    )
