"""Rows about files that are made: a part written, parts assembled, a database rebuilt for one changed template."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import original
from benchmarks.contest import Contest, Contestant, Target
from benchmarks.material import (
    VOCABULARY,
    Output,
    build,
    copy_file,
    copy_through_h5py,
    material,
    megabytes,
    stand_in_encoder,
    warm,
    write_study,
)
from benchmarks.sizes import Size
from benchmarks.stand_in import StandIn
from ccassets.database.layout import BULK
from ccassets.database.reader import open_database
from ccassets.extraction import assemble_database, extract_template
from ccassets.extraction.image_shards import write_image_part
from ccassets.extraction.provenance import part_provenance
from ccassets.extraction.sources import recorded_card, recorded_manifest
from ccassets.extraction.text_extraction import template_part
from ccassets.study.schema import Study
from ccassets.study.storage import Store


def part_writing(folder: Path, size: Size) -> Contest:
    made = material(folder, size)
    manifest = recorded_manifest(made.study, "train", made.store)
    shard = manifest.take(np.arange(min(128, size.rows)))
    with made.open() as database:
        features, tokens = (np.array(getattr(database, name)[: len(shard)]) for name in BULK)
    provenance = part_provenance(made.study, StandIn(size.dim, size.tokens), 1.0)
    out = Output(folder / "out")

    def raw() -> None:
        path = out.path / "raw.bin"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for values in (features, tokens):
            data = values.reshape(-1).view(np.uint8).data
            while len(data):
                data = data[os.write(fd, data) :]
        os.fsync(fd)
        os.close(fd)

    def usual() -> None:
        path = out.path / "original.h5"
        with original.create(path, size.dim, size.tokens) as file:
            for first in range(0, len(shard), 64):
                batch = slice(first, first + 64)
                original.append(file, features[batch], tokens[batch], shard.labels[batch])
        original.sync(path)

    return Contest(
        work=f"a part of {len(shard)} rows, {megabytes(features.nbytes + tokens.nbytes)}, digests included",
        ours=lambda: write_image_part(out.path, shard, features, tokens, provenance),
        limit=Contestant("write and fsync of the same bytes", raw),
        usual=Contestant("batches appended to a chunked LZF file", usual),
        target=Target(of_limit=0.95),
        reset=out.empty,
    )


def assembly(folder: Path, size: Size) -> Contest:
    made = material(folder, size)
    out = Output(folder / "out")
    database = made.store.database
    warm(database, *made.store.root.glob("features/*/rows/*.h5"))
    return Contest(
        work=f"{size.rows} rows of unchanged parts, {megabytes(database.stat().st_size)}, into a database",
        ours=lambda: assemble_database(made.study, store=made.store, output=out.path / "database.h5"),
        limit=Contestant("`cp` of the database, and fsync", lambda: copy_file(database, out.path / "copy.h5")),
        usual=Contestant("a copy through HDF5", lambda: copy_through_h5py(database, out.path / "copy.h5")),
        target=Target(of_limit=0.95),
        reset=out.empty,
    )


def template_rebuild(folder: Path, size: Size) -> Contest:
    """A second study over the same parts is built with two wordings by turns: each time one template is new.

    The file that was there stays until the new one is whole, and then gives its space back; so with the copies.
    """
    made = material(folder, size)
    encoder = StandIn(size.dim, size.tokens)
    out = Output(folder / "out")
    changed = "concept_prompts_t01"
    wordings = [_reworded(made.study, size, wording) for wording in ("a cell showing {}", "a cell that shows {}")]
    store = Store.of(wordings[0], made.store.root)
    if not store.database.is_file():
        build(wordings[0], store)
    out.empty()
    copy, new = out.path / "copy.h5", out.path / "new.h5"
    shutil.copyfile(store.database, copy)
    with open_database(store.database) as database:  # A process before this one may have left the other wording.
        if database.attributes["prompt_temp_for_concepts"] != list(wordings[0].vocabulary.concepts.templates):
            wordings.reverse()

    def reset() -> None:
        os.sync()
        template = wordings[1].vocabulary.templates()[changed]
        template_part(template, recorded_card(wordings[1], store), store).unlink(missing_ok=True)

    def ours() -> None:
        wordings.reverse()
        extract_template(wordings[0], changed, encoder=lambda: encoder, store=store)
        if assemble_database(wordings[0], store=store).unchanged:
            raise RuntimeError("the changed template should have made another database")

    def limit() -> None:
        encoder.encode_texts(wordings[1].vocabulary.templates()[changed].prompts)
        copy_file(store.database, new)
        new.replace(copy)

    def usual() -> None:
        copy_through_h5py(store.database, new)
        new.replace(copy)

    return Contest(
        work=f"one changed template encoded, {megabytes(store.database.stat().st_size)} rebuilt",
        ours=ours,
        limit=Contestant("encoding it, `cp --reflink=auto` of the database, fsync, `mv` over an older copy", limit),
        usual=Contestant("a copy through HDF5, fsync, `mv` over an older copy", usual),
        target=Target(of_limit=1 / 1.05),
        reset=reset,
    )


def _reworded(study: Study, size: Size, wording: str) -> Study:
    concepts: dict[str, Any] = VOCABULARY["concepts"]
    return write_study(
        study.folder.with_name("reworded"),
        stand_in_encoder(size.dim, size.tokens),
        study.folder.parent.parent / "pictures",
        vocabulary={**VOCABULARY, "concepts": {**concepts, "templates": [wording, *concepts["templates"][1:]]}},
    )
