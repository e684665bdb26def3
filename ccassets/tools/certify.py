"""Certificates: a real encoder compared with published values, with every deviation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ccassets.database.layout import LOGIT_PARAMETERS
from ccassets.datasets import open_dataset
from ccassets.datasets.dataset_contract import Dataset
from ccassets.encoders import load_encoder
from ccassets.encoders.encoder_contract import Encoder
from ccassets.errors import StudyError
from ccassets.extraction.provenance import created, libraries
from ccassets.files import read_package_yaml, write_text
from ccassets.progress import Progress, silent
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets.tools.precision_drift import REFERENCE, Distance, image_batches, sample_images, with_precision

TOLERANCES = {"logit parameters": 1e-5, "prompts": 1e-4, "image features": 5e-3, "patch tokens": 0.1, "length": 1e-3}
"""The largest deviation from a published number that passes; those of the image allow for other pixels."""

SMALLEST_COSINE = 0.995
"""The lowest cosine allowed between an image's features in the study's precision and in float32."""

IMAGES = 64


@dataclass(frozen=True)
class Check:
    """One fact of a certificate.

    Attributes:
        name: What was compared.
        expected: The published value, or the limit.
        measured: What this encoder gives.
        deviation: The largest difference; None where nothing was measured.
        passed: Whether the deviation is within the tolerance; None where nothing was measured.
    """

    name: str
    expected: str
    measured: str
    deviation: float | None
    passed: bool | None


@dataclass(frozen=True)
class Certificate:
    """The comparison of an encoder with published values.

    Attributes:
        identity: The identity of the study's encoder.
        checks: Every fact, in the order of measuring.
        device: The kind of device that computed.
        libraries: The versions of libraries.
        created: When, and how long it took.
    """

    identity: str
    checks: Sequence[Check]
    device: str
    libraries: Mapping[str, str]
    created: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every fact that was measured passed."""
        return all(check.passed is not False for check in self.checks)

    def facts(self) -> dict[str, Any]:
        """All figures as plain values for JSON."""
        return {"passed": self.passed, **asdict(self)}


def load_published() -> dict[str, Any]:
    """Load the published values of ConceptCLIP.

    Returns:
        Parameters, logit parameters, prompts with their first values, and one image.
    """
    published: dict[str, Any] = read_package_yaml(__package__, "published.yaml")
    return published


