"""Classifiers: what they learn, what they may be measured on, and that a stored one says the same elsewhere."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ccassets import open_database
from ccassets.analysis.classifiers import (
    classifier_digest,
    evaluate_on_holdout,
    fit_logistic,
    fit_tree,
)
from ccassets.analysis.concept_models import apply_model, load_model, make_concept_model, save_model
from ccassets.analysis.holdout_log import HoldoutLog
from ccassets.analysis.metrics import evaluate
from ccassets.analysis.samples import Samples, concept_samples, feature_samples, folds
from ccassets.analysis.sparse_classifiers import accuracy_against_nec, sparse_path, truncate_to_nec
from ccassets.cli import app, main
from ccassets.errors import AnalysisError
from ccassets_tests.analysis.made_cells import CLASSES, CONCEPTS, IDENTITY, cells, wide, write_cells

SAMPLES = cells().samples


def accuracy(classifier, samples: Samples, split: str = "test") -> float:
    probabilities = evaluate_on_holdout(classifier, samples, split, HoldoutLog(), "accuracy")
    return float(np.mean(probabilities.argmax(axis=1) == samples.of(split).labels))


# --- logistic regression -----------------------------------------------------------------------------


def test_the_weights_point_at_the_concepts_of_a_class():
    strongest = fit_logistic(SAMPLES).strongest(1)
    assert {name: weights["positive"][0][0] for name, weights in strongest.items()} == {
        "basophil": "Basophilic granules",
        "lymphocyte": "Round nucleus",
        "monocyte": "Cytoplasmic vacuoles",
        "platelet": "Giant platelets",
    }


def test_the_scaler_knows_nothing_of_val_and_test():
    train = SAMPLES.of("train").features.astype(np.float64)
    others = np.where((SAMPLES.split != "train")[:, None], SAMPLES.features + 100, SAMPLES.features)
    classifier = fit_logistic(SAMPLES.with_features(others, CONCEPTS))
    assert np.allclose(classifier.mean, train.mean(axis=0))
    assert np.allclose(classifier.scale, train.std(axis=0))


def test_test_labels_change_nothing_in_a_fitted_classifier():
    labels = np.where(SAMPLES.split == "test", 0, SAMPLES.labels)
    for fit in (fit_logistic, fit_tree):
        assert classifier_digest(fit(SAMPLES)) == classifier_digest(fit(replace(SAMPLES, labels=labels)))


def test_the_strength_is_the_one_with_the_lowest_log_loss_on_val():
    chosen = fit_logistic(SAMPLES).chosen
    assert chosen["chosen_on"] == "val"
    assert min(chosen["log_loss"], key=chosen["log_loss"].get) == f"{chosen['C']:g}"
    # Labels of val that have nothing to do with the scores ask for the strongest penalty.
    rng = np.random.default_rng(0)
    labels = np.where(SAMPLES.split == "val", rng.permutation(SAMPLES.labels), SAMPLES.labels)
    assert fit_logistic(replace(SAMPLES, labels=labels)).chosen["C"] == 0.001


def test_refitting_takes_train_and_val_with_the_strength_that_was_chosen():
    plain, refitted = fit_logistic(SAMPLES), fit_logistic(SAMPLES, refit=True)
    assert refitted.chosen["C"] == plain.chosen["C"]
    assert refitted.chosen["fitted_on"] == ["train", "val"]
    assert np.allclose(refitted.mean, SAMPLES.of("train", "val").features.mean(axis=0), atol=1e-6)


def test_contributions_and_intercept_add_up_to_the_logits():
    classifier = fit_logistic(SAMPLES)
    rows = SAMPLES.features[:7]
    assert np.allclose(classifier.contributions(rows).sum(axis=2) + classifier.intercept, classifier.logits(rows))


def test_two_classes_give_what_scikit_learn_says():
    from sklearn.linear_model import LogisticRegression

    two = SAMPLES.take(SAMPLES.labels < 2)
    two = replace(two, classes=CLASSES[:2])
    classifier = fit_logistic(two, strengths=[1.0])
    train = two.of("train")
    model = LogisticRegression(C=1.0, tol=1e-6).fit(classifier.standardise(train.features), train.labels)
    expected = model.predict_proba(classifier.standardise(two.features))
    assert np.allclose(classifier.probabilities(two.features), expected, atol=1e-6)


SEVERAL = replace(
    SAMPLES,
    labels=np.stack([SAMPLES.labels == 0, SAMPLES.labels < 2, SAMPLES.labels == 3], axis=1).astype(np.uint8),
    classes=("basophil", "early", "platelet"),
)
"""Rows with one label, two, or none."""


def test_several_labels_give_what_scikit_learn_says_one_against_rest(tmp_path: Path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    classifier = fit_logistic(SEVERAL, strengths=[1.0])
    train, test = SEVERAL.of("train"), SEVERAL.of("test")
    model = OneVsRestClassifier(LogisticRegression(max_iter=1000, tol=1e-6))
    model.fit(classifier.standardise(train.features), train.labels)
    expected = model.predict_proba(classifier.standardise(test.features))
    np.testing.assert_allclose(classifier.probabilities(test.features), expected, atol=1e-4)
    with open_database(write_cells(tmp_path / "cells.h5", SAMPLES)) as database:
        save_model(make_concept_model(classifier, database), tmp_path / "model.json")
        loaded = load_model(tmp_path / "model.json").classifier
    np.testing.assert_array_equal(loaded.probabilities(test.features), classifier.probabilities(test.features))


def test_what_needs_one_class_a_row_says_so_for_several():
    for fit in (fit_tree, sparse_path):
        with pytest.raises(AnalysisError, match="needs one class for every row; these rows can have several"):
            fit(SEVERAL)
    with pytest.raises(AnalysisError, match=r"Every row has the classes \['early'\]"):
        fit_logistic(replace(SEVERAL, labels=np.maximum(SEVERAL.labels, np.array([0, 1, 0], np.uint8))))
    with pytest.raises(AnalysisError, match="0 and 1 for each of 3 classes"):
        replace(SEVERAL, labels=SEVERAL.labels * 2)


def test_folds_of_several_labels_keep_groups_together():
    grouped = replace(cells(480, grouped=True).samples, labels=SEVERAL.labels[:480], classes=SEVERAL.classes)
    for fitted, left_out in folds(grouped, 5):
        assert not set(grouped.groups[fitted]) & set(grouped.groups[left_out])
    few = SEVERAL.labels.copy()
    few[np.flatnonzero(few[:, 0])[3:], 0] = 0
    with pytest.raises(AnalysisError, match="5 folds need 5 rows of every class; found basophil 3"):
        folds(replace(SEVERAL, labels=few), 5)


def test_a_class_without_rows_in_train_is_named():
    labels = np.where(SAMPLES.split == "train", np.minimum(SAMPLES.labels, 2), SAMPLES.labels)
    with pytest.raises(AnalysisError, match=r"\['platelet'\] have no rows"):
        fit_logistic(replace(SAMPLES, labels=labels))


@pytest.mark.filterwarnings("error")
def test_a_class_without_rows_in_val_and_test_is_left_out_without_a_warning():
    rare = SAMPLES.take((SAMPLES.split == "train") | (SAMPLES.labels != 3))
    log = HoldoutLog()
    for classifier in (fit_logistic(rare), fit_tree(rare)):
        evaluation = evaluate(rare.of("test").labels, evaluate_on_holdout(classifier, rare, "test", log, "accuracy"))
        assert evaluation.absent == (3,)
        assert evaluation.recall[3].reason == "No row has this class."
        assert 0.8 < evaluation.balanced_accuracy.value < 1
    assert [point.level for point in accuracy_against_nec(sparse_path(rare), rare, "test", log).points] == [5]


def test_a_row_without_a_label_is_named():
    labels = SAMPLES.labels.copy()
    labels[5] = -1
    with pytest.raises(AnalysisError, match="row 5 has -1"):
        replace(SAMPLES, labels=labels)


def test_a_constant_concept_does_no_harm():
    features = SAMPLES.features.copy()
    features[:, 3] = 0.2
    classifier = fit_logistic(SAMPLES.with_features(features, CONCEPTS))
    assert np.isfinite(classifier.weights).all()
    assert np.allclose(classifier.weights[:, 3], 0)


# --- held-out accesses ---------------------------------------------------------------------------------


def test_every_access_is_a_line_that_stays(tmp_path: Path):
    log = HoldoutLog(tmp_path / "looks.jsonl")
    classifier = fit_logistic(SAMPLES)
    evaluate_on_holdout(classifier, SAMPLES, "test", log, "accuracy")
    first = (tmp_path / "looks.jsonl").read_text()
    evaluate_on_holdout(
        fit_tree(SAMPLES), SAMPLES, "test", HoldoutLog(tmp_path / "looks.jsonl"), "accuracy of the tree"
    )
    assert (tmp_path / "looks.jsonl").read_text().startswith(first)
    accesses = log.accesses()
    assert [(access.what, access.split, access.rows) for access in accesses] == [
        ("accuracy", "test", 160),
        ("accuracy of the tree", "test", 160),
    ]
    assert accesses[0].model == classifier_digest(classifier) != accesses[1].model


def test_rows_with_other_columns_are_refused():
    with pytest.raises(AnalysisError, match="was fitted on the columns"):
        evaluate_on_holdout(fit_logistic(SAMPLES), SAMPLES.select(CONCEPTS[::-1]), "test", HoldoutLog(), "accuracy")


# --- folds -------------------------------------------------------------------------------------------


def test_folds_keep_groups_together_and_take_every_row_once():
    samples = cells(grouped=True).samples
    cut = folds(samples, 5)
    assert sorted(np.concatenate([outside for _, outside in cut]).tolist()) == list(range(len(samples)))
    for inside, outside in cut:
        assert not set(samples.groups[inside]) & set(samples.groups[outside])


def test_without_val_the_choice_is_made_by_folds_of_train():
    chosen = fit_logistic(cells(grouped=True).samples, val=None).chosen
    assert chosen["chosen_on"] == "5 folds of train"
    assert chosen["fitted_on"] == ["train"]


def test_too_few_groups_or_rows_for_the_folds_are_refused():
    few = replace(SAMPLES, groups=np.array(["a", "b"] * (len(SAMPLES) // 2), object))
    with pytest.raises(AnalysisError, match="5 groups; found 2"):
        folds(few, 5)
    with pytest.raises(AnalysisError, match="5 rows of every class"):
        folds(SAMPLES.take(np.arange(8)), 5)


# --- the tree ----------------------------------------------------------------------------------------


def test_the_tree_predicts_what_scikit_learn_predicts():
    from sklearn.tree import DecisionTreeClassifier

    tree = fit_tree(SAMPLES, leaves=[8])
    train = SAMPLES.of("train")
    model = DecisionTreeClassifier(max_leaf_nodes=8, random_state=0)
    model.fit(tree.standardise(train.features), train.labels)
    expected = model.predict_proba(tree.standardise(SAMPLES.features))
    assert np.allclose(tree.probabilities(SAMPLES.features), expected)


def test_the_tree_reads_as_questions():
    lines = fit_tree(SAMPLES, leaves=[4]).text().splitlines()
    assert sum(line.rstrip().endswith("%)") for line in lines) == 4
    assert any(line.startswith("Giant platelets above +") for line in lines)


# --- chance ------------------------------------------------------------------------------------------


def test_on_shuffled_labels_every_classifier_falls_to_chance():
    samples = wide()
    shuffled = replace(samples, labels=np.random.default_rng(5).permutation(samples.labels))
    assert accuracy(fit_logistic(samples), samples) > 0.6
    for classifier in (fit_logistic(shuffled), fit_tree(shuffled), truncate_to_nec(sparse_path(shuffled), 5)):
        result = evaluate(
            shuffled.of("test").labels, evaluate_on_holdout(classifier, shuffled, "test", HoldoutLog(), "chance")
        )
        assert result.balanced_accuracy.low < 1 / 8 < result.balanced_accuracy.high
        assert result.auc.low < 0.5 < result.auc.high


# --- stored and applied ------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return write_cells(tmp_path / "cells.h5", cells(grouped=True).samples)


@pytest.fixture
def stored(database: Path, tmp_path: Path) -> Path:
    with open_database(database) as opened:
        save_model(make_concept_model(fit_logistic(concept_samples(opened)), opened), tmp_path / "model.json")
    return tmp_path / "model.json"


def test_samples_of_a_database_are_its_cosines_labels_and_groups(database: Path):
    samples = cells(grouped=True).samples
    with open_database(database) as opened:
        read = concept_samples(opened)
        assert feature_samples(opened).features.shape == (len(samples), 16)
    assert np.allclose(read.features, samples.features, atol=1e-3)
    assert read.columns == CONCEPTS
    assert read.classes == CLASSES
    assert read.groups.tolist() == samples.groups.tolist()


def test_a_data_set_without_labels_is_refused(tmp_path: Path):
    path = write_cells(tmp_path / "cells.h5", SAMPLES, labels="none")
    with open_database(path) as opened, pytest.raises(AnalysisError, match="has no labels"):
        concept_samples(opened)


@pytest.mark.parametrize("fit", [fit_logistic, fit_tree])
def test_a_stored_classifier_is_read_back_bit_by_bit(fit, database: Path, tmp_path: Path):
    with open_database(database) as opened:
        samples = concept_samples(opened)
        classifier = fit(samples)
        save_model(make_concept_model(classifier, opened), tmp_path / "model.json")
    model = load_model(tmp_path / "model.json")
    assert classifier_digest(model.classifier) == classifier_digest(classifier)
    assert model.classifier.chosen == classifier.chosen
    assert model.encoder_identity == IDENTITY
    assert [(concept.word, concept.level) for concept in model.concepts][5] == ("Giant platelets", 3)
    assert "scikit-learn" in model.libraries
    assert np.array_equal(model.classifier.probabilities(samples.features), classifier.probabilities(samples.features))


def test_another_cohort_is_predicted_by_row_and_by_group(stored: Path, tmp_path: Path):
    cohort = cells(160, seed=7, grouped=True).samples
    # More concepts, templates in another order: what the model needs is found by what it says.
    path = write_cells(tmp_path / "cohort.h5", cohort, templates=("new {}", "an image of {}", "a cell with {}"))
    with open_database(path) as opened:
        rows = apply_model(load_model(stored), opened)
        test = apply_model(load_model(stored), opened, "test")
    right = np.mean(
        [predicted == CLASSES[label] for predicted, label in zip(rows.predicted, cohort.labels, strict=True)]
    )
    assert right > 0.8
    assert np.allclose(test.probabilities, rows.probabilities[cohort.split == "test"])
    groups = rows.by_group()
    first = groups.about["group"].tolist().index("patient 0")
    assert groups.about["rows"][first] == 8
    assert np.allclose(groups.probabilities[first], rows.probabilities[:8].mean(axis=0))


def test_another_encoder_is_refused(stored: Path, tmp_path: Path):
    path = write_cells(tmp_path / "foreign.h5", SAMPLES, identity="f" * 32)
    with open_database(path) as opened, pytest.raises(AnalysisError, match=f"encoder {'f' * 32}, the model"):
        apply_model(load_model(stored), opened)
    path = write_cells(tmp_path / "unknown.h5", SAMPLES, identity=None)
    with open_database(path) as opened, pytest.raises(AnalysisError, match="does not say which encoder"):
        apply_model(load_model(stored), opened)


def test_missing_concepts_and_templates_are_named(stored: Path, tmp_path: Path):
    path = write_cells(tmp_path / "few.h5", SAMPLES, concepts=CONCEPTS[:5])
    with open_database(path) as opened, pytest.raises(AnalysisError, match=r"no concepts \['Giant platelets'\]"):
        apply_model(load_model(stored), opened)
    path = write_cells(tmp_path / "other.h5", SAMPLES, templates=("a cell with {}",))
    with open_database(path) as opened, pytest.raises(AnalysisError, match=r"\['an image of {}'\]"):
        apply_model(load_model(stored), opened)


def test_a_concept_with_other_synonyms_is_another_concept(stored: Path, database: Path):
    file = json.loads(stored.read_text())
    file["concepts"][0]["synonyms"] = ["lobed nucleus"]
    stored.write_text(json.dumps(file))
    with open_database(database) as opened, pytest.raises(AnalysisError, match=r"synonyms \['lobed nucleus'\]"):
        apply_model(load_model(stored), opened)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.update(version=2), "version"),
        (lambda file: file["classifier"].update(kind="forest"), "classifier"),
        (lambda file: file["classifier"]["weights"].pop(), "do not fit"),
        (lambda file: file["classifier"]["weights"][0].pop(), "rows of equal length"),
        (lambda file: file["classifier"]["scale"].__setitem__(0, 0.0), "do not fit"),
        (lambda file: file.update(format="pickle"), "format"),
    ],
)
def test_a_changed_model_file_is_refused(change, message: str, stored: Path):
    file = json.loads(stored.read_text())
    change(file)
    stored.write_text(json.dumps(file))
    with pytest.raises(AnalysisError, match=message):
        load_model(stored)


def test_a_tree_that_walks_in_circles_is_refused(database: Path, tmp_path: Path):
    with open_database(database) as opened:
        save_model(make_concept_model(fit_tree(concept_samples(opened)), opened), tmp_path / "tree.json")
    file = json.loads((tmp_path / "tree.json").read_text())
    file["classifier"]["left"][0] = 0
    (tmp_path / "tree.json").write_text(json.dumps(file))
    with pytest.raises(AnalysisError, match="do not fit"):
        load_model(tmp_path / "tree.json")


def test_the_command_line_prints_predictions_as_csv(stored: Path, database: Path, tmp_path: Path):
    from typer.testing import CliRunner

    printed = CliRunner().invoke(app, ["apply", str(stored), str(database), "--split", "test"])
    assert printed.exit_code == 0, printed.output
    lines = printed.stdout.splitlines()
    assert lines[0] == "id,key,split,group,predicted," + ",".join(f"p({name})" for name in CLASSES)
    assert len(lines) == 1 + 160
    output = tmp_path / "groups.csv"
    by_group = CliRunner().invoke(app, ["apply", str(stored), str(database), "--by-group", "--output", str(output)])
    assert by_group.exit_code == 0, by_group.output
    assert output.read_text().splitlines()[0].startswith("group,rows,predicted,")


def test_the_command_line_prints_predictions_as_json(stored: Path, database: Path):
    from typer.testing import CliRunner

    command = ["apply", str(stored), str(database), "--split", "test"]
    records = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    table = list(csv.DictReader(CliRunner().invoke(app, command).stdout.splitlines()))
    assert [(record["key"], record["predicted"]) for record in records] == [
        (row["key"], row["predicted"]) for row in table
    ]
    assert set(records[0]) == {"id", "key", "split", "group", "predicted", "probabilities"}
    assert records[0]["probabilities"] == pytest.approx({name: float(table[0][f"p({name})"]) for name in CLASSES}, 1e-4)


def test_a_foreign_encoder_ends_the_command_with_one_message(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    foreign = write_cells(tmp_path / "foreign.h5", SAMPLES, identity="f" * 32)
    monkeypatch.setattr("sys.argv", ["ccassets", "apply", str(stored), str(foreign)])
    with pytest.raises(SystemExit) as ended:
        main()
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("ccassets: foreign.h5 was made by the encoder ffff")
    assert printed.err.count("\n") == 1


# --- the page ----------------------------------------------------------------------------------------


def test_the_code_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    page = (Path(__file__).parents[2] / "docs" / "classifiers.md").read_text(encoding="utf-8")
    write_cells(tmp_path / "conceptclip_features.h5", cells(grouped=True).samples, off_domain=6)
    monkeypatch.chdir(tmp_path)
    known: dict[str, object] = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(code, "classifiers.md", "exec"), known)
    assert "without class names" in capsys.readouterr().out
    written = {"looks.jsonl", "model.json", "label_errors.csv"}
    assert written <= {path.name for path in tmp_path.iterdir()}
