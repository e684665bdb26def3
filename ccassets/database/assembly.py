"""Assembly: a new file whose rows are byte ranges of other files, copied in order and never through Python."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ccassets.database.layout import BULK, IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.reader import FeatureDatabase, open_database
from ccassets.database.writer import FileContent, new_file
from ccassets.errors import DatabaseError
from ccassets.progress import Progress, silent

_COPY_ROWS_BYTES = 256 << 20


def assemble(
    path: Path,
    content: FileContent,
    sources: Sequence[Path],
    source_of: npt.NDArray[np.int64],
    row_in: npt.NDArray[np.int64],
    progress: Progress = silent,
) -> None:
    """Write `content` to `path`, row i being row `row_in[i]` of `sources[source_of[i]]`.

    Runs of neighbouring rows are copied as one range. Every source holds contiguous rows of the same D and T_img;
    `DatabaseError` names the one that does not.
    """
    names = BULK if content.token_count else (IMAGE_FEATURES,)
    total = len(names) * len(source_of)
    done = 0
    with new_file(path, content) as rows:
        # Data set by data set, so that the file is written from front to back.
        for name in names:
            for source, first, row, count in _runs(source_of, row_in, _rows_per_copy(content, name)):
                with ExitStack() as stack:
                    database = stack.enter_context(open_database(sources[source]))
                    _check_shape(database, content)
                    offset, row_bytes = database.byte_range(name)
                    fd = os.open(sources[source], os.O_RDONLY)
                    stack.callback(os.close, fd)
                    rows.copy(name, first, fd, offset + row * row_bytes, count)
                done += count
                progress(done, total)


def _rows_per_copy(content: FileContent, name: str) -> int:
    row_bytes = 2 * content.dim * (content.token_count if name == IMAGE_TOKEN_FEATURES else 1)
    return max(1, _COPY_ROWS_BYTES // row_bytes)


def _runs(
    source_of: npt.NDArray[np.int64], row_in: npt.NDArray[np.int64], most: int
) -> Iterator[tuple[int, int, int, int]]:
    """(source, first row of the new file, row in the source, count) of every run of neighbouring rows."""
    if not len(source_of):
        return
    breaks = (np.diff(source_of) != 0) | (np.diff(row_in) != 1)
    starts = np.r_[0, np.flatnonzero(breaks) + 1]
    ends = np.r_[starts[1:], len(source_of)]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for first in range(start, end, most):
            yield int(source_of[start]), first, int(row_in[start]) + first - start, min(most, end - first)


def _check_shape(database: FeatureDatabase, content: FileContent) -> None:
    found = database.dim, database.token_count
    if found != (content.dim, content.token_count):
        raise DatabaseError(
            f"{database.path}: D and T_img are {found}; {(content.dim, content.token_count)} were expected. "
            "This part belongs to another encoder: remove it and build again."
        )
