"""Dual encoders of open_clip: small random models of six architectures, saved as their repositories hold them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip.transform import PreprocessCfg, image_transform_v2
from safetensors.torch import save_file
from tokenizers.implementations import BertWordPieceTokenizer
from transformers import BertConfig, PreTrainedTokenizerFast

import ccassets
from ccassets.database.token_geometry import TokenGeometry, token_geometry
from ccassets.encoders import encoder_files, inspect_encoder, load_encoder, load_tokenizer, token_spans
from ccassets.encoders.presets import load_presets
from ccassets.errors import EncoderError
from ccassets.study.loading import load_study
from ccassets.study.schema import OpenClipConfig
from ccassets.tools.new_study import write_folder_study
from ccassets.tools.offline_bundle import write_bundle
from ccassets_tests.encoders.conftest import GOLDEN, MakeStudy, images
from ccassets_tests.made_studies import write_study
from ccassets_tests.tools.doctor_lines import doctor_lines
from ccassets_tests.tools.test_offline_bundle import run

BERT = "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"
PROMPTS = ["A photo of a Platelet", "red blood cell, with a round nucleus."]
STATISTICS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash"}

VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
BERT_TEXT = {
    "hf_model_name": BERT,
    "hf_tokenizer_name": BERT,
    "hf_proj_type": "mlp",
    "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": 40,
}
SIGLIP_TEXT = {
    **TEXT,
    "width": 64,
    "tokenizer_kwargs": {"clean": "canonicalize"},
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
}


def timm_tower(name: str, **settings: Any) -> dict[str, Any]:
    return {"timm_model_name": name, "timm_model_pretrained": False, **settings}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "ViT": {"embed_dim": 24, "vision_cfg": VIT, "text_cfg": TEXT},
    "ViT, quick GELU": {"embed_dim": 24, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "timm ViT with BERT, as BiomedCLIP": {
        "embed_dim": 24,
        "vision_cfg": timm_tower("test_vit", timm_pool="", timm_proj="linear", image_size=160),
        "text_cfg": BERT_TEXT,
    },
    "SigLIP": {
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": timm_tower("test_vit", timm_pool="map", timm_proj="none", image_size=160),
        "text_cfg": SIGLIP_TEXT,
    },
    "ConvNeXt": {
        "embed_dim": 24,
        "vision_cfg": timm_tower("test_convnext", timm_pool="", timm_proj="linear", image_size=160),
        "text_cfg": TEXT,
    },
    "EVA02": {
        "embed_dim": 24,
        "custom_text": True,
        "vision_cfg": timm_tower("eva02_tiny_patch14_224", timm_pool="token", timm_proj=None, image_size=224),
        "text_cfg": TEXT,
    },
}


def save_bert(folder: Path, **sizes: int) -> Path:
    """The configuration and tokenizer of a BERT, as its repository holds them; weights are not needed."""
    vocabulary = json.loads((GOLDEN / "tiny_a.json").read_text())["text"]["vocab"]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, pad_token_id=0, **sizes).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)._tokenizer,
        **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")},
    ).save_pretrained(folder)
    return folder


def save_open_clip(folder: Path, model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], suffix: str) -> Path:
    """A model folder with random weights, and beside it the BERT that the configuration names."""
    folder.mkdir(parents=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    if "hf_model_name" in model_cfg["text_cfg"]:
        bert = save_bert(
            folder.parent / BERT.rpartition("/")[2], hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=48,
        )  # fmt: skip
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(bert / name, folder)
    torch.manual_seed(0)
    state = library_model(folder, load_weights=False).state_dict()
    if suffix == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")
    return folder


def library_model(folder: Path, load_weights: bool = True) -> Any:
    """The model as open_clip itself makes it of a folder, told where the text tower's configuration lies."""
    text_cfg = deepcopy(json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"])
    if "hf_model_name" in text_cfg:
        text_cfg |= {"hf_model_name": str(folder.parent / BERT.rpartition("/")[2]), "hf_model_pretrained": False}
    return open_clip.create_model(
        f"local-dir:{folder}", load_weights=load_weights, pretrained_text=False, text_cfg=text_cfg
    ).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model folder of every architecture; two of them are pickled, as BiomedCLIP is."""
    made = {}
    for number, (name, model_cfg) in enumerate(ARCHITECTURES.items()):
        folder = tmp_path_factory.mktemp(f"models{number}") / "model"
        suffix = "bin" if "BiomedCLIP" in name or name == "ViT" else "safetensors"
        made[name] = save_open_clip(folder, model_cfg, HALF if name == "SigLIP" else STATISTICS, suffix)
    return made


@pytest.fixture
def biomedclip(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the model as BiomedCLIP, with the BERT that it names beside it, to be changed."""
    source = folders["timm ViT with BERT, as BiomedCLIP"]
    for folder in (source, source.parent / BERT.rpartition("/")[2]):
        shutil.copytree(folder, tmp_path / folder.name)
    return tmp_path / "model"


def test_the_table_of_the_page_lists_these_architectures() -> None:
    page = (Path(__file__).parents[2] / "docs" / "encoders.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `open_clip` \| (.*?) \| ([\d.e-]+) \| ([\d.e-]+) \|$", page, re.MULTILINE)
    assert [row[0] for row in rows] == list(ARCHITECTURES)
    assert max(float(difference) for row in rows for difference in row[1:]) <= 1e-6


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_features_are_the_librarys_own(folders: dict[str, Path], make_study: MakeStudy, name: str) -> None:
    folder, with_tokens = folders[name], name != "ConvNeXt"
    study = make_study(kind="open_clip", weights=str(folder), tokens=with_tokens)
    encoder = load_encoder(study, device="cpu")
    model = library_model(folder)
    transform = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    result, text = encoder.encode_images(images(3)), encoder.encode_texts(PROMPTS)

    with torch.no_grad():
        image_features = model.encode_image(torch.stack([transform(image) for image in images(3)]), normalize=True)
        text_features = model.encode_text(tokenizer(PROMPTS), normalize=True)
    np.testing.assert_array_equal(text.input_ids, tokenizer(PROMPTS))
    np.testing.assert_allclose(result.features, image_features, atol=1e-6)
    np.testing.assert_allclose(text.features, text_features, atol=1e-6)
    assert encoder.card == inspect_encoder(study)
    assert encoder.card.logit_scale == pytest.approx(model.logit_scale.item())
    assert encoder.card.logit_bias == (-10.0 if name == "SigLIP" else None)
    assert encoder.card.recorded["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (result.tokens is not None) == (text.tokens is not None) == with_tokens


def test_tokens_share_a_space_with_the_features(folders: dict[str, Path], make_study: MakeStudy) -> None:
    for name, count in (("ViT", 16), ("EVA02", 256), ("timm ViT with BERT, as BiomedCLIP", 100), ("SigLIP", 100)):
        encoder: Any = load_encoder(make_study(kind="open_clip", weights=str(folders[name])), device="cpu")
        pixels = np.stack([encoder.preprocess(image) for image in images(2)])
        tokens = encoder.encode_pixels(pixels).tokens
        assert tokens.shape == (2, count, encoder.card.dim), name

        visual = encoder.towers.model.visual
        with torch.no_grad():
            if name == "ViT":
                hidden = visual.transformer(visual._embeds(torch.from_numpy(pixels)))
                expected = (visual.ln_post(hidden) @ visual.proj)[:, 1:]
            else:
                hidden = visual.trunk.forward_features(torch.from_numpy(pixels))
                expected = visual.head(visual.trunk.head(visual.trunk.fc_norm(hidden)))[
                    :, visual.trunk.num_prefix_tokens :
                ]
        np.testing.assert_allclose(tokens, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ViT", "SigLIP", "timm ViT with BERT, as BiomedCLIP"])
def test_offsets_are_those_of_the_prompt_before_it_was_cleaned(
    folders: dict[str, Path], make_study: MakeStudy, name: str
) -> None:
    tokenize = load_tokenizer(make_study(kind="open_clip", weights=str(folders[name])))
    assert tokenize is not None
    prompts = ["A  photo of a Platelet", "red_blood cell: a “round” nucleus &amp; more"]
    words = [
        (prompts[0].index("Platelet"), len(prompts[0])),
        (prompts[1].index("round"), prompts[1].index("round") + 5),
    ]

    tokens = tokenize(prompts[:1] if "BERT" in name else prompts)

    for (start, end), row, mask in zip(words, tokens.offsets, tokens.attention_mask, strict=False):
        [[first, last]] = token_spans(row[None], mask[None], [(start, end)])
        assert (row[first, 0], row[last - 1, 1]) == (start, end)
    assert (tokens.offsets[tokens.attention_mask == 0] == 0).all()


def test_a_prompt_that_is_too_long_is_named_and_not_cut(folders: dict[str, Path], make_study: MakeStudy) -> None:
    for name, limit in (("ViT", 24), ("timm ViT with BERT, as BiomedCLIP", 40)):
        tokenize = load_tokenizer(make_study(kind="open_clip", weights=str(folders[name])))
        assert tokenize is not None
        tokenize(["cell " * (limit - 2)])
        with pytest.raises(EncoderError, match=f"{limit + 1} tokens: 'cell cell"):
            tokenize(["cell " * (limit - 1)])


def test_the_geometry_is_that_of_the_preprocessing(folders: dict[str, Path], make_study: MakeStudy) -> None:
    crops = inspect_encoder(make_study(kind="open_clip", weights=str(folders["ViT"])))
    squashes = inspect_encoder(make_study(kind="open_clip", weights=str(folders["SigLIP"])))
    assert token_geometry(crops.declared()) == TokenGeometry("crop", 32, 32)
    assert token_geometry(squashes.declared()) == TokenGeometry("squash")


def test_a_strict_study_knows_the_versions_of_both_libraries(folders: dict[str, Path], make_study: MakeStudy) -> None:
    card = inspect_encoder(make_study(kind="open_clip", weights=str(folders["ViT"]), extraction={"strict": True}))
    assert card.strict is not None
    assert card.strict.keys() >= {"batch_size", "torch", "open_clip_torch", "timm"}


def test_without_patches_the_study_has_to_say_so(folders: dict[str, Path], make_study: MakeStudy) -> None:
    with pytest.raises(EncoderError, match=r"no patches that become tokens: set encoder\.tokens: false"):
        inspect_encoder(make_study(kind="open_clip", weights=str(folders["ConvNeXt"])))


@pytest.mark.parametrize("name", ["ViT", "timm ViT with BERT, as BiomedCLIP"])
def test_lower_precision_keeps_the_patch_convolution(
    folders: dict[str, Path], make_study: MakeStudy, name: str
) -> None:
    exact = load_encoder(make_study(kind="open_clip", weights=str(folders[name])), device="cpu")
    half: Any = load_encoder(make_study(kind="open_clip", weights=str(folders[name]), dtype="bfloat16"), device="cpu")
    seen: list[torch.dtype] = []
    half.towers.embeddings.register_forward_hook(lambda *call: seen.append(call[2].dtype))

    features = half.encode_images(images(2)).features

    assert seen == [torch.float32]
    np.testing.assert_allclose((features * exact.encode_images(images(2)).features).sum(1), 1, atol=5e-3)


@pytest.mark.parametrize(
    "file",
    [
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "tokenizer.json",
        "../BiomedNLP-BiomedBERT-base-uncased-abstract/config.json",
    ],
)
def test_the_identity_knows_every_file_that_is_used(biomedclip: Path, make_study: MakeStudy, file: str) -> None:
    study = make_study(kind="open_clip", weights=str(biomedclip))
    before = inspect_encoder(study)
    (biomedclip / "README.md").write_text("A model.")
    assert inspect_encoder(study) == before
    assert str(before.recorded["text"]) == BERT

    if file.endswith(".bin"):
        state = torch.load(biomedclip / file, weights_only=True)
        torch.save({**state, "logit_scale": torch.tensor(4.5)}, biomedclip / file)
    elif file == "open_clip_config.json":
        (biomedclip / file).write_text((biomedclip / file).read_text().replace("0.48145466", "0.5"))
    else:
        (biomedclip / file).write_text((biomedclip / file).read_text() + "\n")

    assert inspect_encoder(study).identity != before.identity


def test_a_folder_without_its_bert_says_what_to_fetch_and_where_to_put_it(
    biomedclip: Path, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bert = biomedclip.parent / BERT.rpartition("/")[2]
    study = make_study(kind="open_clip", weights=str(biomedclip))
    before = load_encoder(study, device="cpu").encode_texts(["a platelet"]).features
    names = set(encoder_files(study))
    assert {
        "open_clip_config.json",
        "open_clip_pytorch_model.bin",
        "tokenizer.json",
        f"{bert.name}/config.json",
    } <= names
    assert "vocab.txt" not in names
    renamed = bert.rename(bert.parent / "other")
    monkeypatch.setattr("socket.socket.connect", None)  # A folder never causes a network call.

    for use in (inspect_encoder, load_encoder, load_tokenizer):
        with pytest.raises(EncoderError) as caught:
            use(study)
        assert str(caught.value).startswith(
            f"model builds its text tower from files of {BERT}, which do not lie beside"
        )
        assert f"`hf download {BERT} config.json --local-dir {biomedclip / bert.name}`" in str(caught.value)

    named = make_study(kind="open_clip", weights=str(biomedclip), text=str(renamed))
    np.testing.assert_array_equal(load_encoder(named, device="cpu").encode_texts(["a platelet"]).features, before)
    renamed.rename(biomedclip / bert.name)
    np.testing.assert_array_equal(load_encoder(study, device="cpu").encode_texts(["a platelet"]).features, before)


def test_a_bundle_holds_the_files_of_the_text_tower(biomedclip: Path, image_folder: Path, tmp_path: Path) -> None:
    section = {"kind": "open_clip", "weights": str(biomedclip)}
    study = write_study(tmp_path / "cells", images=image_folder, encoder=section)
    expected = inspect_encoder(study).identity
    bundled = load_study(write_bundle(study, tmp_path / "bundle").study)
    for gone in (biomedclip, biomedclip.parent / BERT.rpartition("/")[2]):
        shutil.rmtree(gone)
    assert inspect_encoder(bundled).identity == expected
    assert load_encoder(bundled, device="cpu").encode_texts(["cell"]).features.shape == (1, 24)


def test_a_download_and_the_bert_it_names_are_pinned_to_their_commits(
    biomedclip: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of the hub as two downloads leave it, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    study = write_study(
        tmp_path / "cells",
        images=image_folder,
        encoder={"kind": "open_clip", "weights": "lab/biomed", "text_revision": "v2"},
        vocabulary={},
    )
    identity = inspect_encoder(
        study.model_copy(update={"encoder": OpenClipConfig(kind="open_clip", weights=str(biomedclip))})
    ).identity
    commits = {"lab/biomed": ("main", "1" * 40), BERT: ("v2", "2" * 40)}
    for folder, (repository, (revision, commit)) in zip(
        (biomedclip, biomedclip.parent / BERT.rpartition("/")[2]), commits.items(), strict=True
    ):
        with pytest.raises(EncoderError, match=f"^{repository} at '{revision}' is not in the local cache"):
            inspect_encoder(study)
        assert {line.what: line.level for line in doctor_lines(study)}["weights"] == "problem"
        cache = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        shutil.move(folder, cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs" / revision).write_text(commit)

    card = inspect_encoder(study)
    assert card.identity == identity
    assert {name: card.recorded[name] for name in ("weights", "commit", "text", "text_commit")} == {
        "weights": "lab/biomed",
        "commit": "1" * 40,
        "text": BERT,
        "text_commit": "2" * 40,
    }
    assert {line.what: line.level for line in doctor_lines(study)}["weights"] == "ok"


def test_a_configuration_without_mean_and_std_is_refused(biomedclip: Path, make_study: MakeStudy) -> None:
    """open_clip would take those of CLIP without a word."""
    file = biomedclip / "open_clip_config.json"
    config = json.loads(file.read_text())
    for preprocess_cfg in (None, {}, {"mean": [0.5] * 3}, {"mean": [0.5] * 3, "std": None}):
        file.write_text(json.dumps({**config, "preprocess_cfg": preprocess_cfg}))
        with pytest.raises(EncoderError, match="mean and std"):
            inspect_encoder(make_study(kind="open_clip", weights=str(biomedclip)))


def test_tensors_that_do_not_fit_and_numbers_that_are_none_are_named(biomedclip: Path, make_study: MakeStudy) -> None:
    study, file = make_study(kind="open_clip", weights=str(biomedclip)), biomedclip / "open_clip_pytorch_model.bin"
    state = torch.load(file, weights_only=True)
    cases = {
        "text.proj.0.weight": {name: tensor for name, tensor in state.items() if name != "text.proj.0.weight"},
        "start with '_orig_mod.'": {f"_orig_mod.{name}": tensor for name, tensor in state.items()},
        "hold NaN or infinity in 1 tensors": {**state, "visual.trunk.norm.bias": state["visual.trunk.norm.bias"] / 0},
        "more than tensors": {**state, "path": Path("anything")},
    }
    for message, changed in cases.items():
        torch.save(changed, file)
        with pytest.raises(EncoderError, match=message):
            load_encoder(study, device="cpu")

    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)
    assert load_encoder(study, device="cpu").card.logit_scale == pytest.approx(float(state["logit_scale"]))


def test_without_its_extra_the_kind_says_which_to_install() -> None:
    """In a process of its own, where neither library can be imported."""
    code = """
import sys
sys.modules["open_clip"] = None
from ccassets.encoders import inspect_encoder
from ccassets.study.schema import Study
study = Study(name="a", folder=".", dataset={"kind": "phantom"}, encoder={"kind": "open_clip", "weights": "any"})
inspect_encoder(study)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "kind: open_clip needs open_clip: `pip install 'ccassets[open-clip]'`" in done.stderr


# --- BiomedCLIP as it is downloaded ------------------------------------------------------------------

PUBLISHED_BIOMEDCLIP = {
    "model_cfg": {
        "embed_dim": 512,
        "vision_cfg": {
            "timm_model_name": "vit_base_patch16_224",
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "image_size": 224,
        },
        "text_cfg": {**BERT_TEXT, "context_length": 256},
    },
    "preprocess_cfg": STATISTICS,
}


@pytest.mark.slow
def test_biomedclip_as_downloaded_builds_without_network(
    image_folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its configuration and layout as published, at full size with random weights, and the BERT that it names."""
    model, bert = tmp_path / "models" / "BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", tmp_path / "models" / BERT
    save_bert(bert)
    words = (bert / "vocab.txt").read_text().splitlines()
    (bert / "vocab.txt").write_text("\n".join([*words, *(f"[unused{n}]" for n in range(30522 - len(words)))]) + "\n")
    BertConfig(vocab_size=30522).save_pretrained(bert)
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(bert / name, model)
    (model / "README.md").write_text("---\nlicense: mit\nlibrary_name: open_clip\n---\n")
    (model / "open_clip_config.json").write_text(json.dumps(PUBLISHED_BIOMEDCLIP))
    text_cfg = {**BERT_TEXT, "context_length": 256, "hf_model_name": str(bert), "hf_model_pretrained": False}
    untrained = open_clip.create_model(f"local-dir:{model}", pretrained_text=False, text_cfg=text_cfg)
    torch.save(untrained.state_dict(), model / "open_clip_pytorch_model.bin")
    written = write_folder_study("cells", image_folder, tmp_path / "studies", encoder=str(model))

    built = run("build", str(written.path), "--home", str(home), blocked=True)
    assert built.returncode == 0, built.stderr
    with ccassets.open_database(built.stdout.splitlines()[-1]) as database:
        assert (len(database), database.dim, database.token_count) == (18, 512, 196)
        assert database.provenance["encoder"]["recorded"]["parameters"] == load_presets()["biomedclip"].parameters

    shutil.rmtree(bert)
    failed = run("doctor", str(written.path), "--home", str(home), blocked=True)
    assert failed.returncode == 1
    assert f"`hf download {BERT} config.json --local-dir {model / bert.name}`" in failed.stdout
