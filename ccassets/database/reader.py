"""The one reader: `open_database` gives any file of the format, ours or the original scripts', lazily and read-only."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, cast

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.hdf5_heap_guard import find_endless_heap
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES, JSON_ATTRIBUTES, LOGIT_PARAMETERS
from ccassets.errors import DatabaseError
from ccassets.files import reading_refused

if TYPE_CHECKING:
    import pandas as pd

Array = npt.NDArray[Any]
Rows = slice | Sequence[int] | npt.NDArray[np.integer[Any]] | int | None

READ_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError, AttributeError)
"""What h5py and numpy raise for bytes they cannot make sense of."""


def open_database(path: str | os.PathLike[str]) -> Database:
    """Open a feature database, or a part of one, for reading.

    Contiguous arrays are mapped, not copied; chunked ones are read through h5py. A finished file is only ever
    replaced, never changed: who holds the old one keeps it. Raises `DatabaseError` when there is
    no such file or it is not HDF5.
    """
    return Database(Path(path))


class Database:
    """A feature database: image features of every row, templates, and what is known about both.

    A context manager; it can be pickled (it is opened again on the other side) and so used in the workers of a
    data loader.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._file = open_hdf5(self.path)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_database, (self.path,)

    def __len__(self) -> int:
        """N, the number of rows; 0 for a file without images."""
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"Database({self.path.name!r}, rows={len(self)}, dim={self.dim}, token_count={self.token_count})"

    def _repr_html_(self) -> str:
        from ccassets.database.notebook import as_html

        return as_html(self)

    def close(self) -> None:
        """Close the file; arrays that were mapped from it stay usable."""
        self._file.close()

    @property
    def file(self) -> h5py.File:
        """The open HDF5 file, for what this class does not offer."""
        return self._file

    # --- images ---------------------------------------------------------------------------------------

    @cached_property
    def image_features(self) -> Array:
        """(N, D) float16, unit length before the cast; mapped, or an h5py data set where the file is chunked."""
        return self._rows_of(IMAGE_FEATURES)

    @cached_property
    def image_token_features(self) -> Array | None:
        """(N, T_img, D) float16, row-major from the top left; None in a file without tokens."""
        return None if self._dataset(IMAGE_TOKEN_FEATURES) is None else self._rows_of(IMAGE_TOKEN_FEATURES)

    @property
    def dim(self) -> int:
        """D, the width of every feature; 0 in a file that holds none."""
        dataset = self._dataset(IMAGE_FEATURES)
        if dataset is not None and dataset.ndim == 2:
            return int(dataset.shape[1])
        return next((int(template.text_features.shape[1]) for template in self.templates.values()), 0)

    @property
    def token_count(self) -> int:
        """T_img, the number of patches of an image; 0 without token features."""
        dataset = self._dataset(IMAGE_TOKEN_FEATURES)
        return int(dataset.shape[1]) if dataset is not None and dataset.ndim == 3 else 0

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """(N,) int64, the rows' own numbers."""
        return self._values("ids")

    @cached_property
    def labels(self) -> npt.NDArray[np.int64]:
        """(N,) int64, the data set's labels."""
        return self._values("labels")

    @cached_property
    def split(self) -> npt.NDArray[np.object_]:
        """(N,) str, the split of every row."""
        return self._texts("split")

    @cached_property
    def keys(self) -> npt.NDArray[np.object_] | None:
        """(N,) str, where every row came from; None in a file of the original scripts."""
        return None if self._dataset("keys") is None else self._texts("keys")

    @cached_property
    def groups(self) -> npt.NDArray[np.object_] | None:
        """(N,) str, the patient or slide of every row; None where the data set has none."""
        return None if self._dataset("groups") is None else self._texts("groups")

    @cached_property
    def label_matrix(self) -> npt.NDArray[np.uint8] | None:
        """(N, L) uint8 of a multi-label data set; None elsewhere."""
        return None if self._dataset("label_matrix") is None else self._values("label_matrix")

    @cached_property
    def image_digest(self) -> npt.NDArray[np.uint8] | None:
        """(N, 32) uint8, SHA-256 of the pixels every row was computed from; None in a file that has none."""
        return None if self._dataset("image_digest") is None else self._values("image_digest")

    @cached_property
    def feature_digest(self) -> npt.NDArray[np.uint8] | None:
        """(N, 16) uint8, XXH3-128 of every row's stored bytes; None in a file that has none."""
        return None if self._dataset("feature_digest") is None else self._values("feature_digest")

    @cached_property
    def splits(self) -> Mapping[str, slice]:
        """Every split and the rows it takes, in file order; after them those without rows. None in a file of templates.

        Raises `DatabaseError` when the rows of a split do not stand together, as in a file with doubled rows.
        """
        names = self.split if self._dataset("split") is not None else np.empty(0, object)
        starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]]) if len(names) else np.empty(0, np.int64)
        ends = np.append(starts[1:], len(names))[: len(starts)]
        splits: dict[str, slice] = {}
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            if names[start] in splits:
                raise DatabaseError(
                    f"{self.path}: the rows of split {names[start]!r} do not stand together (again at row {start}). "
                    "Run `ccassets validate` on the file to see what happened to it."
                )
            splits[names[start]] = slice(start, end)
        counts = self.attributes.get("split_counts")
        for name, rows in counts.items() if isinstance(counts, dict) else ():
            if not rows:
                splits.setdefault(name, slice(len(names), len(names)))
        return MappingProxyType(splits)

    # --- attributes -----------------------------------------------------------------------------------

    @cached_property
    def attributes(self) -> Mapping[str, Any]:
        """Root attributes; JSON ones are decoded where the format says that they are JSON."""
        with _refusals_named(f"{self.path}: the attributes"):
            return MappingProxyType({name: _decode_attribute(name, value) for name, value in self._file.attrs.items()})

    @property
    def provenance(self) -> Mapping[str, Any] | None:
        """How the file came to be; None in a file of the original scripts."""
        found = self.attributes.get("provenance")
        return MappingProxyType(found) if isinstance(found, dict) else None

    @property
    def profile(self) -> str:
        """`database`, `image-part` or `template-part`."""
        return str(self.attributes.get("profile", "database"))

    @property
    def logit_scale(self) -> float | None:
        """The stored parameter, a natural logarithm; `logit_multiplier` is what multiplies a cosine."""
        return self._parameter("logit_scale")

    @property
    def logit_bias(self) -> float | None:
        """The stored parameter, added after the multiplication."""
        return self._parameter("logit_bias")

    @property
    def concept_logit_scale(self) -> float | None:
        """The stored parameter of patch-concept scores, a natural logarithm."""
        return self._parameter("concept_logit_scale")

    @property
    def concept_logit_bias(self) -> float | None:
        """The stored parameter of patch-concept scores, added after the multiplication."""
        return self._parameter("concept_logit_bias")

    @property
    def logit_multiplier(self) -> float | None:
        """exp(`logit_scale`): the factor to apply to the cosine of image and text features."""
        return None if self.logit_scale is None else float(np.exp(self.logit_scale))

    @property
    def concept_logit_multiplier(self) -> float | None:
        """exp(`concept_logit_scale`): the factor to apply to the cosine of a patch and a concept."""
        return None if self.concept_logit_scale is None else float(np.exp(self.concept_logit_scale))

    # --- templates ------------------------------------------------------------------------------------

    @cached_property
    def templates(self) -> Mapping[str, Template]:
        """Every template by id, sorted by id."""
        with _refusals_named(f"{self.path}: /templates"):
            group = safe_group(self._file, "templates")
            if group is None:
                return MappingProxyType({})
            return MappingProxyType({name: Template(name, _listed_group(group, name)) for name in _names(group)})

    @cached_property
    def concepts(self) -> Mapping[str, tuple[str, ...]]:
        """Every concept word with the texts that stand for it, in file order: the word itself, then its synonyms."""
        concepts = self.attributes.get("concepts") or [{"word": word} for word in self._words("concept_texts")]
        return MappingProxyType(
            {concept["word"]: (concept["word"], *concept.get("synonyms", ())) for concept in concepts}
        )

    def concept_features(
        self, words: Sequence[str] | None = None, templates: Sequence[str] | None = None
    ) -> npt.NDArray[np.float32]:
        """One vector per concept, (len(words), D) float32, unit length.

        The mean of the normalised features over the templates (all concept templates by default) and over a
        concept's synonyms, normalised again: prompt ensembling as in CLIP. `words` defaults to every concept.
        """
        wanted = list(self.concepts) if words is None else list(words)
        unknown = [word for word in wanted if word not in self.concepts]
        if unknown:
            raise DatabaseError(f"{self.path.name} has no concepts {unknown}; it has {list(self.concepts)}")
        return self._ensemble([self.concepts[word] for word in wanted], "concept", "concept_texts", templates)

    def label_features(
        self, words: Sequence[str] | None = None, templates: Sequence[str] | None = None
    ) -> npt.NDArray[np.float32]:
        """One vector per label word, (len(words), D) float32, unit length; the mean over templates as for concepts."""
        known = self._words("label_texts")
        wanted = known if words is None else list(words)
        unknown = [word for word in wanted if word not in known]
        if unknown:
            raise DatabaseError(f"{self.path.name} has no label words {unknown}; it has {known}")
        return self._ensemble([[word] for word in wanted], "label", "label_texts", templates)

    # --- selections -----------------------------------------------------------------------------------

    def select(self, split: str | None = None, rows: Rows = None) -> Selection:
        """Rows of a split (or of the file), in any order, with repeats and negative numbers, as numpy counts them."""
        numbers = self._numbers if split is None else self._numbers[self._split_slice(split)]
        if rows is None:
            return Selection(self, numbers)
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows) if np.size(rows) else np.empty(0, np.int64)
        try:
            return Selection(self, numbers[rows])
        except IndexError as error:
            raise DatabaseError(f"{split or self.path.name!r} has {len(numbers)} rows: {error}") from error

    def torch_dataset(self, split: str | None = None, tokens: bool = False) -> RowDataset:
        """A map-style data set for `torch.utils.data.DataLoader`: (image features, [token features,] label)."""
        if tokens and self.image_token_features is None:
            raise DatabaseError(f"{self.path.name} was stored without token features")
        return RowDataset(self, self.select(split).rows, tokens)

    def to_pandas(self) -> pd.DataFrame:
        """A table of the rows without their features: id, key, split, label, group."""
        import pandas as pd

        columns = {"id": self.ids, "key": self.keys, "split": self.split, "label": self.labels, "group": self.groups}
        table: pd.DataFrame = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        return table

    # --- inside ---------------------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int64]:
        """The numbers of all rows, not to be written to: selections are parts of it."""
        dataset = self._dataset(IMAGE_FEATURES)
        if dataset is not None and not dataset.shape:
            raise DatabaseError(f"{self.path}: /{IMAGE_FEATURES} is a single value; rows were expected")
        numbers = np.arange(0 if dataset is None else len(dataset), dtype=np.int64)
        numbers.flags.writeable = False
        return numbers

    def fileno(self) -> int:
        """The descriptor of the open file, for reading at the places `byte_range` gives."""
        return _fileno(self._file)

    def byte_range(self, name: str) -> tuple[int, int]:
        """Where a contiguous data set starts in the file, and the bytes of one of its rows."""
        dataset = self._dataset(name)
        if dataset is None or dataset.chunks is not None:
            raise DatabaseError(f"{self.path}: /{name} is not a contiguous data set")
        return int(dataset.id.get_offset() or 0), int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize

    def _dataset(self, name: str) -> h5py.Dataset | None:
        with _refusals_named(f"{self.path}: /{name}"):
            return safe_dataset(self._file, name)

    def _required(self, name: str) -> h5py.Dataset:
        dataset = self._dataset(name)
        if dataset is None:
            with _refusals_named(str(self.path)):
                there = sorted(map(str, self._file))
            raise DatabaseError(f"{self.path}: /{name} was expected; the file has {there}")
        return dataset

    def _rows_of(self, name: str) -> Array:
        dataset = self._required(name)
        if dataset.dtype.kind not in "fiu":
            raise DatabaseError(f"{self.path}: /{name} has dtype {dataset.dtype}; numbers were expected")
        with _refusals_named(f"{self.path}: /{name}"):
            mapped = map_dataset(dataset)
        return cast(Array, dataset) if mapped is None else mapped

    def _values(self, name: str) -> Array:
        dataset = self._required(name)
        with _refusals_named(f"{self.path}: /{name}"):
            return cast(Array, dataset[...])

    def _texts(self, name: str) -> npt.NDArray[np.object_]:
        dataset = self._required(name)
        if dataset.ndim != 1:
            raise DatabaseError(f"{self.path}: /{name} has shape {dataset.shape}; one text for every row was expected")
        with _refusals_named(f"{self.path}: /{name}"):
            return read_texts(dataset)

    def _parameter(self, name: str) -> float | None:
        assert name in LOGIT_PARAMETERS
        value = self.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, (int, float)):
            raise DatabaseError(f"{self.path}: the attribute {name} is no number; found {type(value).__name__}")
        return float(value)

    def _words(self, attribute: str) -> list[str]:
        words = self.attributes.get(attribute)
        return list(words) if isinstance(words, list) else []

    def _split_slice(self, split: str) -> slice:
        if split not in self.splits:
            raise DatabaseError(f"{self.path.name} has no split {split!r}; it has {list(self.splits)}")
        return self.splits[split]

    def _ensemble(
        self, texts: Sequence[Sequence[str]], kind: str, attribute: str, templates: Sequence[str] | None
    ) -> npt.NDArray[np.float32]:
        if templates is None:
            templates = [name for name in self.templates if name.startswith(f"{kind}_prompts_t")]
        unknown = [name for name in templates if name not in self.templates]
        if unknown or not templates:
            raise DatabaseError(f"{self.path.name} has no templates {unknown or kind}; it has {list(self.templates)}")
        row_of = {word: row for row, word in enumerate(self._words(attribute))}
        features = np.stack([self._template_rows(name, len(row_of)) for name in templates])
        means = np.empty((len(texts), features.shape[2]))
        for place, group in enumerate(texts):
            means[place] = features[:, [row_of[text] for text in group]].mean(axis=(0, 1))
        unit: npt.NDArray[np.float32] = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def _template_rows(self, name: str, words: int) -> Array:
        features = np.asarray(self.templates[name].text_features, np.float64)
        if len(features) != words:
            raise DatabaseError(f"{self.path.name}: {name} holds {len(features)} prompts for {words} words")
        return cast(Array, features / np.linalg.norm(features, axis=1, keepdims=True))


