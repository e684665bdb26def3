"""Fitted classifiers as JSON files, and their predictions for another database of the same encoder."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccassets import __version__
from ccassets.analysis.classifiers import Classifier, FloatArray, LinearClassifier, OneVsRestClassifier, TreeClassifier
from ccassets.analysis.row_files import csv_text
from ccassets.analysis.samples import database_concepts
from ccassets.analysis.scores import image_cosines
from ccassets.database.attributes import section
from ccassets.database.label_names import joined_labels
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.files import unreadable_reason, write_text
from ccassets.study.schema import Concept

Numbers = list[float]

MAX_MODEL_BYTES = 64 << 20
"""A stored classifier of thousands of concepts has a few megabytes."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Linear(_Section):
    kind: Literal["linear"] = "linear"
    mean: Numbers
    scale: Numbers
    weights: list[Numbers]
    intercept: Numbers


class _OneVsRest(_Linear):
    kind: Literal["one-vs-rest"] = "one-vs-rest"  # type: ignore[assignment]


class _Tree(_Section):
    kind: Literal["tree"] = "tree"
    mean: Numbers
    scale: Numbers
    column: list[int]
    threshold: Numbers
    left: list[int]
    right: list[int]
    shares: list[Numbers]


class _File(_Section):
    format: Literal["ccassets-classifier"] = "ccassets-classifier"
    version: Literal[1] = 1
    encoder_identity: str
    concepts: tuple[Concept, ...]
    prompt_templates: tuple[str, ...]
    classes: tuple[str, ...]
    chosen: dict[str, Any]
    libraries: dict[str, str]
    classifier: Annotated[_Linear | _OneVsRest | _Tree, Field(discriminator="kind")]


_KINDS: dict[type[Any], type[Any]] = {
    _Linear: LinearClassifier,
    _OneVsRest: OneVsRestClassifier,
    _Tree: TreeClassifier,
}


@dataclass(frozen=True, eq=False)
class ConceptModel:
    """A fitted classifier with what is needed to apply it to another database.

    Attributes:
        classifier: The classifier, on the scores of `concepts`.
        encoder_identity: Identity of the encoder whose features it was fitted on.
        concepts: Its concepts, each scored by the cosine with the mean over `prompt_templates` and synonyms.
        prompt_templates: The templates of the concepts' prompts.
        libraries: Versions of the libraries that it was fitted with.
    """

    classifier: Classifier
    encoder_identity: str
    concepts: tuple[Concept, ...]
    prompt_templates: tuple[str, ...]
    libraries: Mapping[str, str]


def make_concept_model(classifier: Classifier, database: Database) -> ConceptModel:
    """Add to a classifier the encoder and the vocabulary that it was fitted with.

    Args:
        classifier: A classifier on concept scores.
        database: The database whose scores it was fitted on.

    Returns:
        The model.

    Raises:
        AnalysisError: The database does not say which encoder made it, or lacks a concept of the classifier.
    """
    return ConceptModel(
        classifier=classifier,
        encoder_identity=encoder_identity(database),
        concepts=_concepts(database, classifier.columns),
        prompt_templates=tuple(database.attributes.get("prompt_temp_for_concepts") or ()),
        libraries=_libraries(),
    )


def save_model(model: ConceptModel, path: str | os.PathLike[str]) -> None:
    """Write a model as JSON: nothing in it can run code, and numbers are read back bit by bit.

    Args:
        model: The model.
        path: The file.

    Raises:
        StorageError: The file cannot be written.
    """
    classifier = model.classifier
    arrays = {name: value.tolist() for name, value in vars(classifier).items() if isinstance(value, np.ndarray)}
    section = next(section for section, kind in _KINDS.items() if type(classifier) is kind)
    file = _File(
        encoder_identity=model.encoder_identity,
        concepts=model.concepts,
        prompt_templates=model.prompt_templates,
        classes=classifier.classes,
        chosen=dict(classifier.chosen),
        libraries=dict(model.libraries),
        classifier=section(**arrays),
    )
    write_text(Path(path), file.model_dump_json(indent=1) + "\n")


