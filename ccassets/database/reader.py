"""The one reader: `open_database` opens any file of the format, ours or the original scripts', lazily and read-only."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal, cast

import h5py
import numpy as np
import numpy.typing as npt

from ccassets.database.attributes import read_attributes
from ccassets.database.feature_digests import feature_digests
from ccassets.database.hdf5 import (
    Array,
    file_descriptor,
    listed_group,
    map_dataset,
    open_hdf5,
    open_remote_hdf5,
    read_errors_at,
    read_texts,
    safe_dataset,
    safe_group,
    sorted_names,
    take_rows,
)
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.remote_file import RemoteFile, RemoteRows, is_url
from ccassets.database.summary import summary_html
from ccassets.errors import DatabaseError

if TYPE_CHECKING:
    import pandas as pd

RowIndex = slice | Sequence[int] | npt.NDArray[np.integer[Any]] | int | None
"""Rows as numpy takes them; None for all."""

Kind = Literal["label", "concept"]
"""What the words of a numbered template are."""


def open_database(path: str | os.PathLike[str]) -> Database:
    """Open a feature database, or a part of one, for reading.

    Contiguous arrays are mapped and not copied; chunked ones are read through h5py. A finished file is replaced and
    never changed, so an open database keeps the content it was opened with.

    A file at an address (`https://`, `s3://`, or another scheme that fsspec knows; `pip install 'ccassets[remote]'`) is
    read in ranges of bytes: a row is one request of exactly its bytes.

    Args:
        path: The HDF5 file: its path, or its address as a text.

    Returns:
        The open database, a context manager.

    Raises:
        DatabaseError: There is no such file, it is not HDF5, or its structure is damaged.
        StorageError: The system refuses to read the file.
    """
    return Database(path)


def as_list(texts: str | Sequence[str]) -> list[str]:
    """Texts as a list; a single text is a list of one."""
    return [texts] if isinstance(texts, str) else list(texts)


class Database:
    """A feature database: image features of every row, templates, and what is recorded about both.

    A context manager. It can be pickled, and opens the file again when it is unpickled; the workers of a data loader
    use this.

    Args:
        path: The HDF5 file.

    Raises:
        DatabaseError: There is no such file, it is not HDF5, or its structure is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._remote = RemoteFile(path) if is_url(path) else None
        if self._remote is None:
            self.path = Path(path).absolute()
            self._file = open_hdf5(self.path)
        else:
            self.path = Path(self._remote.name)  # No path of this machine: it names the file in messages.
            self._file = open_remote_hdf5(self._remote)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_database, (self.source,)

    def __len__(self) -> int:
        """N, the number of rows; 0 for a file without images."""
        return len(self._numbers)

    def __repr__(self) -> str:
        return f"Database({self.path.name!r}, rows={len(self)}, dim={self.dim}, token_count={self.token_count})"

    def _repr_html_(self) -> str:
        return summary_html(self)

    def close(self) -> None:
        """Close the file and free its lock; arrays that were mapped from it stay valid."""
        self._file.close()

    @property
    def source(self) -> str | Path:
        """The path or address with which `open_database` opens this file again."""
        return self.path if self._remote is None else self._remote.url

    @property
    def is_remote(self) -> bool:
        """Whether the file is read over a network."""
        return self._remote is not None

    @property
    def file_bytes(self) -> int:
        """The size of the file."""
        return self.path.stat().st_size if self._remote is None else self._remote.size

    @property
    def file(self) -> h5py.File:
        """The open HDF5 file, for content that this class does not offer."""
        return self._file

    # --- images ---------------------------------------------------------------------------------------

    @cached_property
    def image_features(self) -> Array:
        """(N, D) float16, unit length before the cast; mapped, or an h5py data set where the file is chunked."""
        return self._feature_rows(IMAGE_FEATURES)

    @cached_property
    def image_token_features(self) -> Array | None:
        """(N, T_img, D) float16, row-major from the top left; None in a file without tokens."""
        return None if self._dataset(IMAGE_TOKEN_FEATURES) is None else self._feature_rows(IMAGE_TOKEN_FEATURES)

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
        """(N,) int64, the data set's labels; of a multi-label set the first, and 0 without any (`shown_labels`)."""
        return self._values("labels")

    @property
    def shown_labels(self) -> npt.NDArray[np.int64]:
        """(N,) int64, `labels` as they are to be shown: -1 for an image of a multi-label set without any label."""
        matrix = self.label_matrix
        return self.labels if matrix is None else np.where(matrix.any(axis=1), self.labels, -1)

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
        """The rows of every split, in file order, then splits without rows; empty in a file of templates alone.

        Raises:
            DatabaseError: The rows of a split do not stand together, as in a file with doubled rows.
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
        with read_errors_at(f"{self.path}: the attributes"):
            return MappingProxyType(read_attributes(self._file))

    @property
    def provenance(self) -> Mapping[str, Any] | None:
        """How the file was made; None in a file of the original scripts."""
        provenance = self.attributes.get("provenance")
        return MappingProxyType(provenance) if isinstance(provenance, dict) else None

    @property
    def profile(self) -> str:
        """`database`, `image-part` or `template-part`."""
        return str(self.attributes.get("profile", "database"))

    @property
    def logit_scale(self) -> float | None:
        """The stored parameter, a natural logarithm; `logit_multiplier` is the factor to apply."""
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
        with read_errors_at(f"{self.path}: /templates"):
            group = safe_group(self._file, "templates")
            if group is None:
                return MappingProxyType({})
            return MappingProxyType({name: Template(name, listed_group(group, name)) for name in sorted_names(group)})

    @cached_property
    def concepts(self) -> Mapping[str, tuple[str, ...]]:
        """Every concept word with the texts that stand for it, in file order: the word itself, then its synonyms."""
        concepts = self.attributes.get("concepts") or [{"word": word} for word in self._words("concept_texts")]
        return MappingProxyType(
            {concept["word"]: (concept["word"], *concept.get("synonyms", ())) for concept in concepts}
        )

    def concept_features(
        self, words: str | Sequence[str] | None = None, templates: str | Sequence[str] | None = None
    ) -> npt.NDArray[np.float32]:
        """One vector per concept: prompt ensembling as in CLIP.

        The mean of the normalised text features over the templates and over a concept's synonyms, normalised again.

        Args:
            words: Concept words; by default every concept in file order.
            templates: Template ids; by default all concept templates.

        Returns:
            (len(words), D) float32, unit length.

        Raises:
            DatabaseError: The file has no such concept or template, or a template does not fit the word list.
        """
        chosen = list(self.concepts) if words is None else as_list(words)
        unknown = [word for word in chosen if word not in self.concepts]
        if unknown:
            raise DatabaseError(f"{self.path.name} has no concepts {unknown}; it has {list(self.concepts)}")
        return self._ensemble([self.concepts[word] for word in chosen], "concept", "concept_texts", templates)

    def label_features(
        self, words: str | Sequence[str] | None = None, templates: str | Sequence[str] | None = None
    ) -> npt.NDArray[np.float32]:
        """One vector per label word, ensembled over templates as for concepts.

        Args:
            words: Label words; by default all in file order.
            templates: Template ids; by default all label templates.

        Returns:
            (len(words), D) float32, unit length.

        Raises:
            DatabaseError: The file has no such label word or template, or a template does not fit the word list.
        """
        known = self._words("label_texts")
        chosen = known if words is None else as_list(words)
        unknown = [word for word in chosen if word not in known]
        if unknown:
            raise DatabaseError(f"{self.path.name} has no label words {unknown}; it has {known}")
        return self._ensemble([[word] for word in chosen], "label", "label_texts", templates)

    # --- selections -----------------------------------------------------------------------------------

    def select(self, split: str | None = None, rows: RowIndex = None) -> Selection:
        """Choose rows of a split or of the file.

        Args:
            split: A split's name; by default the whole file.
            rows: Row numbers within the split, as numpy takes them: a number, a slice, a list, an array or a mask,
                in any order, with repeats and negative numbers. By default all.

        Returns:
            The chosen rows in the order given.

        Raises:
            DatabaseError: There is no such split or row.
        """
        numbers = self._numbers if split is None else self._numbers[self._rows_of_split(split)]
        if rows is None:
            return Selection(self, numbers)
        if not isinstance(rows, slice):
            rows = np.atleast_1d(rows) if np.size(rows) else np.empty(0, np.int64)
        try:
            return Selection(self, numbers[rows])
        except IndexError as error:
            raise DatabaseError(f"{split or self.path.name!r} has {len(numbers)} rows: {error}") from error

    def torch_dataset(self, split: str | None = None, tokens: bool = False) -> RowDataset:
        """A map-style data set for `torch.utils.data.DataLoader`.

        Args:
            split: A split's name; by default the whole file.
            tokens: Whether items hold token features.

        Returns:
            Items (image features (D,) float16, [token features (T_img, D) float16,] label): an int, or in a
            multi-label set the row of `label_matrix`, (L,) uint8.

        Raises:
            DatabaseError: There is no such split, or the file has no token features.
        """
        if tokens and self.image_token_features is None:
            raise DatabaseError(f"{self.path.name} was stored without token features")
        return RowDataset(self, self.select(split).rows, tokens)

    def to_pandas(self) -> pd.DataFrame:
        """A table of the rows without their features: id, key, split, label, group, those that the file has.

        Labels are `shown_labels`.

        Returns:
            One row for each image.
        """
        import pandas as pd

        labels = self.shown_labels
        columns = {"id": self.ids, "key": self.keys, "split": self.split, "label": labels, "group": self.groups}
        table: pd.DataFrame = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        return table

    # --- stored data sets -----------------------------------------------------------------------------

    @cached_property
    def _numbers(self) -> npt.NDArray[np.int64]:
        """The numbers of all rows; read-only, since selections are views of it."""
        dataset = self._dataset(IMAGE_FEATURES)
        if dataset is not None and not dataset.shape:
            raise DatabaseError(f"{self.path}: /{IMAGE_FEATURES}: expected rows, found a single value")
        numbers = np.arange(0 if dataset is None else len(dataset), dtype=np.int64)
        numbers.flags.writeable = False
        return numbers

    def fileno(self) -> int:
        """The descriptor of the open file, for reading at the offsets that `byte_range` gives.

        Returns:
            The file descriptor.
        """
        return file_descriptor(self._file)

    def byte_range(self, name: str) -> tuple[int, int]:
        """The offset of a contiguous data set in the file, and the bytes of one of its rows.

        Args:
            name: Name of the data set, such as `image_features`.

        Returns:
            Offset in bytes, and bytes of a row.

        Raises:
            DatabaseError: There is no such data set, or it is chunked, so that its rows do not follow each other.
        """
        dataset = self._dataset(name)
        if dataset is None or dataset.chunks is not None:
            kind = "none" if dataset is None else "a chunked one"
            raise DatabaseError(
                f"{self.path}: /{name}: expected a contiguous data set, found {kind}. Finished databases have it: "
                "build the study, adopt the file, or call `ccassets.h5.finalize`."
            )
        return int(dataset.id.get_offset() or 0), int(np.prod(dataset.shape[1:])) * dataset.dtype.itemsize

    def _dataset(self, name: str) -> h5py.Dataset | None:
        with read_errors_at(f"{self.path}: /{name}"):
            return safe_dataset(self._file, name)

    def _required_dataset(self, name: str) -> h5py.Dataset:
        dataset = self._dataset(name)
        if dataset is None:
            with read_errors_at(str(self.path)):
                names = sorted(map(str, self._file))
            raise DatabaseError(f"{self.path}: /{name} is missing; the file has {names}")
        return dataset

    def _feature_rows(self, name: str) -> Array:
        dataset = self._required_dataset(name)
        if dataset.dtype.kind not in "fiu":
            raise DatabaseError(f"{self.path}: /{name}: expected numbers, found dtype {dataset.dtype}")
        with read_errors_at(f"{self.path}: /{name}"):
            if self._remote is not None and dataset.size and dataset.chunks is None and dataset.id.get_offset():
                rows = RemoteRows(self._remote, dataset.id.get_offset(), dataset.shape, dataset.dtype)
                return cast(Array, rows)
            mapped = None if self._remote is not None else map_dataset(dataset)
        return cast(Array, dataset) if mapped is None else mapped

    def _values(self, name: str) -> Array:
        dataset = self._required_dataset(name)
        with read_errors_at(f"{self.path}: /{name}"):
            return cast(Array, dataset[...])

    def _texts(self, name: str) -> npt.NDArray[np.object_]:
        dataset = self._required_dataset(name)
        if dataset.ndim != 1:
            raise DatabaseError(f"{self.path}: /{name}: expected one text for each row, found shape {dataset.shape}")
        with read_errors_at(f"{self.path}: /{name}"):
            return read_texts(dataset)

    def _parameter(self, name: str) -> float | None:
        value = self.attributes.get(name)
        if value is None:
            return None
        if not isinstance(value, (int, float)):
            raise DatabaseError(f"{self.path}: the attribute {name}: expected a number, found {type(value).__name__}")
        return float(value)

    def _words(self, attribute: str) -> list[str]:
        words = self.attributes.get(attribute)
        return list(words) if isinstance(words, list) else []

    def _rows_of_split(self, split: str) -> slice:
        if split not in self.splits:
            raise DatabaseError(f"{self.path.name} has no split {split!r}; it has {list(self.splits)}")
        return self.splits[split]

    def _ensemble(
        self, texts: Sequence[Sequence[str]], kind: Kind, attribute: str, templates: str | Sequence[str] | None
    ) -> npt.NDArray[np.float32]:
        chosen = template_ids(self, kind, templates)
        row_of = {word: row for row, word in enumerate(self._words(attribute))}
        features = np.stack([self._template_rows(name, len(row_of)) for name in chosen])
        means = np.empty((len(texts), features.shape[2]))
        for number, synonyms in enumerate(texts):
            means[number] = features[:, [row_of[text] for text in synonyms]].mean(axis=(0, 1))
        unit: npt.NDArray[np.float32] = (means / np.linalg.norm(means, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def _template_rows(self, name: str, words: int) -> Array:
        features = np.asarray(self.templates[name].text_features, np.float64)
        if len(features) != words:
            raise DatabaseError(f"{self.path.name}: {name} holds {len(features)} prompts for {words} words")
        return cast(Array, features / np.linalg.norm(features, axis=1, keepdims=True))


def template_ids(database: Database, kind: Kind, templates: str | Sequence[str] | None) -> list[str]:
    """The ids of these templates, by default of all of a kind; raises `DatabaseError` for an unknown one."""
    numbered = [name for name in database.templates if name.startswith(f"{kind}_prompts_t")]
    chosen = numbered if templates is None else as_list(templates)
    unknown = [name for name in chosen if name not in database.templates]
    if unknown or not chosen:
        raise DatabaseError(f"{database.path.name} has no templates {unknown or kind}; it has {[*database.templates]}.")
    return chosen


class Template:
    """A stored template, given by `Database.templates`; arrays are read when first used.

    Args:
        template_id: The template's id, such as `concept_prompts_t01`.
        group: The HDF5 group that holds it.
    """

    def __init__(self, template_id: str, group: h5py.Group) -> None:
        self.template_id = template_id
        self._group = group
        self._path = f"/templates/{template_id}"

    def __repr__(self) -> str:
        return f"Template({self.template_id!r}, K={len(self.texts)})"

    @cached_property
    def texts(self) -> list[str]:
        """The K prompts.

        Raises:
            DatabaseError: They are missing, or no list of texts.
        """
        with read_errors_at(f"{self._path}/texts"):
            dataset = safe_dataset(self._group, "texts")
            if dataset is None:
                raise DatabaseError(f"{self._path}/texts is missing")
            if dataset.ndim != 1:
                raise DatabaseError(f"{self._path}/texts: expected shape (K,), found {dataset.shape}")
            return list(read_texts(dataset))

    @cached_property
    def text_features(self) -> npt.NDArray[np.float32]:
        """(K, D) float32, unit length.

        Raises:
            DatabaseError: They are missing, or have another shape.
        """
        values = self._values("text_features")
        if values is None:
            raise DatabaseError(f"{self._path}/text_features is missing")
        if values.ndim != 2:
            raise DatabaseError(f"{self._path}/text_features: expected shape (K, D), found {values.shape}")
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
        """(K, T) uint8, 1 where a token is not padding."""
        return self._values("attention_mask")

    @cached_property
    def subject_span(self) -> npt.NDArray[np.int32] | None:
        """(K, 2) int32, the half-open range of token positions of the inserted word; (0, 0) without one."""
        return self._values("subject_span")

    @property
    def attributes(self) -> Mapping[str, Any]:
        """`K`, `D`, `T_txt`, `texts_hash`, `digest`, `created_at`."""
        with read_errors_at(f"{self._path}: the attributes"):
            return MappingProxyType(read_attributes(self._group))

    def _values(self, name: str) -> Array | None:
        with read_errors_at(f"{self._path}/{name}"):
            dataset = safe_dataset(self._group, name)
            return None if dataset is None else cast(Array, dataset[...])


@dataclass(frozen=True)
class Selection:
    """Chosen rows of a database, given by `Database.select`; arrays are copied at each use.

    Attributes:
        database: The database that the rows belong to.
        rows: (n,) int64, the rows' numbers in the file, in the chosen order.
    """

    database: Database
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_features(self) -> npt.NDArray[np.float16]:
        """(n, D) float16, a copy."""
        return take_rows(self.database.image_features, self.rows)

    @property
    def image_token_features(self) -> npt.NDArray[np.float16] | None:
        """(n, T_img, D) float16, a copy of n large rows; None without tokens."""
        tokens = self.database.image_token_features
        return None if tokens is None else take_rows(tokens, self.rows)

    def verify(self) -> None:
        """Compare the bytes of the rows, tokens included, with the digests that were taken when they were written.

        Raises:
            DatabaseError: Rows differ, or the file has no digests.
        """
        expected = self.database.feature_digest
        if expected is None:
            raise DatabaseError(f"{self.database.path}: expected digests of the rows, found none.")
        for start in range(0, len(self), 64):
            part = Selection(self.database, self.rows[start : start + 64])
            digests = feature_digests(part.image_features, part.image_token_features)
            wrong = part.rows[(digests != expected[part.rows]).any(axis=1)]
            if len(wrong):
                raise DatabaseError(
                    f"{self.database.path}: row {wrong[0]} does not have the bytes that were written ({len(wrong)} of "
                    f"{len(part)} rows). Read it again; if it stays so, `ccassets validate --deep` says more."
                )

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """(n,) int64, the rows' own numbers."""
        return self.database.ids[self.rows]

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """(n,) int64, the data set's labels."""
        return self.database.labels[self.rows]

    @property
    def split(self) -> npt.NDArray[np.object_]:
        """(n,) str, the split of every row."""
        return self.database.split[self.rows]

    @property
    def keys(self) -> npt.NDArray[np.object_] | None:
        """(n,) str, where every row came from; None in a file of the original scripts."""
        return None if self.database.keys is None else self.database.keys[self.rows]

    @property
    def groups(self) -> npt.NDArray[np.object_] | None:
        """(n,) str, the patient or slide of every row; None where the data set has none."""
        return None if self.database.groups is None else self.database.groups[self.rows]


class RowDataset:
    """A map-style data set over rows of a database; every worker process opens the file for itself.

    An item raises `DatabaseError` when a database with other rows has been published at the path meanwhile.
    """

    def __init__(self, database: Database, rows: npt.NDArray[np.int64], tokens: bool) -> None:
        self._path = database.source
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
        matrix = database.label_matrix
        label = int(database.labels[row]) if matrix is None else np.array(matrix[row])
        if self._tokens:
            assert database.image_token_features is not None
            return features, np.array(database.image_token_features[row]), label
        return features, label

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _database(self) -> Database:
        # An HDF5 handle does not survive a fork: it is kept with the process that opened it.
        if self._opened is None or self._opened[0] != os.getpid():
            database = open_database(self._path)
            if _row_identity(database) != self._content:
                raise DatabaseError(f"{self._path} was replaced by a file with other rows: make the data set again.")
            self._opened = os.getpid(), database
        return self._opened[1]


def _row_identity(database: Database) -> tuple[int, Any]:
    """What row numbers stand for: a file with the same has the same rows in the same order."""
    return len(database), database.attributes.get("rows_digest")
