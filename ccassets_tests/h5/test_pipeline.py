"""Prompts and images through a small model of the original form, and through our own, into a growing file."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from ccassets import CcassetsError
from ccassets.database.reader import open_database
from ccassets.database.validation import validate_database
from ccassets.encoders import load_encoder
from ccassets.encoders.conceptclip import PHANTOM
from ccassets.findings import has_errors
from ccassets.h5 import (
    DatasetBundle,
    ModelArtifacts,
    PromptConfig,
    access_batch,
    build_dataloader,
    build_dataloaders,
    clear_all_templates,
    encode_and_store_image_features,
    get_bloodmnist_prompts,
    init_file,
    load_conceptclip_model,
    run_full_pipeline,
    store_prompt_features,
)
from ccassets.study.loading import load_study
from ccassets_tests.h5.batches import LEGACY, assert_same, contents
from ccassets_tests.h5.stand_in_model import PROMPTS, D, GreyImages, Replay, StandIn, stand_in

COUNTS = {"train": 20, "val": 9, "test": 5}
LABELS = [0, 1] * 10


def loaders(**changes: Any) -> dict[str, Any]:
    """Loaders of 20, 9 and 5 different pictures; `changes` replaces single data sets."""
    first = dict(zip(COUNTS, (0, 20, 29), strict=True))
    datasets = {split: changes.get(split, GreyImages(count, first[split], LABELS)) for split, count in COUNTS.items()}
    return build_dataloaders(datasets, batch_size=8)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features.h5"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("whole") / "features.h5"
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    return contents(path)


# --- the whole way ------------------------------------------------------------------------------------


def test_the_pipeline_stores_what_the_model_gives(path: Path) -> None:
    artifacts = stand_in()

    summary = run_full_pipeline(
        artifacts, PROMPTS, loaders(), output_path=path, show_progress=False, extra_metadata={"dataset": "pictures"}
    )

    assert summary.text_templates == {"concept_prompts_t01": 3, "concept_prompts_t02": 3, "label_prompts_t01": 2}
    assert summary.image_samples_appended == COUNTS
    assert summary.total_new_samples == 34
    assert artifacts.model.training  # as it was before
    model = StandIn().eval()
    with torch.inference_mode():
        features, tokens = model.encode_image(torch.stack([GreyImages(9, 20)[row] for row in range(8)]), normalize=True)
        projected = model.image_proj(tokens)
    with open_database(path) as database:
        assert (database.dim, database.token_count, len(database)) == (D, 9, 34)
        np.testing.assert_array_equal(database.select("val").image_features[:8], features.numpy().astype(np.float16))
        np.testing.assert_array_equal(
            database.select("val").image_token_features[:8], projected.numpy().astype(np.float16)
        )
        assert database.labels[:4].tolist() == [0, 1, 0, 1]
        assert dict(database.splits) == {"train": slice(0, 20), "val": slice(20, 29), "test": slice(29, 34)}
        assert database.attributes["concept_texts"] == PROMPTS.concept_texts
        assert database.file.attrs["dataset"] == '"pictures"'
        assert database.logit_multiplier == pytest.approx(96.607, abs=1e-3)
        template = database.templates["concept_prompts_t02"]
        assert template.texts == [f"{word} in a blood cell" for word in PROMPTS.concept_texts]
        assert template.input_ids is not None
        assert template.attention_mask is not None
        np.testing.assert_array_equal(template.attention_mask, template.input_ids != 0)
        assert template.text_token_features is not None
        assert template.text_token_features.shape == (3, 6, D)


def test_many_prompts_are_encoded_a_few_at_a_time_and_padded_alike(path: Path) -> None:
    artifacts = stand_in()
    words = [f"concept {number} {'very ' * (number // 35)}long" for number in range(70)]

    store_prompt_features(artifacts, PromptConfig([], [], words, ["a cell with {}"]), output_path=path)

    assert artifacts.model.text_batches == [32, 32, 6]
    with open_database(path) as database:
        tokens = database.templates["concept_prompts_t01"].text_token_features
        assert tokens is not None
        assert tokens.shape == (70, 7, D)


def test_a_second_run_appends_nothing_and_reads_no_image(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    before, read = contents(path), []

    again = encode_and_store_image_features(
        stand_in(), list(loaders(train=GreyImages(20, 0, LABELS, read.append)).items()), output_path=path
    )

    assert again == {}
    assert read == [0]  # once, to see whether there are labels
    assert "Skip train: already stored 20/20 samples." in capsys.readouterr().out
    assert_same(contents(path), before)


def test_a_run_that_an_image_stopped_goes_on_where_it_was(path: Path, undisturbed: Mapping[str, Any]) -> None:
    def broken(row: int) -> None:
        if row == 13:
            raise OSError("image 13 is cut off")

    read: list[int] = []
    store_prompt_features(stand_in(), PROMPTS, output_path=path)
    with pytest.raises(CcassetsError, match=r"loader of 'train' failed \(OSError: image 13.*\). 8 of its rows"):
        encode_and_store_image_features(
            stand_in(), loaders(train=GreyImages(20, 0, LABELS, broken)), output_path=path, show_progress=False
        )
    with h5py.File(path) as file:
        assert json.loads(file.attrs["split_counts"]) == {"train": 8}

    appended = encode_and_store_image_features(
        stand_in(), loaders(train=GreyImages(20, 0, LABELS, read.append)), output_path=path, show_progress=False
    )

    assert appended == {"train": 12, "val": 9, "test": 5}
    assert read == [0, *range(8, 20)]  # what is stored is not decoded again
    assert_same(contents(path), undisturbed)


def test_a_killed_run_goes_on_to_the_same_bits(path: Path, tmp_path: Path, undisturbed: Mapping[str, Any]) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
        "from ccassets.h5 import run_full_pipeline\n"
        "from ccassets_tests.h5.stand_in_model import PROMPTS, GreyImages, stand_in\n"
        "from ccassets_tests.h5.test_pipeline import LABELS, loaders\n"
        "slow = GreyImages(20, 0, LABELS, lambda row: (print(row, flush=True), time.sleep(0.01)))\n"
        "run_full_pipeline(stand_in(), PROMPTS, loaders(train=slow), output_path=sys.argv[1], show_progress=False)\n"
    )
    process = subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "12":
            break
    time.sleep(0.03)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with init_file(path) as file:
        assert json.loads(file.attrs["split_counts"])["train"] in (8, 16)

    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)

    assert_same(contents(path), undisturbed)


def test_a_run_cut_inside_a_batch_encodes_whole_batches_all_the_same(
    path: Path, undisturbed: Mapping[str, Any]
) -> None:
    store_prompt_features(stand_in(), PROMPTS, output_path=path)
    encode_and_store_image_features(stand_in(), {"train": loaders()["train"]}, output_path=path, show_progress=False)
    with init_file(path) as file:
        for name in ("image_features", "image_token_features", "ids", "labels", "split"):
            file[name].resize(11, axis=0)
        file.attrs["split_counts"] = '{"train": 11}'
    artifacts = stand_in()

    encode_and_store_image_features(artifacts, loaders(), output_path=path, show_progress=False)

    assert artifacts.model.batches[:2] == [8, 4]  # rows 8 to 15, then 16 to 19
    assert_same(contents(path), undisturbed)


def test_a_run_of_the_original_scripts_that_stopped_is_completed(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_partial.h5", tmp_path / "partial.h5"))
    good = contents(LEGACY / "legacy_good.h5")
    datasets = {
        split: GreyImages(count, first, good["labels"][first : first + count])
        for split, first, count in (("train", 0, 36), ("val", 36, 20), ("test", 56, 14))
    }

    appended = encode_and_store_image_features(
        stand_in(Replay(LEGACY / "legacy_good.h5")),
        build_dataloaders(datasets, batch_size=8),
        output_path=path,
        show_progress=False,
    )

    assert appended == {"val": 12, "test": 14}
    assert_same(contents(path), good)
    with open_database(path) as database:
        assert database.provenance is not None
        assert database.provenance["origin"] == "adopted"


# --- starting anew ------------------------------------------------------------------------------------


def test_without_resume_the_splits_are_stored_anew_and_not_twice(path: Path, undisturbed: Mapping[str, Any]) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)

    appended = encode_and_store_image_features(
        stand_in(), loaders(), output_path=path, resume=False, show_progress=False
    )

    assert appended == COUNTS
    assert_same(contents(path), undisturbed)


def test_without_resume_earlier_splits_stay_and_later_ones_are_protected(path: Path) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    before = contents(path)
    some = loaders(val=GreyImages(9, 100, LABELS), test=GreyImages(5, 110, LABELS))

    with pytest.raises(CcassetsError, match=r"would remove the rows of \['test'\] too"):
        encode_and_store_image_features(stand_in(), {"val": some["val"]}, output_path=path, resume=False)
    assert_same(contents(path), before)

    del some["train"]
    encode_and_store_image_features(stand_in(), some, output_path=path, resume=False, show_progress=False)

    after = contents(path)
    np.testing.assert_array_equal(after["image_features"][:20], before["image_features"][:20])
    assert not (after["image_features"][20:] == before["image_features"][20:]).all(axis=1).any()
    assert after["ids"].tolist() == list(range(34))


# --- what is refused ----------------------------------------------------------------------------------


def test_shuffling_is_refused(path: Path) -> None:
    with pytest.raises(CcassetsError, match="shuffle=True: rows are stored in the data set's own order"):
        build_dataloader(GreyImages(4), shuffle=True)
    shuffled = torch.utils.data.DataLoader(GreyImages(4, 0, LABELS), batch_size=2, shuffle=True)
    with pytest.raises(CcassetsError, match="expected the data set's own order, found RandomSampler"):
        encode_and_store_image_features(stand_in(), {"train": shuffled}, output_path=path)
    dropping = torch.utils.data.DataLoader(GreyImages(5, 0, LABELS), batch_size=2, drop_last=True)
    with pytest.raises(CcassetsError, match="drop_last=True, which would leave rows out"):
        encode_and_store_image_features(stand_in(), {"train": dropping}, output_path=path)
    assert not path.exists()


def test_a_file_of_another_model_is_refused(path: Path) -> None:
    store_prompt_features(stand_in(StandIn(4.5)), PROMPTS, output_path=path)
    before = contents(path)

    for stage in (
        lambda artifacts: store_prompt_features(artifacts, PROMPTS, output_path=path),
        lambda artifacts: encode_and_store_image_features(artifacts, loaders(), output_path=path),
    ):
        with pytest.raises(CcassetsError, match=r"begun with another model \(logit_scale was 4.5, is 4.57"):
            stage(stand_in())
    assert_same(contents(path), before)


def test_a_split_with_more_rows_than_its_loader_is_refused(path: Path) -> None:
    encode_and_store_image_features(stand_in(), loaders(), output_path=path, show_progress=False)

    with pytest.raises(CcassetsError, match="holds 20 rows of 'train'; its loader has 12"):
        encode_and_store_image_features(stand_in(), loaders(train=GreyImages(12, 0, LABELS)), output_path=path)


def test_the_form_of_the_notebook_is_explained() -> None:
    with pytest.raises(CcassetsError, match=r"Pass ModelArtifacts\(model, processor, device\) first"):
        encode_and_store_image_features([("train", None)])  # type: ignore[arg-type]


def test_templates_of_other_lists_must_be_cleared_first(path: Path) -> None:
    store_prompt_features(stand_in(), PROMPTS, output_path=path)
    shorter = PromptConfig(
        PROMPTS.label_texts, PROMPTS.label_templates, PROMPTS.concept_texts, list(PROMPTS.concept_templates)[:1]
    )

    with pytest.raises(CcassetsError, match="clear_all_templates"):
        store_prompt_features(stand_in(), shorter, output_path=path)

    clear_all_templates(path, confirm=True)
    store_prompt_features(stand_in(), shorter, output_path=path)
    with h5py.File(path) as file:
        assert list(file["templates"]) == ["concept_prompts_t01", "label_prompts_t01"]
        assert json.loads(file.attrs["prompt_temp_for_concepts"]) == ["a cell with {}"]


def test_stale_templates_of_the_original_are_named(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_good.h5", tmp_path / "stale.h5"))
    prompts = get_bloodmnist_prompts()
    with h5py.File(path, "r+") as file:
        file.attrs["prompt_temp_for_concepts"] = json.dumps(list(prompts.concept_templates)[:8])
        for name in ("logit_scale", "logit_bias"):
            del file.attrs[name]
    shorter = PromptConfig(
        prompts.label_texts, prompts.label_templates, prompts.concept_texts, list(prompts.concept_templates)[:8]
    )

    with pytest.raises(CcassetsError, match=r"templates that these lists do not give: \['concept_prompts_t09'\]"):
        store_prompt_features(stand_in(), shorter, output_path=path)


# --- loaders ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (torch.full((1, 2, 2), 0.25), 0.25),
        (torch.full((1, 2, 2), 51, dtype=torch.uint8), 0.2),
        (torch.full((1, 2, 2), 1, dtype=torch.uint8), 1 / 255),  # a dark picture, which the original left white
        (torch.full((1, 2, 2), 51.0), 0.2),
        (np.full((1, 2, 2), 255, np.uint8), 1.0),
    ],
    ids=str,
)
def test_images_of_both_usual_ranges_become_floats_up_to_one(image: Any, expected: float) -> None:
    images, labels = next(iter(build_dataloader([(image, 3)], batch_size=1)))  # type: ignore[arg-type]

    assert images.dtype == torch.float32
    assert float(images.max()) == pytest.approx(expected)
    assert labels.tolist() == [[3]]


@pytest.mark.parametrize("low, high", [(-2.1, 2.6), (-1.0, 1.0), (0.0, 1.7)])  # noqa: PT006
def test_a_normalised_image_is_refused_and_not_turned_black(low: float, high: float) -> None:
    image = torch.linspace(low, high, 48).reshape(3, 4, 4)

    with pytest.raises(CcassetsError, match="Normalising is the processor's work"):
        next(iter(build_dataloader([(image, 0)])))  # type: ignore[arg-type]


@pytest.mark.parametrize("item", [torch.zeros(3, 4, 4), (torch.zeros(3, 4, 4), None)], ids=["image alone", "None"])
def test_a_data_set_without_labels_gets_zeros_and_the_file_says_so(path: Path, item: Any) -> None:
    unlabelled = build_dataloader([item] * 3, batch_size=2)  # type: ignore[arg-type]
    assert [labels.tolist() for _, labels in unlabelled] == [[[0], [0]], [[0]]]

    encode_and_store_image_features(stand_in(), {"all cells": unlabelled}, output_path=path, show_progress=False)

    with open_database(path) as database:
        assert database.labels.tolist() == [0, 0, 0]
        assert database.provenance is not None
        assert database.provenance["dataset"]["labels"] == "none"


@pytest.mark.parametrize("labels", [[0, None, 1], [None, 0, 1]])
def test_labels_for_some_images_only_are_refused(labels: list[int | None]) -> None:
    with pytest.raises(CcassetsError, match="a stored 0 would be ambiguous"):
        list(build_dataloader(GreyImages(3, 0, labels), batch_size=1))


def test_several_labels_of_an_image_are_refused() -> None:
    with pytest.raises(CcassetsError, match="label matrix"):
        next(iter(build_dataloader(GreyImages(3, 0, lambda row: torch.zeros(14)))))


def test_workers_leave_the_lock_with_the_process_that_writes(path: Path) -> None:
    bundle = DatasetBundle(*(GreyImages(count, 0, LABELS) for count in COUNTS.values()))

    encode_and_store_image_features(
        stand_in(), build_dataloaders(bundle, batch_size=4, num_workers=1), output_path=path, show_progress=False
    )

    assert len(access_batch("train", None, "label", path)) == 20


def test_the_prompts_of_bloodmnist_are_the_published_ones() -> None:
    with h5py.File(LEGACY / "legacy_good.h5") as file:
        for template_id, texts in get_bloodmnist_prompts().build_template_map().items():
            assert file["templates"][template_id]["texts"][:].tolist() == [text.encode() for text in texts]


def test_a_template_without_one_place_for_the_word_is_refused() -> None:
    with pytest.raises(CcassetsError, match=r"exactly one \{\}"):
        PromptConfig(["a"], ["a photo"], [], []).build_template_map()


def test_a_single_word_or_template_is_a_list_of_one() -> None:
    single, listed = PromptConfig("cell", "a {}", "rim", "{}!"), PromptConfig(["cell"], ["a {}"], ["rim"], ["{}!"])
    assert single.build_template_map() == {"concept_prompts_t01": ["rim!"], "label_prompts_t01": ["a cell"]}
    assert single.metadata == listed.metadata


# --- our own model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def phantom() -> ModelArtifacts:
    return load_conceptclip_model(weights=PHANTOM, device="cpu")


@pytest.fixture(scope="module")
def crops() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 40 + row, 50), generator=generator).float() / 255 for row in range(3)]


def test_our_model_gives_in_the_original_form_what_a_build_gives(
    phantom: ModelArtifacts, crops: list[torch.Tensor], path: Path
) -> None:
    from PIL import Image

    encoder = load_encoder(load_study("demo"), device="cpu")
    stored = [Image.fromarray((crop * 255).round().byte().permute(1, 2, 0).numpy()) for crop in crops]
    images, prompts = encoder.encode_images(stored), get_bloodmnist_prompts()
    dataset = [(crop, 1) for crop in crops]
    sized = {f"size {row}": build_dataloader(dataset[row : row + 1]) for row in range(3)}  # type: ignore[arg-type]

    run_full_pipeline(phantom, prompts, sized, output_path=path, show_progress=False)

    with open_database(path) as database:
        np.testing.assert_allclose(database.image_features[:], images.features, atol=1e-3)
        assert images.tokens is not None
        assert database.image_token_features is not None
        np.testing.assert_allclose(database.image_token_features[:], images.tokens, rtol=2e-3, atol=2e-3)
        template = database.templates["concept_prompts_t01"]
        expected = encoder.encode_texts(template.texts)
        np.testing.assert_array_equal(template.text_features, expected.features)
        assert expected.tokens is not None
        assert template.text_token_features is not None
        np.testing.assert_array_equal(template.text_token_features, expected.tokens)
        assert template.input_ids is not None
        np.testing.assert_array_equal(template.input_ids, expected.input_ids)
        assert template.subject_span is not None
        assert (np.diff(template.subject_span, axis=1) > 0).all()
        assert database.provenance is not None
        assert database.provenance["encoder"]["weights_digest"] == encoder.card.weights_digest
        assert database.logit_scale == encoder.card.logit_scale


def test_our_processor_and_model_serve_the_cells_of_the_notebook(
    phantom: ModelArtifacts, crops: list[torch.Tensor]
) -> None:
    model, processor, device = phantom.model, phantom.processor, phantom.device

    inputs = processor(text=["a cell", "a blood cell"], return_tensors="pt", padding=True, truncation=True).to(device)
    text_cls, text_tokens = model.encode_text(inputs["input_ids"], normalize=True)
    projected = model.text_proj(text_tokens) if hasattr(model, "text_proj") else text_tokens
    pixels = processor(images=crops[0][None], return_tensors="pt", padding=True, truncation=True)["pixel_values"]
    img_cls, img_tokens = model.encode_image(pixels.to(device), normalize=True)

    assert text_cls.shape[0] == 2
    assert projected.shape[2] == text_cls.shape[1]
    assert torch.allclose(img_cls.norm(dim=-1), torch.ones(1), atol=1e-5)
    assert model.image_proj(img_tokens).shape[2] == img_cls.shape[1]
    assert float(model.logit_scale.exp()) > 0


def test_our_processor_refuses_a_normalised_image(phantom: ModelArtifacts) -> None:
    with pytest.raises(CcassetsError, match="Normalising is done here"):
        phantom.processor(images=torch.randn(2, 3, 8, 8), return_tensors="pt")


def test_remote_code_is_never_run() -> None:
    with pytest.warns(UserWarning, match="no remote code is run"):
        load_conceptclip_model(weights=PHANTOM, device="cpu", trust_remote_code=True)


# --- refused calls, and counts that were deleted ------------------------------------------------------


def with_note(path: Path, artifacts: ModelArtifacts, given: Mapping[str, Any], **arguments: Any) -> None:
    encode_and_store_image_features(
        artifacts, given, output_path=path, show_progress=False, extra_metadata={"note": "second"}, **arguments
    )


def test_a_data_set_that_grew_in_an_earlier_split_is_refused_and_changes_nothing(path: Path) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    before = path.read_bytes()
    artifacts = stand_in()
    grown = loaders(train=GreyImages(24, 0, [0, 1] * 12))

    with pytest.raises(CcassetsError, match=r"'train' has 20 of 24 rows, and rows of 'test' follow them"):
        with_note(path, artifacts, grown)

    assert path.read_bytes() == before
    assert artifacts.model.batches == []
    assert not has_errors(validate_database(path))


def test_a_split_that_loaders_in_another_order_would_part_is_refused_before_anything_is_encoded(path: Path) -> None:
    some = loaders()
    stopped = loaders(val=GreyImages(4, 20, LABELS))
    given = {"train": some["train"], "val": stopped["val"]}
    encode_and_store_image_features(stand_in(), given, output_path=path, show_progress=False)
    before = path.read_bytes()
    artifacts = stand_in()

    with pytest.raises(CcassetsError, match=r"'val' has 4 of 9 rows, and rows of 'test' follow them"):
        with_note(path, artifacts, {split: some[split] for split in ("train", "test", "val")})

    assert path.read_bytes() == before
    assert artifacts.model.batches == []


class Wider(StandIn):
    """A model whose features have another width, which only the first batch shows."""

    def encode_image(self, pixel_values: torch.Tensor, normalize: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        features, tokens = super().encode_image(pixel_values, normalize)
        return torch.nn.functional.normalize(torch.cat([features, features], dim=1)), tokens


@pytest.mark.parametrize("resume", [True, False])
def test_a_model_of_another_width_is_refused_and_changes_nothing(resume: bool, path: Path) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    before = path.read_bytes()
    more = {**loaders(), "more": build_dataloader(GreyImages(3, 40, LABELS), batch_size=8)}

    with pytest.raises(CcassetsError):
        with_note(path, stand_in(Wider()), more, resume=resume)

    assert path.read_bytes() == before


def test_a_call_with_another_model_stores_no_metadata(path: Path) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    before = path.read_bytes()
    with pytest.raises(CcassetsError, match="begun with another model"):
        with_note(path, stand_in(StandIn(4.5)), loaders())
    with pytest.raises(CcassetsError, match="begun with another model"):
        store_prompt_features(stand_in(StandIn(4.5)), PROMPTS, output_path=path, extra_metadata={"note": "second"})
    assert path.read_bytes() == before


def test_a_refused_first_call_leaves_no_file(path: Path) -> None:
    mixed = build_dataloader(GreyImages(4, 0, [0, 1, -3, 1]), batch_size=8)
    with pytest.raises(CcassetsError, match="labels: expected 0 or more"):
        with_note(path, stand_in(), {"train": mixed})
    assert not path.exists()


def test_counts_that_were_deleted_come_back_with_the_next_run(path: Path, undisturbed: Mapping[str, Any]) -> None:
    run_full_pipeline(stand_in(), PROMPTS, loaders(), output_path=path, show_progress=False)
    with h5py.File(path, "r+") as file:
        del file.attrs["split_counts"]
    artifacts = stand_in()

    assert encode_and_store_image_features(artifacts, loaders(), output_path=path, show_progress=False) == {}

    assert artifacts.model.batches == []
    with h5py.File(path) as file:
        assert json.loads(file.attrs["split_counts"]) == COUNTS
    assert_same(contents(path), undisturbed)
    assert not has_errors(validate_database(path))


def test_a_file_of_the_original_that_was_stopped_before_its_counts_is_completed(tmp_path: Path) -> None:
    path = Path(shutil.copy(LEGACY / "legacy_good.h5", tmp_path / "good.h5"))
    with h5py.File(path, "r+") as file:
        counts = json.loads(file.attrs["split_counts"])
        labels = file["labels"][:]
        del file.attrs["split_counts"]
    starts = dict(zip(counts, np.cumsum([0, *counts.values()])[:-1].tolist(), strict=True))
    datasets = {
        split: GreyImages(rows, starts[split], labels[starts[split] : starts[split] + rows])
        for split, rows in counts.items()
    }
    given = build_dataloaders(datasets, batch_size=8)
    model = stand_in(Replay(LEGACY / "legacy_good.h5"))
    assert encode_and_store_image_features(model, given, output_path=path, show_progress=False) == {}
    with h5py.File(path) as file:
        assert json.loads(file.attrs["split_counts"]) == counts
    assert not has_errors(validate_database(path))


@pytest.mark.parametrize("same_width", [True, False])
def test_a_model_without_text_proj_stores_no_token_features_of_texts(same_width: bool, path: Path) -> None:
    model = StandIn()
    if same_width:
        unprojected = model.encode_text
        model.encode_text = lambda *arguments, **options: (  # type: ignore[method-assign]
            (result := unprojected(*arguments, **options))[0],
            torch.nn.functional.pad(result[1], (0, D - result[1].shape[-1])),
        )
    del model.text_proj
    run_full_pipeline(stand_in(model), PROMPTS, loaders(), output_path=path, show_progress=False)
    with h5py.File(path) as file:
        assert len(file["templates"]) == 3
        for template in file["templates"].values():
            assert template.attrs["T_txt"] == -1
            assert "text_token_features" not in template
    assert not has_errors(validate_database(path))
