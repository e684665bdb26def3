"""Damage to what a finished build left: `python -m ccassets_tests.campaigns.corruption --mutations 500 --seed 1`.

Every mutation changes one file of a storage: a part, the database, a manifest or a record. Then the study is built
again, and the database deeply validated. Right is: a database equal to the bit to the undisturbed one, or a sentence
that refuses (and the bits of the undisturbed one once the damaged file is gone), or, where the damage kept the
fingerprint of its file, an error of the deep validation. A changed bit that nobody tells is wrong, and so are a crash
and a traceback. One line per mutation; exit 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ccassets.database.hdf5 import READ_ERRORS
from ccassets.database.validation import validate_database
from ccassets.encoders import load_encoder
from ccassets.errors import CcassetsError, DatabaseError
from ccassets.extraction.parts import VerifiedFiles
from ccassets.findings import has_errors
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.forks import Fork
from ccassets_tests.campaigns.mutations import PAGE, Rng
from ccassets_tests.campaigns.tally import tally
from ccassets_tests.extraction.made_parts import arrays, attributes, build, differences
from ccassets_tests.made_studies import edit_study, picture, save_golden_weights, save_images, write_study

_BULK = ("image_features", "image_token_features")


@dataclass(frozen=True)
class Damage:
    """What was done to which file; `kept` when its fingerprint was made to look untouched."""

    path: Path
    what: str
    kept: bool


class Campaign:
    """A study, its undisturbed storage, and parts that do not belong there."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.seed = seed
        self.study: Study = write_study(
            folder / "studies" / "cells",
            images=save_images(folder / "pictures"),
            encoder=save_golden_weights(folder / "weights"),
        )
        load_encoder(self.study)  # What is imported here is there in every process that is forked.
        self.reference = Store.of(self.study, folder / "undisturbed")
        build(self.study, store=self.reference)
        self.foreign = self._other_parts("foreign", lambda content: content["encoder"].update(tokens=False))
        image_folder = folder / "other_pictures"
        for number in range(4):
            path = image_folder / "train" / "blood" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture(1000 + number).save(path)
        self.stale = self._other_parts(
            "stale", lambda content: content["dataset"].update(root=str(image_folder), splits=["train"])
        )

    def _other_parts(self, name: str, change: Callable[[dict], object]) -> list[Path]:
        """The image parts of another study under a storage root of its own."""
        shutil.copytree(self.study.folder, self.folder / "studies" / name)
        study = edit_study(write_copy(self.study, self.folder / "studies" / name), change)
        store = Store.of(study, self.folder / name)
        build(study, store=store)
        return sorted(store.root.glob("features/*/rows/*.h5"))

    def mutation(self, number: int) -> tuple[str, str]:
        """One mutation, the same for the same seed and number: its end, and a line about it."""
        rng = np.random.default_rng([self.seed, number])
        root = self.folder / f"storage-{number}"
        shutil.copytree(self.reference.root, root)
        store = Store.of(self.study, root)
        damage = self._damage(store, rng)
        end, text = self._in_a_fork(store, damage)
        shutil.rmtree(root)
        damaged = damage.path.relative_to(root)
        kept = ", fingerprint kept" if damage.kept else ""
        return (
            end,
            f"{number}: {damaged.parent.name}/{damaged.name[:12]}: {damage.what}{kept}: {end}{text and f' ({text})'}",
        )

    # --- damaging -------------------------------------------------------------------------------------

    def _damage(self, store: Store, rng: Rng) -> Damage:
        rows = sorted(store.root.glob("features/*/rows/*.h5"))
        templates = sorted(store.root.glob("features/*/templates/*.h5"))
        records = [*store.folder.glob("manifest/*"), store.encoder_card, *store.root.rglob("verified.jsonl")]
        choice = rng.random()
        if choice < 0.15:
            return self._damage_folder(rows, rng)
        if choice < 0.5:
            path = rows[int(rng.integers(len(rows)))]
            if rng.random() < 0.5:
                store.database.unlink()  # Else the database holds what the part has lost.
        elif choice < 0.65:
            path = templates[int(rng.integers(len(templates)))]
        elif choice < 0.9:
            path = store.database
        else:
            path = records[int(rng.integers(len(records)))]
        kinds: list[Callable[[Path, Rng], str]] = [flip, flip, truncate, zero_page]
        if path.suffix == ".h5":
            kinds += [flip_data, flip_data, zero_page, swap_rows, swap_texts]
        change = kinds[int(rng.integers(len(kinds)))]
        what = change(path, rng)
        kept = path.suffix == ".h5" and path not in templates and rng.random() < 0.2
        if kept:
            VerifiedFiles(path.parent).add(path)
        return Damage(path, what, kept)

    def _damage_folder(self, rows: list[Path], rng: Rng) -> Damage:
        """Parts under each other's names, of another encoder, or of pictures that are gone."""
        kind, path = int(rng.integers(4)), rows[int(rng.integers(len(rows)))]
        if kind == 0:
            other = rows[(rows.index(path) + 1) % len(rows)]
            path.rename(path.with_suffix(".tmp"))
            other.rename(path)
            path.with_suffix(".tmp").rename(other)
            return Damage(path, "swapped with its neighbour", False)
        if kind == 1:
            shutil.copy(self.foreign[int(rng.integers(len(self.foreign)))], path)
            return Damage(path, "replaced by a part of another encoder", False)
        if kind == 2:
            path = path.with_name("f" * 32 + ".h5")
            shutil.copy(self.foreign[int(rng.integers(len(self.foreign)))], path)
            return Damage(path, "a part of another encoder beside the others", False)
        path = path.with_name("0" * 32 + ".h5")
        shutil.copy(self.stale[0], path)
        os.utime(path, (time.time() + 10**6,) * 2)
        return Damage(path, "a stale part with a newer time", False)

    # --- building on ----------------------------------------------------------------------------------

    def _in_a_fork(self, store: Store, damage: Damage) -> tuple[str, str]:
        """What `_build_on` says; a crash or no answer is wrong."""
        code, answer = Fork(lambda: dict(zip(("end", "text"), self._build_on(store, damage), strict=True))).end()
        if code:
            return "WRONG", answer.get("traceback") or answer.get("sentence") or f"exit {code}"
        return answer["end"], answer["text"]

    def _build_on(self, store: Store, damage: Damage) -> tuple[str, str]:
        errors = ""
        if damage.path == store.database:
            errors = deep_errors(store.database)
            if not errors and is_changed(store.database, self.reference.database):
                return "WRONG", "a changed database, and the deep validation has no error"
        try:
            build(self.study, store=store)
        except CcassetsError as error:
            damage.path.unlink()
            build(self.study, store=store)
            left = left_different(store.database, self.reference.database)
            return ("WRONG", f"different after the repair: {left}") if left else ("refused", sentence(error))
        left = left_different(store.database, self.reference.database)
        if not left:
            return ("found", errors) if errors else ("right", "")
        errors = deep_errors(store.database)
        if damage.kept and errors:
            return "found", errors
        return "WRONG", f"different: {left}; the deep validation says: {errors or 'nothing'}"


