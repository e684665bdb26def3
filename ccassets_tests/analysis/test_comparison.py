"""Encoders compared on real files: rows matched by image, what differs refused, differences with known answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest, t, ttest_1samp

from ccassets.analysis.bottleneck import HOLDOUT_LOG
from ccassets.analysis.classifiers import fit_logistic
from ccassets.analysis.comparison import Comparison, PairedDifference, compare_databases, holm
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.samples import Samples, concept_samples, feature_samples
from ccassets.analysis.zero_shot_scores import zero_shot
from ccassets.database.reader import open_database
from ccassets.errors import AnalysisError, DatabaseError
from ccassets.study.loading import load_study
from ccassets.study.storage import Store
from ccassets_tests.analysis.made_cells import cells, write_cells
from ccassets_tests.analysis.made_phantoms import extracted, phantom_study
from ccassets_tests.cli.command_line import run
from ccassets_tests.database.made_files import write_database
from ccassets_tests.made_studies import CLASSES, DATA, SPLITS, picture, save_golden_weights, save_images, write_study
from ccassets_tests.pages.page_terms import unexplained_terms, unlinked_headings

ROWS = {"train": 30, "val": 9, "test": 12}
PHANTOM = {"kind": "phantom"}
METHODS = ["Zero-shot", "Linear probe", "Concept classifier"]


def build(folder: Path, images: Path, encoder: dict[str, str] | Path, splits: Sequence[str] = SPLITS) -> Path:
    """The database of a folder of images."""
    study = write_study(folder / "studies" / folder.name, images=images, encoder=encoder, splits=splits)
    return extracted(study, folder / "storage").database


def compare(*paths: Path, log: HoldoutLog | None = None) -> Comparison:
    databases = [open_database(path) for path in paths]
    try:
        return compare_databases(databases, log=log)
    finally:
        for database in databases:
            database.close()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("images"), ROWS)


@pytest.fixture(scope="module")
def golden(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    return build(folder, images, save_golden_weights(folder / "weights"))


@pytest.fixture(scope="module")
def phantom(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("phantom"), images, PHANTOM)


def correct_on_test(samples: Samples) -> np.ndarray:
    held_out = samples.of("test")
    return np.asarray(fit_logistic(samples).probabilities(held_out.features).argmax(axis=1) == held_out.labels)


# --- two encoders ------------------------------------------------------------------------------------


def test_two_encoders_stand_side_by_side_with_paired_differences(golden: Path, phantom: Path) -> None:
    log = HoldoutLog()
    comparison = compare(golden, phantom, log=log)
    assert (comparison.split, comparison.images) == ("test", 12)
    assert [(d.encoder["kind"], d.rows, d.unmatched, d.repeated) for d in comparison.databases] == [
        ("conceptclip", 51, 0, 0),
        ("phantom", 51, 0, 0),
    ]
    names = [database.name for database in comparison.databases]
    assert names == [f"{path.parent.name}/{path.name}" for path in (golden, phantom)]
    assert [difference.method for difference in comparison.differences] == METHODS

    def expected(path: Path) -> list[np.ndarray]:
        with open_database(path) as database:
            labels = database.select("test").labels
            classes = zero_shot(database, split="test").log_odds.argmax(axis=1)
            return [
                classes == labels,
                correct_on_test(feature_samples(database)),
                correct_on_test(concept_samples(database)),
            ]

    rows = zip(comparison.differences, expected(golden), expected(phantom), strict=True)
    values = {(one.method, one.database): one.estimate.value for one in comparison.measurements}
    for difference, first, second in rows:
        assert values[difference.method, names[0]] == pytest.approx(first.mean())
        assert values[difference.method, names[1]] == pytest.approx(second.mean())
        assert difference.difference.estimate.value == pytest.approx(first.mean() - second.mean())
        better, worse = int((first & ~second).sum()), int((second & ~first).sum())
        assert difference.p_value == pytest.approx(binomtest(better, better + worse).pvalue if better + worse else 1)
    assert [access.what.partition(":")[0] for access in log.accesses()] == ["comparison"] * 6
    assert comparison.test_accesses == 6


def test_identical_files_differ_by_exactly_nothing(golden: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.h5"
    shutil.copy(golden, same)
    for comparison in (compare(golden, same), compare(golden, golden)):
        assert len({database.name for database in comparison.databases}) == 2
        assert [one.difference.estimate.value for one in comparison.differences] == [0.0] * 3
        assert [(one.p_value, one.corrected) for one in comparison.differences] == [(1.0, 1.0)] * 3
        assert all("cannot be told apart" in one.verdict for one in comparison.differences)


def test_three_files_are_compared_pair_by_pair(golden: Path, phantom: Path, tmp_path: Path) -> None:
    same = tmp_path / "same.h5"
    shutil.copy(golden, same)
    comparison = compare(golden, phantom, same)
    assert len(comparison.measurements) == len(comparison.differences) == 9
    p_values = [one.p_value for one in comparison.differences]
    assert [one.corrected for one in comparison.differences] == holm([p for p in p_values if p is not None])


# --- the same images ---------------------------------------------------------------------------------


def test_rows_in_another_order_are_matched_by_their_images(images: Path, phantom: Path, tmp_path: Path) -> None:
    turned = build(tmp_path / "turned", images, PHANTOM, splits=("test", "train", "val"))
    with open_database(phantom) as database, open_database(turned) as other:
        assert database.split.tolist() != other.split.tolist()
    comparison = compare(phantom, turned)
    assert comparison.images == 12
    assert [one.difference.estimate.value for one in comparison.differences] == [0.0] * 3


def test_images_of_one_file_alone_and_repeated_ones_are_counted_and_left_out(
    images: Path, phantom: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    shutil.copytree(images, others)
    (others / "test" / CLASSES[0] / "000.png").unlink()
    (others / "test" / CLASSES[1] / "001.png").unlink()
    for number in range(3):
        picture(1000 + number).save(others / "train" / CLASSES[0] / f"new-{number}.png")
    again = others / "train" / CLASSES[2]
    shutil.copy(again / "002.png", again / "again.png")
    comparison = compare(phantom, build(tmp_path / "study", others, PHANTOM))
    assert comparison.images == 10
    assert [(d.rows, d.unmatched, d.repeated) for d in comparison.databases] == [(51, 2, 1), (53, 3, 2)]


def test_files_without_a_common_image_are_not_compared(phantom: Path, tmp_path: Path) -> None:
    with pytest.raises(AnalysisError, match="have no image in common"):
        compare(phantom, write_database(tmp_path / "a.h5"))


def test_a_file_without_image_digests_is_not_compared(phantom: Path) -> None:
    with pytest.raises(AnalysisError, match=r"legacy_good\.h5 has no image digests"):
        compare(phantom, DATA / "legacy" / "legacy_good.h5")


def test_digests_of_another_shape_are_refused(tmp_path: Path) -> None:
    first, second = write_database(tmp_path / "a.h5"), write_database(tmp_path / "b.h5")
    with h5py.File(second, "r+") as file:
        del file["image_digest"]
        file["image_digest"] = np.zeros((20, 4), np.uint8)
    with pytest.raises(DatabaseError, match=r"b\.h5: /image_digest: expected uint8 of shape \(20, 32\)"):
        compare(first, second)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "test/platelet",
            r"The labels of 1 of 51 images differ: .* has the label 'blood' at row \d+, .* has 'platelet'",
        ),
        ("val/blood", r"The splits of 1 of 51 images differ: .* has the split 'test' at row \d+, .* has 'val'"),
    ],
)
def test_labels_and_splits_that_differ_are_refused(
    images: Path, phantom: Path, tmp_path: Path, target: str, message: str
) -> None:
    others = tmp_path / "others"
    shutil.copytree(images, others)
    (others / "test" / "blood" / "000.png").rename(others / target / "moved.png")
    with pytest.raises(AnalysisError, match=message):
        compare(phantom, build(tmp_path / "study", others, PHANTOM))


def test_classes_that_differ_are_refused(images: Path, phantom: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    shutil.copytree(images, others)
    for split in SPLITS:
        (others / split / "white").rename(others / split / "leucocyte")
    with pytest.raises(AnalysisError, match=r"The classes differ: .*'white'.*'leucocyte'"):
        compare(phantom, build(tmp_path / "study", others, PHANTOM))


def test_one_file_is_no_comparison(phantom: Path) -> None:
    with pytest.raises(AnalysisError, match="at least two databases, found 1"):
        compare(phantom)


# --- known answers -----------------------------------------------------------------------------------


def write_distinct_cells(path: Path, samples: Samples, labels: str = "present") -> Path:
    """A database of cells whose images all have digests of their own."""
    write_cells(path, samples, labels=labels)
    with h5py.File(path, "r+") as file:
        numbers = np.arange(len(samples), dtype=">u8")[:, None].view(np.uint8)
        file["image_digest"][:, :8] = numbers
    return path


def test_the_interval_of_an_accuracy_is_that_of_paired_shares(tmp_path: Path) -> None:
    paths = []
    for name, noise in (("good", 0.3), ("poor", 1.5)):
        samples = cells(600, noise=noise).samples
        paths.append(write_distinct_cells(tmp_path / f"{name}.h5", replace(samples, features=samples.features / 3)))
    comparison = compare(*paths)
    (concepts,) = [one for one in comparison.differences if one.method == "Concept classifier"]
    with open_database(paths[0]) as good, open_database(paths[1]) as poor:
        first, second = correct_on_test(concept_samples(good)), correct_on_test(concept_samples(poor))
    rows, better, worse = len(first), int((first & ~second).sum()), int((second & ~first).sum())
    # Agresti and Min 2005: half a row more in each of the four cells.
    total, gain = rows + 2, better - worse
    variance = ((better + worse + 1) - gain**2 / total) / total * (total / (total - 1)) / total
    half = t.ppf(0.975, rows - 1) * np.sqrt(variance)
    estimate = concepts.difference.estimate
    assert estimate.value == pytest.approx((first.mean() - second.mean()), abs=1e-12)
    assert (estimate.low, estimate.high) == pytest.approx((gain / total - half, gain / total + half), abs=1e-9)
    assert concepts.p_value == pytest.approx(binomtest(better, better + worse).pvalue)
    assert concepts.verdict == "good.h5 is better than poor.h5."


def placements(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """An AUC, and by row the share of rows of the other kind that it is on the right side of (DeLong et al. 1988)."""
    wins = (scores[positive][:, None] > scores[~positive]) + 0.5 * (scores[positive][:, None] == scores[~positive])
    rows = np.empty(len(scores))
    rows[positive], rows[~positive] = wins.mean(axis=1), wins.mean(axis=0)
    return float(wins.mean()), rows


def test_a_multi_label_set_is_compared_by_its_auc_with_the_interval_of_delong(tmp_path: Path) -> None:
    splits = {"train": 60, "val": 30, "test": 80}
    paths = [write_database(tmp_path / f"{dim}.h5", splits, dim=dim, matrix=True) for dim in (12, 24)]
    for path in paths:
        with h5py.File(path, "r+") as file:
            del file["groups"]
    comparison = compare(*paths)
    assert {one.metric for one in comparison.measurements} == {"auc"}
    (difference,) = [one for one in comparison.differences if one.method == "Zero-shot"]
    areas, moved = [], []
    for path in paths:
        with open_database(path) as database:
            scores = zero_shot(database, split="test").log_odds
            assert database.label_matrix is not None
            positive = database.label_matrix[database.select("test").rows] > 0
        area, rows = zip(*(placements(scores[:, c], positive[:, c]) for c in range(3)), strict=True)
        areas.append(np.mean(area))
        counts = np.where(positive, positive.sum(axis=0), (~positive).sum(axis=0))
        moved.append((np.stack(rows, axis=1) - area) / np.sqrt(counts * (counts - 1)))
    # The variance of DeLong adds those of the placements of positive and of negative rows.
    variance = (((moved[0] - moved[1]).mean(axis=1)) ** 2).sum() * 80 / 79
    half = t.ppf(0.975, 79) * np.sqrt(variance)
    estimate = difference.difference.estimate
    assert estimate.value == pytest.approx(areas[0] - areas[1], abs=1e-9)
    assert estimate.high - estimate.value == pytest.approx(half, rel=1e-6)
    gain = (moved[0] - moved[1]).mean(axis=1) * 80 + estimate.value
    assert difference.p_value == pytest.approx(ttest_1samp(gain, 0).pvalue, abs=0.03)


def test_features_that_are_not_finite_are_a_sentence(tmp_path: Path) -> None:
    samples = cells(60).samples
    paths = [write_distinct_cells(tmp_path / f"{name}.h5", samples) for name in "ab"]
    with h5py.File(paths[1], "r+") as file:
        file["image_features"][3, 2] = np.nan
    comparison = compare(*paths)
    assert {one.database for one in comparison.measurements} == {"a.h5"}
    reasons = {method: reason for method, name, reason in comparison.unavailable if name == "b.h5"}
    assert "1 of 60 images have numbers that are not finite" in reasons["Linear probe"]


def test_too_few_groups_have_a_sentence_in_the_place_of_a_test(tmp_path: Path) -> None:
    paths = [write_database(tmp_path / f"{dim}.h5", dim=dim) for dim in (12, 24)]
    comparison = compare(*paths)
    assert comparison.differences
    for one in comparison.differences:
        assert (one.p_value, one.corrected) == (None, None)
        assert one.verdict == "No test: 3 groups are too few for an interval: it needs at least 6."


def test_the_correction_is_that_of_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_without_a_held_out_split_all_rows_are_compared_by_what_is_not_fitted(tmp_path: Path) -> None:
    paths = [write_database(tmp_path / f"{dim}.h5", {"train": 30}, dim=dim) for dim in (12, 24)]
    log = HoldoutLog()
    comparison = compare(*paths, log=log)
    assert (comparison.split, comparison.images, comparison.test_accesses) == ("all", 30, 0)
    assert [one.method for one in comparison.differences] == ["Zero-shot"]
    assert log.accesses() == []
    reasons = {method: reason for method, _, reason in comparison.unavailable}
    assert "measured on rows that it has not seen" in reasons["Linear probe"]


def test_without_labels_nothing_is_measured_and_each_reason_is_said(tmp_path: Path) -> None:
    samples = cells(60).samples
    paths = [write_distinct_cells(tmp_path / f"{name}.h5", samples, labels="none") for name in "ab"]
    comparison = compare(*paths)
    assert comparison.measurements == comparison.differences == ()
    assert len(comparison.unavailable) == 8
    reasons = {method: reason for method, _, reason in comparison.unavailable}
    assert "has no labels" in reasons["Linear probe"]
    assert "--study" in reasons["Retrieval of concepts"]


# --- concepts whose truth is known, and the command ---------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A study of phantom cells, its database, and that of the same cells by an encoder of lower precision."""
    folder = tmp_path_factory.mktemp("known")
    rows = {"train": 64, "val": 32, "test": 40}
    study = phantom_study(folder / "cells", lambda a: a["dataset"].update(rows=rows))
    coarse = phantom_study(
        folder / "coarse",
        lambda a: (a["dataset"].update(rows=rows), a["encoder"].update(dtype="bfloat16", tokens=False)),
    )
    databases = [extracted(one, folder / "storage").database for one in (study, coarse)]
    return study.folder, databases[0], databases[1]


