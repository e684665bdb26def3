"""Fitted classifiers as JSON files, and what they say about another database of the same encoder."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ccassets import __version__
from ccassets.analysis.classifiers import Classifier, FloatArray, LinearClassifier, TreeClassifier
from ccassets.analysis.samples import database_concepts
from ccassets.analysis.scores import image_cosines
from ccassets.database.reader import Database
from ccassets.errors import AnalysisError
from ccassets.files import write_text
from ccassets.study.schema import Concept

Numbers = list[float]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Linear(_Section):
    kind: Literal["linear"] = "linear"
    mean: Numbers
    scale: Numbers
    weights: list[Numbers]
    intercept: Numbers


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
    classifier: Annotated[_Linear | _Tree, Field(discriminator="kind")]


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted classifier with what it takes to apply it to another database.

    Its columns are the scores of `concepts` by the encoder of that identity, each the cosine with the mean over
    `prompt_templates` and synonyms. `libraries` are the versions that it was fitted with.
    """

    classifier: Classifier
    encoder_identity: str
    concepts: tuple[Concept, ...]
    prompt_templates: tuple[str, ...]
    libraries: Mapping[str, str]


def make_concept_model(classifier: Classifier, database: Database) -> Model:
    """The classifier with the identity and the vocabulary of the database whose concept scores it was fitted on."""
    return Model(
        classifier=classifier,
        encoder_identity=encoder_identity(database),
        concepts=_concepts(database, classifier.columns),
        prompt_templates=tuple(database.attributes.get("prompt_temp_for_concepts") or ()),
        libraries=_libraries(),
    )


def save_model(model: Model, path: Path) -> None:
    """Write the model as JSON; nothing in it can run code. Numbers are read back bit by bit."""
    classifier = model.classifier
    arrays = {name: value.tolist() for name, value in vars(classifier).items() if isinstance(value, np.ndarray)}
    file = _File(
        encoder_identity=model.encoder_identity,
        concepts=model.concepts,
        prompt_templates=model.prompt_templates,
        classes=classifier.classes,
        chosen=dict(classifier.chosen),
        libraries=dict(model.libraries),
        classifier=_Linear(**arrays) if isinstance(classifier, LinearClassifier) else _Tree(**arrays),
    )
    write_text(path, file.model_dump_json(indent=1) + "\n")


def load_model(path: Path) -> Model:
    """Read a model; raises `AnalysisError` when the file is not one, or its parts do not fit together."""
    try:
        file = _File.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise AnalysisError(f"{path} cannot be read: {error}") from error
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the file"
        raise AnalysisError(f"{path} is not a classifier that `save_model` wrote: {where}: {problem['msg']}") from error
    columns = tuple(concept.word for concept in file.concepts)
    kind = LinearClassifier if isinstance(file.classifier, _Linear) else TreeClassifier
    fields = file.classifier.model_dump(exclude={"kind"})
    try:
        arrays = {name: np.array(values) for name, values in fields.items()}
    except ValueError as error:
        raise AnalysisError(f"{path}: rows of equal length were expected ({error})") from error
    classifier = kind(columns=columns, classes=file.classes, chosen=file.chosen, **arrays)
    if not _fits(classifier):
        raise AnalysisError(
            f"{path}: {len(columns)} concepts and {len(file.classes)} classes do not fit the classifier's numbers. "
            "The file was changed since it was written."
        )
    return Model(classifier, file.encoder_identity, file.concepts, file.prompt_templates, file.libraries)


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


# --- applying it -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model says of n rows, or of n groups of rows.

    `probabilities` (n, C). `about` holds what is known of each, by column name: id, key, split, group; for groups
    the group and its number of rows.
    """

    classes: tuple[str, ...]
    probabilities: FloatArray
    about: Mapping[str, npt.NDArray[Any]]

    @property
    def predicted(self) -> list[str]:
        """The most probable class of each."""
        return [self.classes[place] for place in self.probabilities.argmax(axis=1)]

    def by_group(self) -> Predictions:
        """The same by group: the mean of its rows' probabilities. Raises `AnalysisError` where there are no groups."""
        groups = self.about.get("group")
        if groups is None:
            raise AnalysisError("The database has no groups: its data set named no patient or slide.")
        names, place, rows = np.unique(groups.astype(str), return_inverse=True, return_counts=True)
        sums = np.zeros((len(names), len(self.classes)))
        np.add.at(sums, place, self.probabilities)
        return Predictions(self.classes, sums / rows[:, None], {"group": names, "rows": rows})

    def records(self) -> list[dict[str, Any]]:
        """One mapping each: what is known of it, `predicted`, and `probabilities` by class; plain values for JSON."""
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
        """One line each: what is known of it, `predicted`, and the probability of every class as `p(<class>)`."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*self.about, "predicted", *(f"p({name})" for name in self.classes)])
        for *about, predicted, shares in zip(*self.about.values(), self.predicted, self.probabilities, strict=True):
            writer.writerow([*about, predicted, *(f"{share:.6g}" for share in shares)])
        return text.getvalue()


def apply_model(model: Model, database: Database, split: str | None = None) -> Predictions:
    """What the model says of every row of the database, or of a split.

    Raises `AnalysisError` when the database was made by another encoder, or lacks concepts or prompt templates that
    the model was fitted on: its scores would mean something else.
    """
    scores = image_cosines(database, _concept_vectors(model, database), split=split)
    chosen = database.select(split)
    columns = {"id": chosen.ids, "key": chosen.keys, "split": chosen.split, "group": chosen.groups}
    about = {name: values for name, values in columns.items() if values is not None}
    return Predictions(model.classifier.classes, model.classifier.probabilities(scores), about)


def encoder_identity(database: Database) -> str:
    """The identity of the encoder that made the features; raises `AnalysisError` where the file does not say."""
    identity = ((database.provenance or {}).get("encoder") or {}).get("identity")
    if not identity:
        raise AnalysisError(
            f"{database.path.name} does not say which encoder made it. A file of the original scripts says so once it "
            "is adopted (`ccassets adopt`)."
        )
    return str(identity)


def _concept_vectors(model: Model, database: Database) -> npt.NDArray[np.float32]:
    """(K, D): the database's vectors of the model's concepts, over the model's templates."""
    found = encoder_identity(database)
    if found != model.encoder_identity:
        raise AnalysisError(
            f"{database.path.name} was made by the encoder {found}, the model was fitted on features of the encoder "
            f"{model.encoder_identity}. Scores of two encoders cannot be compared; extract the images with the model's."
        )
    words = [concept.word for concept in model.concepts]
    for wanted, there in zip(model.concepts, _concepts(database, words), strict=True):
        if set(wanted.synonyms) != set(there.synonyms):
            raise AnalysisError(
                f"The concept {wanted.word!r} has the synonyms {list(wanted.synonyms)} in the model and "
                f"{list(there.synonyms)} in {database.path.name}. Give the study the model's synonyms and build it."
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
