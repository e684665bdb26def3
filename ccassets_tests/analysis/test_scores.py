"""Scores against the authors' own, over arrays and over files; the tolerances are those of the fixtures' page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ccassets.analysis import scores
from ccassets.analysis.zero_shot_scores import (
    Probabilities,
    annotation_scores,
    has_local_scores,
    top_mean,
    zero_shot,
    zero_shot_from_arrays,
)
from ccassets.database.reader import Database, open_database
from ccassets.database.writer import FileContent, TemplateContent, new_file
from ccassets.errors import DatabaseError
from ccassets_tests.database.made_files import row_content, write_database

GOLDEN = Path(__file__).parents[1] / "data" / "conceptclip"
EXPECTED = np.load(GOLDEN / "tiny_a_scores.npz")
IMAGES = np.load(GOLDEN / "tiny_a_io.npz")
CLASSIFIER, SCORE = 1e-6, 1e-5
SCALES = {"scale": float(IMAGES["logit_scale_exp"]), "concept_scale": float(IMAGES["concept_logit_scale_exp"])}


def encode(model: Any, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch

    flat = torch.from_numpy(ids.reshape(-1, ids.shape[-1]))
    features, tokens = model.encode_text(flat)
    return features.numpy().reshape(*ids.shape[:-1], -1), tokens.numpy().reshape(*ids.shape, -1)


@pytest.fixture(scope="module")
def model() -> Any:
    from ccassets.encoders.conceptclip import load_checkpoint

    return load_checkpoint(GOLDEN / "tiny_a.safetensors", json.loads((GOLDEN / "tiny_a.json").read_text()))


def golden_database(path: Path, model: Any, prefix: str) -> Path:
    """The golden images (as float16) and prompts as a file: a template for each of theirs, in their order."""
    features, tokens = encode(model, EXPECTED[f"{prefix}_input_ids"])
    templates = {
        f"label_prompts_t{number + 1:02d}": TemplateContent(
            texts=EXPECTED[f"{prefix}_prompts"][:, number].tolist(),
            text_features=features[:, number],
            text_token_features=tokens[:, number],
            input_ids=EXPECTED[f"{prefix}_input_ids"][:, number].astype(np.int32),
            attention_mask=(EXPECTED[f"{prefix}_input_ids"][:, number] != 0).astype(np.uint8),
            subject_span=EXPECTED[f"{prefix}_subject_span"][:, number],
        )
        for number in range(features.shape[1])
    }
    image_features = IMAGES["image_features"].astype(np.float16)
    image_tokens = IMAGES["image_token_features"].astype(np.float16)
    attributes = {
        "label_texts": EXPECTED[f"{prefix}_classes"].tolist(),
        "logit_scale": float(IMAGES["logit_scale"]),
        "concept_logit_scale": float(IMAGES["concept_logit_scale"]),
    }
    rows = row_content({"train": 3, "test": 2}, image_features, image_tokens)
    dim, token_count = image_features.shape[1], image_tokens.shape[1]
    with new_file(path, FileContent("database", dim, token_count, rows, templates, attributes)) as writer:
        writer.write("image_features", 0, image_features)
        writer.write("image_token_features", 0, image_tokens)
    return path


@pytest.fixture(scope="module", params=["zs", "quirk"])
def golden(
    request: pytest.FixtureRequest, model: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SimpleNamespace]:
    prefix = request.param
    path = golden_database(tmp_path_factory.mktemp(prefix) / "golden.h5", model, prefix)
    with open_database(path) as database:
        yield SimpleNamespace(
            database=database,
            prefix=prefix,
            expected={name.removeprefix(f"{prefix}_"): EXPECTED[name] for name in EXPECTED.files},
        )


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(write_database(tmp_path / "small.h5")) as opened:
        yield opened


def authors_scores(golden: SimpleNamespace, rule: scores.Rule = "authors", **options: Any) -> Probabilities:
    return zero_shot_from_arrays(
        IMAGES["image_features"],
        IMAGES["image_token_features"],
        golden.database.label_features(),
        scores.local_features(golden.database, kind="label", rule=rule),
        **{**SCALES, "top": int(EXPECTED["topk"]), **options},
    )


# --- the authors' zero-shot score --------------------------------------------------------------------


def test_the_positions_are_those_that_the_authors_average(golden: SimpleNamespace) -> None:
    for number, template in enumerate(golden.database.templates.values()):
        words = [ids[start:end] for ids, (start, end) in zip(template.input_ids, template.subject_span, strict=True)]
        positions = scores.authors_positions(template.input_ids, words)
        for row, expected in zip(positions, golden.expected["positions"][:, number], strict=True):
            assert row.tolist() == expected[expected >= 0].tolist()


def test_words_become_the_authors_vectors(golden: SimpleNamespace) -> None:
    local = scores.local_features(golden.database, kind="label", rule="authors")
    np.testing.assert_allclose(
        golden.database.label_features().T, golden.expected["global_classifier"], atol=CLASSIFIER
    )
    np.testing.assert_allclose(local.T, golden.expected["local_classifier"], rtol=0, atol=CLASSIFIER)


def test_zero_shot_scores_are_the_authors(golden: SimpleNamespace) -> None:
    result = authors_scores(golden)
    np.testing.assert_allclose(result.scores, golden.expected["scores"], rtol=0, atol=SCORE)
    np.testing.assert_allclose(result.global_scores, golden.expected["scores_global_only"], rtol=0, atol=SCORE)
    np.testing.assert_allclose(result.local_scores, golden.expected["scores_local_only"], rtol=0, atol=SCORE)


def test_more_top_patches_than_an_image_has_are_all_its_patches(golden: SimpleNamespace) -> None:
    for top in (16, 128):
        result = authors_scores(golden, top=top)
        np.testing.assert_allclose(result.scores, golden.expected["scores_all_patches"], rtol=0, atol=SCORE)


def test_multi_label_scores_are_the_authors(golden: SimpleNamespace) -> None:
    result = authors_scores(golden, multilabel=True)
    np.testing.assert_allclose(result.scores, golden.expected["scores_multilabel"], rtol=0, atol=SCORE)


def test_the_span_differs_from_the_authors_positions_only_where_a_piece_repeats(golden: SimpleNamespace) -> None:
    difference = np.abs(authors_scores(golden, "span").scores - golden.expected["scores"]).max()
    if golden.prefix == "quirk":
        assert 0.02 < difference < 0.03
    else:
        assert difference < SCORE


def test_pieces_that_are_not_found_are_dropped_and_a_word_without_any_is_nan() -> None:
    ids = np.array([[2, 7, 8, 7, 3, 0], [2, 5, 6, 3, 0, 0]])
    positions = scores.authors_positions(ids, [[8, 9, 7], [9]])
    assert [row.tolist() for row in positions] == [[2, 1], []]
    pooled = scores.pooled_tokens(np.arange(24.0).reshape(2, 6, 2), positions)
    assert pooled[0].tolist() == [3.0, 4.0]
    assert np.isnan(pooled[1]).all()


# --- the authors' concept annotation -----------------------------------------------------------------


def test_annotation_scores_are_the_authors(model: Any) -> None:
    text_features, text_tokens = encode(model, EXPECTED["ca_input_ids"])
    images = IMAGES["image_features"], IMAGES["image_token_features"]
    result = annotation_scores(*images, text_features, text_tokens, **SCALES)
    np.testing.assert_allclose(result.scores, EXPECTED["ca_scores"], rtol=0, atol=SCORE)
    np.testing.assert_allclose(result.global_scores, EXPECTED["ca_scores_global_only"], rtol=0, atol=SCORE)
    np.testing.assert_allclose(result.local_scores, EXPECTED["ca_scores_local_only"], rtol=0, atol=SCORE)


# --- over a file -------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["span", "authors"])
def test_a_file_is_scored_like_its_arrays_whatever_the_blocks(
    golden: SimpleNamespace, rule: scores.Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = golden.database
    expected = zero_shot_from_arrays(
        database.image_features,
        database.image_token_features,
        database.label_features(),
        scores.local_features(database, kind="label", rule=rule),
        **SCALES,
        top=5,
    )
    whole = zero_shot(database, rule=rule, top=5)
    test = zero_shot(database, split="test", rule=rule, top=5)
    np.testing.assert_allclose(whole.scores, expected.scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(test.scores, expected.scores[3:], rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole.scores, authors_scores(golden, rule).scores, rtol=0, atol=5e-3)
    assert (whole.rule, whole.top, whole.multilabel) == (rule, 5, False)
    assert whole.words == tuple(golden.expected["classes"])
    # Chunks of a few patches, cut anywhere, give what one chunk gives.
    monkeypatch.setattr(scores, "_CHUNK", 7 * database.dim)
    np.testing.assert_allclose(zero_shot(database, rule=rule, top=5).scores, whole.scores, rtol=0, atol=1e-6)


def test_without_patches_the_score_is_that_of_whole_images(golden: SimpleNamespace) -> None:
    result = zero_shot(golden.database, rule=None)
    np.testing.assert_allclose(result.scores, golden.expected["scores_global_only"], rtol=0, atol=5e-3)
    assert result.local_scores is None
    assert result.rule is None


def test_chosen_words_and_templates_are_scored_alone(golden: SimpleNamespace) -> None:
    words = golden.database.attributes["label_texts"][:2]
    result = zero_shot(golden.database, words=words, templates=["label_prompts_t02"])
    assert result.scores.shape == (5, 2)
    np.testing.assert_allclose(result.scores.sum(axis=1), 1, atol=1e-6)
    assert result.templates == ("label_prompts_t02",)


def test_a_file_without_tokens_says_so_and_scores_whole_images(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "plain.h5", tokens=0)) as database:
        assert not has_local_scores(database)
        with pytest.raises(DatabaseError, match="without token features"):
            zero_shot(database)
        assert zero_shot(database, rule=None).scores.shape == (20, 3)


def test_a_multi_label_file_gets_sigmoids(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "multi.h5", matrix=True)) as database:
        result = zero_shot(database)
        assert result.multilabel
        assert not np.allclose(result.scores.sum(axis=1), 1)
        np.testing.assert_allclose(zero_shot(database, multilabel=False).scores.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("multilabel", [True, False])
@pytest.mark.parametrize("parts", [1, 2])
def test_log_odds_are_those_of_the_probabilities(multilabel: bool, parts: int) -> None:
    logits = 3 * np.random.default_rng(5).standard_normal((2, 50, 4)).astype(np.float32)
    result = Probabilities(logits[0], logits[1] if parts == 2 else None, multilabel)
    shares = result.scores.astype(np.float64)
    np.testing.assert_allclose(result.log_odds, np.log(shares) - np.log1p(-shares), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("multilabel", [True, False])
def test_log_odds_keep_the_order_where_probabilities_are_all_0_or_1(multilabel: bool) -> None:
    logits = np.random.default_rng(5).permutation(np.linspace(30, 900, 60, dtype=np.float32)).reshape(-1, 1)
    pair = logits if multilabel else np.concatenate([logits, np.zeros_like(logits)], axis=1)
    result = Probabilities(pair, None if multilabel else pair, multilabel)
    assert set(result.scores[:, 0].tolist()) == {1.0}
    assert result.log_odds[:, 0].argsort().tolist() == logits[:, 0].argsort().tolist()
    alone = Probabilities(np.zeros((3, 1), np.float32), None, False)
    assert np.isfinite(alone.log_odds).all()


def test_only_a_sigmoid_that_was_trained_with_a_bias_gets_it(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "conceptclip.h5", matrix=True)) as database:
        assert database.logit_bias == -11.1
        assert zero_shot(database).bias == zero_shot(database, rule=None).bias == 0
        siglip = {name: value for name, value in database.attributes.items() if not name.startswith("concept_logit")}
        object.__setattr__(database, "attributes", siglip)
        assert zero_shot(database, rule=None, multilabel=False).bias == 0
        biased = zero_shot(database, rule=None)
        assert biased.bias == -11.1
        cosines = scores.image_cosines(database, database.label_features())
        np.testing.assert_allclose(biased.log_odds, np.exp(4.5) * cosines - 11.1, rtol=0, atol=1e-4)


def test_an_empty_split_has_no_scores(tmp_path: Path) -> None:
    with open_database(write_database(tmp_path / "empty.h5", {"train": 0, "val": 0})) as database:
        assert zero_shot(database, split="val").scores.shape == (0, 3)
        assert scores.concept_scores(database, split="val").shape == (0, 2)


def test_a_template_without_words_is_named(database: Database) -> None:
    with pytest.raises(DatabaseError, match=r"free_text holds 2 prompts for 3 words"):
        scores.local_features(database, kind="label", templates=["free_text"])
    with pytest.raises(DatabaseError, match=r"no templates \['nothing'\]"):
        scores.local_features(database, templates=["nothing"])
    with pytest.raises(DatabaseError, match=r"no concept words \['nothing'\]"):
        scores.local_features(database, ["nothing"])


def test_a_word_that_is_glued_to_its_prompt_has_no_authors_positions(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    template = TemplateContent(
        texts=["many platelets"],
        text_features=scores.normalise(rng.standard_normal((1, 4))),
        text_token_features=rng.standard_normal((1, 5, 4)).astype(np.float32),
        input_ids=np.array([[2, 9, 8, 3, 0]], np.int32),
        attention_mask=np.array([[1, 1, 1, 1, 0]], np.uint8),
        subject_span=np.array([[2, 3]], np.int32),
    )
    content = FileContent("template-part", 4, 0, None, {"label_prompts_t01": template}, {"label_texts": ["platelet"]})
    with new_file(tmp_path / "part.h5", content):
        pass
    with open_database(tmp_path / "part.h5") as database:
        assert scores.local_features(database, kind="label", rule="span").shape == (1, 4)
        with pytest.raises(DatabaseError, match="'platelet' is not a separate word in 'many platelets'"):
            scores.local_features(database, kind="label", rule="authors")


# --- cosines -----------------------------------------------------------------------------------------


def test_concept_scores_are_cosines_ensembled_over_templates_and_synonyms(database: Database) -> None:
    cosines = scores.concept_scores(database)
    images = database.image_features.astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    templates = [t.text_features for name, t in database.templates.items() if name.startswith("concept")]
    # The rows of a concept template here: "round nucleus", its synonym, "granules".
    nucleus = np.mean([features[:2].mean(axis=0) for features in templates], axis=0)
    granules = np.mean([features[2] for features in templates], axis=0)
    expected = images @ np.stack([nucleus / np.linalg.norm(nucleus), granules / np.linalg.norm(granules)]).T
    assert cosines.dtype == np.float32
    np.testing.assert_allclose(cosines, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(
        scores.concept_scores(database, ["granules"], split="val"), expected[9:14, 1:], atol=1e-6
    )


def test_patch_scores_are_the_cosines_of_patches_with_the_words_own_tokens(database: Database) -> None:
    maps = scores.patch_scores(database, [-1, 4, 4])
    assert maps.shape == (3, 2, 4)
    pooled = []
    for name, template in database.templates.items():
        if name.startswith("concept"):
            spans = template.subject_span
            pooled.append([template.text_token_features[k, slice(*spans[k])].mean(axis=0) for k in range(3)])
    granules = np.mean(pooled, axis=0)[2]
    patches = database.image_token_features[19].astype(np.float64)
    expected = patches @ granules / np.linalg.norm(patches, axis=1) / np.linalg.norm(granules)
    np.testing.assert_allclose(maps[0, 1], expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(maps[1], maps[2])


def test_the_top_mean_takes_the_highest_patches_of_each_word() -> None:
    cosines = np.array([[[1, 8], [4, 2], [3, 6]]], np.float32)
    assert top_mean(cosines, 2).tolist() == [[3.5, 7.0]]
    assert top_mean(cosines, 9).tolist() == [[pytest.approx(8 / 3), pytest.approx(16 / 3)]]


def test_patches_are_never_all_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = write_database(tmp_path / "large.h5", {"train": 1500}, dim=64, tokens=256)
    with open_database(path) as database:
        tokens = database.image_token_features
        assert tokens is not None
        zero_shot(database, rule="span", split="train")  # imports are not counted
        tracemalloc.start()
        zero_shot(database, rule="span")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < tokens.nbytes / 2