def test_retrieval_is_compared_where_a_study_knows_the_concepts(known: tuple[Path, Path, Path], tmp_path: Path) -> None:
    study, first, second = known
    page = tmp_path / "comparison.html"
    result = run("compare", first, second, "--study", study, "--output", page, "--json")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    measured = {(one["method"], one["database"]): one for one in content["measurements"]}
    retrieval = measured["Retrieval of concepts", "cells/conceptclip_features.h5"]
    assert retrieval["metric"] == "average_precision"
    assert 0 < retrieval["estimate"]["low"] < retrieval["estimate"]["value"] < retrieval["estimate"]["high"] < 1
    accesses = HoldoutLog(Store.of(load_study(study)).analysis / HOLDOUT_LOG).accesses()
    assert len(accesses) == content["test_accesses"] == 8
    assert {access.split for access in accesses} == {"test"}

    # The same command again: the log of the study counts on.
    again = json.loads(run("compare", first, second, "--study", study, "--json").out)
    assert again["test_accesses"] == 16

    text = page.read_text(encoding="utf-8")
    results = pd.read_csv(tmp_path / "comparison_results.csv")
    differences = pd.read_csv(tmp_path / "comparison_differences.csv")
    assert len(results) == 8
    assert len(differences) == 4
    assert (tmp_path / "comparison_results.tex").read_text(encoding="utf-8").startswith("\\begin{tabular}")
    assert (tmp_path / "comparison_differences.tex").exists()
    for one in content["measurements"]:
        value = f"{one['estimate']['value']:.3f}"
        assert value in text
        row = results[(results.method == one["method"]) & (results.file == one["database"])].iloc[0]
        titles = {"accuracy": "accuracy", "average_precision": "average precision"}
        assert row[titles[one["metric"]]].startswith(value)
    for one in content["differences"]:
        assert one["verdict"] in text
    assert unexplained_terms(text) == set()
    assert unlinked_headings(text) == set()