def load_model(path: str | os.PathLike[str]) -> ConceptModel:
    """Read a model that `save_model` wrote.

    Args:
        path: The file.

    Returns:
        The model.

    Raises:
        AnalysisError: The file is not a model, or its parts do not fit together.
    """
    if reason := unreadable_reason(Path(path), MAX_MODEL_BYTES):
        raise AnalysisError(f"{path} is not a stored classifier (model.json): {reason}.")
    try:
        file = _File.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise AnalysisError(
            f"{path}: expected a stored classifier (model.json), found a binary file. "
            "`ccassets apply MODEL FILE` takes the classifier first, then the database."
        ) from error
    except OSError as error:
        raise AnalysisError(f"{path} cannot be read: {error.strerror}.") from error
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the file"
        raise AnalysisError(f"{path} is not a classifier that `save_model` wrote: {field}: {problem['msg']}") from error
    columns = tuple(concept.word for concept in file.concepts)
    kind = _KINDS[type(file.classifier)]
    fields = file.classifier.model_dump(exclude={"kind"})
    try:
        arrays = {name: np.array(values) for name, values in fields.items()}
    except ValueError as error:
        raise AnalysisError(f"{path}: expected rows of equal length ({error})") from error
    classifier = kind(columns=columns, classes=file.classes, chosen=file.chosen, **arrays)
    if not _fits(classifier):
        raise AnalysisError(
            f"{path}: {len(columns)} concepts and {len(file.classes)} classes do not fit the classifier's numbers. "
            "The file was changed since it was written."
        )
    return ConceptModel(classifier, file.encoder_identity, file.concepts, file.prompt_templates, file.libraries)


def _fits(classifier: Classifier) -> bool:
    columns, classes = len(classifier.columns), len(classifier.classes)
    if classifier.mean.shape != (columns,) or classifier.scale.shape != (columns,) or not np.all(classifier.scale > 0):
        return False
    if isinstance(classifier, LinearClassifier):
        return classifier.weights.shape == (classes, columns) and classifier.intercept.shape == (classes,)
    nodes = len(classifier.column)
    number = np.arange(nodes)
    inner = classifier.column >= 0
    return (
        nodes > 0
        and classifier.shares.shape == (nodes, classes)
        and all(len(values) == nodes for values in (classifier.threshold, classifier.left, classifier.right))
        and bool(np.all(classifier.column < columns))
        # A child always has a larger number, so every walk ends.
        and all(
            np.all((child > number)[inner] & (child < nodes)[inner]) for child in (classifier.left, classifier.right)
        )
    )


# --- predictions -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """The predictions of a model for n rows, or for n groups of rows.

    Attributes:
        classes: The C classes.
        probabilities: (n, C).
        about: What is known of each row, by column name: id, key, split, group; of groups the group and its number
            of rows.
        thresholds: (C,) of a multi-label model: a higher probability says that a row has the class; nan where none
            is known. None where classes exclude each other.
    """

    classes: tuple[str, ...]
    probabilities: FloatArray
    about: Mapping[str, npt.NDArray[Any]]
    thresholds: FloatArray | None = None

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each; of a multi-label model its classes, `a|b`, or "none"."""
        if self.thresholds is not None:
            return joined_labels(self.probabilities > self.thresholds, self.classes)
        return [self.classes[index] for index in self.probabilities.argmax(axis=1)]

    def by_group(self) -> Predictions:
        """Average the probabilities of every group.

        Returns:
            One row for each group.

        Raises:
            AnalysisError: There are no groups.
        """
        groups = self.about.get("group")
        if groups is None:
            raise AnalysisError("The database has no groups: its data set named no patient or slide.")
        names, group_of_row, rows = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
        sums = np.zeros((len(names), len(self.classes)))
        np.add.at(sums, group_of_row, self.probabilities)
        return Predictions(self.classes, sums / rows[:, None], {"group": names, "rows": rows}, self.thresholds)

    def records(self) -> list[dict[str, Any]]:
        """Convert to JSON types.

        Returns:
            For each row what is known of it, `predicted`, and `probabilities` by class.
        """
        about = {name: values.tolist() for name, values in self.about.items()}
        return [
            {
                **{name: values[number] for name, values in about.items()},
                "predicted": predicted,
                "probabilities": dict(zip(self.classes, shares, strict=True)),
            }
            for number, (predicted, shares) in enumerate(zip(self.predicted, self.probabilities.tolist(), strict=True))
        ]

    def csv(self) -> str:
        """Format as CSV.

        Returns:
            The text, with a header: what is known of each row, `predicted`, and the probability of every class as
            `p(<class>)`.
        """
        rows = zip(*self.about.values(), self.predicted, self.probabilities, strict=True)
        return csv_text(
            [*self.about, "predicted", *(f"p({name})" for name in self.classes)],
            ([*about, predicted, *(f"{share:.6g}" for share in shares)] for *about, predicted, shares in rows),
        )


