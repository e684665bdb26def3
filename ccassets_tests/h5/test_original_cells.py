"""The cells of the two original notebooks and the calls of the scripts, in our own words, one after another.

Only their import is changed, and what docs/h5.md lists under "What changes in the notebooks".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import medmnist
import pytest

from ccassets.database.validation import validate_database
from ccassets.encoders.conceptclip import PHANTOM
from ccassets.h5 import ArgumentError, clear_all_templates, load_conceptclip_model
from ccassets_tests.datasets.made_datasets import MEDMNIST_COUNTS, MedMnistSite
from ccassets_tests.h5.batches import assert_same, contents

WRITING = {
    "1 words and templates": """
import medmnist
import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision import transforms
from tqdm import tqdm

names = {int(number): name for number, name in medmnist.INFO["bloodmnist"]["label"].items()}
names[3] = "immature granulocytes"
label_list = [names[number] for number in sorted(names)]
concept_list = ["Segmented nucleus", "Round nucleus", "Pale cytoplasm"]
concept_prompt_template_list = ["a cell photo with sign of {}", "blood cell with {}"]
label_prompt_template_list = ["a bloodcell of {}"]
DB_METADATA = {
    "label_texts": label_list,
    "prompt_temp_for_labels": label_prompt_template_list,
    "concept_texts": concept_list,
    "prompt_temp_for_concepts": concept_prompt_template_list,
}
""",
    "1 data sets and loaders": """
to_tensor = transforms.Compose([transforms.ToTensor()])
options = {"size": 28, "as_rgb": True, "mmap_mode": "r", "transform": to_tensor, "download": True, "root": archives}
ds_train, ds_test, ds_valid = (medmnist.BloodMNIST(split=split, **options) for split in ("train", "test", "val"))
train_loader = DataLoader(ds_train, batch_size=4, shuffle=False)
test_loader = DataLoader(ds_test, batch_size=4, shuffle=False)
valid_loader = DataLoader(ds_valid, batch_size=4, shuffle=False)
""",
    "2 the model": """
from ccassets.h5 import load_conceptclip_model
artifacts = load_conceptclip_model(weights=weights)
model, processor = artifacts.model, artifacts.processor
""",
    "2 the device": """
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
model = model.to(device).eval()
""",
    "2 the processor": """
processor.image_processor.do_rescale = False
processor.image_processor.do_normalize = True
""",
    "3 (1) the file": """
import json
import h5py
from ccassets.h5 import append_batch, init_file, load_model_params, save_model_params, write_template

OUT_PATH = "./conceptclip_features.h5"
D, T_img = 96, 144

def _read_json_attr(f, key, default=None):
    value = f.attrs.get(key)
    return default if value is None else json.loads(value)
""",
    "3 (2) texts": """
with init_file(OUT_PATH, d=D, t_img=T_img, metadata=DB_METADATA) as f:
    lists = {
        "concept_prompts": ("prompt_temp_for_concepts", "concept_texts"),
        "label_prompts": ("prompt_temp_for_labels", "label_texts"),
    }
    with torch.no_grad():
        for kind, (templates, words) in lists.items():
            for number, template in enumerate(_read_json_attr(f, templates, []), start=1):
                texts = [template.format(word) for word in _read_json_attr(f, words, [])]
                inputs = processor(text=texts, return_tensors="pt", padding=True, truncation=True).to(device)
                text_cls, text_tokens = model.encode_text(inputs["input_ids"], normalize=True)
                projected = model.text_proj(text_tokens) if hasattr(model, "text_proj") else text_tokens
                write_template(
                    f,
                    template_id=f"{kind}_t{number:02d}",
                    texts=texts,
                    text_features=text_cls,
                    text_token_features=projected,
                )
    save_model_params(f, logit_scale=model.logit_scale.item(), logit_bias=model.logit_bias.item())
    save_model_params(f, concept_logit_scale=model.concept_logit_scale.item())
    save_model_params(f, concept_logit_bias=model.concept_logit_bias.item())
""",
    "3 (3) images": """
split_loaders = [("train", train_loader), ("val", valid_loader), ("test", test_loader)]