def write_copy(study: Study, folder: Path) -> Study:
    """The study as the copy of its folder has it."""
    return study.model_copy(update={"folder": folder, "name": folder.name})


def left_different(path: Path, original: Path) -> list[str]:
    """What differs in a file; a damaged one may not even list its data sets."""
    try:
        return differences(path, original)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        return [f"it cannot be read: {error}"]


def deep_errors(path: Path) -> str:
    """The checks that find an error in a file; empty when there is none."""
    try:
        findings = validate_database(path, deep=True)
    except DatabaseError as error:
        return sentence(error)
    return ", ".join(sorted({f.check for f in findings if f.severity == "error"})) if has_errors(findings) else ""


def is_changed(path: Path, original: Path) -> bool:
    """Whether anything that can be read from a file differs in a bit from the original, or cannot be read any more."""
    try:
        same = attributes(path).keys() == attributes(original).keys() and all(
            np.array_equal(value, attributes(original)[name], equal_nan=False)
            for name, value in attributes(path).items()
        )
        one, other = arrays(path), arrays(original)
    except READ_ERRORS:
        return True
    return not same or one.keys() != other.keys() or any(not np.array_equal(one[name], other[name]) for name in one)


def sentence(error: Exception) -> str:
    return str(error).splitlines()[0][:160]