def apply_model(model: ConceptModel, database: Database, split: str | None = None) -> Predictions:
    """Predict the class of every row of a database.

    Args:
        model: The model.
        database: A database of the model's encoder.
        split: Predict the rows of this split alone.

    Returns:
        The predictions, in file order.

    Raises:
        AnalysisError: The database was made by another encoder, or lacks a concept or a prompt template that the
            model was fitted on: its scores would mean something else.
    """
    scores = image_cosines(database, _concept_vectors(model, database), split=split)
    chosen = database.select(split)
    columns = {"id": chosen.ids, "key": chosen.keys, "split": chosen.split, "group": chosen.groups}
    about = {name: values for name, values in columns.items() if values is not None}
    probabilities = model.classifier.probabilities(scores)
    return Predictions(model.classifier.classes, probabilities, about, _thresholds(model.classifier))


def _thresholds(classifier: Classifier) -> FloatArray | None:
    """(C,) probabilities from the log-odds that were chosen on val; None where classes exclude each other."""
    from scipy.special import expit

    if not isinstance(classifier, OneVsRestClassifier):
        return None
    chosen = classifier.chosen.get("thresholds") or [None] * len(classifier.classes)
    return np.asarray(expit(np.array(chosen, np.float64)))


def encoder_identity(database: Database) -> str:
    """Read the identity of the encoder that made a database; raises `AnalysisError` where the file does not say."""
    identity = section(database.provenance, "encoder").get("identity")
    if not identity:
        raise AnalysisError(
            f"{database.path.name} does not say which encoder made it. A file of the original scripts says so once it "
            "is adopted (`ccassets adopt`)."
        )
    return str(identity)


def _concept_vectors(model: ConceptModel, database: Database) -> npt.NDArray[np.float32]:
    """(K, D): the database's vectors of the model's concepts, over the model's templates."""
    identity = encoder_identity(database)
    if identity != model.encoder_identity:
        raise AnalysisError(
            f"{database.path.name} was made by the encoder {identity}, the model was fitted on features of the encoder "
            f"{model.encoder_identity}. Scores of two encoders cannot be compared; extract the images with the model's."
        )
    words = [concept.word for concept in model.concepts]
    for expected, concept in zip(model.concepts, _concepts(database, words), strict=True):
        if set(expected.synonyms) != set(concept.synonyms):
            raise AnalysisError(
                f"The concept {expected.word!r} has the synonyms {list(expected.synonyms)} in the model and "
                f"{list(concept.synonyms)} in {database.path.name}. Give the study the model's synonyms and build it."
            )
    stored = list(database.attributes.get("prompt_temp_for_concepts") or ())
    missing = [template for template in model.prompt_templates if template not in stored]
    if missing:
        raise AnalysisError(
            f"{database.path.name} has no concept prompts by the templates {missing}, which the model was fitted on. "
            "Add them to the study's vocabulary.concepts.templates and build it; no image is encoded again."
        )
    templates = [f"concept_prompts_t{stored.index(template) + 1:02d}" for template in model.prompt_templates]
    return database.concept_features(words, templates)


def _concepts(database: Database, words: Sequence[str]) -> tuple[Concept, ...]:
    by_word = {concept.word: concept for concept in database_concepts(database)}
    missing = [word for word in words if word not in by_word]
    if missing:
        raise AnalysisError(
            f"{database.path.name} has no concepts {missing}. Add them to the study's vocabulary and build it; no "
            "image is encoded again."
        )
    return tuple(by_word[word] for word in words)


def _libraries() -> dict[str, str]:
    import sklearn

    return {"ccassets": __version__, "numpy": np.__version__, "scikit-learn": sklearn.__version__}