def encode_and_store_image_features(split_loaders):
    new = {}
    with torch.no_grad(), init_file(OUT_PATH, metadata=DB_METADATA) as f:
        counts = json.loads(f.attrs["split_counts"]) if "split_counts" in f.attrs else {}
        next_id = f["image_features"].shape[0]
        for split, loader in split_loaders:
            if counts.get(split, 0) >= len(loader.dataset):
                continue
            for imgs, labels in tqdm(loader, desc=split, disable=True):
                pixels = processor(images=imgs, return_tensors="pt", padding=True, truncation=True)["pixel_values"]
                img_cls, img_tokens = model.encode_image(pixels.to(device), normalize=True)
                size = img_cls.shape[0]
                append_batch(
                    f,
                    image_feats=img_cls,
                    image_token_feats=model.image_proj(img_tokens) if hasattr(model, "image_proj") else img_tokens,
                    ids=np.arange(next_id, next_id + size, dtype=np.int64),
                    split_names=[split] * size,
                    labels=np.asarray(labels.view(-1), dtype=np.int64).reshape(-1),
                )
                next_id += size
                new[split] = new.get(split, 0) + size
        for split, count in new.items():
            counts[split] = counts.get(split, 0) + count
        f.attrs["split_counts"] = json.dumps(counts)
        f.flush()
    return new

encode_and_store_image_features(split_loaders)
""",
    "3 (4) validation": """
from ccassets.h5 import validate_h5
findings = validate_h5()
""",
}
"""Notebook 1; the function of its cell (3) is its own, and calls ours."""

STORING = {
    "3 (3) images": """
from ccassets.h5 import ModelArtifacts, encode_and_store_image_features
appended = encode_and_store_image_features(
    ModelArtifacts(model, processor, device), split_loaders, output_path="ours.h5", extra_metadata=DB_METADATA
)
again = encode_and_store_image_features(
    ModelArtifacts(model, processor, device), split_loaders, output_path="ours.h5", extra_metadata=DB_METADATA
)
""",
}
"""The same cell with our function."""

READING = {
    "1 summary": """
from ccassets.h5 import summarize_h5
summarize_h5()
""",
    "3 one sample": """
from ccassets.h5 import access_sample_by_index
sample = access_sample_by_index(7)
""",
    "3 batches": """
from ccassets.h5 import access_batch
imgs = access_batch(split="train", idx=slice(0, 5), type="image")
tokens = access_batch(split="val", idx=[0, 1], type="patches")
labels = access_batch(split="test", idx=None, type="label")
""",
    "4 templates": """
import h5py
import json
from ccassets.h5 import get_template_names
print("templates:", get_template_names())

def _read_json_attr(f, key, default=None):
    value = f.attrs.get(key, default)
    return json.loads(value) if isinstance(value, str) else value

concepts = _read_json_attr(h5py.File("./conceptclip_features.h5", "r"), "concept_texts")
nothing = _read_json_attr(h5py.File("./conceptclip_features.h5", "r"), "labels")
scale = _read_json_attr(h5py.File("./conceptclip_features.h5", "r"), "logit_scale")
""",
    "4 features of templates": """
from ccassets.h5 import fetch_template_features
feats = fetch_template_features(is_concept=True, concept_list=["Segmented nucleus", "Round nucleus"], type="text")
feats_map = fetch_template_features(
    template_id=["concept_prompts_t01", "concept_prompts_t02"], is_concept=True, type="tokens"
)
label_feats = fetch_template_features(is_concept=False, is_label=True, type="text")
""",
    "access patterns": """
with h5py.File("./conceptclip_features.h5") as f:
    row, split = f["image_features"][3], f["split"][3].decode()
    counts = json.loads(f.attrs["split_counts"])
""",
    "2 clear the templates": """
from ccassets.h5 import clear_all_templates
clear_all_templates(confirm=True)
""",
}
"""Notebook 2, its cell that clears the templates last."""

SCRIPTS = {
    "feature_store_main": """
from ccassets.h5 import (
    encode_and_store_image_features,
    load_conceptclip_model,
    prepare_bloodmnist_artifacts,
    run_full_pipeline,
    store_prompt_features,
)
loaders, prompts = prepare_bloodmnist_artifacts(
    image_size=28, batch_size=4, num_workers=0, shuffle=False, download=True, data_root=archives
)
artifacts = load_conceptclip_model(hf_token=None, weights=weights)
common = {"output_path": "script.h5", "extra_metadata": {"dataset": "bloodmnist"}}
stored = store_prompt_features(artifacts, prompts, **common)
appended = encode_and_store_image_features(artifacts, loaders, resume=True, show_progress=False, **common)
summary = run_full_pipeline(artifacts, prompts, loaders, resume=True, show_progress=True, **common)
anew = run_full_pipeline(artifacts, prompts, loaders, resume=False, show_progress=False, **common)
""",
    "database_access_main": """
