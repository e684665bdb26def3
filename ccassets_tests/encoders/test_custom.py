"""A user's own encoder: the page's example, the contract test, and what breaks the contract."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ccassets
from ccassets.encoders import ImageFeatures, TextFeatures, check_encoder, inspect_encoder, load_encoder
from ccassets.errors import EncoderError
from ccassets.extraction import extract_text
from ccassets.study.loading import load_study
from ccassets_tests.encoders.conftest import MakeStudy, images
from ccassets_tests.made_studies import write_study

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"
EXAMPLE, RECIPE, TRIAL = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def colour_grid() -> Callable[[], Any]:
    """The class of the documentation page."""
    names: dict[str, Any] = {}
    exec(compile(EXAMPLE, str(PAGE), "exec"), names)
    encoder: Callable[[], Any] = names["ColourGrid"]
    return encoder


def test_the_pages_example_satisfies_the_contract(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLE + TRIAL, str(PAGE), "exec"), {})

    assert capsys.readouterr().out == ""


def test_the_pages_example_works_from_a_study(make_study: MakeStudy) -> None:
    study = make_study(kind="python", target="colours:ColourGrid", options={"grid": 12})
    (study.folder / "colours.py").write_text(EXAMPLE)
    encoder = load_encoder(study)

    assert encoder.card == inspect_encoder(study)
    assert not encoder.card.has_text
    result = encoder.encode_images(images(2))
    assert result.features.shape == (2, 3)
    assert result.tokens is not None
    assert result.tokens.shape == (2, 144, 3)
    assert check_encoder(encoder) == []
    with pytest.raises(EncoderError, match="colours:ColourGrid has no text tower"):
        encoder.encode_texts(["cell"])


CONCH_STAND_IN = """
import torch
from torchvision.transforms import Compose, Resize, ToTensor


class Model(torch.nn.Module):
    logit_scale = torch.tensor(4.0)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = torch.nn.Linear(3, 512), torch.nn.Embedding(300, 512)

    def encode_image(self, pixels, proj_contrast, normalize):
        return torch.nn.functional.normalize(self.image(pixels.mean((2, 3))), dim=-1)

    def encode_text(self, ids, normalize):
        return torch.nn.functional.normalize(self.text(ids).mean(1), dim=-1)


def create_model_from_pretrained(name, checkpoint_path):
    return Model(), Compose([Resize((448, 448)), ToTensor()])


def get_tokenizer():
    return lambda text: list(text.encode())[:128]


def tokenize(texts, tokenizer):
    rows = [tokenizer(text) for text in texts]
    return torch.tensor([row + [0] * (128 - len(row)) for row in rows])
"""


def test_the_pages_recipe_for_a_model_with_code_of_its_own_keeps_the_contract(
    tmp_path: Path, image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package of that model is gated: a stand-in with its names and sizes is imported in its place."""
    folder, package = tmp_path / "study", tmp_path / "packages" / "conch"
    section = {"kind": "python", "target": "conch_study:Conch", "options": {"checkpoint": str(folder / "conch.bin")}}
    study = write_study(folder, images=image_folder, encoder=section)
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "open_clip_custom.py").write_text(CONCH_STAND_IN)
    monkeypatch.syspath_prepend(package.parent)
    (folder / "conch_study.py").write_text(RECIPE)
    (folder / "conch.bin").write_bytes(b"weights")

    encoder = load_encoder(study)

    assert encoder.card == inspect_encoder(study)
    assert (encoder.card.dim, encoder.card.token_count, encoder.card.has_text) == (512, 0, True)
    assert check_encoder(encoder) == []
    [template, *_] = extract_text(study)
    with ccassets.open_database(template.part) as part:
        assert (part.templates[template.template_id].subject_span == 0).all()


def test_modules_of_one_name_beside_two_studies_are_kept_apart(make_study: MakeStudy) -> None:
    identities = set()
    for name, grid in (("one", 4), ("two", 8)):
        study = make_study(name, kind="python", target="colours:ColourGrid")
        (study.folder / "colours.py").write_text(EXAMPLE.replace("grid=8", f"grid={grid}"))
        card = inspect_encoder(study)
        assert card.token_count == grid * grid
        identities.add(card.identity)
    assert len(identities) == 2


