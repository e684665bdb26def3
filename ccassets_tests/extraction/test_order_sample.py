"""The sample that proves the order of adopted rows: which rows it holds, and what it catches in real files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.errors import AdoptionError, EncoderError
from ccassets.extraction import assemble_database, extract_images, extract_text
from ccassets.extraction.adoption import adopt
from ccassets.extraction.adoption.order_sample import MOST_SAMPLED, choose_sample, missed_probability
from ccassets.study.storage import Store
from ccassets_tests.database import original_scripts
from ccassets_tests.extraction.test_adoption import SMALL, assert_right, finished, labels_of, small_study, taken

TRAIN = 100
SPLITS = {"train": TRAIN, "val": 7, "test": 5}


# --- which rows ---------------------------------------------------------------------------------------


def test_a_small_split_is_sampled_whole() -> None:
    sample = choose_sample(np.zeros(MOST_SAMPLED, np.int64), [1])
    assert sample.rows.tolist() == list(range(MOST_SAMPLED))
    assert missed_probability(MOST_SAMPLED, sample.drawn, 2) == 0


@pytest.mark.parametrize("classes", [1, 2, 8, 30])
def test_a_sample_holds_the_ends_and_every_class(classes: int) -> None:
    for seed in range(20):
        labels = np.random.default_rng(seed).zipf(1.5, 5000) % classes
        labels[123] = classes  # A class of one row.
        sample = choose_sample(labels, [seed])
        assert len(sample.rows) <= MOST_SAMPLED
        assert {0, 123, 4999} <= set(sample.rows.tolist())
        assert set(labels[sample.rows]) == set(labels)
        assert sample.rows.tolist() == choose_sample(labels, [seed]).rows.tolist()


def test_a_sample_of_more_classes_than_images_is_no_larger() -> None:
    sample = choose_sample(np.arange(1000), [1])
    assert len(sample.rows) <= MOST_SAMPLED


@pytest.mark.parametrize("wrong", [range(2), range(0, 1000, 10), range(500, 600)])
def test_wrong_rows_are_missed_no_more_often_than_recorded(wrong: range) -> None:
    labels = np.arange(1000) % 8
    samples = [choose_sample(labels, [seed]) for seed in range(2000)]
    missed = np.mean([not np.isin(sample.rows, wrong).any() for sample in samples])
    assert missed <= missed_probability(1000, samples[0].drawn, len(wrong)) + 0.03


# --- what it catches ----------------------------------------------------------------------------------


def write_in_order(path: Path, images: list[int], labels: list[int] | None = None, **options: Any) -> Path:
    """A finished file whose train rows show these images."""
    with original_scripts.start(path) as file:
        original_scripts.write_all_templates(file)
        original_scripts.append(file, "train", images, labels=labels, **options)
        for split in ("val", "test"):
            original_scripts.append(file, split, range(SPLITS[split]), **options)
        original_scripts.finish(file, SPLITS)
    return path


def shuffled_in_each_class() -> list[int]:
    """Images whose labels stand in the data set's order, and which themselves do not."""
    images = np.arange(TRAIN)
    for remainder in (0, 1):
        images[remainder::2] = np.random.default_rng(1).permutation(images[remainder::2])
    return images.tolist()


def swapped_at(*rows: int) -> list[int]:
    images = np.arange(TRAIN)
    images[list(rows)] = np.roll(images[list(rows)], 1)
    return images.tolist()


@pytest.mark.parametrize(
    "images",
    [shuffled_in_each_class(), [*range(0, 50), *range(98, 49, -2), *range(51, TRAIN, 2)], swapped_at(0, 98)],
    ids=["in each class", "the second half", "two rows at the ends"],
)
def test_rows_in_another_order_are_not_taken_over(images: list[int], tmp_path: Path) -> None:
    study = small_study(tmp_path, SPLITS)
    labels = labels_of(SPLITS)["train"]
    path = write_in_order(tmp_path / "old.h5", images, labels)
    with pytest.raises(AdoptionError) as caught:
        adopt(path, study)
    assert {finding.check for finding in caught.value.findings if finding.severity == "error"} == {"row_order"}
    assert not list(Store.of(study).root.glob("features/**/*.h5"))

    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