# --- damage -------------------------------------------------------------------------------------------


def flip(path: Path, rng: Rng) -> str:
    """One bit anywhere."""
    data = bytearray(path.read_bytes())
    position, bit = int(rng.integers(len(data))), int(rng.integers(8))
    data[position] ^= 1 << bit
    _overwrite(path, data)
    return f"bit {bit} of byte {position} flipped"


def flip_data(path: Path, rng: Rng) -> str:
    """One bit of a stored number."""
    with h5py.File(path) as file:
        places: list[tuple[str, int, int]] = []

        def add(name: str, item: object) -> None:
            if isinstance(item, h5py.Dataset) and item.dtype.kind in "fiu":
                places.append((name, item.id.get_offset(), item.id.get_storage_size()))

        file.visititems(add)
    name, offset, size = places[int(rng.integers(len(places)))]
    data = bytearray(path.read_bytes())
    position, bit = offset + int(rng.integers(size)), int(rng.integers(8))
    data[position] ^= 1 << bit
    _overwrite(path, data)
    return f"bit {bit} of {name} flipped"


def truncate(path: Path, rng: Rng) -> str:
    size = int(rng.integers(path.stat().st_size))
    os.truncate(path, size)
    return f"cut to {size} bytes"


def zero_page(path: Path, rng: Rng) -> str:
    data = bytearray(path.read_bytes())
    page = PAGE * int(rng.integers(-(-len(data) // PAGE)))
    data[page : page + PAGE] = bytes(len(data[page : page + PAGE]))
    _overwrite(path, data)
    return f"page at {page} zeroed"


def swap_rows(path: Path, rng: Rng) -> str:
    """Two rows of one data set exchanged; with a template part two prompts' features."""
    with h5py.File(path, "r+") as file:
        if "image_features" in file:
            names = ["image_features", "image_token_features", "feature_digest", "image_digest", "labels"]
        else:
            template = next(iter(file["templates"]))
            names = [f"templates/{template}/{name}" for name in ("text_features", "text_token_features", "input_ids")]
        dataset = file[names[int(rng.integers(len(names)))]]
        last = len(dataset) - 1
        first, other = dataset[0], dataset[last]
        dataset[0], dataset[last] = other, first
        return f"first and last row of {dataset.name} swapped"


def swap_texts(path: Path, rng: Rng) -> str:
    """Two prompts or two keys exchanged."""
    with h5py.File(path, "r+") as file:
        templates = list(file.get("templates", ()))
        name = f"templates/{templates[int(rng.integers(len(templates)))]}/texts" if templates else "keys"
        texts = file[name][...]
        file[name][...] = texts[::-1]
        return f"{name} reversed"


def _overwrite(path: Path, data: bytes) -> None:
    """In place, as a disk damages a file: its inode stays."""
    with path.open("r+b") as file:
        file.write(data)


def campaign(folder: Path, seed: int, mutations: int, start: int = 0) -> Counter[str]:
    """Run mutations, a line for each; how often each end was met."""
    work = Campaign(folder, seed)
    tries = (work.mutation(number) for number in range(start, start + mutations))
    return tally(tries, f"seed {seed}: {mutations} mutations from {start}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first mutation, to repeat one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = campaign(Path(folder), arguments.seed, arguments.mutations, arguments.start)
    return 1 if ends["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