def test_names_of_files_are_text_on_the_page(golden: Path, phantom: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "<script>alert(1)<" / "a.h5"
    hostile.parent.mkdir()
    shutil.copy(golden, hostile)
    shutil.copy(phantom, tmp_path / "a.h5")
    page = tmp_path / "page.html"
    assert run("compare", hostile, tmp_path / "a.h5", "-o", page).code == 0
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;alert(1)&lt;" in text
    assert "<script" not in text


def test_the_command_says_everything_in_lines(golden: Path, phantom: Path) -> None:
    result = run("compare", golden, phantom)
    assert result.code == 0
    assert "12 images compared, split test." in result.out
    for method in METHODS:
        assert result.out.count(f"{method}  ") == 2
        assert result.out.count(f"{method}: ") == 1
    assert "not measured: No study (--study)" in result.out


@pytest.mark.parametrize(
    ("options", "message"),
    [([], "Give two files or more"), (["FILE", "-o", "table.csv"], "Expected a name that ends in .html")],
)
def test_wrong_use_of_the_command_is_a_sentence(phantom: Path, options: list[str], message: str) -> None:
    result = run("compare", phantom, *(phantom if option == "FILE" else option for option in options))
    assert (result.code, result.out) == (2, "")
    assert message in result.err


def test_a_study_of_another_data_set_is_refused(golden: Path, phantom: Path) -> None:
    result = run("compare", golden, phantom, "--study", "demo")
    assert (result.code, result.out) == (2, "")
    assert "demo is not the study of" in result.err


def test_a_study_of_other_cells_is_not_taken_for_the_truth(known: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, first, second = known
    others = phantom_study(
        tmp_path / "others",
        lambda attributes: attributes["dataset"].update(rows={"train": 64, "val": 32, "test": 40}, seed=1),
    )
    result = run("compare", first, second, "--study", others.folder)
    assert (result.code, result.out) == (2, "")
    assert "the image is not the one that was encoded" in result.err


def test_a_verdict_names_the_better_one_only_after_the_correction(golden: Path, phantom: Path) -> None:
    difference = compare(golden, phantom).differences[0].difference
    assert "cannot be told apart" in PairedDifference("a", "b", "c", difference, 0.03, 0.06).verdict
