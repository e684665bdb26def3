"""Finding weights: in folders, and on the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ccassets.encoders import inspect_encoder, load_encoder
from ccassets.errors import EncoderError, StorageError
from ccassets_tests.encoders.conftest import MakeStudy, write_weights_folder
from ccassets_tests.encoders.hub import COMMIT, TOKEN, Hub, hub_of

# --- folders -----------------------------------------------------------------------------------------


def test_a_folder_is_taken_relative_to_the_study(make_study: MakeStudy, weights_folder: Path) -> None:
    study = make_study(weights="mine")
    shutil.copytree(weights_folder, study.folder / "mine")

    assert inspect_encoder(study).recorded["weights"] == "mine"


@pytest.mark.parametrize("weights", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all"])
def test_a_missing_folder_is_named_and_not_looked_for_on_the_hub(make_study: MakeStudy, weights: str) -> None:
    with pytest.raises(EncoderError, match=f"There is no folder .*{weights}"):
        inspect_encoder(make_study(weights=weights))


def test_a_file_instead_of_a_folder_is_explained(make_study: MakeStudy, weights_folder: Path) -> None:
    with pytest.raises(EncoderError, match="is a file; name the folder"):
        inspect_encoder(make_study(weights=str(weights_folder / "model.safetensors")))


def test_pickled_weights_are_refused(make_study: MakeStudy, weights_folder: Path) -> None:
    (weights_folder / "model.safetensors").rename(weights_folder / "pytorch_model.bin")

    with pytest.raises(EncoderError, match=r"found only pickled weights \(pytorch_model\.bin\).*can run code"):
        inspect_encoder(make_study(weights=str(weights_folder)))


def test_several_weight_files_are_not_chosen_from(make_study: MakeStudy, weights_folder: Path) -> None:
    (weights_folder / "model.safetensors").rename(weights_folder / "a.safetensors")
    shutil.copy(weights_folder / "a.safetensors", weights_folder / "b.safetensors")

    with pytest.raises(EncoderError, match=r"several safetensors files .*a\.safetensors, b\.safetensors"):
        inspect_encoder(make_study(weights=str(weights_folder)))


def test_a_sharded_checkpoint_is_found_through_its_index(make_study: MakeStudy, weights_folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(weights_folder / "model.safetensors")
    (weights_folder / "model.safetensors").unlink()
    names = sorted(tensors)
    index = {}
    for number, part in enumerate((names[:30], names[30:]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, weights_folder / file)
        index |= dict.fromkeys(part, file)
    (weights_folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))

    assert inspect_encoder(make_study(weights=str(weights_folder))).recorded["parameters"] == 194_148

    (weights_folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(EncoderError, match=r"lacks files .*model-00002-of-00002\.safetensors"):
        inspect_encoder(make_study(weights=str(weights_folder)))
    (weights_folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../a.safetensors"}}')
    with pytest.raises(EncoderError, match="must name files in its own folder"):
        inspect_encoder(make_study(weights=str(weights_folder)))


def test_a_missing_tokenizer_is_explained_and_can_be_named(
    make_study: MakeStudy, weights_folder: Path, tmp_path: Path
) -> None:
    words = tmp_path / "words"
    words.mkdir()
    (weights_folder / "vocab.txt").rename(words / "vocab.txt")

    with pytest.raises(EncoderError, match="holds no tokenizer"):
        inspect_encoder(make_study(weights=str(weights_folder)))
    assert (
        inspect_encoder(make_study(weights=str(weights_folder), tokenizer=str(words))).recorded["tokenizer"] == "words"
    )


# --- the hub -----------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, config: dict[str, Any]) -> Iterator[Hub]:
    folder = write_weights_folder(tmp_path / "hub", config)
    (folder / "pytorch_model.bin").write_bytes(b"not to be fetched")
    (folder / "modeling.py").write_text("raise SystemExit('never run')")
    with hub_of(folder) as hub:
        yield hub


def ask(
    tmp_path: Path, endpoint: str, weights: str, revision: str = "main", token: str = "", **environment: str
) -> str:
    """What `inspect_encoder` says in a process of its own: huggingface_hub reads its variables when imported."""
    study = tmp_path / "asked" / "defs.yaml"
    study.parent.mkdir(exist_ok=True)
    encoder = {"kind": "conceptclip", "weights": weights, "revision": revision}
    attributes = {"dataset": {"kind": "phantom"}, "encoder": encoder}
    study.write_text(yaml.safe_dump({"type": "ccassets.FeatureDatabase", "attributes": attributes}))
    code = """
