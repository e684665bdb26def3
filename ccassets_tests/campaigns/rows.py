"""Rows through edits and adoptions: `python -m ccassets_tests.campaigns.rows --scenarios 500 --seed 1`.

A scenario is a series of things that happen to the studies of one storage: pictures are replaced, swapped, copied, cut
off, moved and removed, folders move, further studies of the same pictures are added, vocabularies, precisions and
settings change, files of the original scripts are adopted (good, shuffled, doubled, of other pictures, stopped, cut
off), `prune` runs, and builds meet errors of the system that pass. After each of them every row of every part and
database is compared with a fresh encoding of its picture. Wrong is a row that differs from it, a database that does not
hold the pictures of its study, a traceback, and a right row that no file holds any more although nothing said so. One
line per scenario; exit 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from ccassets.database.reader import open_database
from ccassets.datasets.image_decoding import image_digest
from ccassets.datasets.manifest import Manifest
from ccassets.encoders import load_encoder
from ccassets.errors import CcassetsError
from ccassets.extraction import prune
from ccassets.extraction.adoption import adopt
from ccassets.extraction.sources import load_encoder_record
from ccassets.study.schema import Study
from ccassets.study.storage import Store
from ccassets_tests.campaigns.faults import build_in_a_fork
from ccassets_tests.campaigns.mutations import Rng
from ccassets_tests.campaigns.refusals import AVAILABLE, FAULTS
from ccassets_tests.campaigns.tally import tally
from ccassets_tests.database import original_scripts
from ccassets_tests.extraction.made_parts import STAND_IN, build
from ccassets_tests.made_studies import CLASSES, SPLITS, VOCABULARY, edit_study, picture, write_study

COUNTS = {"train": 7, "val": 4, "test": 3}
PRECISIONS = ("float32", "bfloat16")
PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENOMEM)
MOMENTS = 300
"""About as many as a build of these pictures has at which the disk could begin to refuse."""

Row = tuple[str, bytes]
"""An encoder identity and an image digest."""


class WrongError(Exception):
    """A promise that did not hold."""


class Scenario:
    """Studies of one storage, and what every picture that there ever was is encoded to."""

    def __init__(self, folder: Path, rng: Rng) -> None:
        self.folder = folder
        self.rng = rng
        self.storage = folder / "storage"
        self.image_folder = folder / "pictures"
        self.serial = 0
        self.held: set[Row] = set()
        self.encodings: dict[Row, np.ndarray] = {}
        self.studies = [self.write_study(SPLITS)]
        self.encoders = [load_encoder(with_precision(self.studies[0], precision)) for precision in PRECISIONS]
        for split, count in COUNTS.items():
            for number in range(count):
                self.save(self.image_folder / split / CLASSES[number % len(CLASSES)] / f"{number:03d}.png")

    def run(self) -> str:
        """What happened, step by step; raises `WrongError`."""
        happened = [self.check(undisturbed_build)]
        for _ in range(int(self.rng.integers(2, 6))):
            happened.append(self.check(self.choose(STEPS)))
            if self.rng.random() < 0.8:
                happened.append(self.check(self.choose(BUILDS)))
        return ", ".join(happened)

    def check(self, step: Callable[[Scenario], str]) -> str:
        """Do a step, then compare every row; a refusal is told by its sentence, and must lose nothing."""
        self.held = self.rows()
        try:
            end = step(self)
        except CcassetsError as error:
            end = f"{step.__name__}: refused ({str(error).splitlines()[0][:100]})"
        lost = self.held - self.rows()
        if step is prune_storage:  # Which says what it removes.
            lost &= self.recorded()
        if lost:
            raise WrongError(f"{end}: {len(lost)} right rows are lost and nothing said so")
        return end

    # --- choices --------------------------------------------------------------------------------------

    def choose(self, options: Any) -> Any:
        return options[int(self.rng.integers(len(options)))]

    def edit(self, change: Callable[[dict[str, Any]], object]) -> None:
        number = int(self.rng.integers(len(self.studies)))
        self.studies[number] = edit_study(self.studies[number], change)

    def number(self) -> int:
        """A number that no picture, study or folder had before."""
        self.serial += 1
        return self.serial

    # --- pictures -------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """A picture that was never there before."""
        path.parent.mkdir(parents=True, exist_ok=True)
        image = picture(self.number())
        image.save(path)
        self.know(image)

    def know(self, image: Image.Image) -> bytes:
        """The digest of a picture, whose encodings are known from now on."""
        digest = image_digest(image)
        for encoder in self.encoders:
            if (encoder.card.identity, digest) not in self.encodings:
                result = encoder.encode_images([image])
                assert result.tokens is not None
                values = np.concatenate([result.features[:, None], result.tokens], axis=1)
                self.encodings[encoder.card.identity, digest] = values[0].astype(np.float16)
        return digest

    def files(self) -> list[Path]:
        return sorted(self.image_folder.rglob("*.png"))

    def images(self, study: Study) -> dict[str, dict[str, bytes]]:
        """The digest of every readable picture of a study by split and key, in the order of its rows."""
        images: dict[str, dict[str, bytes]] = {}
        for split in study.splits:
            images[split] = {}
            for path in sorted((self.image_folder / split).rglob("*.png"), key=os.fspath):
                digest = read_digest(path)
                if digest is not None:
                    images[split][path.relative_to(self.image_folder).as_posix()] = digest
        return images

    # --- rows -----------------------------------------------------------------------------------------

    def rows(self) -> set[Row]:
        """Every row of every part and database, each compared with a fresh encoding of its picture."""
        rows: set[Row] = set()
        for path in [*self.storage.glob("features/*/rows/*.h5"), *self.storage.glob("*/*.h5")]:
            with open_database(path) as database:
                identity = (database.provenance or {})["encoder"]["identity"]
                tokens, digests = database.image_token_features, database.image_digest
                assert tokens is not None
                assert digests is not None
                stored = np.concatenate([database.image_features[:][:, None], tokens[:]], axis=1)
                for number, digest in enumerate(map(bytes, digests)):
                    if not np.array_equal(stored[number], self.encodings.get((identity, digest), np.nan)):
                        raise WrongError(f"{path.relative_to(self.storage)}: row {number} is not its picture's")
                    rows.add((identity, digest))
        return rows

    def recorded(self) -> set[Row]:
        """The rows that the cards and manifests of the studies ask for."""
        return {
            (load_encoder_record(self.store(study)).card.identity, bytes(digest))
            for study in self.studies
            if self.store(study).encoder_card.exists()
            for manifest in self.store(study).folder.glob("manifest/*.parquet")
            for digest in Manifest.load(manifest).image_digest
        }

    def require_complete(self, study: Study) -> None:
        """A database that was just built holds every readable picture of its study, in order."""
        with open_database(self.store(study).database) as database:
            assert database.keys is not None
            assert database.image_digest is not None
            for split, images in self.images(study).items():
                rows = database.splits.get(split, slice(0, 0))
                stored = list(zip(database.keys[rows], map(bytes, database.image_digest[rows]), strict=True))
                if stored != list(images.items()):
                    raise WrongError(f"{study.name}: the rows of {split} are not its pictures")

    # --- studies --------------------------------------------------------------------------------------

    def store(self, study: Study) -> Store:
        return Store.of(study, self.storage)

    def write_study(self, splits: tuple[str, ...]) -> Study:
        folder = self.folder / "studies" / f"study{self.number()}"
        options = {"dim": original_scripts.DIM, "tokens": original_scripts.TOKENS, "dtype": PRECISIONS[0]}
        encoder = {"kind": "python", "target": "stand_in:StandIn", "options": options}
        study = write_study(
            folder,
            images=self.image_folder,
            encoder=encoder,
            splits=splits,
            extraction={"rows_per_shard": self.choose((2, 4, 6))},
            storage={"keep_parts": bool(self.rng.random() < 0.7)},
        )
        (folder / "stand_in.py").write_text(STAND_IN)
        return study


def with_precision(study: Study, precision: str) -> Study:
    """The study with its stand-in encoder in that precision."""
    options = {**study.encoder.options, "dtype": precision}  # type: ignore[union-attr]
    return study.model_copy(
        update={"encoder": study.encoder.model_copy(update={"dtype": precision, "options": options})}
    )


def read_digest(path: Path) -> bytes | None:
    """The digest of a picture; None of one that is cut off."""
    try:
        with Image.open(path) as image:
            return image_digest(image.convert("RGB"))
    except (OSError, SyntaxError):
        return None


# --- builds -------------------------------------------------------------------------------------------


def undisturbed_build(scenario: Scenario) -> str:
    study = scenario.choose(scenario.studies)
    build(study, store=scenario.store(study), fresh=scenario.rng.random() < 0.05)
    scenario.require_complete(study)
    return f"build {study.name}"


def build_with_an_unreadable_image(scenario: Scenario) -> str:
    study = scenario.choose(scenario.studies)
    with unreadable(scenario.image_folder, scenario.choose(PASSING), after=int(scenario.rng.integers(30))):
        build(study, store=scenario.store(study))
    scenario.require_complete(study)
    return f"build {study.name} in spite of an error"


def build_on_a_refusing_disk(scenario: Scenario) -> str:
    study, fault = scenario.choose(scenario.studies), scenario.choose(FAULTS)
    code, text = build_in_a_fork(study, scenario.store(study), fault.start, at=int(scenario.rng.integers(MOMENTS)))
    if code == 2:
        raise WrongError(f"build {study.name} with {fault.name}: {text}")
    return f"build {study.name} with {fault.name}: {'built' if code == 0 else 'refused'}"


BUILDS = [undisturbed_build] * 4 + [build_with_an_unreadable_image] + [build_on_a_refusing_disk] * AVAILABLE

_refused: dict[str, Any] = {"below": None}


def _refuse_opening(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _refused["below"] and str(arguments[0]).startswith(_refused["below"]):
        _refused["after"] -= 1
        if _refused["after"] < 0:
            raise OSError(_refused["error"], os.strerror(_refused["error"]), arguments[0])


sys.addaudithook(_refuse_opening)


@contextmanager
def unreadable(folder: Path, error: int, *, after: int) -> Iterator[None]:
    """No file below a folder can be opened once so many were; an audit hook cannot be taken back, only idle."""
    _refused.update(below=f"{folder}/", error=error, after=after)
    try:
        yield
    finally:
        _refused["below"] = None


# --- what happens to a study --------------------------------------------------------------------------


def edit_images(scenario: Scenario) -> str:
    kinds = [scenario.choose(list(IMAGE_EDITS)) for _ in range(int(scenario.rng.integers(1, 4)))]
    for kind in kinds:
        IMAGE_EDITS[kind](scenario, scenario.choose(scenario.files()))
    return f"pictures: {' and '.join(kinds)}"


def _swap(scenario: Scenario, path: Path) -> None:
    other = scenario.choose(scenario.files())
    first, second = path.read_bytes(), other.read_bytes()
    path.write_bytes(second)
    other.write_bytes(first)


def _new_path(scenario: Scenario) -> Path:
    folder = scenario.image_folder / scenario.choose(SPLITS) / scenario.choose(CLASSES)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{scenario.number():03d}.png"


IMAGE_EDITS: Mapping[str, Callable[[Scenario, Path], object]] = {
    "replace": lambda scenario, path: scenario.save(path),
    "add": lambda scenario, path: scenario.save(_new_path(scenario)),
    "remove": lambda scenario, path: len(scenario.files()) > 6 and path.unlink(),
    "move": lambda scenario, path: path.rename(_new_path(scenario)),
    "copy": lambda scenario, path: shutil.copy(path, _new_path(scenario)),
    "swap": _swap,
    "cut off": lambda scenario, path: os.truncate(path, path.stat().st_size // 2),
}


def replace_broken_images(scenario: Scenario) -> str:
    broken = [path for path in scenario.files() if read_digest(path) is None]
    for path in broken:
        scenario.save(path)
    return f"{len(broken)} broken pictures replaced"


def move_folder(scenario: Scenario) -> str:
    scenario.image_folder = scenario.image_folder.rename(scenario.folder / f"pictures{scenario.number()}")
    root = str(scenario.image_folder)
    scenario.studies = [edit_study(study, lambda a: a["dataset"].update(root=root)) for study in scenario.studies]
    return "folder moved"


def add_study(scenario: Scenario) -> str:
    splits = [SPLITS[number] for number in scenario.rng.permutation(3)[: int(scenario.rng.integers(1, 4))]]
    scenario.studies.append(scenario.write_study(tuple(splits)))
    return f"{scenario.studies[-1].name} of {'+'.join(splits)}"


def change_precision(scenario: Scenario) -> str:
    precision = scenario.choose(PRECISIONS)
    scenario.edit(lambda a: (a["encoder"].update(dtype=precision), a["encoder"]["options"].update(dtype=precision)))
    return precision


def change_settings(scenario: Scenario) -> str:
    keep, policy = bool(scenario.rng.random() < 0.5), scenario.choose(("error", "skip"))
    scenario.edit(lambda a: (a["storage"].update(keep_parts=keep), a["extraction"].update(on_bad_image=policy)))
    return f"keep_parts {keep}, on_bad_image {policy}"


def change_words(scenario: Scenario) -> str:
    words = [*VOCABULARY["concepts"]["words"], f"sign {scenario.number()}"]  # type: ignore[index]
    scenario.edit(lambda a: a["vocabulary"]["concepts"].update(words=words))
    return "other words"


def prune_storage(scenario: Scenario) -> str:
    study = scenario.choose(scenario.studies)
    removed = prune(study, store=scenario.store(study), now=True)
    return f"prune: {len(removed)} files"


# --- adoption -----------------------------------------------------------------------------------------


def adopt_file(scenario: Scenario) -> str:
    study = scenario.choose(scenario.studies)
    store = scenario.store(study)
    kind = scenario.choose(list(FILES))
    if scenario.rng.random() < 0.7:  # So that there is something to adopt: removed by hand, which is no loss of ours.
        shutil.rmtree(scenario.storage / "features", ignore_errors=True)
        store.database.unlink(missing_ok=True)
        scenario.held = scenario.rows()
    path = write_file(scenario, study, kind)
    repair = bool(scenario.rng.random() < 0.7)
    adoption = adopt(path, study, repair=repair, store=store)
    rows = sum(split.taken for split in adoption.splits)
    return f"adopt a {kind} file{' with repair' if repair else ''}: {rows} rows"


Rows = dict[str, list[tuple[int, bytes]]]
"""Label and picture of every row of a file by split."""


def _good(scenario: Scenario, rows: Rows) -> Rows:
    return rows


def _shuffled_in_classes(scenario: Scenario, rows: Rows) -> Rows:
    shuffled: Rows = {}
    for split, pairs in rows.items():
        pictures = {
            label: iter(scenario.rng.permutation([number for number, pair in enumerate(pairs) if pair[0] == label]))
            for label in {label for label, _ in pairs}
        }
        shuffled[split] = [(label, pairs[int(next(pictures[label]))][1]) for label, _ in pairs]
    return shuffled


def _shuffled(scenario: Scenario, rows: Rows) -> Rows:
    return {split: [pairs[int(n)] for n in scenario.rng.permutation(len(pairs))] for split, pairs in rows.items()}


def _doubled(scenario: Scenario, rows: Rows) -> Rows:
    return {split: [*pairs, *pairs] if scenario.rng.random() < 0.6 else pairs for split, pairs in rows.items()}


def _of_other_images(scenario: Scenario, rows: Rows) -> Rows:
    return {
        split: [(label, scenario.know(picture(10**6 + scenario.number()))) for label, _ in pairs]
        for split, pairs in rows.items()
    }


def _one_of_another_image(scenario: Scenario, rows: Rows) -> Rows:
    other = scenario.know(picture(10**6 + scenario.number()))
    split = scenario.choose([split for split, pairs in rows.items() if pairs])
    row = int(scenario.rng.integers(len(rows[split])))
    return {**rows, split: [*rows[split][:row], (rows[split][row][0], other), *rows[split][row + 1 :]]}


def _without_labels(scenario: Scenario, rows: Rows) -> Rows:
    return {split: [(-1, digest) for _, digest in pairs] for split, pairs in _shuffled(scenario, rows).items()}


FILES: Mapping[str, Callable[[Scenario, Rows], Rows]] = {
    "good": _good,
    "stopped": _good,
    "truncated": _good,
    "shuffled": _shuffled,
    "shuffled in its classes": _shuffled_in_classes,
    "doubled": _doubled,
    "foreign": _of_other_images,
    "partly foreign": _one_of_another_image,
    "shuffled and unlabelled": _without_labels,
}


def write_file(scenario: Scenario, study: Study, kind: str) -> Path:
    """A file of the original scripts, of the study's readable pictures and in its precision."""
    identity = load_encoder(study).card.identity
    rows: Rows = {
        split: [(CLASSES.index(key.split("/")[1]), digest) for key, digest in images.items()]
        for split, images in scenario.images(study).items()
    }
    rows = FILES[kind](scenario, rows)
    path = scenario.folder / f"file{scenario.number()}.h5"
    with original_scripts.start(path) as file:
        templates = study.vocabulary.templates()
        original_scripts.write_templates(file, {name: template.prompts for name, template in templates.items()})
        if kind == "stopped":
            rows = {**rows, study.splits[-1]: rows[study.splits[-1]][:1]}
        for split, pairs in rows.items():
            _append(file, split, pairs, np.array([scenario.encodings[identity, digest] for _, digest in pairs]))
        if kind != "stopped":
            original_scripts.finish(file, {split: len(pairs) for split, pairs in rows.items()})
    if kind == "truncated":
        os.truncate(path, int(path.stat().st_size * scenario.rng.uniform(0.1, 1)))
    return path