@pytest.mark.parametrize("label", [-1, 0])
def test_rows_of_a_shuffling_loader_without_labels_are_not_taken_over(label: int, tmp_path: Path) -> None:
    study = small_study(tmp_path, SPLITS)
    images = np.random.default_rng(3).permutation(TRAIN).tolist()
    path = write_in_order(tmp_path / "old.h5", images)
    with h5py.File(path, "r+") as file:
        file["labels"][:] = label
    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def test_splits_whose_images_were_exchanged_are_not_taken_over(tmp_path: Path) -> None:
    splits = {"train": 4, "val": 1, "test": 1}
    study = small_study(tmp_path, splits)
    with original_scripts.start(tmp_path / "old.h5") as file:
        original_scripts.write_all_templates(file)
        original_scripts.append(file, "train", range(4))
        original_scripts.append(file, "val", range(1))
        original_scripts.append(file, "test", range(1))
        original_scripts.finish(file, splits)
        for name in ("image_features", "image_token_features"):
            file[name][4:] = file[name][4:][::-1]
    adoption = adopt(tmp_path / "old.h5", study, repair=True)
    assert taken(adoption) == {"train": 4, "val": 0, "test": 0}
    assert_right(study, adoption)


def test_rows_that_all_hold_the_same_features_are_not_taken_over(tmp_path: Path) -> None:
    study = small_study(tmp_path, SPLITS)
    path = write_in_order(tmp_path / "old.h5", list(range(TRAIN)), labels_of(SPLITS)["train"])
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features"):
            file[name][:TRAIN] = file[name][0]
    adoption = adopt(path, study, repair=True)
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def features_and_patches(split: str, image: int) -> np.ndarray:
    """The feature of an image, and patches that differ."""
    patches = np.random.default_rng([image, *split.encode(), 1]).standard_normal((original_scripts.TOKENS, 16))
    return np.concatenate([original_scripts.features_of(split, image)[None], patches]).astype(np.float32)


