"""Dual encoders of transformers: tiny CLIP and SigLIP models, saved as the library saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    BertConfig,
    BertModel,
)

from ccassets.database.token_geometry import TokenGeometry, no_map_reason, token_geometry
from ccassets.encoders import encoder_files, inspect_encoder, load_encoder, load_tokenizer, token_spans
from ccassets.errors import EncoderError, StorageError
from ccassets_tests.encoders.conftest import TEXT_TOWER, MakeStudy, images
from ccassets_tests.made_studies import write_study
from ccassets_tests.tools.doctor_lines import doctor_lines

PROMPTS = ["a photo of a platelet", "red blood cell"]


@pytest.mark.parametrize(("name", "dim"), [("clip", 24), ("siglip", 32)])
def test_features_are_the_librarys_own_and_share_a_space_with_the_tokens(
    request: pytest.FixtureRequest, make_study: MakeStudy, name: str, dim: int
) -> None:
    folder: Path = request.getfixturevalue(name)
    study = make_study(kind="transformers", weights=str(folder))
    encoder = load_encoder(study, device="cpu")
    model = AutoModel.from_pretrained(folder).eval()

    result, text = encoder.encode_images(images(3)), encoder.encode_texts(PROMPTS)

    assert encoder.card == inspect_encoder(study)
    assert (encoder.card.dim, encoder.card.token_count, encoder.card.image_size) == (dim, 16, 32)
    assert result.tokens is not None
    assert text.tokens is not None
    assert result.tokens.shape == (3, 16, dim)
    assert text.tokens.shape == (2, 12, dim)
    pixels = torch.from_numpy(np.stack([encoder.preprocess(image) for image in images(3)]))
    mask = {"attention_mask": torch.from_numpy(text.attention_mask).long()} if name == "clip" else {}
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=torch.from_numpy(text.input_ids).long(), **mask)
    np.testing.assert_allclose(result.features, output.image_embeds, atol=1e-6)
    np.testing.assert_allclose(text.features, output.text_embeds, atol=1e-6)


def test_clip_tokens_are_normed_and_projected_as_its_class_token_is(clip: Path, make_study: MakeStudy) -> None:
    encoder = load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")
    model = AutoModel.from_pretrained(clip).eval()
    pixels = np.stack([encoder.preprocess(image) for image in images(2)])

    with torch.no_grad():
        hidden = model.vision_model(torch.from_numpy(pixels)).last_hidden_state
        expected = model.visual_projection(model.vision_model.post_layernorm(hidden))

    tokens = encoder.encode_pixels(pixels).tokens
    np.testing.assert_allclose(tokens, expected[:, 1:], atol=1e-5)  # type: ignore[arg-type]


def test_text_has_ids_mask_and_offsets_up_to_the_tokenizers_own_limit(clip: Path, make_study: MakeStudy) -> None:
    encoder = load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")
    start = PROMPTS[0].index("platelet")

    text = encoder.encode_texts(PROMPTS)

    assert text.input_ids.shape == (2, 12)
    np.testing.assert_array_equal(text.attention_mask, text.input_ids != 0)
    # [CLS] a photo of a plate ##let [SEP]
    assert token_spans(text.offsets, text.attention_mask, [(start, start + 8), (0, 0)]).tolist() == [[5, 7], [0, 0]]
    with pytest.raises(EncoderError, match="13 tokens: 'cell cell"):
        encoder.encode_texts([" ".join(["cell"] * 11)])


def test_the_models_own_scale_and_bias_are_on_the_card(clip: Path, siglip: Path, make_study: MakeStudy) -> None:
    card = inspect_encoder(make_study(kind="transformers", weights=str(siglip)))
    assert (card.logit_scale, card.logit_bias, card.concept_logit_scale) == (4.5, -11.0, None)
    card = inspect_encoder(make_study(kind="transformers", weights=str(clip)))
    assert card.logit_bias is None
    assert card.logit_scale == pytest.approx(2.6592)


def test_without_tokens_there_are_only_features(clip: Path, make_study: MakeStudy) -> None:
    study = make_study(kind="transformers", weights=str(clip), tokens=False)
    encoder = load_encoder(study, device="cpu")

    assert encoder.card.token_count == 0
    assert encoder.encode_images(images(1)).tokens is None
    assert encoder.encode_texts(PROMPTS).tokens is None
    assert encoder.card.identity != inspect_encoder(make_study(kind="transformers", weights=str(clip))).identity


def test_lower_precision_keeps_patch_and_position_embedding(siglip: Path, make_study: MakeStudy) -> None:
    reference = load_encoder(make_study(kind="transformers", weights=str(siglip)), device="cpu")
    encoder: Any = load_encoder(make_study(kind="transformers", weights=str(siglip), dtype="bfloat16"), device="cpu")
    seen: list[torch.dtype] = []
    vision = encoder.towers.model.vision_model
    vision.embeddings.patch_embedding.register_forward_hook(lambda *call: seen.append(call[2].dtype))
    vision.encoder.layers[0].mlp.fc1.register_forward_hook(lambda *call: seen.append(call[2].dtype))

    result = encoder.encode_images(images(2))

    assert seen == [torch.float32, torch.bfloat16]
    np.testing.assert_allclose((result.features * reference.encode_images(images(2)).features).sum(1), 1, atol=5e-3)


def test_what_lies_beside_the_crop_changes_nothing_and_the_card_says_so(clip: Path, make_study: MakeStudy) -> None:
    encoder = load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")
    plain = Image.new("RGB", (192, 64), "white")
    with_object = plain.copy()
    with_object.paste("darkred", (0, 0, 60, 64))

    np.testing.assert_array_equal(encoder.preprocess(with_object), encoder.preprocess(plain))
    geometry = token_geometry(encoder.card.declared())
    assert geometry == TokenGeometry("crop", 32, 32)
    assert geometry.rectangle(192, 64) == (64, 0, 128, 64)
    assert "not trained to be compared with words" in str(no_map_reason(encoder.card.declared(), 16))


def test_the_doctor_says_how_much_a_crop_never_sees(clip: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        folder = tmp_path / "images" / split / "cell"
        folder.mkdir(parents=True)
        Image.new("RGB", (192, 64), "white").save(folder / "wide.png")
    section = {"kind": "transformers", "weights": str(clip)}
    study = write_study(tmp_path / "wide", images=tmp_path / "images", encoder=section, splits=["train", "val"])

    messages = {diagnosis.what: diagnosis.message for diagnosis in doctor_lines(study)}
    assert messages["cropping"] == "the encoder crops: it never sees 67% of an average picture"


def test_words_that_the_vocabulary_lacks_are_named(clip: Path, make_study: MakeStudy) -> None:
    encoder = load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")
    with pytest.raises(EncoderError, match="'颗', '粒' in 'a cell with 颗粒'"):
        encoder.encode_texts(["a blood cell", "a cell with 颗粒"])


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_the_identity_knows_configuration_preprocessing_and_tokenizer(
    clip: Path, make_study: MakeStudy, file: str
) -> None:
    study = make_study(kind="transformers", weights=str(clip))
    before = inspect_encoder(study).identity
    (clip / file).write_text((clip / file).read_text() + "\n")

    assert inspect_encoder(study).identity != before


def test_the_identity_knows_the_preprocessing_that_the_library_takes(clip: Path, make_study: MakeStudy) -> None:
    """transformers takes a nested `image_processor` of processor_config.json before preprocessor_config.json."""
    study = make_study(kind="transformers", weights=str(clip))
    image = images(1)
    own = inspect_encoder(study).identity
    pixels = load_encoder(study, device="cpu").preprocess(image[0])
    settings = json.loads((clip / "preprocessor_config.json").read_text())
    nested = clip / "processor_config.json"

    for unused in ({"processor_class": "CLIPProcessor"}, {"image_processor": settings}):
        nested.write_text(json.dumps(unused))
        assert inspect_encoder(study).identity == own, unused

    identities = {own}
    for mean in ([0.5, 0.5, 0.5], [0.4, 0.5, 0.5]):
        nested.write_text(json.dumps({"image_processor": {**settings, "image_mean": mean}}))
        encoder = load_encoder(study, device="cpu")
        assert not np.array_equal(encoder.preprocess(image[0]), pixels)
        identities |= {encoder.card.identity, inspect_encoder(study).identity}
    assert len(identities) == 3

    (clip / "preprocessor_config.json").unlink()
    assert inspect_encoder(study).identity in identities - {own}
    nested.unlink()
    with pytest.raises(EncoderError, match="holds no image processor"):
        inspect_encoder(study)


def test_the_identity_knows_the_weights_that_the_library_takes(clip: Path, make_study: MakeStudy) -> None:
    """One file comes before the shards of an index, and a file that the configuration names before both."""
    study = make_study(kind="transformers", weights=str(clip))
    own = inspect_encoder(study)
    tensors = load_file(clip / "model.safetensors")
    tensors["visual_projection.weight"] += 1
    save_file(tensors, clip / "other.safetensors", metadata={"format": "pt"})
    index = {"weight_map": dict.fromkeys(tensors, "other.safetensors")}
    (clip / "model.safetensors.index.json").write_text(json.dumps(index))
    expected = load_encoder(study, device="cpu").encode_images(images(1)).features
    assert inspect_encoder(study).identity == own.identity

    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    assert not np.array_equal(load_encoder(study, device="cpu").encode_images(images(1)).features, expected)
    assert inspect_encoder(study).weights_digest != own.weights_digest
    assert "other.safetensors" in encoder_files(study)


@pytest.mark.parametrize("version", ["tokenizer.json", "tokenizer.5.0.0.json"])
def test_the_identity_knows_every_file_that_makes_the_tokenizer(
    clip: Path, make_study: MakeStudy, version: str
) -> None:
    """Other files of the folder, as a tokenizer for another release of the library, count where they are read."""
    study = make_study(kind="transformers", weights=str(clip))
    own = inspect_encoder(study).identity
    other = json.loads((clip / "tokenizer.json").read_text())
    other["normalizer"]["lowercase"] = False
    (clip / "tokenizer.5.0.0.json").write_text(json.dumps(other))
    (clip / "README.md").write_text("A model.")
    assert inspect_encoder(study).identity == own

    config = json.loads((clip / "tokenizer_config.json").read_text())
    (clip / "tokenizer_config.json").write_text(json.dumps({**config, "fast_tokenizer_files": [version]}))
    before = inspect_encoder(study).identity
    files = encoder_files(study)
    (clip / "README.md").write_text("A good model.")
    assert inspect_encoder(study).identity == before

    other["normalizer"]["strip_accents"] = True
    (clip / "tokenizer.5.0.0.json").write_text(json.dumps(other))

    is_read = version == "tokenizer.5.0.0.json"
    assert (inspect_encoder(study).identity != before) == is_read
    assert ("tokenizer.5.0.0.json" in files) == is_read
    assert "README.md" not in files


@pytest.mark.parametrize(
    "name", ["config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"]
)
def test_a_disk_that_fails_is_no_fault_of_the_model(clip: Path, make_study: MakeStudy, name: str) -> None:
    """The kernel refuses to read the first byte of /proc/self/mem: Input/output error."""
    (clip / name).unlink(missing_ok=True)
    (clip / name).symlink_to("/proc/self/mem")
    for use in (inspect_encoder, load_encoder):
        with pytest.raises(StorageError, match="cannot be read: Input/output error") as caught:
            use(make_study(kind="transformers", weights=str(clip)))
        assert caught.value.transient


def test_a_disk_that_fails_is_no_fault_of_the_tokenizer(clip: Path, make_study: MakeStudy) -> None:
    (clip / "tokenizer.json").unlink()
    (clip / "tokenizer.json").symlink_to("/proc/self/mem")
    for use in (load_tokenizer, load_encoder):
        with pytest.raises(StorageError, match="cannot be read: Input/output error"):
            use(make_study(kind="transformers", weights=str(clip)))


def test_a_tokenizer_that_is_none_is_an_error_not_a_traceback(clip: Path, make_study: MakeStudy) -> None:
    (clip / "tokenizer.json").write_text("{")
    with pytest.raises(EncoderError, match="transformers cannot use clip"):
        load_encoder(make_study(kind="transformers", weights=str(clip)))


def test_tensors_that_do_not_fit_are_all_named(clip: Path, make_study: MakeStudy) -> None:
    tensors = load_file(clip / "model.safetensors")
    tensors["surplus"] = torch.zeros(1)
    del tensors["visual_projection.weight"], tensors["text_model.final_layer_norm.bias"]
    save_file(tensors, clip / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(EncoderError) as caught:
        load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")

    assert str(caught.value).splitlines()[1:] == [
        "missing: text_model.final_layer_norm.bias",
        "missing: visual_projection.weight",
        "unexpected: surplus",
    ]


# --- checkpoints as people have them -----------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
def test_pickled_weights_and_names_behind_a_wrapper_give_the_same_features(
    clip: Path, make_study: MakeStudy, prefix: str, file: str
) -> None:
    study = make_study(kind="transformers", weights=str(clip))
    expected = load_encoder(study, device="cpu")
    tensors = {prefix + name: tensor for name, tensor in load_file(clip / "model.safetensors").items()}
    (clip / "model.safetensors").unlink()
    if file.endswith(".bin"):
        torch.save(tensors, clip / file)
    else:
        save_file(tensors, clip / file, metadata={"format": "pt"})

    encoder = load_encoder(study, device="cpu")

    np.testing.assert_array_equal(encoder.encode_images(images(2)).features, expected.encode_images(images(2)).features)
    assert encoder.card.logit_scale == expected.card.logit_scale
    assert encoder.card.recorded == expected.card.recorded
    assert file in encoder_files(study)


def test_a_pickled_file_that_would_run_code_is_refused(clip: Path, make_study: MakeStudy) -> None:
    (clip / "model.safetensors").unlink()
    torch.save({"logit_scale": torch.ones(()), "hook": Path("anything")}, clip / "pytorch_model.bin")
    for use in (inspect_encoder, load_encoder):
        with pytest.raises(EncoderError, match=r"pytorch_model\.bin holds more than tensors, and reading it would run"):
            use(make_study(kind="transformers", weights=str(clip)))
    (clip / "pytorch_model.bin").write_bytes(b"no checkpoint")
    with pytest.raises(EncoderError, match=r"pytorch_model\.bin (holds more than tensors|is not a whole checkpoint)"):
        inspect_encoder(make_study(kind="transformers", weights=str(clip)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_with_nan_are_refused(clip: Path, make_study: MakeStudy, value: float) -> None:
    tensors = load_file(clip / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] = value
    save_file(tensors, clip / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        EncoderError, match=r"hold NaN or infinity in 1 tensors, the first is visual_projection\.weight"
    ):
        load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")


@pytest.fixture
def published_siglip(siglip: Path) -> Path:
    """SigLIP with the tokenizer of its repositories: a vocabulary of SentencePiece, and a slow class."""
    from sentencepiece import SentencePieceTrainer

    for name in ("tokenizer.json", "tokenizer_config.json"):
        (siglip / name).unlink()
    words = ["a photo of a platelet", "red blood cell", "segmented nucleus with fine granules", "(round), pale."] * 5
    SentencePieceTrainer.train(
        sentence_iterator=iter(words), model_prefix=str(siglip / "spiece"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    settings = {"tokenizer_class": "SiglipTokenizer", "do_lower_case": True, "model_max_length": 16}
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "model_input_names": ["input_ids"]}
    (siglip / "tokenizer_config.json").write_text(json.dumps({**settings, **special, "sp_model_kwargs": {}}))
    return siglip


def test_siglip_loads_with_its_own_tokenizer(published_siglip: Path, make_study: MakeStudy) -> None:
    study = make_study(kind="transformers", weights=str(published_siglip))
    prompts = ["A Platelet", "Red, (pale)."]
    encoder = load_encoder(study, device="cpu")
    model, tokenizer = (
        AutoModel.from_pretrained(published_siglip).eval(),
        AutoTokenizer.from_pretrained(published_siglip),
    )

    text = encoder.encode_texts(prompts)

    inputs = tokenizer(prompts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        expected = model.get_text_features(**inputs).pooler_output
    np.testing.assert_array_equal(text.input_ids, inputs["input_ids"])
    np.testing.assert_allclose(text.features, torch.nn.functional.normalize(expected), atol=1e-6)
    assert "spiece.model" in encoder_files(study)
    assert "lower_case" not in encoder.card.architecture
    for row, (prompt, word) in enumerate(zip(prompts, ("Platelet", "pale"), strict=True)):
        start = prompt.index(word)
        spans = token_spans(text.offsets[[row]], text.attention_mask[[row]], [(start, start + len(word))])
        first, last = spans[0]
        assert (text.offsets[row, first, 0], text.offsets[row, last - 1, 1]) == (start, start + len(word))
    with pytest.raises(EncoderError, match="'颗粒' in 'a 颗粒'"):
        encoder.encode_texts(["a 颗粒"])


def test_a_tokenizer_that_ignores_do_lower_case_gets_lowered_prompts(clip: Path, make_study: MakeStudy) -> None:
    study = make_study(kind="transformers", weights=str(clip))
    own = inspect_encoder(study)
    file, settings = clip / "tokenizer.json", clip / "tokenizer_config.json"
    lowering = file.read_text()
    assert "lower_case" not in own.architecture

    file.write_text(lowering.replace('"lowercase": true', '"lowercase": false'))
    with pytest.raises(EncoderError, match="'Red', 'Blood' in 'a Red Blood cell'"):
        load_tokenizer(study)(["a Red Blood cell"])  # type: ignore[misc]

    settings.write_text(json.dumps({**json.loads(settings.read_text()), "do_lower_case": True}))
    tokens = load_tokenizer(study)(["a Red Blood cell", "a red blood cell"])  # type: ignore[misc]
    np.testing.assert_array_equal(tokens.input_ids[0], tokens.input_ids[1])
    assert inspect_encoder(study).architecture["lower_case"] is True

    file.write_text(lowering)
    assert "lower_case" not in inspect_encoder(study).architecture


def test_a_model_of_one_modality_is_refused(tmp_path: Path, make_study: MakeStudy) -> None:
    BertModel(BertConfig(**TEXT_TOWER)).save_pretrained(tmp_path / "bert")

    with pytest.raises(EncoderError, match="bert: expected a dual encoder of images and texts, found a bert"):
        inspect_encoder(make_study(kind="transformers", weights=str(tmp_path / "bert")))


def test_remote_code_is_never_run(clip: Path, make_study: MakeStudy, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((clip / "config.json").read_text())
    config |= {"model_type": "their-own", "auto_map": {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}}
    (clip / "config.json").write_text(json.dumps(config))
    (clip / "theirs.py").write_text("print('their code ran')")

    with pytest.raises(EncoderError, match="transformers cannot use clip"):
        load_encoder(make_study(kind="transformers", weights=str(clip)), device="cpu")
    assert "their code ran" not in capsys.readouterr().out


def test_a_missing_configuration_is_an_error_not_a_traceback(tmp_path: Path, make_study: MakeStudy) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(EncoderError, match="transformers cannot use empty"):
        inspect_encoder(make_study(kind="transformers", weights=str(tmp_path / "empty")))
