"""`python -m benchmarks.scale`: what planning, assembly and validation cost at a million rows, without token features.

The rows are made up: manifests of random image digests and parts of random features, written as an extraction would
leave them. Each step runs in a process of its own, so that its peak memory can be measured.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.material import CLASSES, stand_in_encoder, write_study
from ccassets.database.validation import validate_database
from ccassets.datasets.manifest import Manifest
from ccassets.encoders import load_encoder
from ccassets.extraction import assemble_database, extract_images, extract_text, identify_encoder, plan_study
from ccassets.extraction.image_shards import write_image_part
from ccassets.extraction.parts import VerifiedFiles
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.sources import recorded_manifest
from ccassets.study.schema import Study
from ccassets.study.storage import Store

DIM = 8


def make(study: Study, store: Store, rows: int) -> None:
    """The manifest, and every part of it."""
    rng = np.random.default_rng(rows)
    manifest = Manifest(
        split="train",
        keys=[f"train/{CLASSES[row % len(CLASSES)]}/{row:09d}.png" for row in range(rows)],
        rows=np.arange(rows),
        labels=np.arange(rows) % len(CLASSES),
        groups=None,
        label_matrix=None,
        image_digest=np.frombuffer(rng.bytes(32 * rows), np.uint8).reshape(rows, 32),
        blank=np.zeros(rows, np.bool_),
        fingerprints=["made up"] * rows,
        skipped=(),
        limit=None,
        classes=CLASSES,
        labelled=True,
        source="made up",
    )
    manifest.save(store.manifest("train"))
    card = identify_encoder(study, store=store)
    extract_text(study, store=store)
    folder = store.image_parts(card.identity)
    verified = VerifiedFiles(folder)
    provenance = part_provenance(study, load_encoder(study), 1.0)
    size = study.extraction.rows_per_shard
    for first in range(0, rows, size):
        shard = manifest.take(np.arange(first, min(first + size, rows)))
        vectors = rng.standard_normal((len(shard), DIM), np.float32)
        features = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        verified.add(write_image_part(folder, shard, features, None, provenance))


STEPS: dict[str, Callable[[Study, Store], object]] = {
    "read the manifest": lambda study, store: recorded_manifest(study, "train", store),
    "plan, the first time": lambda study, store: plan_study(study, store=store),
    "plan": lambda study, store: plan_study(study, store=store),
    "plan from nothing": lambda study, store: plan_study(study, store=store, fresh=True),
    "extract, nothing to do": lambda study, store: extract_images(study, store=store),
    "assemble": lambda study, store: assemble_database(study, store=store),
    "assemble, nothing to do": lambda study, store: assemble_database(study, store=store),
    "validate": lambda study, store: validate_database(store.database),
    "validate --deep": lambda study, store: validate_database(store.database, deep=True),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=__doc__)
    parser.add_argument("rows", nargs="*", type=int, default=[100_000, 1_000_000])
    parser.add_argument("--rows-per-shard", type=int, default=128)
    parser.add_argument("--folder", type=Path, help="where the files lie; by default the temporary folder")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        _run(options.step, options.folder, options.rows[0], options.rows_per_shard)
        return
    print(f"{'rows':>10}  {'parts':>7}  {'step':<24}  {'seconds':>8}  {'of CPU':>8}  {'MiB':>6}")
    for rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            for step in ("make", *STEPS):
                command = [sys.executable, "-m", "benchmarks.scale", str(rows), "--step", step, "--folder", folder]
                command += ["--rows-per-shard", str(options.rows_per_shard)]
                report = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
                parts = -(-rows // options.rows_per_shard)
                figures = f"{report['seconds']:>8.2f}  {report['cpu']:>8.2f}  {report['mib']:>6,}"
                print(f"{rows:>10,}  {parts:>7,}  {step:<24}  {figures}", flush=True)


def _run(step: str, folder: Path, rows: int, rows_per_shard: int) -> None:
    study = write_study(
        folder / "studies" / "cells",
        stand_in_encoder(DIM, 0),
        folder / "pictures",
        extraction={"batch_size": rows_per_shard, "rows_per_shard": rows_per_shard},
    )
    store = Store.of(study, folder / "storage")
    started, worked = time.perf_counter(), time.process_time()
    if step == "make":
        make(study, store, rows)
    else:
        STEPS[step](study, store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    spent = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}
    print(json.dumps({**spent, "mib": peak}))


if __name__ == "__main__":
    main()
