"""Query vectors of texts, concepts, rows, patches and image files, and the encoder that makes them."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from functools import lru_cache

import numpy as np
from PIL import Image

from ccassets.analysis.scores import FloatArray, local_features, normalise, require_tokens
from ccassets.analysis.vector_search import image_vectors, text_vectors
from ccassets.database.reader import Database
from ccassets.encoders import Encoder, load_encoder
from ccassets.errors import AnalysisError
from ccassets.study.schema import Study

LONGEST_TEXT = 1000
"""Characters of a text; the tokenizers of all encoders keep fewer."""

_MOST_TEXTS = 512
_MOST_IMAGES = 64


class QueryVectors:
    """Unit vectors of queries. The encoder is loaded once, by the first query that needs it, and used by one thread.

    Args:
        database: The database that is searched.
        study: The study that it was built from; None for a file alone, which has no encoder.
    """

    def __init__(self, database: Database, study: Study | None) -> None:
        self._database = database
        self._study = study
        self._lock = threading.Lock()
        self._encoder: Encoder | None = None
        self._images: OrderedDict[str, FloatArray] = OrderedDict()
        self.of_text = lru_cache(_MOST_TEXTS)(self._encode_text)

    @property
    def unavailable_reason(self) -> str | None:
        """Why texts and image files cannot be encoded; None where they can."""
        if self._study is None:
            return "A file alone has no encoder: start the explorer with the study's name instead of the file."
        return None

    def _encode_text(self, text: str, patches: bool = False) -> FloatArray:
        """Encode a text as (D,), for whole images or for patches."""
        if not text.strip() or len(text) > LONGEST_TEXT:
            raise AnalysisError(f"Expected a text of 1 to {LONGEST_TEXT} characters, found {len(text)}.")
        with self._lock:
            return np.asarray(text_vectors(self._database, self._loaded(), text, patches=patches)[0])

    def of_concept(self, word: str, patches: bool = False) -> FloatArray:
        """The vector (D,) of a concept of the file, for whole images or for patches."""
        vectors = local_features(self._database, word) if patches else self._database.concept_features(word)
        return np.asarray(vectors[0])

    def of_row(self, row: int) -> FloatArray:
        """The vector (D,) of a row's image."""
        return normalise(np.asarray(self._database.image_features[row]))

    def of_patch(self, row: int, patch: int) -> FloatArray:
        """The vector (D,) of one patch of a row, patches counted row by row from the top left."""
        tokens = require_tokens(self._database)
        if not 0 <= patch < self._database.token_count:
            raise AnalysisError(f"Expected a patch from 0 to {self._database.token_count - 1}, found {patch}.")
        return normalise(np.asarray(tokens[row : row + 1])[0, patch])

    def of_image(self, name: str) -> FloatArray:
        """The vector (D,) of an image that `add_image` gave this name."""
        with self._lock:
            if name not in self._images:
                raise AnalysisError("This image is not kept any more: drop the file on the page again.")
            self._images.move_to_end(name)
            return self._images[name]

    def add_image(self, image: Image.Image) -> str:
        """Encode an image, keep its vector with those of the last few, and give it a name."""
        name = hashlib.sha256(image.tobytes()).hexdigest()[:16]
        with self._lock:
            if name not in self._images:
                self._images[name] = image_vectors(self._database, self._loaded(), [image])[0]
            while len(self._images) > _MOST_IMAGES:
                self._images.popitem(last=False)
        return name

    def _loaded(self) -> Encoder:
        if self._study is None:
            raise AnalysisError(str(self.unavailable_reason))
        if self._encoder is None:
            self._encoder = load_encoder(self._study)
        return self._encoder