class Template:
    """A stored template; arrays are read when they are asked for."""

    def __init__(self, template_id: str, group: h5py.Group) -> None:
        self.template_id = template_id
        self._group = group

    def __repr__(self) -> str:
        return f"Template({self.template_id!r}, K={len(self.texts)})"

    @cached_property
    def texts(self) -> list[str]:
        """The K prompts."""
        with _refusals_named(f"/templates/{self.template_id}/texts"):
            dataset = safe_dataset(self._group, "texts")
            if dataset is None:
                raise DatabaseError(f"/templates/{self.template_id}/texts was expected")
            if dataset.ndim != 1:
                raise DatabaseError(f"/templates/{self.template_id}/texts has shape {dataset.shape}; (K,) was expected")
            return list(read_texts(dataset))

    @cached_property
    def text_features(self) -> npt.NDArray[np.float32]:
        """(K, D) float32, unit length."""
        values = self._values("text_features")
        if values is None:
            raise DatabaseError(f"/templates/{self.template_id}/text_features was expected")
        if values.ndim != 2:
            raise DatabaseError(
                f"/templates/{self.template_id}/text_features has shape {values.shape}; (K, D) expected"
            )
        return values

    @cached_property
    def text_token_features(self) -> npt.NDArray[np.float32] | None:
        """(K, T_txt, D) float32, not normalised; padding positions carry vectors too, see `attention_mask`."""
        return self._values("text_token_features")

    @cached_property
    def input_ids(self) -> npt.NDArray[np.int32] | None:
        """(K, T) int32, the tokens as encoded."""
        return self._values("input_ids")

    @cached_property
    def attention_mask(self) -> npt.NDArray[np.uint8] | None:
        """(K, T) uint8, 1 where a token is no padding."""
        return self._values("attention_mask")

    @cached_property
    def subject_span(self) -> npt.NDArray[np.int32] | None:
        """(K, 2) int32, the half-open range of token positions of the inserted word; (0, 0) without one."""
        return self._values("subject_span")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """`K`, `D`, `T_txt`, `texts_hash`, `digest`, `created_at`."""
        with _refusals_named(f"/templates/{self.template_id}: the attributes"):
            return MappingProxyType({name: _decode_attribute(name, value) for name, value in self._group.attrs.items()})

    def _values(self, name: str) -> Array | None:
        with _refusals_named(f"/templates/{self.template_id}/{name}"):
            dataset = safe_dataset(self._group, name)
            return None if dataset is None else cast(Array, dataset[...])


