"""Files of models, in a folder or on the hub at a revision; nothing here looks into them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ccassets.encoders.presets import alternatives
from ccassets.errors import AbsentWeightsError, EncoderError
from ccassets.files import reading_refused
from ccassets.study.hub import HubRepository
from ccassets.study.schema import Study

INDEX = "model.safetensors.index.json"
PICKLED_INDEX = "pytorch_model.bin.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelFolder:
    """A folder with a model's files; `name` is what may be published, `commit` the hub's, None for a local folder."""

    path: Path
    name: str
    commit: str | None = None


def find_model(
    study: Study,
    reference: str,
    revision: str,
    hf_token: str | None,
    patterns: Sequence[str],
    pickled_patterns: Sequence[str] = (),
) -> ModelFolder:
    """The local folder of that name, relative to the study, else the hub's files matching `patterns` at a revision.

    Files matching `pickled_patterns` are fetched only where the hub has no safetensors. Raises `EncoderError` saying
    what to do.
    """
    if folder := find_folder(reference, study):
        return folder
    repository = _repository(reference, revision, hf_token)
    path = repository.download(patterns)
    if pickled_patterns and not any(path.glob("*.safetensors")):
        path = repository.download(pickled_patterns)
    return ModelFolder(path, reference, path.name)


def find_folder(reference: str, study: Study) -> ModelFolder | None:
    """The local folder of that name, relative to the study; None when the name is a hub id. Raises `EncoderError`."""
    folder = study.resolve(reference)
    if folder.is_dir():
        return ModelFolder(folder, folder.name)
    if folder.exists():
        raise AbsentWeightsError(f"{reference} is a file; name the folder that holds it and the tokenizer.")
    if reference.startswith((".", "/", "~")) or "\\" in reference or reference.count("/") > 1:
        raise AbsentWeightsError(f"There is no folder {folder} (the study says {reference!r}).")
    return None


def find_download(repo: str, revision: str) -> ModelFolder | None:
    """The folder that an earlier download of a hub id left in the local cache; None without one. Works offline."""
    path = _repository(repo, revision, None).find_download()
    return None if path is None else ModelFolder(path, repo, path.name)


def require_access(repo: str, revision: str, hf_token: str | None) -> None:
    """Ask the hub whether it would give a repository's files; raises `EncoderError` as a download would."""
    _repository(repo, revision, hf_token).require_access()


def _repository(repo: str, revision: str, hf_token: str | None) -> HubRepository:
    return HubRepository(repo, revision, "model", EncoderError, EncoderError, hf_token, alternatives)


def safetensors_files(folder: ModelFolder) -> list[Path]:
    """The weights in a folder: the shards of an index, else model.safetensors, else the only safetensors file.

    Raises `EncoderError` when there are none, several, or one of the index's shards is missing.
    """
    index = folder.path / INDEX
    if index.is_file():
        return _shards(index, folder)
    single = folder.path / "model.safetensors"
    if single.is_file():
        return [single]
    files = sorted(folder.path.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise EncoderError(
            f"{folder.name} holds several safetensors files and none is called model.safetensors: "
            f"{', '.join(file.name for file in files)}. Keep one, or add {INDEX}."
        )
    pickled = sorted(file.name for pattern in PICKLED for file in folder.path.glob(pattern))
    existing = f"only pickled weights ({', '.join(pickled)})" if pickled else "none"
    raise EncoderError(
        f"{folder.name}: expected weights in safetensors format, found {existing}. "
        "Pickled files can run code when they are read, so we never do; convert them with safetensors.torch.save_file."
    )


def model_weights(folder: ModelFolder) -> list[Path]:
    """The weights in a folder: safetensors, and only without them `pytorch_model.bin` or the shards of its index."""
    if not any(folder.path.glob("*.safetensors")):
        single, index = folder.path / "pytorch_model.bin", folder.path / PICKLED_INDEX
        if single.is_file():
            return [single]
        if index.is_file():
            return _shards(index, folder)
    return safetensors_files(folder)


def with_index(files: Sequence[Path]) -> list[Path]:
    """The files of weights together with the index that names them, where there is one."""
    indices = {file.with_name(INDEX if file.suffix == ".safetensors" else PICKLED_INDEX) for file in files}
    return [*files, *(index for index in indices if index.is_file())]


def _shards(index: Path, folder: ModelFolder) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise reading_refused(error, str(index)) or EncoderError(
            f"{index.name} of {folder.name} cannot be read: expected a JSON object with weight_map."
        ) from error
    # An index lists files beside it; a path in it would lead out of the folder.
    outside = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    if outside or not names:
        raise EncoderError(
            f"{index.name} of {folder.name} must name files in its own folder; found {outside or 'none'}."
        )
    missing = [name for name in names if not (folder.path / name).is_file()]
    if missing:
        raise EncoderError(f"{folder.name} lacks files that its {index.name} names: {', '.join(missing)}.")
    return [folder.path / name for name in names]