@pytest.fixture(scope="module")
def patches_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the splits with patches that differ."""
    path = finished(tmp_path_factory.mktemp("patches") / "old.h5", SPLITS)
    with h5py.File(path, "r+") as file:
        images = [features_and_patches(split, image) for split, rows in SPLITS.items() for image in range(rows)]
        file["image_token_features"][...] = np.stack(images)[:, 1:]
    return path


def exchange_between_the_ends(patches: np.ndarray) -> None:
    patches[[0, TRAIN - 1]] = patches[[TRAIN - 1, 0]]


def shift_the_second_half(patches: np.ndarray) -> None:
    patches[50:TRAIN] = np.roll(patches[50:TRAIN], 1, axis=0)


def reverse_in_every_row(patches: np.ndarray) -> None:
    patches[:TRAIN] = patches[:TRAIN, ::-1]


def exchange_two_in_every_row(patches: np.ndarray) -> None:
    patches[:TRAIN, [0, 1]] = patches[:TRAIN, [1, 0]]


def repeat_the_first(patches: np.ndarray) -> None:
    patches[:TRAIN] = patches[:TRAIN, :1]


@pytest.mark.parametrize(
    "change",
    [
        exchange_between_the_ends,
        shift_the_second_half,
        reverse_in_every_row,
        exchange_two_in_every_row,
        repeat_the_first,
    ],
)
def test_patches_of_other_images_or_places_are_not_taken_over(
    change: Callable[[np.ndarray], None], patches_file: Path, tmp_path: Path
) -> None:
    study = small_study(tmp_path, SPLITS, features=features_and_patches)
    path = Path(shutil.copy(patches_file, tmp_path))
    with h5py.File(path, "r+") as file:
        patches = file["image_token_features"][...]
        change(patches)
        file["image_token_features"][...] = patches
    adoption = adopt(path, study, repair=True)
    [finding] = [finding for finding in adoption.findings if finding.severity == "error"]
    assert finding.where.startswith("/image_token_features rows")
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def test_patches_of_another_precision_are_taken_over(patches_file: Path, tmp_path: Path) -> None:
    def half_precision(split: str, image: int) -> np.ndarray:
        exact = features_and_patches(split, image)
        vectors = exact * (1 + 0.02 * np.random.default_rng(image).standard_normal(exact.shape)).astype(np.float32)
        vectors[0] /= np.linalg.norm(vectors[0])
        return vectors

    adoption = adopt(patches_file, small_study(tmp_path, SPLITS, features=half_precision))
    assert taken(adoption) == SPLITS
    order = adoption.splits[0].order
    assert order is not None
    assert 0.998 < order["lowest_token_cosine"] < 0.9999


def reverse(templates: h5py.Group, name: str) -> None:
    values = templates[f"concept_prompts_t01/{name}"]
    values[...] = values[...][::-1]


def take_those_of_the_next(templates: h5py.Group, name: str) -> None:
    values, others = templates[f"concept_prompts_t01/{name}"], templates[f"concept_prompts_t02/{name}"]
    values[...] = others[:, :1] if values.ndim == 3 else others[...]


def take_the_first(templates: h5py.Group, name: str) -> None:
    values = templates[f"concept_prompts_t01/{name}"]
    values[...] = values[:1]


@pytest.mark.parametrize("name", ["text_features", "text_token_features"])
@pytest.mark.parametrize("change", [reverse, take_those_of_the_next, take_the_first])
def test_templates_with_features_of_other_prompts_are_not_taken_over(
    change: Callable[[h5py.Group, str], None], name: str, tmp_path: Path
) -> None:
    study = small_study(tmp_path, {"train": 2})
    path = finished(tmp_path / "old.h5", {"train": 2})
    with h5py.File(path, "r+") as file:
        change(file["templates"], name)
    adoption = adopt(path, study, repair=True)
    [finding] = [finding for finding in adoption.findings if finding.severity == "error"]
    assert (finding.check, finding.where) == ("prompt_order", f"/templates/concept_prompts_t01/{name}")
    assert adoption.missing_templates == ["concept_prompts_t01"]
    assert [part.encoded > 0 for part in extract_text(study)].count(True) == 1


def test_features_of_another_precision_are_taken_over(tmp_path: Path) -> None:
    def half_precision(split: str, image: int) -> np.ndarray:
        vector = original_scripts.features_of(split, image)
        vector = vector * (1 + 0.02 * np.random.default_rng(image).standard_normal(len(vector))).astype(np.float32)
        return vector / np.linalg.norm(vector)

    study = small_study(tmp_path, SPLITS, features=half_precision)
    adoption = adopt(finished(tmp_path / "old.h5", SPLITS), study)
    assert taken(adoption) == SPLITS
    order = adoption.splits[0].order
    assert order is not None
    assert 0.998 < order["lowest_cosine"] < 0.9999


def test_equal_images_and_equal_features_are_no_mistake(tmp_path: Path) -> None:
    study = small_study(tmp_path, equal_images={("train", 3): 1, ("val", 0): 1})
    path = finished(tmp_path / "old.h5")
    with h5py.File(path, "r+") as file:
        for name in ("image_features", "image_token_features"):
            for row in (3, 12):
                file[name][row] = file[name][1]
    assert sum(taken(adopt(path, study)).values()) == 12 + 7 + 5 - 2


def test_every_part_records_the_sample_and_what_it_leaves_open(tmp_path: Path) -> None:
    study = small_study(tmp_path, SPLITS)
    announced: list[int] = []
    adoption = adopt(finished(tmp_path / "old.h5", SPLITS), study, before_sample=announced.append)
    assert announced == [MOST_SAMPLED + 7 + 5]
    orders = {split.split: split.order for split in adoption.splits}
    train, val = orders["train"], orders["val"]
    assert train is not None
    assert val is not None
    assert train["verified_by"] == val["verified_by"] == "sample"
    assert (train["rows"], val["rows"], val["sampled"]) == (TRAIN, 7, 7)
    assert train["sampled"] <= MOST_SAMPLED
    assert train["missed"]["a_tenth"] == missed_probability(TRAIN, train["drawn"], 10)
    assert 0 < train["missed"]["a_tenth"] < 0.01 < train["missed"]["two_rows"]
    assert val["missed"] == {"two_rows": 0.0, "a_tenth": 0.0}
    for path in Store.of(study).root.glob("features/*/rows/*.h5"):
        with open_database(path) as part:
            assert part.provenance is not None
            assert part.provenance["order"] == orders[part.split[0]]
        assert validate_database(path, deep=True) == []


# --- rows of unverified order -------------------------------------------------------------------------


def warnings_of(path: Path) -> set[str]:
    return {finding.check for finding in validate_database(path, deep=True)}


def test_unverified_rows_carry_a_warning_until_a_sample_proves_them(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    path = finished(tmp_path / "old.h5")
    adoption = adopt(path, study, sample=False)
    assert taken(adoption) == SMALL
    assert "unverified_order" in {finding.check for finding in adoption.findings}
    extract_images(study)
    extract_text(study)
    database = assemble_database(study).path
    parts = list(Store.of(study).root.glob("features/*/*/*.h5"))
    assert all(warnings_of(part) == {"unverified_order"} for part in parts)
    rows, templates = validate_database(database, deep=True)
    assert {rows.check, templates.check} == {"unverified_order"}
    assert {rows.severity, templates.severity} == {"warning"}
    assert "24 rows" in rows.message
    assert "concept_prompts_t01" in templates.message

    again = adopt(path, study)
    assert taken(again) == SMALL
    assert len(again.templates) == len(adoption.templates) == 5
    assert assemble_database(study).path == database
    assert warnings_of(database) == set()
    once_more = adopt(path, study)
    assert (taken(once_more), once_more.templates) == (dict.fromkeys(SMALL, 0), [])


FAULTY = """
_make, _encode = StandIn.__init__, StandIn.encode_pixels