@dataclass(frozen=True)
class Selection:
    """Chosen rows of a database, in the order asked for; arrays are read when they are asked for."""

    database: Database
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_features(self) -> npt.NDArray[np.float16]:
        """(n, D) float16, a copy."""
        return _take(self.database.image_features, self.rows)

    @property
    def image_token_features(self) -> npt.NDArray[np.float16] | None:
        """(n, T_img, D) float16, a copy; choose few rows at a time, each is large. None without tokens."""
        tokens = self.database.image_token_features
        return None if tokens is None else _take(tokens, self.rows)

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        return self.database.ids[self.rows]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return self.database.labels[self.rows]

    @property
    def split(self) -> npt.NDArray[np.object_]:
        return self.database.split[self.rows]

    @property
    def keys(self) -> npt.NDArray[np.object_] | None:
        return None if self.database.keys is None else self.database.keys[self.rows]

    @property
    def groups(self) -> npt.NDArray[np.object_] | None:
        return None if self.database.groups is None else self.database.groups[self.rows]


class RowDataset:
    """A map-style data set over rows of a database; every worker process opens the file for itself.

    Raises `DatabaseError` when another database with other rows was published there meanwhile.
    """

    def __init__(self, database: Database, rows: npt.NDArray[np.int64], tokens: bool) -> None:
        self._path = database.path
        self._content = _row_identity(database)
        self._rows = rows
        self._tokens = tokens
        self._opened: tuple[int, Database] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        database = self._database()
        row = self._rows[index]
        features = np.array(database.image_features[row])
        label = int(database.labels[row])
        if self._tokens:
            assert database.image_token_features is not None
            return features, np.array(database.image_token_features[row]), label
        return features, label

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _database(self) -> Database:
        # An HDF5 handle does not survive a fork; the process that opened it is remembered with it.
        if self._opened is None or self._opened[0] != os.getpid():
            database = open_database(self._path)
            if _row_identity(database) != self._content:
                raise DatabaseError(f"{self._path} was replaced by a file with other rows: make the data set again.")
            self._opened = os.getpid(), database
        return self._opened[1]