from ccassets.h5 import (
    access_batch,
    access_sample_by_index,
    fetch_template_features,
    get_template_names,
    summarize_h5,
)
summarize_h5("script.h5", max_templates=2)
sample = access_sample_by_index(2, path="script.h5")
batches = {
    "all": access_batch(split="all", idx=None, feature="image", path="script.h5"),
    "rows": access_batch(split="train", idx=[4, 0, 2], feature="patches", path="script.h5"),
    "run": access_batch(split="test", idx=slice(0, 2, None), feature="label", path="script.h5"),
}
names = get_template_names("script.h5")
everything = fetch_template_features(
    template_id=None, is_concept=False, concept_list=None, is_label=False, feature="text", path="script.h5"
)
chosen = fetch_template_features(
    template_id=["concept_prompts_t01"],
    is_concept=True,
    concept_list=["Round nucleus"],
    is_label=False,
    feature="tokens",
    path="script.h5",
)
""",
}
"""What the two programs of the scripts call."""


def run(cells: dict[str, str], names: dict[str, Any]) -> dict[str, Any]:
    """The names that the cells leave, each run after the one before it."""
    for title, source in cells.items():
        exec(compile(source, f"cell {title!r}", "exec"), names)
    return names


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A working folder, small archives in place of the published ones, and the phantom's weights."""
    monkeypatch.chdir(tmp_path)
    site = MedMnistSite(tmp_path, monkeypatch)
    site.archive("bloodmnist")
    monkeypatch.setitem(medmnist.INFO["bloodmnist"], "n_samples", MEDMNIST_COUNTS)
    return {"archives": str(site.root), "weights": PHANTOM}


def test_the_cells_of_both_notebooks_run(given: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    written = run(WRITING, given)

    assert written["findings"] == []
    capsys.readouterr()
    ours = run(STORING, written)
    assert ours["appended"] == MEDMNIST_COUNTS
    assert ours["again"] == {}
    printed = capsys.readouterr().out
    assert "Appended 11 samples to ours.h5.\n  - train: 6\n  - val: 2\n  - test: 3\n" in printed
    assert printed.endswith("No new samples were appended.\n")
    assert "\n\n" not in printed
    rows = {name: values for name, values in contents(Path(ours["OUT_PATH"])).items() if "templates" not in name}
    assert_same(rows, contents(Path("ours.h5")))

    read = run(READING, {})
    assert (read["imgs"].shape, read["tokens"].shape, read["labels"].shape) == ((5, 96), (2, 144, 96), (3,))
    assert (read["sample"]["id"], read["sample"]["split"]) == (7, "val")
    assert read["concepts"] == written["concept_list"]
    assert read["nothing"] is None
    assert read["scale"] == written["model"].logit_scale.item()
    assert {name: values.shape for name, values in read["feats"].items()} == {
        "concept_prompts_t01": (2, 96),
        "concept_prompts_t02": (2, 96),
    }
    assert {values.shape for values in read["feats_map"].values()} == {(3, 77, 96)}
    assert read["label_feats"].shape == (8, 96)
    assert read["split"] == "train"
    assert read["counts"] == MEDMNIST_COUNTS


def test_the_programs_of_the_scripts_run(given: dict[str, Any]) -> None:
    done = run(SCRIPTS, given)

    assert sum(done["stored"].values()) == 9 * 15 + 3 * 8
    assert done["appended"] == MEDMNIST_COUNTS
    assert done["summary"].total_new_samples == 0
    assert done["anew"].image_samples_appended == MEDMNIST_COUNTS
    assert done["batches"]["all"].shape == (11, 96)
    assert done["batches"]["rows"].shape == (3, 144, 96)
    assert done["batches"]["run"].shape == (2,)
    assert set(done["everything"]) == set(done["names"])
    assert done["chosen"].shape == (1, 77, 96)
    assert [finding.check for finding in validate_database("script.h5") if finding.severity == "error"] == []


def test_the_cell_that_clears_templates_asks_first(given: dict[str, Any]) -> None:
    run(WRITING, given)

    with pytest.raises(ArgumentError, match="confirm=True"):
        clear_all_templates()
    assert len(contents(Path("conceptclip_features.h5"))["templates/label_prompts_t01/texts"]) == 8


@pytest.mark.parametrize(("setting", "value"), [("do_rescale", True), ("do_normalize", False), ("do_resize", False)])
def test_a_setting_that_would_be_ignored_is_refused(setting: str, value: bool) -> None:
    processor = load_conceptclip_model(weights=PHANTOM, device="cpu").processor

    with pytest.raises(ArgumentError, match=f"image_processor.{setting}"):
        setattr(processor.image_processor, setting, value)