def certify_study(
    study: Study,
    *,
    published: Mapping[str, Any] | None = None,
    device: str | None = None,
    store: Store | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Compare a study's encoder with published values, and write `certificate.json` into the study's folder.

    The next assembly takes it into the provenance of the database. Both encoders, float32 and the study's precision,
    are in memory at once.

    Args:
        study: A study with ConceptCLIP.
        published: Published values, with the keys of `load_published()`, whose result is the default.
        device: The torch device; by default a GPU where there is one.
        store: Where the study's files lie, by default below `CCASSETS_STORAGE`.
        progress: Called with the images encoded so far and in all.

    Returns:
        The certificate, passed or not.

    Raises:
        StudyError: Nothing is published of the study's encoder.
        DatasetError: The data set cannot be read, or has no images.
        EncoderError: The encoder cannot be loaded.
        StorageError: The certificate cannot be written.
    """
    if study.encoder.kind != "conceptclip":
        raise StudyError(
            f"{study.name} has an encoder of kind {study.encoder.kind}; numbers of conceptclip are published."
        )
    published = load_published() if published is None else published
    store = store or Store.of(study)
    dataset = open_dataset(study, store)
    dataset.fetch(silent)
    start = created(0)
    batch_size = study.extraction.batch_size
    encoder = load_encoder(study, device=device, cache=store.cache)
    exact_study = with_precision(study, REFERENCE, False, batch_size)
    is_exact = encoder.card.dtype == REFERENCE and not encoder.card.compiled
    exact = encoder if is_exact else load_encoder(exact_study, device=device, cache=store.cache)
    checks = [
        *_card_checks(exact, published),
        *_text_checks(exact, published["texts"]),
        *_image_checks(exact, study, dataset, published["image"]),
        *_sample_checks(encoder, exact, study, dataset, progress),
    ]
    seconds = (created(0)["unix_ns"] - start["unix_ns"]) / 1e9
    certificate = Certificate(encoder.card.identity, checks, encoder.device, libraries(), created(seconds))
    write_text(store.certificate, json.dumps(certificate.facts(), indent=2, ensure_ascii=False) + "\n")
    return certificate


def _card_checks(encoder: Encoder, published: Mapping[str, Any]) -> Iterator[Check]:
    card = encoder.card
    count, expected_count = int(card.recorded.get("parameters", 0)), published["parameters"]
    difference = abs(count - expected_count)
    yield Check("parameters", f"{expected_count:,}", f"{count:,}", difference, difference == 0)
    trained = not card.weights_digest.startswith("random:")
    yield Check("weights", "trained", "trained" if trained else card.weights_digest, float(not trained), trained)
    for name in LOGIT_PARAMETERS:
        yield _near(name, [published[name]], [getattr(card, name)], TOLERANCES["logit parameters"])


def _text_checks(encoder: Encoder, texts: Mapping[str, Sequence[float]]) -> Iterator[Check]:
    features = encoder.encode_texts(list(texts)).features
    for (prompt, values), vector in zip(texts.items(), features, strict=True):
        yield _near(repr(prompt), values, vector[: len(values)], TOLERANCES["prompts"])
    yield _length_check("length of prompts", features)


def _image_checks(encoder: Encoder, study: Study, dataset: Dataset, image: Mapping[str, Any]) -> Iterator[Check]:
    name = f"image {image['row']} of {image['split']} of {image['dataset']}"
    if dataset.name != image["dataset"] or image["split"] not in study.splits:
        yield Check(name, "its printed values", f"not measured: the data set is {dataset.name}", None, None)
        return
    result = encoder.encode_images([dataset.read(image["split"], image["row"])])
    yield _ends(f"{name}: features", image["features"], result.features[0], TOLERANCES["image features"])
    for patch, values in image["tokens"].items():
        if result.tokens is None:
            yield Check(f"{name}: patch {patch}", "its printed values", "not measured: no tokens", None, None)
        else:
            yield _ends(f"{name}: patch {patch}", values, result.tokens[0, patch], TOLERANCES["patch tokens"])


def _sample_checks(
    encoder: Encoder, exact: Encoder, study: Study, dataset: Dataset, progress: Progress
) -> Iterator[Check]:
    images, _ = sample_images(study, dataset, IMAGES)
    distance, lengths, done = Distance(), [], 0
    for pixels in image_batches(min(study.extraction.batch_size, len(images)), dataset, encoder, images):
        features = encoder.encode_pixels(pixels).features
        lengths.append(features)
        distance.add(features, features if encoder is exact else exact.encode_pixels(pixels).features)
        done += len(pixels)
        progress(done, len(images))
    yield _length_check(f"length of {done} images", np.concatenate(lengths))
    yield Check(
        f"{encoder.card.dtype} against {REFERENCE} on {done} images",
        f"cosine of at least {SMALLEST_COSINE}",
        f"{distance.smallest:.6f}",
        1 - distance.smallest,
        bool(distance.smallest >= SMALLEST_COSINE),
    )


def _ends(name: str, values: Mapping[str, Sequence[float]], vector: Any, tolerance: float) -> Check:
    first, last = values["first"], values["last"]
    return _near(name, [*first, *last], [*vector[: len(first)], *vector[-len(last) :]], tolerance)


def _near(name: str, expected: Sequence[float], measured: Sequence[float] | Any, tolerance: float) -> Check:
    deviation = float(np.abs(np.subtract(np.asarray(measured, np.float64), expected)).max())
    return Check(name, _joined(expected), _joined(measured), deviation, bool(deviation <= tolerance))


def _joined(values: Sequence[float]) -> str:
    return " ".join(f"{value:.6g}" for value in values)


def _length_check(name: str, features: Any) -> Check:
    deviation = float(np.abs(np.linalg.norm(features.astype(np.float64), axis=1) - 1).max())
    return Check(name, "1", f"{1 + deviation:.6f} at most", deviation, bool(deviation <= TOLERANCES["length"]))