def test_an_encoder_with_text_passes_too() -> None:
    assert check_encoder(load_encoder(load_study("demo"), device="cpu")) == []


# --- what breaks the contract ------------------------------------------------------------------------


def changed(encoder: Any, **methods: Any) -> Any:
    for name, method in methods.items():
        setattr(encoder, name, method)
    return encoder


def problems_of(encoder: Any) -> list[tuple[str, str]]:
    return [(finding.check, finding.message) for finding in check_encoder(encoder)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "card.dim: must be above 0, found 0"),
        ({"dtype": "half"}, "card.dtype: expected one of float32, tf32, bfloat16, float16, found 'half'"),
        ({"weights_digest": ""}, "card.weights_digest: must say which weights these are, found nothing"),
        ({"text_pooling": "mean"}, "card.tokenizer_digest: must say which tokenizer this is, found nothing"),
        ({"architecture": {"grid": (8, 8)}}, "card: must be the same after JSON"),
        ({"recorded": {"array": np.zeros(1)}}, "card: must be plain JSON values"),
    ],
)
def test_a_card_that_does_not_hold_is_found(colour_grid: Any, change: dict[str, Any], message: str) -> None:
    encoder = colour_grid()
    encoder.card = replace(encoder.card, **change)

    [(check, said)] = problems_of(encoder)

    assert check == "encoder_card"
    assert said.startswith(message)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: ImageFeatures(r.features * 1.01, r.tokens), "features: expected rows of length 1"),
        (lambda r: ImageFeatures(r.features[:, :2], r.tokens), "features: expected (3, 3) float32 or float16"),
        (lambda r: ImageFeatures(r.features.astype(np.float64), r.tokens), "features: expected (3, 3) float32 or"),
        (lambda r: ImageFeatures(np.tile(r.features[:1], (len(r.features), 1)), r.tokens), "features of different"),
        (lambda r: ImageFeatures(r.features, None), "tokens: expected a NumPy array, found NoneType"),
        (lambda r: ImageFeatures(r.features, r.tokens * np.nan), "tokens: expected finite values"),
        (lambda r: (r.features, r.tokens), "encode_pixels: expected ImageFeatures, found tuple"),
    ],
)
def test_image_features_that_break_the_contract_are_found(colour_grid: Any, damage: Any, message: str) -> None:
    encoder = colour_grid()
    right = encoder.encode_pixels
    changed(encoder, encode_pixels=lambda pixels: damage(right(pixels)))

    [(check, said)] = problems_of(encoder)

    assert check == "encoder_images"
    assert said.startswith(message)


def test_preprocessing_of_another_shape_is_found(colour_grid: Any) -> None:
    encoder = changed(colour_grid(), preprocess=lambda image: np.asarray(image, np.float32))

    assert {check for check, _ in problems_of(encoder)} == {"encoder_preprocess"}


def test_an_encoder_that_is_not_deterministic_is_found(colour_grid: Any) -> None:
    noise = np.random.default_rng(0)
    encoder = colour_grid()
    right = encoder.encode_images
    calls: list[int] = []

    def drifting(batch: Any) -> ImageFeatures:
        calls.append(1)
        result: ImageFeatures = right(batch)
        # The first call, which is compared with encode_pixels, is left alone.
        return replace(result, tokens=result.tokens + noise.normal(0, 1e-4, ())) if len(calls) > 1 else result

    [(check, said)] = problems_of(changed(encoder, encode_images=drifting))

    assert check == "encoder_determinism"
    assert said.startswith("equal images must give equal bits")


def test_texts_that_break_the_contract_are_found() -> None:
    encoder: Any = load_encoder(load_study("demo"), device="cpu")
    right = encoder.encode_texts

    def beyond(prompts: Any) -> TextFeatures:
        text: TextFeatures = right(prompts)
        return replace(text, offsets=text.offsets + np.int32(50))

    assert problems_of(changed(encoder, encode_texts=beyond))[0] == (
        "encoder_texts",
        "offsets: end at character 67 of 17 in 'a photo of a cell'",
    )


def test_an_image_only_encoder_must_refuse_texts(colour_grid: Any) -> None:
    encoder = changed(colour_grid(), encode_texts=lambda prompts: None)

    [(check, said)] = problems_of(encoder)

    assert check == "encoder_texts"
    assert "must raise EncoderError" in said


