"""Drift: how far lower precisions and compiling take an encoder from float32 on a study's images, and their speeds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, FloatArray, ImageFeatures
from ccassets.errors import DatasetError, StudyError
from ccassets.progress import Progress, silent
from ccassets.study.schema import Dtype, Study
from ccassets.study.storage import Store

REFERENCE: Dtype = "float32"
PRECISIONS: tuple[Dtype, ...] = ("tf32", "bfloat16", "float16")

Values = npt.NDArray[np.floating[Any]]


@dataclass
class Distance:
    """Of vectors from those of float32: smallest and mean cosine, and the largest difference of a number."""

    smallest: float = 1.0
    largest_difference: float = 0.0
    _cosines: float = 0.0
    _vectors: int = 0

    @property
    def mean(self) -> float:
        return self._cosines / self._vectors if self._vectors else 1.0

    def add(self, values: Values, reference: Values) -> None:
        """Take in vectors (…, D) and their references."""
        a, b = values.astype(np.float64), reference.astype(np.float64)
        cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        self.smallest = min(self.smallest, float(cosines.min()))
        self.largest_difference = max(self.largest_difference, float(np.abs(a - b).max()))
        self._cosines += float(cosines.sum())
        self._vectors += cosines.size

    def facts(self) -> dict[str, float]:
        return {
            "smallest_cosine": self.smallest,
            "mean_cosine": self.mean,
            "largest_difference": self.largest_difference,
        }


@dataclass
class Drift:
    """One precision on a study's images, compiled or not.

    `images_per_second` is the encoder's alone, images decoded before. `agreement` is the share of images whose nearest
    label word (mean of its templates) is that of float32, `accuracy` the share for which it is their label; both are
    None where there is nothing to tell them from, `tokens` where there are none.
    """

    dtype: Dtype
    compiled: bool = False
    images: int = 0
    seconds: float = 0.0
    features: Distance = field(default_factory=Distance)
    tokens: Distance | None = None
    agreement: float | None = None
    accuracy: float | None = None

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    def facts(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {
            "dtype": self.dtype,
            "compiled": self.compiled,
            "images": self.images,
            "images_per_second": self.images_per_second,
            "features": self.features.facts(),
            "tokens": self.tokens.facts() if self.tokens else None,
            "agreement": self.agreement,
            "accuracy": self.accuracy,
        }


def measure_drift(
    study: Study,
    images: int = 64,
    *,
    precisions: Sequence[Dtype] = PRECISIONS,
    compiled: bool = False,
    device: str | None = None,
    store: Store | None = None,
    progress: Progress = silent,
) -> list[Drift]:
    """Encode evenly spaced images of a study in float32 and in each precision; float32 comes first.

    With `compiled`, each once more by an image tower that torch compiled, after all that are not. All the encoders are
    in memory at once, one batch of images at a time. Nothing is stored. Raises `StudyError` for an encoder of the
    user's own, whose precision is its own matter, `DatasetError` when there are no images.
    """
    if study.encoder.kind == "python":
        raise StudyError(
            f"{study.name} has an encoder of its own, and only that knows in which precisions it computes."
        )
    store = store or Store.of(study)
    dataset = open_dataset(study, store)
    dataset.fetch(silent)
    chosen, labels = _spread(study, dataset, images)
    dtypes = (REFERENCE, *(dtype for dtype in precisions if dtype != REFERENCE))
    drifts = [Drift(dtype, by_torch) for by_torch in ([False, True] if compiled else [False]) for dtype in dtypes]
    size = min(study.extraction.batch_size, len(chosen))  # Only batches of the study's size are compiled.
    encoders = [load_encoder(_changed(study, drift, size), device=device, cache=store.cache) for drift in drifts]
    words = [_label_vectors(study, encoder) for encoder in encoders]
    predicted: list[list[npt.NDArray[np.int64]]] = [[] for _ in drifts]
    for pixels in _batches(size, dataset, encoders[0], chosen):
        results = [_timed(encoder, pixels, drift) for encoder, drift in zip(encoders, drifts, strict=True)]
        for result, drift, vectors, classes in zip(results, drifts, words, predicted, strict=True):
            drift.features.add(result.features, results[0].features)
            if result.tokens is not None and results[0].tokens is not None:
                drift.tokens = drift.tokens or Distance()
                drift.tokens.add(result.tokens, results[0].tokens)
            if vectors is not None:
                classes.append((result.features @ vectors.T).argmax(axis=1))
        progress(drifts[0].images, len(chosen))
    if words[0] is not None:
        for drift, classes in zip(drifts, predicted, strict=True):
            found = np.concatenate(classes)
            drift.agreement = float((found == np.concatenate(predicted[0])).mean())
            if dataset.labelled and len(dataset.classes) == len(study.vocabulary.labels.words):
                drift.accuracy = float((found == labels).mean())
    return drifts


def _changed(study: Study, drift: Drift, batch_size: int) -> Study:
    """The study with an encoder of this kind, for batches of this size."""
    encoder = study.encoder.model_copy(update={"dtype": drift.dtype, "compiled": drift.compiled})
    extraction = study.extraction.model_copy(update={"batch_size": batch_size})
    return study.model_copy(update={"encoder": encoder, "extraction": extraction})


def _spread(study: Study, dataset: Dataset, images: int) -> tuple[list[tuple[str, int]], npt.NDArray[np.int64]]:
    """Split and row, and labels, of so many images, evenly spaced over the data set; all where there are fewer."""
    labels = {split: dataset.rows(split).labels for split in study.splits}
    every = [(split, row) for split, of_split in labels.items() for row in range(len(of_split))]
    if not every:
        raise DatasetError(f"{study.name} has no images.")
    places = np.linspace(0, len(every) - 1, min(images, len(every))).round().astype(int)
    return [every[place] for place in places.tolist()], np.concatenate(list(labels.values()))[places]


def _batches(size: int, dataset: Dataset, encoder: Encoder, chosen: Sequence[tuple[str, int]]) -> Iterator[FloatArray]:
    for first in range(0, len(chosen), size):
        yield np.stack([encoder.preprocess(dataset.read(*place)) for place in chosen[first : first + size]])


def _timed(encoder: Encoder, pixels: FloatArray, drift: Drift) -> ImageFeatures:
    if not drift.images:
        encoder.encode_pixels(pixels)  # The first call sets up memory and algorithms, and would be counted as slow.
    started = time.perf_counter()
    result = encoder.encode_pixels(pixels)
    drift.seconds += time.perf_counter() - started
    drift.images += len(pixels)
    return result


def _label_vectors(study: Study, encoder: Encoder) -> FloatArray | None:
    """The unit mean over its templates of every label word (C, D); None where the study has no label templates."""
    words = study.vocabulary.labels.words
    templates = [
        template.prompts
        for name, template in study.vocabulary.templates().items()
        if name.startswith("label_prompts_t")
    ]
    if not templates or not encoder.card.has_text:
        return None
    prompts = [prompt for template in templates for prompt in template]
    mean = encoder.encode_texts(prompts).features.reshape(len(templates), len(words), -1).mean(axis=0)
    vectors: FloatArray = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    return vectors
