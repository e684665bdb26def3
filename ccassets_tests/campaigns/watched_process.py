"""Readers of a database while it is built, killed and built on: one holds it open, one opens it anew all the time."""

from __future__ import annotations

import json
import os
import random
import select
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import h5py
import xxhash

from ccassets.database.reader import open_database


def content_digest(file: h5py.File) -> str:
    """A digest of all that is in a file, read now."""
    hasher = xxhash.xxh3_128()

    def add(name: str, item: h5py.Dataset | h5py.Group) -> None:
        hasher.update(name.encode())
        if isinstance(item, h5py.Dataset):
            values = item[...]
            hasher.update(b"\0".join(values.ravel().tolist()) if values.dtype == object else values.tobytes())

    file.visititems(add)
    return hasher.hexdigest()


def digest_of(path: Path) -> str:
    with open_database(path) as database:
        return content_digest(database.file)


class Readers:
    """A process that reads the database at `path` until it is stopped; `known` are the contents it may find.

    What is not known is called `others`, and is wrong if they have no name.
    """

    def __init__(self, path: Path, known: Mapping[str, str], others: str = "") -> None:
        stop_pipe, self._stop = os.pipe()
        self._answer, answer = os.pipe()
        self._child = os.fork()
        if not self._child:
            os.close(self._stop)
            _read(path, known, others, stop_pipe, answer)
        os.close(stop_pipe)
        os.close(answer)
        os.read(self._answer, 1)  # It holds the database now.

    def stop(self) -> tuple[Counter[str], list[str]]:
        """How often each content was found, and all that was wrong."""
        os.write(self._stop, b" ")  # To close it would say nothing: later forks have it open too.
        os.close(self._stop)
        with os.fdopen(self._answer, encoding="utf-8") as pipe:
            counts, wrong = json.loads(pipe.read() or '[{}, ["a reader died"]]')
        os.waitpid(self._child, 0)
        return Counter(counts), wrong


def _read(path: Path, known: Mapping[str, str], others: str, stop_pipe: int, answer: int) -> NoReturn:
    counts: Counter[str] = Counter()
    wrong: set[str] = set()
    try:
        with open_database(path) as held:
            first = content_digest(held.file)
            features = held.image_features.tobytes()
            counts[known.get(first, others)] += 1
            os.write(answer, b" ")
            stopped = False
            while not stopped:
                stopped = bool(select.select([stop_pipe], [], [], random.uniform(0.0, 0.06))[0])
                if content_digest(held.file) != first or held.image_features.tobytes() != features:
                    wrong.add("a database that is held open changed")
                content = known.get(digest_of(path), others)
                counts[content] += 1
                if not content:
                    wrong.add("a reader found a database that is neither the old nor the new one")
    except BaseException:
        wrong.add(f"a reader failed: {traceback.format_exc(limit=-2)}")
    finally:
        os.write(answer, json.dumps([counts, sorted(wrong)]).encode())
        os._exit(0)
