"""The state of the explorer: an open database and what requests ask of it; costly things are computed once and kept."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from math import isqrt
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.analysis.bottleneck import HOLDOUT_LOG
from ccassets.analysis.classifiers import LinearClassifier, classifier_digest
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.image_source import image_reader
from ccassets.analysis.label_error_detection import LabelError, label_errors, listed_errors
from ccassets.analysis.projection import project_features, read_projection
from ccassets.analysis.results import RESULT_FILES, analysis_folder, held_out_splits, read_result
from ccassets.analysis.row_history import SIMILAR, explain_rows
from ccassets.analysis.samples import class_names, database_concepts, is_labelled, row_classes
from ccassets.analysis.scores import FloatArray, cosines, image_cosines, normalise, patch_cosines, require_tokens
from ccassets.analysis.vector_search import Hit, RowFilter, near_duplicates, nearest_images, nearest_patches
from ccassets.database.attributes import json_array, section
from ccassets.database.hdf5 import take_rows
from ccassets.database.reader import Database
from ccassets.database.summary import summarize
from ccassets.database.token_geometry import no_map_reason, token_geometry
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.exports.exported_rows import ExportedRows
from ccassets.pages.atlas.concept_cards import HEAT_FROM, HEAT_TO
from ccassets.pages.explorer.point_columns import Column, coded, pack_columns
from ccassets.pages.explorer.query_vectors import QueryVectors
from ccassets.pages.thumbnails import thumbnail
from ccassets.study.schema import Study

MOST_HITS = 5000
"""How far a search goes down its list."""
MOST_LISTED = 500
"""Most errors or pairs of one list."""

_MOST_COMPARED = 50_000
"""Up to this many rows, every pair is compared while the user waits."""
_PATCH_BYTES = 4 << 30
"""Token features that one search for a patch reads; of a larger file evenly spaced rows."""
_BASELINE_IMAGES = 256
_BASELINE_PATCHES = 16
"""Images, and patches of each, whose cosines say what is usual."""
_STANDARD_ROWS = 20_000
_KEPT_THUMBNAILS = 2048
_QUALITY = 85

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True)
class SearchQuery:
    """A query: one of text, concept, row, image (a name) and patch (row, number), or none of them."""

    text: str | None = None
    concept: str | None = None
    row: int | None = None
    image: str | None = None
    patch: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if len(given) > 1:
            raise AnalysisError(f"Expected one of text, concept, row, image and patch, found {' and '.join(given)}.")


class Explorer:
    """An open database as the explorer shows it; every method may be called by several threads.

    Args:
        database: The database; it stays open as long as this is used.
        study: The study that it was built from, which gives pictures and an encoder; None for a file alone.
    """

    def __init__(self, database: Database, study: Study | None = None) -> None:
        self.database = database
        self.study = study
        self.exported = ExportedRows(database)
        self.queries = QueryVectors(database, study)
        self._made: dict[str, Any] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()
        self._patch_search = threading.Lock()
        self.thumbnail = lru_cache(_KEPT_THUMBNAILS)(self.encoded_image)

    # --- the database ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Compute what pages show first before they ask; a failure is reported when a page asks."""
        if not self.database.is_remote:  # That would read all features over the network.
            with suppress(Exception):
                self._plane()
                self.facts(0)

    def info(self) -> Json:
        """What the page needs before it shows anything, with a sentence for everything that it cannot show."""
        database, study = self.database, self.study
        encoder = section(database.provenance, "encoder")
        return {
            "title": study.name if study else database.path.name,
            "description": study.description if study else None,
            "file": database.path.name,
            "study": study.name if study else None,
            "rows": len(database),
            "dim": database.dim,
            "grid": isqrt(database.token_count) if isqrt(database.token_count) ** 2 == database.token_count else 0,
            "geometry": geometry.rule if (geometry := token_geometry(encoder)) else None,
            "splits": summarize(database)["splits"],
            "classes": list(self._class_names()),
            "multilabel": database.label_matrix is not None,
            "groups": 0 if database.groups is None else len(set(database.groups.tolist())),
            "concepts": [
                {"word": concept.word, "group": concept.group} for concept in database_concepts(database)
            ] if self.exported.concepts else [],
            "encoder": {name: encoder.get(name) for name in ("kind", "identity")},
            "phantoms": section(database.provenance, "dataset").get("kind") == "phantom",
            "unavailable": {
                "images": self._no_images_reason(),
                "encoder": self.queries.unavailable_reason,
                "heat": self._no_heat_reason(),
                "predictions": self._no_predictions_reason(),
                "patches": None if database.token_count else "The file was stored without patches.",
            },
            "most_hits": MOST_HITS,
        }  # fmt: skip

    def points(self, names: Sequence[str]) -> bytes:
        """Columns of all rows in the binary form of `pack_columns`: x, y, split, class, group, predicted."""
        columns: Mapping[str, Callable[[], Column]] = {
            "x": lambda: Column("x", self._plane()[:, 0]),
            "y": lambda: Column("y", self._plane()[:, 1]),
            "split": lambda: coded("split", self.database.split, list(self.database.splits)),
            "class": lambda: coded("class", self._classes(), self._class_names()),
            "group": lambda: coded("group", self.database.groups, []),
            "predicted": lambda: coded("predicted", self._predictions()["predicted"], self._class_names()),
        }
        unknown = [name for name in names if name not in columns]
        if unknown:
            raise AnalysisError(f"Expected columns among {', '.join(columns)}; found {', '.join(unknown)}.")
        made = [self._once(f"column {name}", columns[name]) for name in names]
        return pack_columns(len(self.database), made)

    def scores(self, query: SearchQuery) -> bytes:
        """The cosine of every row with a query, float32, in the form of `points`."""
        vector = self._vector(query)
        if vector is None:
            raise AnalysisError("Nothing to score by: give a text, a concept, a row or an image.")
        return pack_columns(len(self.database), [Column("score", image_cosines(self.database, vector[None])[:, 0])])

    # --- search ---------------------------------------------------------------------------------------

    def search(self, query: SearchQuery, where: RowFilter, offset: int, count: int) -> Json:
        """The rows nearest to a query, starting at a rank; without a query, the rows in the order of the file.

        Returns:
            `rows`, `total` (those that the filter leaves) and `compared`, fewer where a search for a patch reads a
            sample.
        """
        allowed = where.mask(self.database)
        if query.row is not None:
            self._require_row(query.row)
            allowed[query.row] = False
        if query.patch is not None:
            allowed[self._require_row(query.patch[0])] = False
        total = compared = int(allowed.sum())
        last = min(offset + count, MOST_HITS)
        vector = self._vector(query)
        if offset >= min(last, total):
            return {"rows": [], "total": total, "compared": compared}
        if query.patch is not None and vector is not None:
            allowed = self._sampled(allowed)
            compared = int(allowed.sum())
            with self._patch_search:  # It reads gigabytes: one at a time.
                hits = nearest_patches(self.database, vector, last, allowed)
        elif vector is not None:
            hits = nearest_images(self.database, vector, last, allowed)
        else:
            chosen = np.flatnonzero(allowed)[offset : offset + count]
            return {"rows": [self.facts(row) for row in chosen.tolist()], "total": total, "compared": compared}
        return {"rows": [self._hit(hit) for hit in hits[offset:]], "total": total, "compared": compared}

    def facts(self, row: int) -> Json:
        """What every list says of a row; `score` is null until a search has one."""
        database = self.database
        label = int(database.shown_labels[row]) if is_labelled(database) else None
        return {
            "row": row,
            "key": None if database.keys is None else database.keys[row],
            "split": database.split[row],
            "label": label,
            "class": self._classes()[row] or None,
            "group": None if database.groups is None else database.groups[row],
            "score": None,
        }

    def _hit(self, hit: Hit) -> Json:
        return {**self.facts(hit.row), "score": hit.score, **({} if hit.patch is None else {"patch": hit.patch})}

    def _vector(self, query: SearchQuery) -> FloatArray | None:
        if query.text is not None:
            return self.queries.of_text(query.text)
        if query.concept is not None:
            return self.queries.of_concept(query.concept)
        if query.row is not None:
            return self.queries.of_row(self._require_row(query.row))
        if query.image is not None:
            return self.queries.of_image(query.image)
        if query.patch is not None:
            return self.queries.of_patch(self._require_row(query.patch[0]), query.patch[1])
        return None

    def _sampled(self, allowed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        rows = np.flatnonzero(allowed)
        most = max(1, _PATCH_BYTES // (2 * self.database.token_count * self.database.dim))
        sampled = np.zeros(len(allowed), np.bool_)
        sampled[rows[evenly_spaced_positions(len(rows), most)]] = True
        return sampled

    # --- one row --------------------------------------------------------------------------------------

    def row(self, number: int) -> Json:
        """What is known of a row: its facts, its score on every concept, the classifier's prediction.

        `box` is the rectangle that its patches cover, in fractions of the picture; None where that is not known.
        """
        row = self._require_row(number)
        return {
            **self.facts(row),
            "concepts": self._concept_scores(row),
            "prediction": None if self._no_predictions_reason() else self._prediction(row),
            "box": self._token_box(row),
        }

    def history(self, number: int) -> Json:
        """What `ccassets explain` says about a row."""
        row = self._require_row(number)
        if self.database.keys is None:
            raise AnalysisError(f"{self.database.path.name} does not say where its rows came from.")
        histories = explain_rows(self.database, self.database.keys[row])
        return next(history for history in histories if history["row"] == row)

    def image(self, number: int) -> Image.Image:
        """The image of a row that was encoded."""
        row = self._require_row(number)
        if self.study is None:
            raise AnalysisError(str(self._no_images_reason()))
        return self._once("image reader", lambda: image_reader(self._known_study(), self.database))(row)

    def encoded_image(self, number: int, side: int | None) -> bytes:
        """The image of a row as WebP, its longer side at most `side` pixels; without a side as it is, as PNG."""
        image, buffer = self.image(number), io.BytesIO()
        if side is None:
            image.save(buffer, "PNG", compress_level=1)
        else:
            thumbnail(image, side).save(buffer, "WEBP", quality=_QUALITY)
        return buffer.getvalue()

    def heat(self, number: int, *, text: str | None = None, concept: str | None = None) -> Json:
        """How near every patch of a row is to a text or a concept.

        Returns:
            `grid`, the cosines row by row; `box`, the rectangle that it covers in fractions of the picture, which it
            may reach beyond; `low` and `high`, the cosines between which heat is shown: standard deviations above
            what is usual for patches of this database.
        """
        row = self._require_row(number)
        if (text is None) == (concept is None):
            raise AnalysisError("Expected either a text or a concept.")
        box = self._token_box(row)
        if reason := self._no_heat_reason() or (box is None and self._no_images_reason()):
            raise AnalysisError(str(reason))
        vector = (
            self._concept_patch_vector(concept)
            if concept is not None
            else self.queries.of_text(str(text), patches=True)
        )
        tokens = np.asarray(require_tokens(self.database)[row : row + 1])
        grid = patch_cosines(tokens, vector[None])[0, :, 0]
        usual = self._once("baseline", self._baseline_patches) @ vector
        mean, deviation = float(usual.mean()), float(usual.std())
        side = isqrt(len(grid))
        return {
            "grid": [[round(value, 6) for value in line] for line in grid.reshape(side, side).tolist()],
            "box": box,
            "low": mean + HEAT_FROM * deviation,
            "high": mean + HEAT_TO * deviation,
        }

    def _concept_patch_vector(self, word: str) -> FloatArray:
        return self._once(f"patches of {word}", lambda: self.queries.of_concept(word, patches=True))

    def _baseline_patches(self) -> FloatArray:
        """Unit vectors (n, D) of patches all over the database."""
        tokens = require_tokens(self.database)
        patches = evenly_spaced_positions(self.database.token_count, _BASELINE_PATCHES)
        rows = evenly_spaced_positions(len(self.database), _BASELINE_IMAGES)
        return np.concatenate([normalise(np.asarray(tokens[row])[patches]) for row in rows.tolist()])

    def _token_box(self, row: int) -> list[float] | None:
        geometry = token_geometry(section(self.database.provenance, "encoder"))
        side = isqrt(self.database.token_count)
        if geometry is None or not side or side * side != self.database.token_count:
            return None
        if geometry.rule == "squash":
            return [0.0, 0.0, 1.0, 1.0]
        if self._no_images_reason():
            return None  # It depends on the shape of the picture.
        width, height = self.image(row).size
        left, top, right, bottom = geometry.rectangle(width, height)
        return [left / width, top / height, right / width, bottom / height]

    def _concept_scores(self, row: int) -> list[Json]:
        """The cosine with every concept, also in standard deviations from the mean over all images."""
        if not self.exported.concepts:
            return []
        vectors = self._once("concept vectors", self.database.concept_features)
        mean, deviation = self._once("concept scale", lambda: self._concept_scale(vectors))
        scores = cosines(np.asarray(self.database.image_features[row : row + 1]), vectors)[0]
        standard = (scores - mean) / deviation
        return [
            {"word": concept.word, "group": concept.group, "score": float(score), "standard": float(above)}
            for concept, score, above in zip(database_concepts(self.database), scores, standard, strict=True)
        ]

    def _concept_scale(self, vectors: FloatArray) -> tuple[FloatArray, FloatArray]:
        rows = evenly_spaced_positions(len(self.database), _STANDARD_ROWS)
        scores = cosines(take_rows(self.database.image_features, rows), vectors)
        deviation = scores.std(axis=0)
        return scores.mean(axis=0), np.where(deviation > 0, deviation, 1)

    # --- the classifier -------------------------------------------------------------------------------

    def _predictions(self) -> Mapping[str, Any]:
        """`predicted` and `probabilities` of every row. The access to held-out splits is recorded first."""
        return self._once("predictions", self._predict)

    def _predict(self) -> Mapping[str, Any]:
        model = self.exported.model
        if model is None:
            raise AnalysisError(str(self._no_predictions_reason()))
        log = HoldoutLog(analysis_folder(self.database) / HOLDOUT_LOG)
        for split in held_out_splits(self.database):
            rows = len(self.database.select(split))
            log.record("explorer: predictions", model=classifier_digest(model.classifier), split=split, rows=rows)
        return self.exported.predictions

    def _prediction(self, row: int) -> Json:
        """The probabilities of a row, and what every concept adds to the predicted class."""
        model, predictions = self.exported.model, self._predictions()
        assert model is not None
        classifier = model.classifier
        probabilities = predictions["probabilities"][row]
        best = int(probabilities.argmax())
        prediction: Json = {
            "class": predictions["predicted"][row],
            "probabilities": dict(zip(classifier.classes, probabilities.tolist(), strict=True)),
            "explained": classifier.classes[best],
            "contributions": [],
        }
        if isinstance(classifier, LinearClassifier):
            scores = {score["word"]: score["score"] for score in self._concept_scores(row)}
            features = np.array([[scores[word] for word in classifier.columns]])
            effects = classifier.contributions(features)[0, best]
            prediction["contributions"] = [
                {"word": classifier.columns[column], "value": float(effects[column])}
                for column in np.argsort(-np.abs(effects), kind="stable").tolist()
            ]
        return prediction

    # --- errors ---------------------------------------------------------------------------------------

    def confident_errors(self) -> Json:
        """The held-out rows whose class is predicted wrong, the most confident first."""
        if reason := self._no_predictions_reason():
            return {"unavailable": reason}
        if self.database.label_matrix is not None or not is_labelled(self.database):
            return {"unavailable": "Errors are listed where every image has one label."}
        predictions, classes = self._predictions(), self._classes()
        confidence = predictions["probabilities"].max(axis=1)
        held_out = np.isin(self.database.split, held_out_splits(self.database))
        wrong = np.flatnonzero(held_out & (predictions["predicted"] != classes))
        order = wrong[np.argsort(-confidence[wrong], kind="stable")]
        rows = [
            {**self.facts(row), "predicted": predictions["predicted"][row], "probability": float(confidence[row])}
            for row in order[:MOST_LISTED].tolist()
        ]
        return {"rows": rows, "total": len(order)}

    def doubtful_labels(self) -> Json:
        """The rows whose label is in doubt, the least probable label first: the study's list, else computed now."""
        try:
            errors = self._once("label errors", self._label_errors)
        except AnalysisError as error:
            return {"unavailable": str(error)}
        row_of = self._once(
            "rows by id", lambda: {number: row for row, number in enumerate(self.database.ids.tolist())}
        )
        rows = [
            {
                **self.facts(row_of[error.id]),
                "predicted": error.predicted,
                "confidence": error.confidence,
                "probability": error.predicted_confidence,
            }
            for error in errors
        ]
        return {"rows": rows[:MOST_LISTED], "total": len(rows)}

    def _label_errors(self) -> Sequence[LabelError]:
        if self.study is not None:
            try:
                path = analysis_folder(self.database) / RESULT_FILES["label_errors"]
                return listed_errors(read_result(path, self.database))
            except AnalysisError:
                pass  # The study has no list of this state of the database.
        if len(self.database) > _MOST_COMPARED:
            raise AnalysisError("Materialize label_errors of the study: the file is too large to judge its labels now.")
        return label_errors(self.database)

    def duplicates(self) -> Json:
        """Pairs of images in different splits that look alike, the most similar first."""
        if len(self.database) > _MOST_COMPARED:
            name = self.database.path.name
            return {"unavailable": f"Too many pairs to compare while you wait: run `ccassets duplicates {name}`."}
        result = self._once("duplicates", lambda: near_duplicates(self.database, SIMILAR, MOST_LISTED))
        pairs = [
            {"similarity": pair.similarity, "rows": [self.facts(pair.row), self.facts(pair.other_row)]}
            for pair in result.pairs
        ]
        return {"pairs": pairs, "total": result.count, "similarity": SIMILAR}

    def left_out(self) -> Json:
        """Images that the build could not read: those without a row, and rows that hold a grey stand-in."""
        splits = section(self.database.provenance, "dataset", "splits")
        skipped = [
            {"split": split, **{name: image.get(name) for name in ("key", "reason")}}
            for split in splits
            for image in map(section, json_array(section(splits, split).get("skipped")))
        ]
        rows = [row for split in splits for row in json_array(section(splits, split).get("blank"))]
        blank = [self.facts(row) for row in rows if type(row) is int and 0 <= row < len(self.database)]
        return {"skipped": skipped, "rows": blank, "total": len(skipped) + len(blank)}

    # --- what there is --------------------------------------------------------------------------------

    def _no_images_reason(self) -> str | None:
        if self.study is None:
            return "A file alone has no pictures: start the explorer with the study's name instead of the file."
        if "keys" not in self.database.file:  # Reading them takes a second a million: the map needs none.
            return f"{self.database.path.name} does not say where its rows came from: they have no pictures."
        return None

    def _no_heat_reason(self) -> str | None:
        if not self.database.token_count:
            return "The file was stored without patches: there is nothing to draw a heat map from."
        return no_map_reason(section(self.database.provenance, "encoder"), self.database.token_count)

    def _no_predictions_reason(self) -> str | None:
        if self.exported.model is None:
            return "No fitted classifier lies beside the file: materialize concept_bottleneck of the study."
        return None

    def _known_study(self) -> Study:
        if self.study is None:
            raise AnalysisError(str(self._no_images_reason()))
        return self.study

    def _require_row(self, row: int) -> int:
        if not 0 <= row < len(self.database):
            raise DatabaseError(f"Expected a row from 0 to {len(self.database) - 1}, found {row}.")
        return row

    def _class_names(self) -> tuple[str, ...]:
        return class_names(self.database) if is_labelled(self.database) else ()

    def _classes(self) -> npt.NDArray[np.object_]:
        """The class of every row, "" where it has none."""

        def read() -> npt.NDArray[np.object_]:
            labelled = is_labelled(self.database)
            return np.array(row_classes(self.database) if labelled else [""] * len(self.database), object)

        return self._once("classes", read)

    def _plane(self) -> npt.NDArray[np.float32]:
        """(N, 2): the projection that a build stored beside the file, else the principal components."""

        def read() -> npt.NDArray[np.float32]:
            try:
                path = analysis_folder(self.database) / RESULT_FILES["projection"]
                return read_projection(path, self.database).points
            except AnalysisError:
                return project_features(self.database, "pca")

        return self._once("plane", read)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        """Compute a value at its first request; other requests wait for it."""
        with self._guard:
            lock = self._locks.setdefault(name, threading.Lock())
        with lock:
            if name not in self._made:
                self._made[name] = make()
            made: T = self._made[name]
            return made