def test_what_a_class_raises_becomes_a_finding(colour_grid: Any) -> None:
    def fail(pixels: Any) -> None:
        raise ZeroDivisionError("oh")

    assert ("encoder_images", "ZeroDivisionError: oh") in problems_of(changed(colour_grid(), encode_pixels=fail))


# --- from a study ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "mine:Encoder cannot be made: AttributeError"),
        ("import nothing_of_that_name", "mine:Encoder cannot be made: ModuleNotFoundError"),
        ("class Encoder:\n    def __init__(self, needed): ...", "mine:Encoder cannot be made: TypeError"),
        ("class Encoder:\n    card = None", "expected an EncoderCard, found NoneType"),
    ],
)
def test_a_class_that_cannot_be_used_is_named(make_study: MakeStudy, source: str, message: str) -> None:
    study = make_study(kind="python", target="mine:Encoder")
    (study.folder / "mine.py").write_text(source)

    with pytest.raises(EncoderError, match=message):
        load_encoder(study)


@pytest.mark.parametrize(
    "target",
    ["subprocess:check_call", "subprocess:Popen", "os:system", "helpers:Popen", "helpers:run", "helpers.sub:Popen"],
)
def test_a_study_file_alone_runs_nothing(make_study: MakeStudy, tmp_path: Path, target: str) -> None:
    mark = tmp_path / "run"
    study = make_study(kind="python", target=target, options={"args": ["touch", str(mark)]})
    if target.startswith("helpers:"):
        (study.folder / "helpers.py").write_text("from subprocess import Popen, run\n")
    if target.startswith("helpers."):
        (study.folder / "helpers").mkdir()
        (study.folder / "helpers" / "__init__.py").touch()
        (study.folder / "helpers" / "sub.py").write_text("from subprocess import Popen\n")
    (study.folder / "subprocess").mkdir()  # A folder alone makes no module of that name.

    for use in (load_encoder, inspect_encoder):
        with pytest.raises(EncoderError, match=r"beside the study|is not a class"):
            use(study)
    assert not mark.exists()


def test_a_module_of_the_same_name_that_cannot_be_replaced_is_said(make_study: MakeStudy) -> None:
    study = make_study(kind="python", target="sys:Encoder")
    (study.folder / "sys.py").write_text("class Encoder: ...")
    with pytest.raises(EncoderError, match="another module is called sys"):
        load_encoder(study)


def test_an_installed_package_is_used_where_the_environment_names_it(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(kind="python", target="installed_colours:ColourGrid")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "installed_colours.py").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path / "site")
    with pytest.raises(EncoderError, match="name it in CCASSETS_ENCODER_MODULES=installed_colours"):
        load_encoder(study)
    monkeypatch.setenv("CCASSETS_ENCODER_MODULES", "other, installed_colours")
    assert load_encoder(study).card.token_count == 64


@pytest.mark.parametrize(("said", "message"), [({"tokens": False}, "tokens False"), ({"dtype": "float16"}, "float16")])
def test_a_study_that_contradicts_the_card_is_refused(
    make_study: MakeStudy, said: dict[str, Any], message: str
) -> None:
    study = make_study(kind="python", target="colours:ColourGrid", **said)
    (study.folder / "colours.py").write_text(EXAMPLE)

    with pytest.raises(EncoderError, match=message):
        load_encoder(study)


def test_a_batch_that_breaks_the_contract_is_refused_when_it_comes(make_study: MakeStudy) -> None:
    study = make_study(kind="python", target="colours:ColourGrid")
    (study.folder / "colours.py").write_text(EXAMPLE.replace("features / np.linalg", "2 * features / np.linalg"))
    encoder = load_encoder(study)

    with pytest.raises(EncoderError, match="breaks the encoder contract:\nfeatures: expected rows of length 1"):
        encoder.encode_images(images(2))


def test_a_strict_study_marks_a_custom_card_too(make_study: MakeStudy) -> None:
    study = make_study(kind="python", target="colours:ColourGrid", extraction={"strict": True})
    (study.folder / "colours.py").write_text(EXAMPLE)

    card = inspect_encoder(study, device="cpu")

    assert card.strict is not None
    assert card.strict["device"] == "cpu"
    assert load_encoder(study, device="cpu").card == card
