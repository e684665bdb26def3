"""Builds by the library's steps, with what they encoded, and databases compared row by row and bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import ccassets
from ccassets.database.reader import open_database
from ccassets.encoders.encoder_contract import Encoder
from ccassets.extraction import Assembly, ImageExtraction, SplitExtraction, TemplateExtraction
from ccassets.findings import Finding, has_errors
from ccassets.study.schema import Study
from ccassets.study.storage import Store

COLOURS = '''
import hashlib
import numpy as np
from ccassets.encoders import ImageFeatures
from ccassets.encoders.encoder_contract import EncoderCard
from ccassets.errors import EncoderError

CALLS = []


class Colours:
    """Image features of eight grey levels; `fault` breaks the batch that holds an image whose first value is 255."""

    device = "cpu"

    def __init__(self, fault=None, tokens=2):
        self.fault = fault
        self.card = EncoderCard(
            kind="python", weights_digest="ab" * 32, architecture={}, preprocessing={}, text_pooling=None,
            tokenizer_digest=None, dim=8, token_count=tokens, image_size=8, dtype="float32",
        )

    def preprocess(self, image):
        values = np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1)
        if self.fault == "preprocess" and image.getpixel((0, 0)) == (255, 255, 255):
            raise ValueError("no such picture")
        return np.ascontiguousarray(values)

    def encode_pixels(self, pixels):
        CALLS.append(len(pixels))
        rows = pixels.mean(axis=(1, 2)) + 1
        features = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        tokens = np.repeat(features[:, None], self.card.token_count, axis=1)
        broken = pixels[:, 0, 0, 0] == 255
        if broken.any():
            if self.fault == "nan":
                features[broken] = np.nan
            if self.fault == "overflow":
                tokens[broken] = 1e6
            if self.fault == "shape":
                features = features[:, :-1]
            if self.fault == "raises":
                raise RuntimeError("out of order")
        return ImageFeatures(features, tokens if self.card.token_count else None)

    def encode_images(self, images):
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts):
        raise EncoderError("no text")
'''


STAND_IN = """
import hashlib
from pathlib import Path

import numpy as np

from ccassets.encoders import ImageFeatures, TextFeatures
from ccassets.encoders.encoder_contract import EncoderCard


