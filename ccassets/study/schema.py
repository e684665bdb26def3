"""The typed model of a study: its keys, their defaults, and the rules that hold between them."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from ccassets.errors import StudyError
from ccassets.study.prompt_hash import texts_hash

Dtype = Literal["float32", "tf32", "bfloat16", "float16"]
"""What an encoder computes in: float32, on CUDA with products of TensorFloat-32, or under autocast."""


_VARIABLE = re.compile(r"\{\{\s*env\b(.*?)\}\}")
_SECRET_PARTS = {"TOKEN", "SECRET", "PASSWORD", "KEY"}


def _variable_value(match: re.Match[str]) -> str:
    name = match[1].strip().removeprefix(".")
    if not match[1].startswith(".") or not name.isidentifier():
        raise ValueError(f"expected {{{{ env.NAME }}}}, found {match[0]}")
    if _SECRET_PARTS & set(name.upper().split("_")):
        raise ValueError(
            f"{name} looks like a secret, and a study is stored; let its reader take it from {name} itself"
        )
    if name not in os.environ:
        raise ValueError(f"the environment variable {name} is not set; set it where definitions load and runs start")
    return os.environ[name]


def _fill_in_variables(value: Any) -> Any:
    """A text with the values of the environment variables in it, `{{ env.NAME }}`; anything else as it is."""
    return _VARIABLE.sub(_variable_value, value) if isinstance(value, str) else value


_Variables = BeforeValidator(_fill_in_variables)


def _not_blank(text: str) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError(f"{text!r}: a text is not blank, and has no NUL character")
    return text


FilePath = Annotated[Path, _Variables]
Text = Annotated[str, Field(min_length=1), AfterValidator(_not_blank), _Variables]


def _known_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ValueError(f"expected a time zone such as Europe/Berlin, found {name!r}") from error
    return name


class _Section(BaseModel):
    """A section of a study; its JSON leaves out the keys in `_later` at their defaults, so that older digests stay."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    _later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields = type(self).model_fields
        later = {name for kind in type(self).__mro__ for name in getattr(kind, "_later", ())}
        unchanged = {name for name in later if getattr(self, name) == fields[name].default}
        return {name: value for name, value in handler(self).items() if name not in unchanged}


# --- data sets ---------------------------------------------------------------------------------------


class _RowsSection(_Section):
    """What every data set has: `subset`, a file of keys that names its rows, and `labels_override`, a CSV of labels."""

    _later: ClassVar[frozenset[str]] = frozenset({"subset", "labels_override"})

    subset: FilePath | None = None
    """File of keys, one a line: only these rows."""
    labels_override: FilePath | None = None
    """CSV `key,label` of corrected labels; nothing is encoded again for it."""