def _row_identity(database: Database) -> tuple[int, Any]:
    """What row numbers stand for: a file with the same has the same rows in the same order."""
    return len(database), database.attributes.get("rows_digest")


def open_hdf5(path: Path) -> h5py.File:
    """An HDF5 file opened read-only; `DatabaseError` when it is not there or is not one."""
    if not path.is_file():
        raise DatabaseError(f"{path} is not a file.")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise reading_refused(error, str(path)) or DatabaseError(
            f"{path} cannot be opened as HDF5 ({error}): it is another kind of file, or cut off."
        ) from error
    with _refusals_named(str(path)):
        place = find_endless_heap(file, _fileno(file))
    if place is not None:
        file.close()
        raise DatabaseError(
            f"{path} cannot be read: its texts at byte {place} are damaged, and HDF5 would read for ever."
        )
    return file


@contextmanager
def _refusals_named(where: str) -> Iterator[None]:
    try:
        yield
    except READ_ERRORS as error:
        raise reading_refused(error, where) or DatabaseError(
            f"{where} cannot be read ({error or type(error).__name__}): the file is damaged"
        ) from error


def safe_dataset(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """A data set whose bytes lie in the file itself; None when there is no such name.

    Links and storage that lead out of the file are refused: a file must never make us open another one.
    """
    dataset = _member(group, name)
    if dataset is None:
        return None
    where = f"{group.name.rstrip('/')}/{name}"
    if not isinstance(dataset, h5py.Dataset):
        raise DatabaseError(f"{where} is not a data set")
    if dataset.is_virtual or dataset.external:
        raise DatabaseError(f"{where} keeps its data in other files; the bytes must lie in the file itself")
    return dataset


def safe_group(group: h5py.Group, name: str) -> h5py.Group | None:
    """A group of the file itself; None when there is no such name. Links are refused as for data sets."""
    member = _member(group, name)
    if member is not None and not isinstance(member, h5py.Group):
        raise DatabaseError(f"{group.name.rstrip('/')}/{name} is not a group")
    return member


def _names(group: h5py.Group) -> list[str]:
    """The names in a group, sorted."""
    names = list(group)
    broken = [name for name in names if not isinstance(name, str)]
    if broken:
        raise DatabaseError(f"{group.name} holds names that are not UTF-8, such as {broken[0]!r}")
    return sorted(names)


def _listed_group(group: h5py.Group, name: str) -> h5py.Group:
    """A group that is known to be there by its name."""
    found = safe_group(group, name)
    if found is None:
        raise DatabaseError(f"{group.name} lists {name!r} and does not hold it: the file's structure is broken")
    return found


def _member(group: h5py.Group, name: str) -> Any:
    link = group.get(name, getlink=True)
    if link is None:
        return None
    if not isinstance(link, h5py.HardLink):
        where = f"{group.name.rstrip('/')}/{name}"
        raise DatabaseError(f"{where} is a soft or external link; something in the file itself was expected")
    return group[name]


def map_dataset(dataset: h5py.Dataset) -> Array | None:
    """The values of a contiguous numeric data set, mapped and not copied; None where they are stored otherwise."""
    if not dataset.size:
        return np.empty(dataset.shape, dataset.dtype)
    offset = dataset.id.get_offset()
    if dataset.chunks is not None or offset is None:
        return None
    # By the file that is open, not by its path: another one may have been published there since.
    with os.fdopen(os.dup(_fileno(dataset.file)), "rb") as opened:
        return np.memmap(opened, dataset.dtype, "r", offset, dataset.shape)


def _fileno(file: h5py.File) -> int:
    return int(file.id.get_vfd_handle())


def read_texts(dataset: h5py.Dataset) -> npt.NDArray[np.object_]:
    """A string data set as an object array of `str`."""
    if h5py.check_string_dtype(dataset.dtype) is None:
        raise DatabaseError(f"{dataset.name} has dtype {dataset.dtype}; strings were expected")
    raw = np.asarray(dataset[...], object)
    texts = np.empty(raw.shape, object)
    for index, value in np.ndenumerate(raw):
        texts[index] = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
    return texts


def _take(values: Array, rows: npt.NDArray[np.int64]) -> Array:
    if isinstance(values, np.ndarray):
        return np.asarray(values)[rows]  # Which is a copy.
    # h5py wants growing numbers without repeats, and is slow at them: one row at a time is exact and faster.
    taken = np.empty((len(rows), *values.shape[1:]), values.dtype)
    for place, row in enumerate(rows.tolist()):
        taken[place] = values[row]
    return taken


def _decode_attribute(name: str, value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, str) and name in JSON_ATTRIBUTES:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # Nested too deeply, or a number of too many digits.
            return value
    return value


def iter_blocks(values: Array, block_bytes: int = 64 << 20, rows: slice | None = None) -> Iterator[tuple[int, Array]]:
    """Blocks of rows of a large array in file order, each with its first row's number: flat memory, one pass.

    `rows` is a range such as those of `splits`, by default everything. A block is valid until the next is asked for.
    """
    row_bytes = max(1, int(np.prod(values.shape[1:])) * values.dtype.itemsize)
    step = max(1, block_bytes // row_bytes)
    start, stop, _ = (rows or slice(None)).indices(len(values))
    mapping = getattr(values, "_mmap", None)
    for first in range(start, stop, step):
        yield first, np.asarray(values[first : min(first + step, stop)])
        if mapping is not None:
            # Pages once read would count as this process's memory until the system wants them back.
            mapping.madvise(mmap.MADV_DONTNEED)