import sys
from ccassets import CcassetsError, load_study
from ccassets.encoders import inspect_encoder
try:
    print(inspect_encoder(load_study(sys.argv[1]), hf_token=sys.argv[2] or None).to_json())
except CcassetsError as error:
    print(error)
"""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    result = subprocess.run(
        [sys.executable, "-c", code, str(study), token],
        env={
            **inherited,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert TOKEN not in result.stdout + result.stderr
    return result.stdout


def test_a_hub_model_is_fetched_at_its_commit_and_then_found_offline(
    tmp_path: Path, hub: Hub, make_study: MakeStudy
) -> None:
    card = json.loads(ask(tmp_path, hub.url, "lab/tiny"))

    assert card["recorded"] == {"parameters": 194_148, "weights": "lab/tiny", "commit": COMMIT}
    assert card["identity"] == inspect_encoder(make_study(weights=str(hub.folder))).identity
    fetched = {file.name for file in (tmp_path / "hf").rglob("*") if file.is_symlink() or file.is_file()}
    assert {"model.safetensors", "vocab.txt", "architecture.json"} <= fetched
    assert not {"pytorch_model.bin", "modeling.py"} & fetched
    hub.requested_paths.clear()
    assert json.loads(ask(tmp_path, hub.url, "lab/tiny", HF_HUB_OFFLINE="1")) == card
    assert hub.requested_paths == []


def test_a_gate_that_is_not_accepted_says_where_to_accept_it(tmp_path: Path, hub: Hub) -> None:
    for environment in ({}, {"HF_TOKEN": TOKEN}):
        said = ask(tmp_path, hub.url, "lab/gated", **environment)
        assert f"lab/gated is gated: accept its terms at {hub.url}/lab/gated" in said
        assert "HF_TOKEN" in said
        ways = (
            "no token is set",
            "encoder: {kind: open_clip, weights: microsoft/BiomedCLIP",
            "encoder: {kind: phantom}",
        )
        assert [way in said for way in ways] == [not environment] * 3


def test_a_token_opens_a_private_model(tmp_path: Path, hub: Hub) -> None:
    assert "needs HF_TOKEN set" in ask(tmp_path, hub.url, "lab/private")
    assert "needs HF_TOKEN set" in ask(tmp_path, hub.url, "lab/private", HF_TOKEN="hf_another")
    for given in ({"HF_TOKEN": TOKEN}, {"token": TOKEN}):
        assert json.loads(ask(tmp_path, hub.url, "lab/private", **given))["recorded"]["commit"] == COMMIT


def test_an_unknown_model_or_revision_is_named(tmp_path: Path, hub: Hub) -> None:
    assert "There is no folder 'lab/typo', and the hub shows no model" in ask(tmp_path, hub.url, "lab/typo")
    assert "lab/tiny has no revision 'v9'" in ask(tmp_path, hub.url, "lab/tiny", revision="v9")
    assert "neither a folder nor a hub id" in ask(tmp_path, hub.url, "not a hub id")


def test_a_hub_that_cannot_be_reached_or_may_not_be_says_so(tmp_path: Path, hub: Hub) -> None:
    nobody = "http://127.0.0.1:9"
    assert f"{nobody} cannot be reached" in ask(tmp_path, nobody, "lab/tiny")
    assert "offline mode is on (HF_HUB_OFFLINE)" in ask(tmp_path, hub.url, "lab/tiny", HF_HUB_OFFLINE="1")
    assert f"{hub.url} answered 500" in ask(tmp_path, hub.url, "lab/broken")


# --- what the system refuses -------------------------------------------------------------------------

FAILING = Path("/proc/self/mem")
"""A file whose first byte the kernel refuses to read, as a broken disk would: Input/output error."""


@pytest.mark.parametrize("name", ["architecture.json", "vocab.txt", "model.safetensors.index.json", "tokenizer.json"])
def test_a_disk_that_fails_is_no_fault_of_the_weights(make_study: MakeStudy, weights_folder: Path, name: str) -> None:
    study = make_study(weights=str(weights_folder))
    (weights_folder / name).unlink(missing_ok=True)
    (weights_folder / name).symlink_to(FAILING)
    for use in (inspect_encoder, load_encoder):
        with pytest.raises(StorageError, match=f"{name} cannot be read: Input/output error") as caught:
            use(study)
        assert caught.value.transient


def test_weights_that_cannot_be_mapped_are_no_bad_weights(make_study: MakeStudy, weights_folder: Path) -> None:
    (weights_folder / "model.safetensors").unlink()
    (weights_folder / "model.safetensors").symlink_to(FAILING)
    with pytest.raises(StorageError, match=r"model.safetensors cannot be read: No such device"):
        inspect_encoder(make_study(weights=str(weights_folder)))