class _DatasetSection(_RowsSection):
    """What a data set of real images has: its splits, and the `license` under which its features may be published."""

    _later: ClassVar[frozenset[str]] = frozenset({"license"})

    splits: tuple[Text, ...] = ("train", "val", "test")
    """The splits, in the order of the database's rows."""
    license: Text | None = None
    """The licence under which features may be published; `ccassets publish` needs it."""

    @field_validator("splits")
    @classmethod
    def _splits_are_names(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        if not splits:
            raise ValueError("at least one split is needed")
        if len(set(splits)) != len(splits):
            raise ValueError("every split may be named once")
        for split in splits:
            if "/" in split or "\\" in split or split in {".", ".."} or split != split.strip():
                raise ValueError(f"{split!r}: a split name has no slash, and no blanks around it")
            if not split.isprintable() or "..." in split:
                raise ValueError(f"{split!r}: a split name has no control characters and no '...'")
        return splits


class MedmnistConfig(_DatasetSection):
    """A 2D set of the MedMNIST collection, at any of its sizes."""

    kind: Literal["medmnist"]
    name: Text
    """The set, such as `bloodmnist`."""
    size: Literal[28, 64, 128, 224] = 28
    """Edge of the images in pixels."""
    root: FilePath | None = None
    """Folder of the `.npz` archive; by default that of the medmnist package."""
    download: bool = False
    """Whether a build may download the archive."""

    @field_validator("splits")
    @classmethod
    def _splits_exist(cls, splits: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [split for split in splits if split not in {"train", "val", "test"}]
        if unknown:
            raise ValueError(f"MedMNIST has the splits train, val and test; found {unknown}")
        return splits


class DicomConfig(_Section):
    """How DICOM files are read: `window` is the file's own (`auto`), or [centre, width] in the units of the modality.

    `group: patient` makes a keyed hash of PatientID the group of every row.
    """

    window: Literal["auto"] | tuple[float, Annotated[float, Field(ge=1)]] = "auto"
    """The file's own window (`auto`), or `[centre, width]` in the units of the modality."""
    group: Literal["patient"] | None = None
    """`patient` makes a keyed hash of PatientID the group of every row."""


class FolderConfig(_DatasetSection):
    """Image files in `<root>/<split>/<class>/`; `classes` sets the order of the labels."""

    _later: ClassVar[frozenset[str]] = frozenset({"dicom"})

    kind: Literal["folder"]
    root: FilePath
    """Folder of the splits, relative to the study's folder."""
    classes: tuple[Text, ...] | None = None
    """The classes in the order of their labels; by default sorted by name."""
    dicom: DicomConfig = DicomConfig()
    """How DICOM files are read."""


class TableColumns(_Section):
    """The columns of a table; several label columns of 0 and 1 make a multi-label data set, their names its classes.

    `concepts` gives annotated concepts, where the table has them: by concept word, the columns and the value, or the
    values, that each must have.
    """

    path: Text = "path"
    """Column of the image's path."""
    label: Text | Annotated[tuple[Text, ...], Field(min_length=1)] = "label"
    """Column of the class, or several columns of 0 and 1."""
    split: Text = "split"
    """Column of the split."""
    group: Text | None = None
    """Column of what rows belong together, such as a patient."""
    concepts: dict[Text, dict[Text, Text | tuple[Text, ...]]] = {}
    """By concept word: the columns and the values that mark a row as showing it."""


class TableConfig(_DatasetSection):
    """A CSV or Parquet file with one image per row; paths are relative to `root`, by default the file's folder."""

    _later: ClassVar[frozenset[str]] = frozenset({"encoding", "dicom"})

    kind: Literal["table"]
    file: FilePath
    """The CSV or Parquet file, relative to the study's folder."""
    root: FilePath | None = None
    """Folder that the paths of the table start from; by default the folder of the table."""
    columns: TableColumns = TableColumns()
    """The names of the columns."""
    classes: tuple[Text, ...] | None = None
    """The classes in the order of their labels; by default sorted."""
    encoding: Text = "utf-8"
    """Text encoding of a CSV file."""
    dicom: DicomConfig = DicomConfig()
    """How DICOM files are read."""

    @model_validator(mode="after")
    def _groups_come_from_one_source(self) -> TableConfig:
        if self.columns.group and self.dicom.group:
            raise ValueError("groups come from columns.group or from dicom.group; leave one of them out")
        return self

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, encoding: str) -> str:
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(
                f"Python knows no text encoding {encoding!r}; utf-8, utf-16 and cp1252 are usual"
            ) from None
        return encoding


class HuggingfaceConfig(_DatasetSection):
    """A data set of the Hugging Face hub at a revision, or of a local folder: an image and a class column."""

    kind: Literal["huggingface"]
    path: Text
    """Hub id, or a local folder."""
    name: Text | None = None
    """Configuration of the data set, where it has several."""
    revision: Text = "main"
    """Branch, tag or commit on the hub."""
    image: Text = "image"
    """Column of the image."""
    label: Text | None = "label"
    """Column of the class; null for none."""


class PhantomDatasetConfig(_RowsSection):
    """Generated blood-smear cells: `rows` gives the number of images of every split, in order."""

    # They come with this package, under its licence.
    license: ClassVar[str | None] = None

    kind: Literal["phantom"]
    rows: dict[Text, Annotated[int, Field(ge=0)]] = {"train": 192, "val": 64, "test": 64}
    """Number of images by split."""
    size: Annotated[int, Field(ge=32, le=512)] = 96
    """Edge of the images in pixels."""
    seed: int = 0
    """Seed of the generator."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order of `rows`."""
        return tuple(self.rows)

    @field_validator("rows")
    @classmethod
    def _splits_are_names(cls, rows: dict[str, int]) -> dict[str, int]:
        _DatasetSection(splits=tuple(rows))
        return rows


DatasetConfig = Annotated[
    MedmnistConfig | FolderConfig | TableConfig | HuggingfaceConfig | PhantomDatasetConfig, Field(discriminator="kind")
]


# --- encoders ----------------------------------------------------------------------------------------


class _EncoderSection(_Section):
    dtype: Dtype = "float32"
    """Precision of the computation; stored are float16 (images) and float32 (texts)."""
    compiled: bool = False
    """Whether torch compiles the image tower: faster, with other last digits."""
    tokens: bool = True
    """Whether the features of every patch are kept, too."""


class ConceptClipConfig(_EncoderSection):
    """ConceptCLIP: a hub id, a folder, or `random` weights drawn from `seed`.

    `architecture` names a JSON file with other dimensions than the published ones, `tokenizer` a folder or
    hub id to read the tokenizer from when it does not lie beside the weights.
    """

    kind: Literal["conceptclip"]
    weights: Text = "JerrryNie/ConceptCLIP"
    """Hub id, folder, or `random`."""
    revision: Text = "main"
    """Branch, tag or commit on the hub."""
    seed: int | None = None
    """Seed of `random` weights."""
    architecture: FilePath | None = None
    """JSON file of other dimensions than the published ones."""
    tokenizer: Text | None = None
    """Folder or hub id of the tokenizer, where none lies beside the weights."""

    @model_validator(mode="after")
    def _random_weights_have_a_seed(self) -> ConceptClipConfig:
        if self.weights == "random" and self.seed is None:
            raise ValueError("weights: random needs a seed, for example `seed: 0`")
        if self.weights != "random" and self.seed is not None:
            raise ValueError("seed belongs to weights: random only")
        if self.weights == "random" and self.tokenizer is None:
            raise ValueError("weights: random brings no tokenizer: name a folder or hub id with `tokenizer`")
        return self


class TransformersConfig(_EncoderSection):
    """A dual encoder of the transformers library, from the hub or a folder."""

    kind: Literal["transformers"]
    weights: Text
    """Hub id or folder."""
    revision: Text = "main"
    """Branch, tag or commit on the hub."""


class OpenClipConfig(_EncoderSection):
    """A dual encoder of open_clip, from the hub or a folder.

    `text` names a folder or hub id to read the configuration and the tokenizer of the text tower from when they do
    not lie beside the weights; `text_revision` is the revision of a hub id that the study or the model names for it.
    """

    kind: Literal["open_clip"]
    weights: Text
    """Hub id or folder."""
    revision: Text = "main"
    """Branch, tag or commit on the hub."""
    text: Text | None = None
    """Folder or hub id of the text tower's configuration and tokenizer."""
    text_revision: Text = "main"
    """Branch, tag or commit of `text`."""


class PythonEncoderConfig(_EncoderSection):
    """A user's own encoder: `target` is `module:Class`, called with `options` as keyword arguments."""

    kind: Literal["python"]
    target: Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
    """The class, as `module:Class`."""
    options: dict[str, Annotated[Any, _Variables]] = {}
    """Keyword arguments of the class."""


class PhantomEncoderConfig(_EncoderSection):
    """The small encoder of ConceptCLIP's architecture that ships with the project, for phantom cells."""

    kind: Literal["phantom"]


EncoderConfig = Annotated[
    ConceptClipConfig | TransformersConfig | OpenClipConfig | PythonEncoderConfig | PhantomEncoderConfig,
    Field(discriminator="kind"),
]


# --- vocabulary --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptTemplate:
    """A template filled with every word: prompts, and where in each prompt its word stands.

    `subjects` holds half-open character ranges; a custom prompt has no inserted word and the range `(0, 0)`.
    """

    template_id: str
    prompts: tuple[str, ...]
    subjects: tuple[tuple[int, int], ...]

    @property
    def texts_hash(self) -> str:
        """SHA-256 of every prompt's UTF-8 bytes, each followed by a zero byte (lower-case hex)."""
        return texts_hash(self.prompts)


class Concept(_Section):
    """A concept: its word, and optionally a group, a level and synonyms that are ensembled with it.

    `code` is its code in a terminology, such as `SNOMED CT 47082005` or `NCIt C12345`.
    """

    _later: ClassVar[frozenset[str]] = frozenset({"code"})

    word: Text
    """The concept."""
    group: Annotated[str, _Variables] | None = None
    """Name of a group that results are summed up by."""
    level: int | None = None
    """Level of detail; results count concepts up to each level."""
    synonyms: tuple[Text, ...] = ()
    """Other words for it, ensembled with the word when they are read."""
    code: Text | None = None
    """Its code in a terminology, such as `SNOMED CT 47082005`."""

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.word, *self.synonyms)


