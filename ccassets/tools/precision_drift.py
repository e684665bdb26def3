"""Precision drift: how far lower precisions and compiling move an encoder's features from float32, and the speed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder, FloatArray, ImageFeatures
from ccassets.errors import DatasetError, StudyError
from ccassets.progress import Progress, silent
from ccassets.study.schema import Dtype, Study
from ccassets.study.storage import Store

REFERENCE: Dtype = "float32"
PRECISIONS: tuple[Dtype, ...] = ("tf32", "bfloat16", "float16")

Vectors = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]


@dataclass
class Distance:
    """Distance of vectors from their references, over all that were added.

    Attributes:
        smallest: The smallest cosine of a vector with its reference.
        largest_difference: The largest absolute difference of a number.
    """

    smallest: float = 1.0
    largest_difference: float = 0.0
    _cosines: float = 0.0
    _vectors: int = 0

    @property
    def mean(self) -> float:
        """The mean cosine; 1 before anything is added."""
        return self._cosines / self._vectors if self._vectors else 1.0

    def add(self, vectors: Vectors, references: Vectors) -> None:
        """Add vectors (…, D) and their references of the same shape."""
        a, b = vectors.astype(np.float64), references.astype(np.float64)
        cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        self.smallest = min(self.smallest, float(cosines.min()))
        self.largest_difference = max(self.largest_difference, float(np.abs(a - b).max()))
        self._cosines += float(cosines.sum())
        self._vectors += cosines.size

    def facts(self) -> dict[str, float]:
        """All figures as plain values for JSON."""
        return {
            "smallest_cosine": self.smallest,
            "mean_cosine": self.mean,
            "largest_difference": self.largest_difference,
        }


@dataclass
class PrecisionDrift:
    """The drift and speed of one precision on a study's images, compiled or not.

    Attributes:
        dtype: The precision.
        compiled: Whether torch compiled the image tower.
        images: The number of images encoded.
        seconds: The time that the encoder took for them; decoding is not counted.
        features: Distance of the image features from those of float32.
        tokens: Distance of the token features; None for an encoder without them.
        agreement: Share of images whose nearest label word (mean over its templates) is the one of float32; None
            without label words.
        accuracy: Share of images whose nearest label word is their label; None without labels or label words.
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
        """The speed of the encoder alone; 0 before an image is encoded."""
        return self.images / self.seconds if self.seconds else 0.0

    def facts(self) -> dict[str, Any]:
        """All figures as plain values for JSON."""
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


def measure_precision_drift(
    study: Study,
    image_count: int = 64,
    *,
    precisions: Sequence[Dtype] = PRECISIONS,
    compiled: bool = False,
    device: str | None = None,
    store: Store | None = None,
    progress: Progress = silent,
) -> list[PrecisionDrift]:
    """Encode evenly spaced images of a study in float32 and in lower precisions, and compare the features.

    All encoders are in memory at once, with one batch of images at a time. Nothing is stored.

    Args:
        study: The study whose images, encoder and label words are used.
        image_count: How many images, or all where there are fewer.
        precisions: The precisions to compare with float32.
        compiled: Also measure every precision, float32 included, with an image tower that torch compiled.
        device: The torch device; by default a GPU where there is one.
        store: The storage whose cache of digests is used; by default the study's.
        progress: Called with the images encoded so far and in all.

    Returns:
        One drift for each precision, float32 first, then those of the compiled towers in the same order.

    Raises:
        StudyError: The encoder is a class of the user's own, which chooses its precision itself.
        DatasetError: The data set cannot be read, or has no images.
        EncoderError: The encoder cannot be loaded.
    """
    if study.encoder.kind == "python":
        raise StudyError(f"{study.name} uses an encoder of your own (`kind: python`), which sets its precision itself.")
    store = store or Store.of(study)
    dataset = open_dataset(study, store)
    dataset.fetch(silent)
    images, labels = sample_images(study, dataset, image_count)
    dtypes = (REFERENCE, *(dtype for dtype in precisions if dtype != REFERENCE))
    drifts = [
        PrecisionDrift(dtype, by_torch) for by_torch in ([False, True] if compiled else [False]) for dtype in dtypes
    ]
    batch_size = min(study.extraction.batch_size, len(images))  # Only batches of the study's size are compiled.
    encoders = [
        load_encoder(with_precision(study, drift.dtype, drift.compiled, batch_size), device=device, cache=store.cache)
        for drift in drifts
    ]
    words = [_label_vectors(study, encoder) for encoder in encoders]
    predictions: list[list[Labels]] = [[] for _ in drifts]
    for pixels in image_batches(batch_size, dataset, encoders[0], images):
        results = [_encode_timed(encoder, pixels, drift) for encoder, drift in zip(encoders, drifts, strict=True)]
        for result, drift, vectors, classes in zip(results, drifts, words, predictions, strict=True):
            _add_distances(drift, result, results[0])
            if vectors is not None:
                classes.append((result.features @ vectors.T).argmax(axis=1))
        progress(drifts[0].images, len(images))
    if words[0] is not None:
        classes_are_words = dataset.labelled and len(dataset.classes) == len(study.vocabulary.labels.words)
        _compare_predictions(
            drifts, [np.concatenate(batches) for batches in predictions], labels if classes_are_words else None
        )
    return drifts


