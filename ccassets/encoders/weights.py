"""Files of models, in a folder or on the hub at a revision; nothing here looks into them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ccassets.encoders.presets import alternatives
from ccassets.errors import AbsentWeightsError, EncoderError
from ccassets.files import reading_refused, storage_error
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
    reference: str,
    *,
    study: Study,
    revision: str,
    patterns: Sequence[str],
    pickled_patterns: Sequence[str] = (),
    hf_token: str | None,
) -> ModelFolder:
    """The folder of that name as the study sees it, else the hub's files matching `patterns` at a revision.

    Files matching `pickled_patterns` are fetched only where the hub has no safetensors.
    A download goes through huggingface_hub: `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and, without `hf_token`,
    `HF_TOKEN` hold as they do everywhere. Raises `EncoderError` saying what to do.
    """
    folder = find_folder(reference, study)
    if folder is None:
        folder = _download(reference, revision, patterns, hf_token)
        if pickled_patterns and not any(folder.path.glob("*.safetensors")):
            folder = _download(reference, revision, pickled_patterns, hf_token)
    return folder


def find_folder(reference: str, study: Study) -> ModelFolder | None:
    """The folder of that name as the study sees it; None when the name is a hub id. Raises `EncoderError`."""
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
    from huggingface_hub import errors, snapshot_download

    try:
        path = Path(snapshot_download(repo, revision=revision, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError):
        return None
    return ModelFolder(path, repo, path.name)


def require_access(repo: str, revision: str, hf_token: str | None) -> None:
    """Ask the hub whether it would give a repository's files; raises `EncoderError` as a download would."""
    from huggingface_hub import HfApi

    with _hub_errors(repo, revision, hf_token):
        HfApi().auth_check(repo, token=hf_token)
        HfApi().model_info(repo, revision=revision, token=hf_token)


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


def _download(repo: str, revision: str, patterns: Sequence[str], hf_token: str | None) -> ModelFolder:
    from huggingface_hub import snapshot_download

    with _hub_errors(repo, revision, hf_token):
        path = Path(snapshot_download(repo, revision=revision, allow_patterns=list(patterns), token=hf_token))
    return ModelFolder(path, repo, path.name)


@contextmanager
def _hub_errors(repo: str, revision: str, hf_token: str | None) -> Iterator[None]:
    """Raise what the hub refuses as an `EncoderError` in our own words: a library's message may quote a request.

    Without a token, that of a gated model says what else would do.
    """
    from huggingface_hub import constants, errors, get_token

    page = f"{constants.ENDPOINT}/{repo}"
    has_token = bool(hf_token or get_token())
    otherwise = "" if has_token else alternatives(repo)
    try:
        yield
    except errors.HFValidationError as error:
        raise EncoderError(f"{repo!r} is neither a folder nor a hub id of the form owner/name.") from error
    except errors.GatedRepoError as error:
        raise EncoderError(
            f"{repo} is gated: accept its terms at {page} with your account, then set HF_TOKEN to a token of that "
            "account with read access. Access may have to be granted by the authors first."
            + ("" if has_token else alternatives(repo, gated=True))
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise EncoderError(
            f"There is no folder {repo!r}, and the hub shows no model of that name ({page}). "
            "Check the spelling; a private or gated model needs HF_TOKEN set to a token that may read it."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise EncoderError(f"{repo} has no revision {revision!r}; see {page}/commits/main.") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise EncoderError(
            f"{repo} at {revision!r} is not in the local cache, and {_reason_not_downloaded(error.__cause__)}, "
            f"or name a local folder as weights.{otherwise}",
            transient=not constants.HF_HUB_OFFLINE,
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        hint = "the token in HF_TOKEN is not valid for it" if status in (401, 403) else "try again later"
        raise EncoderError(
            f"The hub answered {status} for {repo} at {revision!r}: {hint}.", transient=status >= 500 or status == 429
        ) from error
    except Exception as error:  # The transports of the hub's releases share no base class.
        if isinstance(error, OSError) and error.errno:
            raise storage_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise EncoderError(
            f"{repo} could not be downloaded: {constants.ENDPOINT} cannot be reached, or the connection broke off "
            f"({type(error).__name__}). Check the network, HF_ENDPOINT and proxies, then start again: finished files "
            f"are kept. Or name a local folder as weights.{otherwise}",
            transient=True,
        ) from error


def _reason_not_downloaded(cause: BaseException | None) -> str:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE). Unset it once"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answered {cause.response.status_code}. Try again later"
    return f"{constants.ENDPOINT} cannot be reached. Check the network, HF_ENDPOINT and proxies"
