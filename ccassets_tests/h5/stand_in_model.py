"""A small model of the original calling form, and images for it: every feature is a function of its own input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import nn

from ccassets.h5 import ModelArtifacts, PromptConfig

D, T_IMG, T_WIDTH = 16, 9, 12

PROMPTS = PromptConfig(
    label_texts=["round", "square"],
    label_templates=["a {} cell"],
    concept_texts=["dark nucleus", "pale rim", "granules"],
    concept_templates=["a cell with {}", "{} in a blood cell"],
)


class GreyImages(torch.utils.data.Dataset[Any]):
    """`count` images of one grey value each, from `first` on; `read` sees every row number that is asked for."""

    def __init__(
        self,
        count: int,
        first: int = 0,
        labels: Sequence[Any] | Callable[[int], Any] | None = None,
        read: Callable[[int], None] = lambda row: None,
    ) -> None:
        self.count, self.first, self.labels, self.read = count, first, labels, read

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> Any:
        self.read(row)
        image = torch.full((3, 4, 4), (self.first + row) / 255)
        if self.labels is None:
            return image
        return image, self.labels(row) if callable(self.labels) else self.labels[row]


class WordProcessor:
    """Words become ids by their digest, padded to the longest text of a call; images are passed on."""

    def __call__(
        self, text: Any = None, images: Any = None, *, return_tensors: str, padding: bool, truncation: bool
    ) -> Mapping[str, torch.Tensor]:
        assert return_tensors == "pt"
        assert padding
        assert truncation
        if images is not None:
            return {"pixel_values": torch.as_tensor(images)}
        words = [[int(hashlib.md5(word.encode()).hexdigest()[:6], 16) + 1 for word in one.split()] for one in text]
        width = max(map(len, words))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in words])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class StandIn(nn.Module):
    """Unit-length features and unprojected tokens, drawn from a generator that is seeded by the input itself."""

    def __init__(self, logit_scale: float = 4.570647716522217) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.image_proj = nn.Linear(T_WIDTH, D, bias=False)
            self.text_proj = nn.Linear(T_WIDTH, D, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.logit_bias = nn.Parameter(torch.tensor(-11.16))
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []
        self.text_batches: list[int] = []

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        assert normalize
        self.batches.append(len(pixel_values))
        drawn = [_drawn(round(float(image.mean()) * 255), T_IMG) for image in pixel_values]
        features, tokens = (torch.stack(values) for values in zip(*drawn, strict=True))
        return nn.functional.normalize(self.dropout(features), dim=-1), tokens

    def encode_text(self, input_ids: torch.Tensor, normalize: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        assert normalize
        self.text_batches.append(len(input_ids))
        drawn = [_drawn(int(ids.sum()), len(ids)) for ids in input_ids]
        features, tokens = (torch.stack(values) for values in zip(*drawn, strict=True))
        return nn.functional.normalize(features, dim=-1), tokens


def _drawn(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(D, generator=generator), torch.randn(count, T_WIDTH, generator=generator)


class Replay(nn.Module):
    """A model that gives the rows of an existing file: the image's grey value is the row number."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with h5py.File(path) as file:
            self.features = torch.from_numpy(file["image_features"][:].astype(np.float32))
            self.tokens = torch.from_numpy(file["image_token_features"][:].astype(np.float32))

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool) -> tuple[torch.Tensor, torch.Tensor]:
        rows = (pixel_values.mean(dim=(1, 2, 3)) * 255).round().long()
        return self.features[rows], self.tokens[rows]


def stand_in(model: nn.Module | None = None) -> ModelArtifacts:
    """Artifacts around a model, by default a new `StandIn`."""
    return ModelArtifacts(model or StandIn(), WordProcessor(), torch.device("cpu"))