def with_precision(study: Study, dtype: Dtype, compiled: bool, batch_size: int) -> Study:
    """Change the precision of a study's encoder.

    Args:
        study: The study.
        dtype: The precision.
        compiled: Whether torch compiles the image tower.
        batch_size: The one size of batches.

    Returns:
        The study with its encoder in that precision.
    """
    encoder = study.encoder.model_copy(update={"dtype": dtype, "compiled": compiled})
    extraction = study.extraction.model_copy(update={"batch_size": batch_size})
    return study.model_copy(update={"encoder": encoder, "extraction": extraction})


def sample_images(study: Study, dataset: Dataset, count: int) -> tuple[list[tuple[str, int]], Labels]:
    """Choose images that are evenly spaced over a data set.

    Args:
        study: The study.
        dataset: Its data set.
        count: How many images, or all where there are fewer.

    Returns:
        Split and row of every image, and the labels.

    Raises:
        DatasetError: There are no images.
    """
    labels = {split: dataset.rows(split).labels for split in study.splits}
    images = [(split, row) for split, split_labels in labels.items() for row in range(len(split_labels))]
    if not images:
        raise DatasetError(f"{study.name} has no images.")
    positions = evenly_spaced_positions(len(images), count)
    return [images[position] for position in positions.tolist()], np.concatenate(list(labels.values()))[positions]


def image_batches(
    size: int, dataset: Dataset, encoder: Encoder, images: Sequence[tuple[str, int]]
) -> Iterator[FloatArray]:
    """Preprocess images of a data set, as `sample_images` names them.

    Args:
        size: Images in a batch.
        dataset: The data set.
        encoder: The encoder whose preprocessing is used.
        images: Split and row of every image.

    Yields:
        Pixels (B, 3, S, S); the last batch may be smaller.
    """
    for first in range(0, len(images), size):
        yield np.stack([encoder.preprocess(dataset.read(*image)) for image in images[first : first + size]])


def _encode_timed(encoder: Encoder, pixels: FloatArray, figures: PrecisionDrift) -> ImageFeatures:
    if not figures.images:
        encoder.encode_pixels(pixels)  # The first call sets up memory and algorithms; timing it would count that.
    start = time.perf_counter()
    result = encoder.encode_pixels(pixels)
    figures.seconds += time.perf_counter() - start
    figures.images += len(pixels)
    return result


def _add_distances(figures: PrecisionDrift, result: ImageFeatures, reference: ImageFeatures) -> None:
    figures.features.add(result.features, reference.features)
    if result.tokens is not None and reference.tokens is not None:
        figures.tokens = figures.tokens or Distance()
        figures.tokens.add(result.tokens, reference.tokens)


def _compare_predictions(
    drifts: Sequence[PrecisionDrift], predictions: Sequence[Labels], labels: Labels | None
) -> None:
    """Set the agreement with the first predictions, and the accuracy where there are labels."""
    for drift, classes in zip(drifts, predictions, strict=True):
        drift.agreement = float((classes == predictions[0]).mean())
        if labels is not None:
            drift.accuracy = float((classes == labels).mean())


def _label_vectors(study: Study, encoder: Encoder) -> FloatArray | None:
    """One unit vector for each label word (C, D), the mean over its templates; None without label templates."""
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