def _as_mapping(written: Any) -> Any:
    return {"word": written} if isinstance(written, str) else written


# The schema, which editors and `dg check` hold a study to, has to know the short form too.
_ConceptAsWritten = Annotated[Concept, BeforeValidator(_as_mapping, json_schema_input_type=str | Concept)]


class _Words(_Section):
    templates: tuple[Text, ...] = ()
    """Sentences with one `{}` each, where the word goes."""

    @field_validator("templates")
    @classmethod
    def _one_slot_each(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            if template.count("{}") != 1:
                raise ValueError(f"{template!r}: a template has exactly one {{}}, where the word goes")
        twice = sorted(template for template, count in Counter(templates).items() if count > 1)
        if twice:
            raise ValueError(f"every template may stand once; found twice: {twice}")
        return templates


class LabelWords(_Words):
    """Label words, in the order of the label numbers, and the templates they are put into.

    `ordinal` says that the classes are grades, the lowest first.
    """

    words: tuple[Text, ...] = ()
    """The class names, in the order of the label numbers."""
    ordinal: bool = False
    """Whether the classes are grades, the lowest first."""


class ConceptWords(_Words):
    """Concepts and the templates they are put into."""

    words: tuple[_ConceptAsWritten, ...] = ()
    """Concepts, each a word or a mapping."""

    @field_validator("words")
    @classmethod
    def _words_are_distinct(cls, words: tuple[Concept, ...]) -> tuple[Concept, ...]:
        texts = [text for concept in words for text in concept.texts]
        twice = sorted(text for text, count in Counter(texts).items() if count > 1)
        if twice:
            raise ValueError(f"every concept word and synonym may stand once; found twice: {twice}")
        return words

    @property
    def texts(self) -> tuple[str, ...]:
        """Every word, each followed by its synonyms: the rows of a concept template."""
        return tuple(text for concept in self.words for text in concept.texts)


class Vocabulary(_Section):
    """Concept words, label words, and the prompt templates of each."""

    labels: LabelWords = LabelWords()
    """Label words and their templates."""
    concepts: ConceptWords = ConceptWords()
    """Concepts and their templates."""
    custom: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], tuple[Text, ...]] = {}
    """Prompts of your own by template id."""

    @model_validator(mode="after")
    def _templates_have_words(self) -> Vocabulary:
        for name, section in (("labels", self.labels), ("concepts", self.concepts)):
            if section.templates and not section.words:
                raise ValueError(f"{name} has templates and no words to put into them")
        return self

    @field_validator("custom")
    @classmethod
    def _custom_ids_are_their_own(cls, custom: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for template_id, prompts in custom.items():
            if template_id.startswith(("concept_prompts_t", "label_prompts_t")):
                raise ValueError(f"{template_id}: this id belongs to the numbered templates; choose another")
            if not prompts:
                raise ValueError(f"{template_id}: at least one prompt is needed")
        return custom

    def templates(self) -> dict[str, PromptTemplate]:
        """Every template by id: concepts first, then labels, then custom ones."""
        filled = [
            *_fill("concept_prompts", self.concepts.templates, self.concepts.texts),
            *_fill("label_prompts", self.labels.templates, self.labels.words),
            *(
                PromptTemplate(template_id, prompts, ((0, 0),) * len(prompts))
                for template_id, prompts in self.custom.items()
            ),
        ]
        return {template.template_id: template for template in filled}


def _fill(prefix: str, templates: Sequence[str], words: Sequence[str]) -> Iterator[PromptTemplate]:
    if not words:
        return
    for number, template in enumerate(templates, start=1):
        start = template.index("{}")
        yield PromptTemplate(
            template_id=f"{prefix}_t{number:02d}",
            prompts=tuple(template.replace("{}", word) for word in words),
            subjects=tuple((start, start + len(word)) for word in words),
        )


# --- the study ---------------------------------------------------------------------------------------


class ExtractionConfig(_Section):
    """Encoding of images; `strict` makes batch size, device kind and library versions part of the identity."""

    batch_size: Annotated[int, Field(ge=1)] = 64
    """Images encoded at once. It moves the last digits, so it is recorded."""
    rows_per_shard: Annotated[int, Field(ge=1)] = 128
    """Rows of a shard, the unit of work and of resume; a multiple of `batch_size`."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Take this many evenly spaced rows of each split, into a file of its own."""
    on_bad_image: Literal["error", "skip", "blank"] = "error"
    """`error`, `skip` (leave the row out) or `blank` (a mid-grey stand-in, reported)."""
    strict: bool = False
    """Whether batch size, device kind and library versions are part of the encoder's identity."""
    partitioned: bool | None = None
    """Whether splits are Dagster partitions; by default when there are at most 50."""

    @model_validator(mode="after")
    def _shards_are_whole_batches(self) -> ExtractionConfig:
        if self.rows_per_shard % self.batch_size:
            raise ValueError(
                f"rows_per_shard ({self.rows_per_shard}) must be a multiple of batch_size ({self.batch_size})"
            )
        return self


class StorageConfig(_Section):
    """The name of the database file, and whether image parts stay once it is assembled and validated."""

    file: Annotated[str, Field(pattern=r"^[^/\\]+\.(h5|hdf5)$")] = "conceptclip_features.h5"
    """Name of the database file."""
    keep_parts: bool = True
    """Whether image parts stay once the database is deeply validated."""


class StudyConfig(_Section):
    """The `attributes` of a study file; every key and default is documented in `docs/study.md`."""

    _later = frozenset({"timezone"})

    description: Annotated[str, _Variables] = ""
    """A line about the study."""
    owners: tuple[Annotated[str, Field(pattern=r"^(team:\S+|[^@\s]+@[^@\s]+)$"), _Variables], ...] = ()
    """Whom the UI names for its assets: mail addresses, or `team:…`."""
    timezone: Annotated[str, AfterValidator(_known_timezone), _Variables] = "UTC"
    """Time zone of its nights and schedules, such as `Europe/Berlin`."""
    dataset: DatasetConfig
    """The images: one of the kinds below."""
    encoder: EncoderConfig
    """The model: one of the kinds below."""
    vocabulary: Vocabulary = Vocabulary()
    """Words and templates."""
    extraction: ExtractionConfig = ExtractionConfig()
    """How images are encoded."""
    storage: StorageConfig = StorageConfig()
    """What is kept on disk."""


class Study(StudyConfig):
    """A study with its name and the folder that relative paths in it start from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]
    folder: Path

    @classmethod
    def from_config(cls, config: StudyConfig, *, folder: str | os.PathLike[str]) -> Study:
        """The study of a folder, named like it.

        Args:
            config: The attributes of the folder's `defs.yaml`.
            folder: The folder; relative paths in the study start there.

        Returns:
            The study.

        Raises:
            StudyError: The folder's name cannot be that of a study.
        """
        folder = Path(folder)
        name = folder.name
        try:
            return cls(name=name, folder=folder, **{key: getattr(config, key) for key in type(config).model_fields})
        except ValidationError as error:
            raise StudyError(
                f"The folder {name!r} cannot name a study: letters, digits and _ are expected. Rename the folder."
            ) from error

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits, in the order of the database's rows."""
        return self.dataset.splits

    def require_splits(self, names: Iterable[str]) -> None:
        """Raise `StudyError` when the study has no split of one of these names.

        Args:
            names: Names of splits.

        Raises:
            StudyError: The study has no split of one of these names.
        """
        unknown = [name for name in names if name not in self.splits]
        if unknown:
            raise StudyError(f"{self.name} has no split {unknown[0]!r}; it has {', '.join(self.splits)}.")

    @property
    def database_file(self) -> str:
        """The name of the database file; a study with a limit has its own, so it never replaces the whole."""
        if self.extraction.limit is None:
            return self.storage.file
        stem, _, suffix = self.storage.file.rpartition(".")
        return f"{stem}.limit-{self.extraction.limit}.{suffix}"

    @property
    def readme(self) -> str | None:
        """The text of the study folder's README.md, if it has one."""
        path = self.folder / "README.md"
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None

    def resolve(self, path: str | os.PathLike[str]) -> Path:
        """Make a path of the study file absolute: `~` is the home, a relative path starts at the study's folder.

        Args:
            path: A path as the study file has it.

        Returns:
            The absolute path.
        """
        return (self.folder / Path(path).expanduser()).absolute()