def _fails(function, name):
    def call(self, *arguments, **options):
        if Path(__file__).with_name(name).exists():
            raise RuntimeError("no such device")
        return function(self, *arguments, **options)

    return call


StandIn.__init__, StandIn.encode_pixels = _fails(_make, "no_load"), _fails(_encode, "no_encoding")
"""


def test_rows_are_unverified_where_the_encoder_cannot_be_loaded(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with (study.folder / "stand_in.py").open("a") as module:
        module.write(FAULTY)
    path = finished(tmp_path / "old.h5")

    adoption = adopt(path, study, before_sample=lambda images: (study.folder / "no_load").touch())

    assert taken(adoption) == SMALL
    findings = [finding for finding in adoption.findings if finding.check == "unverified_order"]
    assert [finding.where for finding in findings] == ["/image_features", "/templates"]
    assert all(finding.severity == "warning" and "no such device" in finding.message for finding in findings)
    (study.folder / "no_load").unlink()
    extract_images(study)
    extract_text(study)
    assert warnings_of(assemble_database(study).path) == {"unverified_order"}


def test_an_encoder_that_fails_on_the_sample_names_the_way_without_it(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    with (study.folder / "stand_in.py").open("a") as module:
        module.write(FAULTY)
    (study.folder / "no_encoding").touch()
    path = finished(tmp_path / "old.h5")

    with pytest.raises(EncoderError, match=r"no such device.*`--no-sample`"):
        adopt(path, study)
    assert taken(adopt(path, study, sample=False)) == SMALL


def test_a_database_with_unverified_rows_is_sampled_when_it_is_adopted(tmp_path: Path) -> None:
    study = small_study(tmp_path, SPLITS)
    adopt(
        write_in_order(tmp_path / "old.h5", shuffled_in_each_class(), labels_of(SPLITS)["train"]), study, sample=False
    )
    extract_images(study)
    extract_text(study)
    database = assemble_database(study).path.rename(tmp_path / "database.h5")
    for part in Store.of(study).root.glob("features/*/rows/*.h5"):
        part.unlink()
    adoption = adopt(database, study, repair=True)
    assert adoption.matched_by == "image digest"
    assert taken(adoption) == {"train": 0, "val": 7, "test": 5}
    assert_right(study, adoption)


def test_our_own_database_needs_no_sample(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    extract_images(study)
    extract_text(study)
    database = assemble_database(study).path.rename(tmp_path / "database.h5")
    for part in Store.of(study).root.glob("features/*/rows/*.h5"):
        part.unlink()
    assert {split.order and split.order["verified_by"] for split in adopt(database, study).splits} == {"image digest"}

    for part in Store.of(study).root.glob("features/*/rows/*.h5"):
        part.unlink()
    with h5py.File(database, "r+") as file:  # The digests that bind images to features are gone.
        del file.attrs["rows_digest"]
    assert {split.order and split.order["verified_by"] for split in adopt(database, study, repair=True).splits} == {
        "sample"
    }


def test_parts_of_older_versions_stay_valid_and_are_told_apart(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    adopt(finished(tmp_path / "old.h5"), study)
    (part, *_) = sorted(Store.of(study).root.glob("features/*/rows/*.h5"))
    with h5py.File(part, "r+") as file:
        provenance = json.loads(file.attrs["provenance"])
        del provenance["order"]
        file.attrs["provenance"] = json.dumps(provenance)
    assert "unverified_order" in warnings_of(part)
    assert extract_images(study).encoded == 0
