"""`python -m benchmarks.explorer`: how soon `ccassets explore` answers, and what memory it keeps, at real sizes.

The files hold random numbers; token features are holes but for the rows whose heat maps are shown, and those that say
what is usual. Servers are asked directly, and by their pages in Chromium without WebGL.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from urllib.parse import quote, urlsplit

import numpy as np

from benchmarks import explorer_pages
from benchmarks.machine import describe
from benchmarks.material import CLASSES, save_images, sparse_files, stand_in_encoder, write_study
from benchmarks.stand_in import random_float16
from ccassets.database.layout import IMAGE_FEATURES, IMAGE_TOKEN_FEATURES
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file
from ccassets.datasets.manifest import evenly_spaced_positions
from ccassets.study.storage import Store

DIM = 1152
TOKENS = 729
CONCEPTS = [f"concept {number}" for number in range(16)]
WORDS = 4
BLOCK = 8192
SIDE = 32
"""Pixels of a picture."""
BASELINE_ROWS = 256
"""Evenly spaced rows that the explorer reads once, to know which cosines are usual."""
LASSOS = (3, 40, 200)
"""Corners of the polygons."""


def write(path: Path, rows: int, tokens: int, whole_rows: Sequence[int] = ()) -> None:
    """A database of random features; the rows of `whole_rows` have token features, the others holes."""
    rng = np.random.default_rng(0)
    texts = rng.standard_normal((len(CONCEPTS), DIM), np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    content = RowContent(
        split=["train"] * rows,
        labels=np.arange(rows) % len(CLASSES),
        keys=[f"train/{CLASSES[row % len(CLASSES)]}/{row:06d}.png" for row in range(rows)],
        image_digest=None,
        feature_digest=np.zeros((rows, 32), np.uint8),
    )
    attributes = {
        "split_counts": {"train": rows},
        "label_texts": list(CLASSES),
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
    whole = FileContent("database", DIM, tokens, content, {"concept_prompts_t01": template}, attributes)
    with sparse_files(), new_file(path, whole) as file:
        for first in range(0, rows, BLOCK):
            features = rng.standard_normal((min(BLOCK, rows - first), DIM), np.float32)
            file.write(IMAGE_FEATURES, first, (features / np.linalg.norm(features, axis=1, keepdims=True)).astype("f2"))
        for row in whole_rows:
            file.write(IMAGE_TOKEN_FEATURES, row, random_float16(rng, tokens * DIM).reshape(1, tokens, DIM))


class Server:
    """`ccassets explore` in a process of its own, which took `start` seconds until it said its address."""

    def __init__(self, process: subprocess.Popen[str], address: str, start: float) -> None:
        self.address = address
        self.start = start
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
def explorer(target: Path, home: Path) -> Iterator[Server]:
    command = [sys.executable, "-m", "ccassets.cli", "explore", str(target), "--no-browser"]
    environment = {**os.environ, "CCASSETS_HOME": str(home)}
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout
            address = next(word for line in process.stdout for word in line.split() if word.startswith("http://"))
            yield Server(process, address, time.perf_counter() - started)
        finally:
            process.send_signal(signal.SIGINT)


def say(name: str, text: str) -> None:
    print(f"{name:<44} {text}", flush=True)


def report(name: str, seconds: Sequence[float]) -> None:
    median, late = np.percentile(seconds, [50, 95]) * 1000
    say(name, f"median {median:8.1f} ms   95 % {late:8.1f} ms   ({len(seconds)} times)")


def report_answers(name: str, server: Server, paths: list[str], count: int) -> None:
    """The times of `count` answers, after one of each path that is not counted."""
    for path in paths:
        server.seconds(path)
    report(name, [server.seconds(path) for path in islice(cycle(paths), count)])


def measure_tokens(folder: Path, rows: int, tokens: int, requests: int) -> None:
    """A study with its pictures: heat maps and searches."""
    images = folder / "images"
    save_images(images, {"train": rows}, SIDE)
    study = write_study(folder / "studies" / "cells", stand_in_encoder(DIM, tokens), images)
    home = folder / "home"
    database = Store.of(study, home / "storage").database
    database.parent.mkdir(parents=True)
    shown = min(101, rows)  # The page goes on to the next image before it shows a heat map.
    baseline = evenly_spaced_positions(rows, BASELINE_ROWS).tolist()
    write(database, rows, tokens, sorted({*range(shown), *baseline}))
    heat = [f"/api/heat/{row}?concept={quote(CONCEPTS[row % 16])}" for row in range(shown)]
    search = [f"/api/search?concept={quote(concept)}&k=60" for concept in CONCEPTS]
    print(f"{rows:,} rows of {tokens} x {DIM}")
    with explorer(study.folder, home) as server, explorer_pages.chromium_page() as page:
        say("the first heat map", f"{server.seconds(heat[0]) * 1000:8.1f} ms")
        report_answers("server: heat map of a concept", server, heat, 300)
        report_answers("server: the 60 images nearest to a concept", server, search, 300)
        words = list(islice(cycle(CONCEPTS), shown - 1))
        report("page: click to heat map", explorer_pages.show_heat_maps(page, server.address, words))
        words = list(islice(cycle(CONCEPTS), 50))
        report("page: query to gallery", explorer_pages.show_galleries(page, server.address, words))
        before = server.memory()
        for request in islice(cycle([*heat, *search]), requests):
            server.seconds(request)
        say("memory", f"{before:8.1f} MiB, after {requests} requests {server.memory():8.1f} MiB")
    database.unlink()


def measure_map(folder: Path, rows: int) -> None:
    """A file of many rows without tokens: the map and its lasso."""
    path = folder / "many.h5"
    write(path, rows, 0)
    search = [f"/api/search?concept={quote(concept)}&k=60" for concept in CONCEPTS]
    print(f"{rows:,} rows without token features")
    with explorer(path, folder / "home") as server, explorer_pages.chromium_page() as page:
        say("the address is printed", f"{server.start:8.1f} s after the start")
        for turn in ("first", "second"):
            say(f"page: the map, the {turn} time", f"{explorer_pages.open_map(page, server.address):8.1f} s")
        moves, drawn = explorer_pages.drag_map(page)
        say("page: dragged", f"{moves:8.1f} mouse moves a second are answered, {drawn:.1f} pictures drawn")
        say("page: the wheel turned", f"{explorer_pages.zoom_map(page):8.1f} pictures a second are drawn")
        for lasso in explorer_pages.lasso_rows(page, LASSOS):
            name = f"page: lasso of {lasso['corners']} corners"
            text = f"{lasso['seconds'] * 1000:8.1f} ms for {lasso['rows']:,} rows, {lasso['wrong']} of them wrong"
            say(name, text)
        report_answers("server: the 60 images nearest to a concept", server, search, 32)
        say("memory", f"{server.memory():8.1f} MiB")
    path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.explorer", description=__doc__)
    parser.add_argument("--rows", type=int, default=17_092, help="rows of the study with token features")
    parser.add_argument("--many-rows", type=int, default=1_000_000, help="rows of the file without")
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--requests", type=int, default=1000, help="requests after which memory is compared")
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        for fact, text in describe(folder).items():
            print(f"{fact}: {text}")
        measure_map(folder, options.many_rows)
        measure_tokens(folder, options.rows, options.tokens, options.requests)


if __name__ == "__main__":
    main()
