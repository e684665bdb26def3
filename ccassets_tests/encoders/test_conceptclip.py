"""The ConceptCLIP encoder from a study: card, identity, images, texts, random weights, the phantom."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ccassets.encoders import EncoderCard, inspect_encoder, load_encoder, token_spans
from ccassets.errors import EncoderError
from ccassets.files import DIGEST_CACHE
from ccassets.study.loading import load_study
from ccassets_tests.encoders.conftest import GOLDEN, MakeStudy, images


def test_card_and_encoder_agree_and_survive_json(make_study: MakeStudy, weights_folder: Path) -> None:
    study = make_study(weights=str(weights_folder))
    card = inspect_encoder(study)

    assert load_encoder(study, device="cpu").card == card
    assert EncoderCard.from_json(card.to_json()) == card
    assert (card.dim, card.token_count, card.image_size, card.text_pooling) == (64, 16, 56, "mean")
    assert card.logit_scale == np.load(GOLDEN / "tiny_a_io.npz")["logit_scale"]
    assert card.recorded == {"parameters": 194_148, "weights": "weights", "commit": None}
    assert str(weights_folder.parent) not in card.to_json()


def test_the_card_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from ccassets import load_study; from ccassets.encoders import inspect_encoder;"
        "inspect_encoder(load_study('demo'));"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_images_of_any_shape_become_unit_features_and_tokens(make_study: MakeStudy, weights_folder: Path) -> None:
    encoder = load_encoder(make_study(weights=str(weights_folder)), device="cpu")
    result = encoder.encode_images(images(3))

    assert result.features.shape == (3, 64)
    assert result.tokens is not None
    assert result.tokens.shape == (3, 16, 64)
    np.testing.assert_allclose(np.linalg.norm(result.features, axis=1), 1, atol=1e-6)
    again = encoder.encode_pixels(np.stack([encoder.preprocess(image) for image in images(3)]))
    np.testing.assert_array_equal(again.features, result.features)
    np.testing.assert_array_equal(again.tokens, result.tokens)


@pytest.mark.parametrize("shape", [(1, 3, 57, 57), (1, 3, 60, 56), (3, 56, 56)])
def test_pixels_of_another_size_are_refused(
    make_study: MakeStudy, weights_folder: Path, shape: tuple[int, ...]
) -> None:
    encoder = load_encoder(make_study(weights=str(weights_folder)), device="cpu")

    with pytest.raises(EncoderError, match=r"Expected pixels \(B, 3, 56, 56\) float32"):
        encoder.encode_pixels(np.zeros(shape, np.float32))


def test_without_tokens_there_are_none(make_study: MakeStudy, weights_folder: Path) -> None:
    encoder = load_encoder(make_study(weights=str(weights_folder), tokens=False), device="cpu")

    assert encoder.card.token_count == 0
    assert encoder.encode_images(images(1)).tokens is None


def test_a_prompt_has_the_same_bits_whatever_follows_it_in_other_batches(
    make_study: MakeStudy, weights_folder: Path
) -> None:
    encoder = load_encoder(make_study(weights=str(weights_folder)), device="cpu")
    prompts = [f"a photo of a cell {'abcdefgh'[number % 8] * (number // 8 + 1)}" for number in range(40)]

    whole, first = encoder.encode_texts(prompts), encoder.encode_texts(prompts[:32])

    assert whole.features.shape == (40, 64)
    np.testing.assert_array_equal(whole.features[:32], first.features)
    np.testing.assert_array_equal(whole.tokens[:32], first.tokens)  # type: ignore[index]


def test_token_ids_are_the_goldens_and_the_span_is_the_inserted_name(
    make_study: MakeStudy, weights_folder: Path
) -> None:
    golden = np.load(GOLDEN / "tiny_a_scores.npz")
    encoder = load_encoder(make_study(weights=str(weights_folder)), device="cpu")
    for column, template in enumerate(golden["zs_templates"]):
        prompts = [str(prompt) for prompt in golden["zs_prompts"][:, column]]
        start = str(template).index("{}")
        subjects = [(start, start + len(str(name))) for name in golden["zs_classes"]]

        text = encoder.encode_texts(prompts)

        np.testing.assert_array_equal(text.input_ids, golden["zs_input_ids"][:, column])
        np.testing.assert_array_equal(text.attention_mask, golden["zs_input_ids"][:, column] != 0)
        np.testing.assert_array_equal(
            token_spans(text.offsets, text.attention_mask, subjects), golden["zs_subject_span"][:, column]
        )


# --- identity ----------------------------------------------------------------------------------------


def test_the_identity_is_blind_to_names_batches_and_paths(
    make_study: MakeStudy, weights_folder: Path, tmp_path: Path
) -> None:
    identity = inspect_encoder(make_study(weights=str(weights_folder))).identity
    moved = shutil.copytree(weights_folder, tmp_path / "moved")
    (moved / "model.safetensors").rename(moved / "anything.safetensors")

    others = [
        make_study("another", weights=str(weights_folder)),
        make_study(weights=str(moved)),
        make_study(weights=str(weights_folder), extraction={"batch_size": 2, "rows_per_shard": 4}),
    ]
    assert {inspect_encoder(study).identity for study in others} == {identity}


def test_the_identity_changes_with_everything_that_determines_numbers(
    make_study: MakeStudy, weights_folder: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    weights = str(weights_folder)
    other = shutil.copytree(weights_folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["visual.trunk.norm.bias"][0] += 1e-3
    save_file(tensors, other / "model.safetensors")
    words = shutil.copytree(weights_folder, tmp_path / "words")
    (words / "vocab.txt").write_text((words / "vocab.txt").read_text().replace("smear", "smears"))
    longer = tmp_path / "longer.json"
    longer.write_text(json.dumps({**config, "context_length": 80}))

    studies = [
        make_study(weights=weights),
        make_study(weights=weights, dtype="bfloat16"),
        make_study(weights=weights, tokens=False),
        make_study(weights=str(other)),
        make_study(weights=str(words)),
        make_study(weights=weights, architecture=str(longer)),
        make_study(weights=weights, extraction={"strict": True}),
        make_study(weights=weights, extraction={"strict": True, "batch_size": 32}),
    ]
    identities = [inspect_encoder(study, device="cpu").identity for study in studies]

    assert len(set(identities)) == len(studies)


def test_a_raised_extraction_version_is_another_identity(make_study: MakeStudy, weights_folder: Path) -> None:
    card = inspect_encoder(make_study(weights=str(weights_folder)))

    assert replace(card, extraction_version=card.extraction_version + 1).identity != card.identity
    assert replace(card, recorded={"anything": 1}).identity == card.identity


def test_a_strict_study_names_batch_device_and_versions(make_study: MakeStudy, weights_folder: Path) -> None:
    study = make_study(weights=str(weights_folder), extraction={"strict": True})
    strict = inspect_encoder(study, device="cpu").strict

    assert strict is not None
    assert strict["batch_size"] == 64
    assert strict["device"] == "cpu"
    assert torch.__version__.startswith(strict["torch"])
    assert set(strict) == {"batch_size", "device", "torch", "transformers", "tokenizers", "pillow", "numpy"}


def test_digests_are_remembered_by_fingerprint_without_telling_paths(
    make_study: MakeStudy, weights_folder: Path, tmp_path: Path
) -> None:
    study, cache = make_study(weights=str(weights_folder)), tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    card = inspect_encoder(study, cache=cache, progress=lambda done, total: seen.append((done, total)))
    stored = (cache / DIGEST_CACHE).read_text()

    assert seen[-1] == ((weights_folder / "model.safetensors").stat().st_size,) * 2
    assert str(tmp_path) not in stored
    (cache / DIGEST_CACHE).write_text(stored.replace(card.weights_digest, "0" * 64))
    assert inspect_encoder(study, cache=cache) == card, "a damaged entry is not believed"
    # Poisoned, in the form of older code, the cache shows that it is read, and that a changed file is hashed again.
    older = {key: entry.split()[0].replace(card.weights_digest, "0" * 64) for key, entry in json.loads(stored).items()}
    (cache / DIGEST_CACHE).write_text(json.dumps(older))
    assert inspect_encoder(study, cache=cache).weights_digest == "0" * 64
    (weights_folder / "model.safetensors").touch()
    assert inspect_encoder(study, cache=cache) == card
    (cache / DIGEST_CACHE).write_text("not json")
    assert inspect_encoder(study, cache=cache) == card


# --- random weights, precision, devices --------------------------------------------------------------


def test_random_weights_are_the_seeds_and_leave_torch_alone(make_study: MakeStudy, weights_folder: Path) -> None:
    def study(seed: int) -> Any:
        architecture = str(weights_folder / "architecture.json")
        return make_study(weights="random", seed=seed, architecture=architecture, tokenizer=str(weights_folder))

    before = torch.get_rng_state()
    first, again, other = (load_encoder(study(seed), device="cpu") for seed in (0, 0, 1))

    assert torch.equal(torch.get_rng_state(), before)
    assert first.card.weights_digest == "random:0"
    assert first.card.recorded["weights"] == "random, seed 0"
    assert len({first.card.identity, again.card.identity, other.card.identity}) == 2
    given = [encoder.encode_images(images(2)).features for encoder in (first, again, other)]
    np.testing.assert_array_equal(given[0], given[1])
    assert np.abs(given[0] - given[2]).max() > 0.01
    assert inspect_encoder(study(0)) == first.card


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_stays_near_the_reference(make_study: MakeStudy, weights_folder: Path, dtype: str) -> None:
    reference = load_encoder(make_study(weights=str(weights_folder)), device="cpu")
    encoder = load_encoder(make_study(weights=str(weights_folder), dtype=dtype), device="cpu")

    result, expected = encoder.encode_images(images(2)), reference.encode_images(images(2))

    assert encoder.card.dtype == dtype
    assert result.features.dtype == np.float32
    assert not np.array_equal(result.features, expected.features)
    np.testing.assert_allclose((result.features * expected.features).sum(1), 1, atol=5e-3)
    texts = ["a photo of a red blood cell"]
    cosine = encoder.encode_texts(texts).features @ reference.encode_texts(texts).features.T
    np.testing.assert_allclose(cosine, 1, atol=5e-3)


def test_patch_and_position_embedding_stay_float32_under_lower_precision(
    make_study: MakeStudy, weights_folder: Path
) -> None:
    encoder: Any = load_encoder(make_study(weights=str(weights_folder), dtype="bfloat16"), device="cpu")
    seen: list[torch.dtype] = []
    vision = encoder.model.vision
    vision.embeddings.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    vision.embeddings.patch_embedding.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    vision.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2].dtype))

    encoder.encode_images(images(1))

    assert seen == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("device", ["cuda:99", "no such device", "meta"])
def test_a_device_that_is_not_there_is_an_error(make_study: MakeStudy, weights_folder: Path, device: str) -> None:
    with pytest.raises(EncoderError, match=device):
        load_encoder(make_study(weights=str(weights_folder)), device=device)


# --- the phantom -------------------------------------------------------------------------------------


def test_the_phantom_reads_every_prompt_of_the_shipped_studies_without_unknown_tokens() -> None:
    encoder = load_encoder(load_study("demo"), device="cpu")
    unknown = 1
    for name in ("demo", "bloodmnist"):
        for template in load_study(name).vocabulary.templates().values():
            text = encoder.encode_texts(template.prompts)
            assert unknown not in text.input_ids
            spans = token_spans(text.offsets, text.attention_mask, template.subjects)
            with_word = [end > 0 for _, end in template.subjects]
            assert (spans[with_word, 1] > spans[with_word, 0]).all()


def test_the_phantom_is_small_and_says_what_it_is() -> None:
    card = inspect_encoder(load_study("demo"))

    assert (card.kind, card.dim, card.token_count, card.image_size) == ("phantom", 96, 144, 96)
    assert card.recorded["parameters"] * 4 < 6_000_000
    assert load_encoder(load_study("demo"), device="cpu").encode_images(images(2)).features.shape == (2, 96)
