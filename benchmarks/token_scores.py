"""How fast patches are scored: the zero-shot score of 2 GB of token features against plain work on the same blocks.

The plain work is `block.astype(float32)` and one matrix product with the words. Run it as
`python benchmarks/token_scores.py [FOLDER]`; it writes a synthetic database there, by default into a temporary folder.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ccassets.analysis.scores import local_features, zero_shot
from ccassets.database.reader import FeatureDatabase, iter_blocks, open_database
from ccassets.database.writer import FileContent, RowContent, TemplateContent, new_file

ROWS, PATCHES, DIM, WORDS, LENGTH = 1280, 729, 1152, 8, 77
REPEATS = 5


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        _compare(_write(Path(folder) / "synthetic.h5"))


def _compare(path: Path) -> None:
    plain, scored = [], []
    with open_database(path) as database:
        before = _peak_memory()
        scored.append(_seconds(lambda: zero_shot(database)))
        print(
            f"{path.stat().st_size / 1e9:.2f} GB, {WORDS} words; peak memory +{(_peak_memory() - before) / 1e6:.0f} MB"
        )
        # In turns, and the best of each: a busy machine disturbs both alike.
        for _ in range(REPEATS):
            plain.append(_seconds(lambda: _plain(database)))
            scored.append(_seconds(lambda: zero_shot(database)))
    for name, seconds in (("plain", min(plain)), ("zero-shot", min(scored))):
        print(f"{name:>9}: {seconds:.2f} s, {ROWS / seconds:.0f} images/s")
    print(f"throughput of the score: {min(plain) / min(scored):.2f} of the plain work")


def _plain(database: FeatureDatabase) -> None:
    words = np.ascontiguousarray(local_features(database, kind="label").T)
    for _, block in iter_blocks(database.image_token_features):
        block.astype(np.float32).reshape(-1, DIM) @ words


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _peak_memory() -> int:
    """The most memory that the process ever held, mapped pages included, in bytes (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write(path: Path) -> Path:
    rng = np.random.default_rng(0)
    words = [f"word {number}" for number in range(WORDS)]
    features = rng.standard_normal((WORDS, DIM), np.float32)
    template = TemplateContent(
        texts=words,
        text_features=features / np.linalg.norm(features, axis=1, keepdims=True),
        text_token_features=rng.standard_normal((WORDS, LENGTH, DIM), np.float32),
        input_ids=rng.integers(4, 30_000, (WORDS, LENGTH), np.int32),
        attention_mask=np.ones((WORDS, LENGTH), np.uint8),
        subject_span=np.tile(np.array([4, 7], np.int32), (WORDS, 1)),
    )
    rows = RowContent(
        split=["test"] * ROWS,
        labels=np.arange(ROWS) % WORDS,
        keys=[str(row) for row in range(ROWS)],
        image_digest=np.zeros((ROWS, 32), np.uint8),
        feature_digest=np.zeros((ROWS, 16), np.uint8),
    )
    attributes = {"label_texts": words, "logit_scale": 4.57, "concept_logit_scale": 4.51}
    content = FileContent("database", DIM, PATCHES, rows, {"label_prompts_t01": template}, attributes)
    with new_file(path, content) as writer:
        writer.write("image_features", 0, rng.standard_normal((ROWS, DIM), np.float32).astype(np.float16))
        for row in range(ROWS):
            writer.write("image_token_features", row, rng.standard_normal((1, PATCHES, DIM), np.float32))
    return path


if __name__ == "__main__":
    main()
