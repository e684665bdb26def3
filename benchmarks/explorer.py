"""`python -m benchmarks.explorer`: how soon `ccassets explore` answers, and what memory it keeps, at real sizes.

The files hold random numbers; token features are holes but for the rows whose heat maps are asked for.
"""

from __future__ import annotations

import argparse
import http.client
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from unittest import mock
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks.machine import describe
from benchmarks.stand_in import random_float16
from ccassets.database import writer
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file

DIM = 1152
TOKENS = 729
CONCEPTS = [f"concept {number}" for number in range(16)]
WORDS = 4
BLOCK = 8192


def write(path: Path, rows: int, tokens: int, whole_rows: int) -> None:
    """A database of random features; the first `whole_rows` rows have token features, the others holes."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((len(CONCEPTS), DIM), np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    content = RowContent(
        split=["train"] * rows,
        labels=np.arange(rows) % 8,
        keys=[f"train/{row:07d}.png" for row in range(rows)],
        image_digest=None,
        feature_digest=np.zeros((rows, 32), np.uint8),
    )
    attributes = {
        "split_counts": {"train": rows},
        "label_texts": [f"class {number}" for number in range(8)],
        "prompt_temp_for_labels": [],
        "concept_texts": CONCEPTS,
        "prompt_temp_for_concepts": ["{}"],
        "provenance": {"encoder": {"kind": "conceptclip"}},
    }
    count = len(CONCEPTS)
    template = TemplateContent(
        CONCEPTS,
        texts,
        text_token_features=np.repeat(texts[:, None], WORDS, axis=1),
        input_ids=np.ones((count, WORDS), np.int32),
        attention_mask=np.ones((count, WORDS), np.uint8),
        subject_span=np.tile(np.array([0, WORDS], np.int32), (count, 1)),
    )
    with (
        mock.patch.object(writer, "_reserve"),
        new_file(
            path, FileContent("database", DIM, tokens, content, {"concept_prompts_t01": template}, attributes)
        ) as file,
    ):
        for first in range(0, rows, BLOCK):
            features = rng.standard_normal((min(BLOCK, rows - first), DIM), np.float32)
            file.write(IMAGE_FEATURES, first, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f2"))
        for row in range(whole_rows if tokens else 0):
            file.write(IMAGE_TOKEN_FEATURES, row, random_float16(rng, tokens * DIM).reshape(1, tokens, DIM))


class Server:
    """`ccassets explore` of a file in a process of its own."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self._port = urlsplit(address).port

    def seconds(self, path: str) -> float:
        """How long an answer takes until its last byte."""
        started = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            if response.status != 200:
                raise SystemExit(f"{path}: expected status 200, found {response.status}: {body[:300]!r}")
        finally:
            connection.close()
        return time.perf_counter() - started

    def memory(self) -> float:
        """MiB that are its own: pages of the mapped file belong to the cache."""
        lines = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@contextmanager
def explorer(path: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "ccassets.cli", "explore", str(path), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
            yield Server(process, address)
        finally:
            process.send_signal(signal.SIGINT)


def report(name: str, server: Server, paths: list[str], count: int) -> None:
    """Median and 95th percentile of `count` answers, after one of each path that is not counted."""
    for path in paths:
        server.seconds(path)
    seconds = [server.seconds(path) for path in islice(cycle(paths), count)]
    median, late = np.percentile(seconds, [50, 95]) * 1000
    print(f"{name:<40} median {median:8.1f} ms   95 % {late:8.1f} ms   ({count} answers)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("--rows", type=int, default=17_092, help="rows of the file with token features")
    parser.add_argument("--many-rows", type=int, default=1_000_000, help="rows of the file without")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--requests", type=int, default=1000, help="requests after which memory is compared")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for fact, text in describe(folder).items():
            print(f"{fact}: {text}")
        whole_rows = min(100, options.rows)
        path = folder / "tokens.h5"
        write(path, options.rows, options.tokens, whole_rows)
        heat = [f"/api/heat/{row}?concept={quote(CONCEPTS[row % 16])}" for row in range(whole_rows)]
        search = [f"/api/search?concept={quote(concept)}&k=60" for concept in CONCEPTS]
        with explorer(path) as server:
            print(f"{options.rows:,} rows of {options.tokens} x {DIM}")
            print(f"{'the first heat map':<40} {server.seconds(heat[0]) * 1000:8.1f} ms")
            report("a concept: heat map of an image", server, heat, 300)
            report("a concept: 60 images", server, search, 300)
            before = server.memory()
            for request in islice(cycle([*heat, *search]), options.requests):
                server.seconds(request)
            print(f"{'memory':<40} {before:8.1f} MiB, after {options.requests} requests {server.memory():8.1f} MiB")
        path.unlink()
        path = folder / "many.h5"
        write(path, options.many_rows, 0, 0)
        with explorer(path) as server:
            print(f"{options.many_rows:,} rows without token features")
            for turn in ("first", "second"):
                print(
                    f"{f'/api/points, the {turn} time':<40} {server.seconds('/api/points') * 1000:8.1f} ms", flush=True
                )
            report("a concept: 60 images", server, search, 32)
            print(f"{'memory':<40} {server.memory():8.1f} MiB")


if __name__ == "__main__":
    main()
