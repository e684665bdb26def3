"""Phantom images: a function of seed, size, split and row; what is said about them is what they show."""

import numpy as np
import pytest

from ccassets.datasets.phantom import PhantomDataset
from ccassets.datasets.phantom_cells import CLASSES, CONCEPTS
from ccassets.errors import DatasetError
from ccassets.progress import silent
from ccassets.study.loading import load_study
from ccassets.study.schema import PhantomDatasetConfig

ROWS = 120


def phantom(rows=ROWS, seed=0, size=96):
    return PhantomDataset(PhantomDatasetConfig(kind="phantom", rows={"train": rows, "test": 16}, seed=seed, size=size))


@pytest.fixture(scope="module")
def cells():
    """Label, pixels as float, and truth of 120 images."""
    dataset = phantom()
    labels = dataset.rows("train").labels
    return [
        (int(labels[row]), np.asarray(dataset.read("train", row), np.float64), dataset.annotations("train", row))
        for row in range(ROWS)
    ]


def test_an_image_is_the_same_every_time_and_whatever_the_number_of_rows():
    few, many = phantom(rows=11), phantom(rows=5000)
    for row in (0, 3, 10):
        assert few.read("train", row).tobytes() == few.read("train", row).tobytes()
        assert few.read("train", row).tobytes() == many.read("train", row).tobytes()
    assert few.rows("train").labels.tolist() == many.rows("train").labels[:11].tolist()
    assert list(few.rows("train").fingerprints) == list(many.rows("train").fingerprints[:11])


def test_another_seed_split_or_row_is_another_image():
    images = [
        phantom().read("train", 0),
        phantom().read("train", 1),
        phantom().read("test", 0),
        phantom(seed=1).read("train", 0),
    ]
    assert len({image.tobytes() for image in images}) == 4
    assert phantom().rows("train").fingerprints[0] != phantom(seed=1).rows("train").fingerprints[0]
    assert phantom().rows("train").fingerprints[0] != phantom(size=64).rows("train").fingerprints[0]


def test_rows_have_keys_and_labels_and_nothing_to_fetch():
    dataset = phantom()
    calls = []
    dataset.fetch(lambda done, total: calls.append((done, total)))
    dataset.fetch(silent)
    assert calls == [(ROWS + 16, ROWS + 16)]
    rows = dataset.rows("train")
    assert len(rows) == ROWS
    assert rows.keys[12] == "train/00012"
    assert rows.labels.dtype == np.int64
    assert len(set(rows.fingerprints)) == ROWS


def test_every_run_of_eight_rows_shows_every_class_in_changing_order():
    runs = phantom().rows("train").labels.reshape(-1, 8)
    assert (np.sort(runs, axis=1) == np.arange(8)).all()
    assert len({tuple(run) for run in runs}) > 5


def test_classes_and_concepts_are_the_words_of_the_demo_study():
    study = load_study("demo")
    assert phantom().classes == CLASSES == study.vocabulary.labels.words
    assert study.vocabulary.concepts.texts == CONCEPTS


def test_concepts_are_known_without_a_drawing(cells):
    dataset = phantom()
    for row, (_, _, truth) in enumerate(cells):
        assert dataset.concepts("train", row) == truth.concepts
    with pytest.raises(DatasetError, match="rows 0 to"):
        dataset.concepts("train", ROWS)


@pytest.mark.parametrize("size", [32, 96, 130])
def test_images_and_masks_have_the_size_that_was_asked_for(size):
    dataset = phantom(size=size)
    image, truth = dataset.read("train", 0), dataset.annotations("train", 0)
    assert image.mode == "RGB"
    assert image.size == (size, size)
    assert truth.nucleus.shape == truth.cytoplasm.shape == (size, size)


def test_the_same_scene_is_drawn_at_every_size():
    for row in range(8):
        small, large = (
            np.asarray(phantom(size=size).read("train", row).resize((24, 24)), np.float64) for size in (96, 192)
        )
        assert np.abs(small - large).mean() < 4


def test_the_nucleus_is_darker_than_the_cytoplasm_and_that_than_the_background(cells):
    for label, pixels, truth in cells:
        grey = pixels.mean(axis=2)
        background = np.percentile(grey[~(truth.nucleus | truth.cytoplasm)], 75)
        assert grey[truth.cytoplasm].mean() < background
        if CLASSES[label] not in {"platelet", "basophil"}:
            assert grey[truth.nucleus].mean() < grey[truth.cytoplasm].mean() - 10


def test_masks_are_apart_and_a_platelet_alone_has_no_nucleus(cells):
    for label, _, truth in cells:
        assert not (truth.nucleus & truth.cytoplasm).any()
        assert truth.nucleus.any() == (CLASSES[label] != "platelet")
        assert 50 < truth.cytoplasm.sum() < 96 * 96 / 2


def test_the_ratio_concept_is_what_the_masks_measure(cells):
    for _, _, truth in cells:
        share = truth.nucleus.sum() / (truth.nucleus.sum() + truth.cytoplasm.sum())
        assert truth.concepts["High nuclear-to-cytoplasmic ratio"] == (share > 0.53)


def test_a_cell_has_one_nucleus_shape_at_most_one_kind_of_granules_and_one_tone(cells):
    for label, _, truth in cells:
        shapes = [truth.concepts[word] for word in CONCEPTS if word.endswith(("nucleus", "form)"))]
        assert len(shapes) == 4
        assert sum(shapes) == (CLASSES[label] != "platelet")
        assert sum(truth.concepts[word] for word in CONCEPTS if word.endswith("granules")) <= 1
        assert not (truth.concepts["Pale cytoplasm"] and truth.concepts["Basophilic cytoplasm"])


def test_concepts_vary_within_classes(cells):
    table = np.array([[truth.concepts[word] for word in CONCEPTS] for _, _, truth in cells])
    labels = np.array([label for label, _, _ in cells])
    assert table.any(axis=0).all()
    assert not table.all(axis=0).any()
    for label in range(len(CLASSES)):
        of_class = table[labels == label]
        assert (of_class.any(axis=0) & ~of_class.all(axis=0)).sum() >= 4


def test_tone_and_granules_colour_the_cytoplasm(cells):
    def redness(word):
        return np.mean(
            [
                pixels[truth.cytoplasm][:, 0].mean() - pixels[truth.cytoplasm][:, 2].mean()
                for _, pixels, truth in cells
                if truth.concepts[word]
            ]
        )

    assert redness("Eosinophilic granules") > redness("Pale cytoplasm") + 20
    assert redness("Basophilic cytoplasm") < redness("Pale cytoplasm") - 20


def test_an_unknown_split_or_row_is_refused_with_what_there_is():
    with pytest.raises(DatasetError, match="train, test; there is no split 'val'"):
        phantom().rows("val")
    with pytest.raises(DatasetError, match="rows 0 to 15; there is no row 16"):
        phantom().read("test", 16)
