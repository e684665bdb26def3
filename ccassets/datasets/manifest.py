"""The manifest: the rows of a split in order, each image read once; assembly follows it."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from ccassets.datasets.dataset_contract import Dataset, Rows
from ccassets.datasets.image_decoding import DECODER, blank_image, image_digest
from ccassets.errors import DatasetError
from ccassets.files import reading_refused, remove_leftovers, replacing
from ccassets.findings import Finding
from ccassets.progress import Progress, available_cores, silent

OnBadImage = Literal["error", "skip", "blank"]

_Result = TypeVar("_Result")

_FORMAT: Final = "ccassets manifest 1"
_TEXTS_AT_ONCE: Final = 4096


@dataclass(frozen=True, eq=False)
class Shard:
    """Rows of one split that are encoded together: the unit of work, of resume and of distribution.

    `keys`, `rows`, `labels`, `image_digest` and `blank` are those of `Manifest`, n of each.
    """

    split: str
    keys: Sequence[str]
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    image_digest: npt.NDArray[np.uint8]
    blank: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The n rows of one split in order, with the digest of every image.

    Attributes:
        split: The split.
        keys: (n,) str, where the rows come from, as in `Rows`.
        rows: (n,) int64, the number by which `Dataset.read` finds a row.
        labels: (n,) int64; 0 where the data set has none.
        groups: (n,) str, patient or slide; None where there are none.
        label_matrix: (n, L) uint8 of a multi-label set, else None.
        image_digest: (n, 32) uint8, SHA-256 of height, width and RGB bytes of the decoded image.
        blank: (n,) bool, the rows whose image could not be read; a mid-grey image stands in for it.
        fingerprints: (n,) str, as in `Rows`.
        skipped: Key and reason of every image that was left out.
        limit: The study's `extraction.limit` when the rows were read.
        classes: The class names in the order of the label numbers, () when unknown.
        labelled: Whether the data set has labels.
        source: SHA-256 (hex) over keys, labels, groups and fingerprints of the rows when they were read.
        decoder: The version of the image decoder.
        overridden: By key: the data set's own label of every row that the study gives another label.
    """

    split: str
    keys: Sequence[str]
    rows: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    groups: Sequence[str] | None
    label_matrix: npt.NDArray[np.uint8] | None
    image_digest: npt.NDArray[np.uint8]
    blank: npt.NDArray[np.bool_]
    fingerprints: Sequence[str]
    skipped: tuple[tuple[str, str], ...]
    limit: int | None
    classes: tuple[str, ...]
    labelled: bool
    source: str
    decoder: str = DECODER
    overridden: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: npt.NDArray[np.int64]) -> Shard:
        """The shard of these rows, numbered from 0 in the manifest.

        Args:
            rows: (m,) row numbers.

        Returns:
            The shard, which knows the number of each row in the manifest.
        """
        return Shard(
            split=self.split,
            keys=_take(self.keys, rows),
            rows=self.rows[rows],
            labels=self.labels[rows],
            image_digest=self.image_digest[rows],
            blank=self.blank[rows],
        )

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the content that a database takes over: split, keys, labels, groups, image digests,
        blanks.

        Every part is preceded by its length. File times, limit and provenance are not in it.
        """
        digest = hashlib.sha256()
        _update_texts(digest, [_FORMAT, self.split])
        _update_texts(digest, self.keys)
        _update_array(digest, self.labels.astype("<i8"))
        _update_texts(digest, self.groups)
        _update_array(digest, self.label_matrix)
        _update_array(digest, self.image_digest)
        _update_array(digest, self.blank.astype(np.uint8))
        return digest.hexdigest()

    @property
    def _facts(self) -> dict[str, Any]:
        """The facts that are stored beside the columns."""
        return {
            "format": _FORMAT,
            "split": self.split,
            "skipped": [list(pair) for pair in self.skipped],
            "limit": self.limit,
            "classes": list(self.classes),
            "labelled": self.labelled,
            "source": self.source,
            "decoder": self.decoder,
            **({"overridden": dict(self.overridden)} if self.overridden else {}),
        }

    @property
    def _content(self) -> str:
        """SHA-256 (hex) over everything that is stored, which reveals a damaged or edited file."""
        digest = hashlib.sha256(self.digest.encode())
        _update_texts(digest, [json.dumps(self._facts)])
        _update_texts(digest, self.fingerprints)
        _update_array(digest, self.rows.astype("<i8"))
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the manifest as Parquet; the file appears as a whole or not at all.

        Args:
            path: The file to write or replace.

        Raises:
            StorageError: The disk is full or may not be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        columns = {
            "key": pa.array(self.keys, pa.string()),
            "row": pa.array(self.rows),
            "label": pa.array(self.labels),
            "image_digest": _fixed_size_bytes(self.image_digest),
            "blank": pa.array(self.blank),
            "fingerprint": pa.array(self.fingerprints, pa.string()),
        }
        if self.groups is not None:
            columns["group"] = pa.array(self.groups, pa.string())
        if self.label_matrix is not None:
            columns["label_matrix"] = _fixed_size_bytes(self.label_matrix)
        table = pa.table(columns).replace_schema_metadata(
            {"ccassets": json.dumps({**self._facts, "content": self._content})}
        )
        remove_leftovers(path.parent)
        with replacing(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a manifest that `save` wrote.

        Args:
            path: The Parquet file.

        Returns:
            The manifest; its digest is that of the one that was saved.

        Raises:
            DatasetError: There is no such file, or it was damaged or edited.
            StorageError: The system does not let it be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(path)
        if not path.is_file():
            raise DatasetError(f"There is no manifest {path}; reading the images of the split writes it.")
        try:
            table = pq.ParquetFile(path).read()
            facts = json.loads(table.schema.metadata[b"ccassets"])
            if facts["format"] != _FORMAT:
                raise ValueError(f"its format is {facts['format']!r}, expected is {_FORMAT!r}")
            names = table.column_names
            manifest = cls(
                split=facts["split"],
                keys=table["key"].to_pylist(),
                rows=_numbers(table["row"]),
                labels=_numbers(table["label"]),
                groups=table["group"].to_pylist() if "group" in names else None,
                label_matrix=_bytes_matrix(table["label_matrix"]) if "label_matrix" in names else None,
                image_digest=_bytes_matrix(table["image_digest"]),
                blank=_numbers(table["blank"]),
                fingerprints=table["fingerprint"].to_pylist(),
                skipped=tuple((key, reason) for key, reason in facts["skipped"]),
                limit=facts["limit"],
                classes=tuple(facts["classes"]),
                labelled=facts["labelled"],
                source=facts["source"],
                decoder=facts["decoder"],
                overridden=facts.get("overridden", {}),
            )
            if manifest._content != facts["content"]:
                raise ValueError("its rows are not those that were written: it was damaged, or edited")
            return manifest
        except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
            raise reading_refused(error, str(path)) or DatasetError(
                f"{path} is not a manifest that can be read ({error}). Remove it and read the images again."
            ) from error


def read_manifest(
    dataset: Dataset,
    split: str,
    *,
    limit: int | None = None,
    on_bad_image: OnBadImage = "error",
    previous: Manifest | None = None,
    progress: Progress = silent,
    workers: int | None = None,
) -> Manifest:
    """Decode every image of a split once and record its digest.

    Args:
        dataset: The data set, fetched.
        split: One of its splits.
        limit: Take that many evenly spaced rows; by default all.
        on_bad_image: What to do with images that cannot be read: name them all in one `error`, leave them out
            (`skip`), or keep their rows with a mid-grey stand-in (`blank`).
        previous: An earlier manifest of the split; images under the same key and fingerprint are not decoded again.
        progress: Called with the number of rows done and of all rows.
        workers: Threads that decode; by default one for each available core, at most 16.

    Returns:
        The manifest of the split, in the data set's order.

    Raises:
        DatasetError: The split does not exist, or images cannot be read and `on_bad_image` is `error`.
        StorageError: The operating system refuses to read an image now, whatever `on_bad_image` says.
    """
    source = dataset.rows(split)
    chosen = evenly_spaced_positions(len(source), limit)
    digests, failures = _digests(dataset, split, source, chosen, previous, progress, workers)
    reasons = [(source.keys[chosen[i]], reason) for i, reason in sorted(failures.items())]
    if reasons and on_bad_image == "error":
        listed = "\n".join(f"  {key}: {reason}" for key, reason in reasons)
        raise DatasetError(
            f"{len(reasons)} of {len(chosen)} images of the split {split!r} cannot be read:\n{listed}\n"
            "Repair or remove them, or set extraction.on_bad_image to skip (leave them out) or blank (keep their rows)."
        )
    blank = np.zeros(len(chosen), np.bool_)
    blank[list(failures)] = True
    digests[blank] = np.frombuffer(image_digest(blank_image()), np.uint8)
    kept = ~blank if on_bad_image == "skip" else np.ones(len(chosen), np.bool_)
    rows = chosen[kept]
    keys = _take(source.keys, rows)
    return Manifest(
        split=split,
        keys=keys,
        rows=rows,
        labels=source.labels[rows],
        groups=None if source.groups is None else _take(source.groups, rows),
        label_matrix=None if source.label_matrix is None else source.label_matrix[rows],
        image_digest=digests[kept],
        blank=blank[kept],
        fingerprints=_take(source.fingerprints, rows),
        skipped=tuple(reasons) if on_bad_image == "skip" else (),
        limit=limit,
        classes=dataset.classes,
        labelled=dataset.labelled,
        source=_source_digest(dataset, source, chosen),
        overridden={key: source.overridden[key] for key in keys if key in source.overridden},
    )


@dataclass(frozen=True)
class ManifestChanges:
    """How many rows of a split changed: new ones, removed ones, ones with another image, ones with another label."""

    added: int
    removed: int
    changed: int
    relabelled: int


def compare_manifests(before: Manifest | None, after: Manifest) -> ManifestChanges:
    """Count what changed in a split between two readings.

    Rows are matched by key, then by image: one that was moved, for example to the folder of another class, is neither
    new nor gone.

    Args:
        before: The earlier manifest; None where there was none, so that every row is new.
        after: The later one.
    """
    if before is None:
        return ManifestChanges(added=len(after), removed=0, changed=0, relabelled=0)
    by_key = {key: row for row, key in enumerate(before.keys)}
    kept = by_key.keys() & set(after.keys)
    by_picture = {before.image_digest[row].tobytes(): row for key, row in by_key.items() if key not in kept}
    pairs = []
    for row, (key, digest) in enumerate(zip(after.keys, after.image_digest, strict=True)):
        match = by_key[key] if key in kept else by_picture.pop(digest.tobytes(), None)
        if match is not None:
            pairs.append((match, row))
    old, new = np.array(pairs, np.int64).reshape(-1, 2).T
    old_labels, new_labels = _label_rows(before), _label_rows(after)
    comparable = old_labels.shape[1] == new_labels.shape[1]
    return ManifestChanges(
        added=len(after) - len(pairs),
        removed=len(before) - len(pairs),
        changed=int((before.image_digest[old] != after.image_digest[new]).any(axis=1).sum()),
        relabelled=int((old_labels[old] != new_labels[new]).any(axis=1).sum()) if comparable else len(pairs),
    )


def _label_rows(manifest: Manifest) -> npt.NDArray[np.generic]:
    return manifest.labels[:, None] if manifest.label_matrix is None else manifest.label_matrix


def is_current(manifest: Manifest, dataset: Dataset, *, limit: int | None, on_bad_image: OnBadImage) -> bool:
    """Whether keys, labels, groups and fingerprints of a split are still those of its manifest; decodes no image.

    A data set that cannot be listed is not current: reading it says why.
    """
    if manifest.decoder != DECODER or manifest.limit != limit:
        return False
    if (manifest.skipped and on_bad_image != "skip") or (manifest.blank.any() and on_bad_image != "blank"):
        return False
    try:
        return manifest.source == source_digest(dataset, manifest.split, limit=limit)
    except DatasetError:
        return False


def readable_again(manifest: Manifest, dataset: Dataset) -> list[str]:
    """The keys of skipped and blank rows whose images can be read now; decodes only these images.

    A fingerprint does not show that an obstacle is gone, so the images are tried again.
    """
    bad = [(manifest.keys[row], int(manifest.rows[row])) for row in np.flatnonzero(manifest.blank).tolist()]
    if manifest.skipped:
        row_of = {key: row for row, key in enumerate(dataset.rows(manifest.split).keys)}
        bad += [(key, row_of[key]) for key, _ in manifest.skipped]
    readable = []
    for key, row in bad:
        with suppress(DatasetError):
            dataset.read(manifest.split, row)
            readable.append(key)
    return readable


def source_digest(dataset: Dataset, split: str, *, limit: int | None) -> str:
    """SHA-256 (hex) over keys, labels, groups and fingerprints of a split; decodes no image."""
    source = dataset.rows(split)
    return _source_digest(dataset, source, evenly_spaced_positions(len(source), limit))


def read_image(dataset: Dataset, manifest: Manifest | Shard, row: int) -> Image.Image:
    """Read the image of a row of a manifest or shard.

    The caller checks whether it is still the image of the row's digest.

    Args:
        dataset: The data set that the manifest was read from, fetched.
        manifest: A manifest, or a shard of it.
        row: The row, from 0.

    Returns:
        The image as 8-bit RGB; the mid-grey stand-in where the row is blank.

    Raises:
        DatasetError: The image cannot be read; the message names split and key.
    """
    if manifest.blank[row]:
        return blank_image()
    try:
        return dataset.read(manifest.split, int(manifest.rows[row]))
    except DatasetError as error:
        raise DatasetError(f"Split {manifest.split!r}, image {manifest.keys[row]!r}: {error}.") from error


def find_leaks(manifests: Sequence[Manifest]) -> list[Finding]:
    """Find equal images, and rows of one group, in two splits; the findings are warnings, blank rows are left out."""
    findings = []
    images = [
        (manifest, np.flatnonzero(~manifest.blank), manifest.image_digest[~manifest.blank].view("S32").ravel())
        for manifest in manifests
    ]
    groups = [
        (manifest, np.arange(len(manifest)), np.array(manifest.groups, dtype=object))
        for manifest in manifests
        if manifest.groups is not None
    ]
    for check, what, values in (("image_in_two_splits", "image", images), ("group_in_two_splits", "group", groups)):
        count, examples = _shared(values)
        if count:
            message = (
                f"Every {what} should be in one split only; {count} are in more, for example {'; '.join(examples)}"
            )
            where = ", ".join(manifest.split for manifest, _, _ in values)
            findings.append(Finding(check, "warning", message, where))
    return findings


def _shared(values: Sequence[tuple[Manifest, npt.NDArray[np.int64], npt.NDArray[Any]]]) -> tuple[int, list[str]]:
    """The number of values in more than one split; for the first few, the first and the last row as text."""
    if not values:
        return 0, []
    part = np.repeat(np.arange(len(values)), [len(rows) for _, rows, _ in values])
    row = np.concatenate([rows for _, rows, _ in values])
    _, first, inverse = np.unique(
        np.concatenate([of_split for _, _, of_split in values]), return_index=True, return_inverse=True
    )
    last = np.empty(len(first), np.int64)
    last[inverse] = np.arange(len(row))
    shared = sorted((first[i], last[i]) for i in np.flatnonzero(part[first] != part[last]))
    examples = [
        " = ".join(f"{values[part[i]][0].keys[row[i]]!r} ({values[part[i]][0].split})" for i in pair)
        for pair in shared[:5]
    ]
    return len(shared), examples


def evenly_spaced_positions(n: int, limit: int | None) -> npt.NDArray[np.int64]:
    """At most `limit` evenly spaced positions of n, with the first and the last; all positions if `limit` is None."""
    if limit is None or limit >= n:
        return np.arange(n, dtype=np.int64)
    spaced: npt.NDArray[np.int64] = np.linspace(0, n - 1, limit).round().astype(np.int64)
    return spaced


def _digests(
    dataset: Dataset,
    split: str,
    source: Rows,
    chosen: npt.NDArray[np.int64],
    previous: Manifest | None,
    progress: Progress,
    workers: int | None,
) -> tuple[npt.NDArray[np.uint8], dict[int, str]]:
    """Image digests (n, 32) of the chosen rows, and the reasons of those that could not be read.

    The images are decoded in threads (Pillow lets go of the interpreter), only so many ahead that memory stays flat.
    """
    digests = np.zeros((len(chosen), 32), np.uint8)
    failures: dict[int, str] = {}
    unread = _reuse(digests, source, chosen, previous)

    def read(i: int) -> tuple[bytes | None, str]:
        try:
            return image_digest(dataset.read(split, int(chosen[i]))), ""
        except DatasetError as error:
            return None, str(error)

    done = len(chosen) - len(unread)
    workers = workers or min(16, available_cores())
    with ThreadPoolExecutor(workers, "read") as pool:
        for i, (digest, reason) in _in_order(pool, read, unread, ahead=4 * workers):
            if digest is None:
                failures[i] = reason
            else:
                digests[i] = np.frombuffer(digest, np.uint8)
            done += 1
            progress(done, len(chosen))
    return digests, failures


def _reuse(
    digests: npt.NDArray[np.uint8], source: Rows, chosen: npt.NDArray[np.int64], previous: Manifest | None
) -> list[int]:
    """Copy the digests of unchanged files from the previous manifest; returns the numbers of the other rows."""
    if previous is None or previous.decoder != DECODER:
        return list(range(len(chosen)))
    known = {
        (key, fingerprint): row
        for row, (key, fingerprint) in enumerate(zip(previous.keys, previous.fingerprints, strict=True))
        if not previous.blank[row]
    }
    unread = []
    for i, row in enumerate(chosen):
        previous_row = known.get((source.keys[row], source.fingerprints[row]))
        if previous_row is None:
            unread.append(i)
        else:
            digests[i] = previous.image_digest[previous_row]
    return unread


def _in_order(
    pool: ThreadPoolExecutor, function: Callable[[int], _Result], items: Iterable[int], *, ahead: int
) -> Iterator[tuple[int, _Result]]:
    """Results in the order of the items; at most `ahead` are under way or waiting."""
    pending: deque[tuple[int, Future[_Result]]] = deque()
    for item in items:
        pending.append((item, pool.submit(function, item)))
        if len(pending) == ahead:
            first, future = pending.popleft()
            yield first, future.result()
    for item, future in pending:
        yield item, future.result()


def _source_digest(dataset: Dataset, source: Rows, chosen: npt.NDArray[np.int64]) -> str:
    digest = hashlib.sha256()
    _update_texts(digest, [_FORMAT, str(dataset.labelled), *dataset.classes])
    _update_texts(digest, _take(source.keys, chosen))
    _update_texts(digest, _take(source.fingerprints, chosen))
    _update_array(digest, source.labels[chosen].astype("<i8"))
    _update_texts(digest, None if source.groups is None else _take(source.groups, chosen))
    _update_array(digest, None if source.label_matrix is None else source.label_matrix[chosen])
    return digest.hexdigest()


def _update_texts(digest: hashlib._Hash, texts: Sequence[str] | None) -> None:
    if texts is None:
        digest.update(b"-")
        return
    _update_array(digest, np.fromiter(map(len, map(str.encode, texts)), "<u8", len(texts)))
    for first in range(0, len(texts), _TEXTS_AT_ONCE):
        digest.update("".join(texts[first : first + _TEXTS_AT_ONCE]).encode())


def _update_array(digest: hashlib._Hash, array: npt.NDArray[Any] | None) -> None:
    if array is None:
        digest.update(b"-")
        return
    digest.update(struct.pack(f"<B{array.ndim}Q", array.ndim, *array.shape))
    digest.update(np.ascontiguousarray(array).tobytes())


def _take(texts: Sequence[str], rows: npt.NDArray[np.int64]) -> list[str]:
    return [texts[row] for row in rows.tolist()]


def _fixed_size_bytes(matrix: npt.NDArray[np.uint8]) -> Any:
    import pyarrow as pa

    n, width = matrix.shape
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), n, [None, pa.py_buffer(matrix.tobytes())])


def _bytes_matrix(column: Any) -> npt.NDArray[np.uint8]:
    width = column.type.byte_width
    return _values(column, np.dtype((np.void, width))).view(np.uint8).reshape(-1, width)


def _numbers(column: Any) -> npt.NDArray[Any]:
    """The numbers of a column; pyarrow's own conversion imports pandas first, which takes half a second."""
    return _values(column, np.dtype(str(column.type)))


def _values(column: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    chunks = [_unpacked(chunk.buffers()[1], dtype)[chunk.offset :][: len(chunk)] for chunk in column.chunks]
    return np.concatenate([np.empty(0, dtype), *chunks])


def _unpacked(buffer: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The values in a buffer of Arrow, which keeps truth values as bits, the lowest first."""
    if dtype != np.bool_:
        return np.frombuffer(buffer, dtype)
    return np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little").astype(np.bool_)