def _append(file: h5py.File, split: str, pairs: list[tuple[int, bytes]], values: np.ndarray) -> None:
    first, last = len(file["ids"]), len(file["ids"]) + len(pairs)
    for name in ("image_features", "image_token_features", "ids", "labels", "split"):
        file[name].resize(last, axis=0)
    if pairs:
        file["image_features"][first:] = values[:, 0]
        file["image_token_features"][first:] = values[:, 1:]
        file["ids"][first:] = np.arange(first, last)
        file["labels"][first:] = [label for label, _ in pairs]
        file["split"][first:] = [split] * len(pairs)


STEPS: list[Callable[[Scenario], str]] = [
    *[edit_images] * 4,
    replace_broken_images,
    move_folder,
    add_study,
    change_precision,
    change_settings,
    change_words,
    *[prune_storage] * 2,
    *[adopt_file] * 4,
]


# --- running ------------------------------------------------------------------------------------------


def scenario(folder: Path, seed: int, number: int) -> tuple[str, str]:
    """One scenario, the same for the same seed and number: its end, and a line about it."""
    root = folder / f"scenario-{number}"
    root.mkdir()
    try:
        end, line = "right", Scenario(root, np.random.default_rng([seed, number])).run()
    except WrongError as error:
        end, line = "WRONG", str(error)
    except Exception:
        end, line = "WRONG", traceback.format_exc()
    shutil.rmtree(root)
    return end, f"{number}: {end}: {line}"


def campaign(folder: Path, seed: int, scenarios: int, start: int = 0) -> Counter[str]:
    """Run scenarios; a line for each, and how often each end was met."""
    tries = (scenario(folder, seed, number) for number in range(start, start + scenarios))
    return tally(tries, f"seed {seed}: {scenarios} scenarios from {start}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=int, default=0, help="number of the first scenario, to repeat one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ends = campaign(Path(folder), arguments.seed, arguments.scenarios, arguments.start)
    return 1 if ends["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main())