class StandIn:
    device = "cpu"

    def __init__(self, dim, tokens, dtype="float32", **logits):
        self.card = EncoderCard(
            kind="python", weights_digest="ab" * 32, architecture={}, preprocessing={}, text_pooling="mean",
            tokenizer_digest="cd" * 32, dim=dim, token_count=tokens, image_size=8, dtype=dtype, **logits,
        )
        path = Path(__file__).with_name("features.npz")
        self.known = dict(np.load(path)) if path.exists() else {}

    def preprocess(self, image):
        return np.asarray(image.resize((8, 8)), np.float32).transpose(2, 0, 1) / 255

    def encode_pixels(self, pixels):
        made = np.stack([self._vectors(image.tobytes(), 1 + self.card.token_count) for image in pixels])
        for vectors, image in zip(made, pixels):
            known = self.known.get(hashlib.sha256(image.tobytes()).hexdigest(), vectors)
            vectors[:] = known if len(known) == 1 else known[: len(vectors)]
        return ImageFeatures(made[:, 0], made[:, 1:] if self.card.token_count else None)

    def encode_images(self, images):
        return self.encode_pixels(np.stack([self.preprocess(image) for image in images]))

    def encode_texts(self, prompts):
        made = [
            self.known.get(hashlib.sha256(prompt.encode()).hexdigest(), self._vectors(prompt.encode(), 5))
            for prompt in prompts
        ]
        tokens = max(map(len, made)) - 1
        mask = np.array([np.arange(tokens) < len(vectors) - 1 for vectors in made], np.uint8)
        padded = np.stack([np.pad(vectors, [(0, 1 + tokens - len(vectors)), (0, 0)]) for vectors in made])
        offsets = np.array([[(0, 0), (0, len(prompt))] + [(0, 0)] * (tokens - 2) for prompt in prompts], np.int32)
        return TextFeatures(padded[:, 0], padded[:, 1:], mask.astype(np.int32), mask, offsets)

    def _vectors(self, seed, count):
        number = int.from_bytes(hashlib.sha256(seed).digest()[:8], "little")
        vectors = np.random.default_rng(number).standard_normal((count, self.card.dim)).astype(np.float32)
        if self.card.dtype == "bfloat16":
            vectors = (vectors.view(np.uint32) & 0xFFFF0000).view(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
"""
"""An encoder whose vectors are a function of the pixels or the prompt alone, the same in every batch.

A file `features.npz` beside it may give them, a feature and then the tokens, by digest of pixels or prompt. The tokens
of an image without any are its feature.
"""


@dataclass(frozen=True)
class Built:
    """What a build by the library's steps did."""

    templates: Mapping[str, TemplateExtraction]
    extractions: Sequence[ImageExtraction]
    assembly: Assembly

    @property
    def path(self) -> Path:
        return self.assembly.path

    @property
    def encoded(self) -> int:
        return sum(extraction.encoded for extraction in self.extractions)

    @property
    def images(self) -> dict[str, SplitExtraction]:
        return {split.split: split for extraction in self.extractions for split in extraction.splits}

    @property
    def prompts_encoded(self) -> dict[str, int]:
        return {name: part.encoded for name, part in self.templates.items() if part.encoded}

    @property
    def damaged(self) -> set[str]:
        return {name for extraction in self.extractions for name in extraction.damaged}


def read_sources(study: Study, *, store: Store | None = None) -> None:
    """Look at the encoder and read every split."""
    ccassets.identify_encoder(study, store=store)
    for split in study.splits:
        ccassets.read_images(study, split, store=store)


def build(study: Study, *, store: Store | None = None, fresh: bool = False, allow_loss: bool = False) -> Built:
    """Read the sources again, encode what is missing, assemble."""
    store = store or Store.of(study)
    read_sources(study, store=store)
    templates = ccassets.extract_text(study, store=store, fresh=fresh)
    extractions = [ccassets.extract_images(study, split, store=store, fresh=fresh) for split in study.splits]
    return Built(
        {part.template_id: part for part in templates},
        extractions,
        ccassets.assemble_database(study, store=store, allow_loss=allow_loss),
    )


def build_in_storage(study: Study, root: Path) -> Built:
    """A build from nothing, under a storage root of its own."""
    return build(study, store=Store.of(study, root))


def parts(study: Study) -> list[Path]:
    """The image parts of a study's encoder, oldest first."""
    store = Store.of(study)
    identity = ccassets.identify_encoder(study, store=store).identity
    return sorted(store.image_parts(identity).glob("*.h5"), key=lambda path: path.stat().st_mtime_ns)


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Every data set of a file by its path."""
    datasets: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:

        def read(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[name] = item[...]

        file.visititems(read)
    return datasets


def differences(one: Path, other: Path) -> list[str]:
    """The data sets in which two files differ in a single bit, dtype or shape, and the digests that differ."""
    first, second = arrays(one), arrays(other)
    names = [
        name
        for name in sorted(first.keys() | second.keys())
        if name not in first
        or name not in second
        or first[name].dtype != second[name].dtype
        or not np.array_equal(first[name], second[name])
    ]
    with open_database(one) as a, open_database(other) as b:
        digests = [(database.provenance or {}).get("digests") for database in (a, b)]
    return names if digests[0] == digests[1] else [*names, "digests"]


def far_rows(one: Path, other: Path) -> list[str]:
    """Keys of rows that are not the same in two databases, and data sets of templates that differ.

    Keys, splits, labels, image digests and prompts have to be equal; features may be one unit in the last place of
    float16 apart, since an image may have been encoded in a batch with others.
    """
    first, second = arrays(one), arrays(other)
    exact = [name for name in first if name not in {"image_features", "image_token_features", "feature_digest"}]
    wrong = [name for name in exact if not np.array_equal(first[name], second.get(name))]
    for name in ("image_features", "image_token_features"):
        if name in first:
            a, b = first[name].astype(np.float32), second[name].astype(np.float32)
            last_place = np.spacing(np.maximum(abs(first[name]), abs(second[name]))).astype(np.float32)
            far = (abs(a - b) > last_place).reshape(len(a), -1).any(axis=1)
            wrong += [first["keys"][row].decode() for row in np.flatnonzero(far)]
    return wrong


def errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if has_errors([finding])]


def deep_errors(built: Built, study: Study) -> list[Finding]:
    """What a deep validation against the study finds wrong."""
    return errors(ccassets.validate_database(built.path, study=study, deep=True))


def direct(study: Study, encoder: Encoder, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features and tokens of a split as the encoder itself gives them, in the study's batches, as they are stored."""
    from ccassets.datasets import open_dataset

    dataset = open_dataset(study, Store.of(study))
    images = [dataset.read(split, row) for row in range(len(dataset.rows(split)))]
    size = study.extraction.batch_size
    results = [encoder.encode_images(images[first : first + size]) for first in range(0, len(images), size)]
    return (
        np.concatenate([result.features for result in results]).astype(np.float16),
        np.concatenate([result.tokens for result in results]).astype(np.float16),
    )


def stop_after(rows: int) -> Callable[[int, int], None]:
    """A progress that breaks off once so many rows are encoded."""

    def progress(done: int, total: int) -> None:
        if done >= rows:
            raise StoppedError

    return progress


class StoppedError(Exception):
    """Raised by a progress that breaks off."""


def attributes(path: Path) -> dict[str, Any]:
    """Every attribute of a file, of every group and data set, by its path."""
    values: dict[str, Any] = {}
    with h5py.File(path) as file:
        values.update({f"/@{name}": value for name, value in file.attrs.items()})
        file.visititems(
            lambda path, item: values.update({f"/{path}@{name}": value for name, value in item.attrs.items()})
        )
    return values
