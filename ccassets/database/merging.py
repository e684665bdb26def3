"""Assembly of a new file from byte ranges of other files, copied without decoding."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ccassets.database.feature_digests import iter_feature_digests
from ccassets.database.layout import BULK, IMAGE_FEATURES, STORED_IMAGE_DTYPE
from ccassets.database.reader import Database, open_database
from ccassets.database.writer import FileContent, new_file
from ccassets.errors import DamagedSourceError, DatabaseError
from ccassets.progress import Progress, silent

_COPY_BYTES = 256 << 20


def assemble(
    path: Path,
    content: FileContent,
    sources: Sequence[Path],
    source_of: npt.NDArray[np.int64],
    row_in: npt.NDArray[np.int64],
    progress: Progress = silent,
    *,
    unread: Collection[Path] = (),
) -> None:
    """Write `content` to `path`, row i being row `row_in[i]` of `sources[source_of[i]]`.

    Source by source, each opened once; runs of neighbouring rows are copied as one range. Every source holds
    contiguous rows of the same D and T_img, with the feature digests that `content` says; `DatabaseError` names the
    one that does not. `progress` counts the rows of both data sets.

    Rows of `unread` sources are hashed while they are copied and still in the page cache, so the disk reads them once.
    Raises `DamagedSourceError` for one whose rows are not what `content` says.
    """
    names = BULK if content.token_count else (IMAGE_FEATURES,)
    done, total = 0, len(names) * len(source_of)
    assert content.rows is not None
    digests = content.rows.feature_digest
    with ThreadPoolExecutor(1) as hashing, new_file(path, content) as rows:
        for source, targets in _by_source(source_of):
            with open_database(sources[source]) as database:
                _check_source(database, content, targets, row_in[targets])
                hashed: list[Future[int]] = []
                for name in names:
                    offset, row_bytes = database.byte_range(name)
                    for first, row, count in _runs(targets, row_in[targets], max(1, _COPY_BYTES // row_bytes)):
                        if name == names[-1] and sources[source] in unread:  # The larger one, of whole rows.
                            expected = digests[first : first + count]
                            hashed.append(hashing.submit(_count_damaged, database, row, expected))
                        rows.copy(name, first, database.fileno(), offset + row * row_bytes, count)
                        done += count
                        progress(done, total)
                if damaged := sum(future.result() for future in hashed):
                    raise DamagedSourceError(sources[source], damaged)


def _count_damaged(database: Database, first: int, expected: npt.NDArray[np.uint8]) -> int:
    """How many of the rows from `first` on have another digest than the expected ones (n, 16)."""
    rows = slice(first, first + len(expected))
    blocks = iter_feature_digests(database.image_features, database.image_token_features, rows)
    return len(expected) - sum(
        int((digests == expected[start - first :][: len(digests)]).all(axis=1).sum()) for start, digests in blocks
    )


def _by_source(source_of: npt.NDArray[np.int64]) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Every source that is used, and the rows of the new file that it gives, in order."""
    order = np.argsort(source_of, kind="stable")
    for targets in np.split(order, np.flatnonzero(np.diff(source_of[order])) + 1):
        if len(targets):
            yield int(source_of[targets[0]]), targets


def _runs(targets: npt.NDArray[np.int64], row_in: npt.NDArray[np.int64], limit: int) -> Iterator[tuple[int, int, int]]:
    """(row of the new file, row in the source, count) of every run of rows that are neighbours in both."""
    starts = np.flatnonzero(np.r_[True, (np.diff(targets) != 1) | (np.diff(row_in) != 1)])
    ends = np.r_[starts[1:], len(targets)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for first in range(start, end, limit):
            yield int(targets[first]), int(row_in[first]), min(limit, end - first)


def _check_source(
    database: Database, content: FileContent, targets: npt.NDArray[np.int64], row_in: npt.NDArray[np.int64]
) -> None:
    tokens = database.image_token_features
    sizes = database.dim, database.token_count
    dtypes = {database.image_features.dtype} if tokens is None else {database.image_features.dtype, tokens.dtype}
    if sizes != (content.dim, content.token_count) or dtypes != {STORED_IMAGE_DTYPE}:
        raise DatabaseError(
            f"{database.path}: D and T_img are {sizes}, dtypes {sorted(map(str, dtypes))}; "
            f"expected {(content.dim, content.token_count)} in {STORED_IMAGE_DTYPE}. "
            "This part belongs to another encoder: remove it and build again."
        )
    assert content.rows is not None
    digests = database.feature_digest
    if (
        digests is None
        or row_in.max() >= len(digests)
        or not np.array_equal(digests[row_in], content.rows.feature_digest[targets])
    ):
        raise DatabaseError(f"{database.path} does not hold the rows it held when the build began: build again.")
