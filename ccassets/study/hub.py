"""Repositories of the Hugging Face hub that a study names: their copies, and refusals of the hub in our own words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ccassets.errors import CcassetsError
from ccassets.files import storage_error

_KINDS = {"model": "model", "dataset": "data set"}


@dataclass(frozen=True)
class HubRepository:
    """A repository of the hub at a revision.

    Downloads go through huggingface_hub: `HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE` and, without `token`, `HF_TOKEN`
    hold as they do everywhere.

    Attributes:
        name: The hub id, such as `owner/name`.
        revision: A branch, tag or commit.
        kind: `model` or `dataset`.
        error: The type of the error if the hub refuses.
        absent_error: The type of the error if the files are not in the cache and the hub cannot give them now.
        token: A token for gated and private repositories.
        advice: Given the hub id and whether it is gated, returns a blank and a sentence on how to go on without a
            token.
    """

    name: str
    revision: str
    kind: Literal["model", "dataset"]
    error: type[CcassetsError]
    absent_error: type[CcassetsError]
    token: str | None = field(default=None, repr=False)
    advice: Callable[[str, bool], str] = lambda repository, gated: ""

    def download(self, patterns: Sequence[str] | None = None) -> Path:
        """Download the files that match `patterns`, by default all; the folder is named like the commit.

        Raises:
            CcassetsError: Of the type `error` or `absent_error`, saying what to do.
            StorageError: The disk refuses.
        """
        from huggingface_hub import snapshot_download

        with self._errors():
            return Path(
                snapshot_download(
                    self.name,
                    repo_type=self.kind,
                    revision=self.revision,
                    allow_patterns=None if patterns is None else list(patterns),
                    token=self.token,
                )
            )

    def find_download(self) -> Path | None:
        """The folder that an earlier download left in the local cache; None without one. Works offline."""
        from huggingface_hub import errors, snapshot_download

        try:
            return Path(
                snapshot_download(self.name, repo_type=self.kind, revision=self.revision, local_files_only=True)
            )
        except (errors.LocalEntryNotFoundError, errors.HFValidationError):
            return None

    def require_access(self) -> None:
        """Ask the hub whether it would give the files; raises as a download would."""
        from huggingface_hub import HfApi

        with self._errors():
            HfApi().auth_check(self.name, repo_type=self.kind, token=self.token)
            HfApi().repo_info(self.name, repo_type=self.kind, revision=self.revision, token=self.token)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise what the hub refuses in our own words: a library's message may quote a request."""
        from huggingface_hub import constants, errors, get_token

        kind, section = _KINDS[self.kind], "" if self.kind == "model" else f"{self.kind}s/"
        page = f"{constants.ENDPOINT}/{section}{self.name}"
        has_token = bool(self.token or get_token())
        advice = "" if has_token else self.advice(self.name, False)
        try:
            yield
        except errors.HFValidationError as error:
            raise self.error(f"{self.name!r} is neither a folder nor a hub id of the form owner/name.") from error
        except errors.GatedRepoError as error:
            raise self.error(
                f"{self.name} is gated: accept its terms at {page} with your account, then set HF_TOKEN to a token of "
                "that account with read access. Access may have to be granted by the authors first."
                + ("" if has_token else self.advice(self.name, True))
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise self.error(
                f"There is no folder {self.name!r}, and the hub shows no {kind} of that name ({page}). "
                f"Check the spelling; a private or gated {kind} needs HF_TOKEN set to a token that may read it."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise self.error(f"{self.name} has no revision {self.revision!r}; see {page}/commits/main.") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise self.absent_error(
                f"{self.name} at {self.revision!r} is not in the local cache, and "
                f"{_reason_not_downloaded(error.__cause__)}, or name a local folder instead.{advice}",
                transient=not constants.HF_HUB_OFFLINE,
            ) from error
        except errors.HfHubHTTPError as error:
            status = error.response.status_code
            hint = "the token in HF_TOKEN is not valid for it" if status in (401, 403) else "try again later"
            raise self.absent_error(
                f"The hub answered {status} for {self.name} at {self.revision!r}: {hint}.",
                transient=status >= 500 or status == 429,
            ) from error
        except Exception as error:  # The transports of the hub's releases share no base class.
            if isinstance(error, OSError) and error.errno:
                raise storage_error(error, Path(constants.HF_HUB_CACHE)) from error
            raise self.absent_error(
                f"{self.name} could not be downloaded: {constants.ENDPOINT} cannot be reached, or the connection broke "
                f"off ({type(error).__name__}). Check the network, HF_ENDPOINT and proxies, then start again: finished "
                f"files are kept. Or name a local folder instead.{advice}",
                transient=True,
            ) from error


def _reason_not_downloaded(cause: BaseException | None) -> str:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "offline mode is on (HF_HUB_OFFLINE). Unset it once"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answered {cause.response.status_code}. Try again later"
    return f"{constants.ENDPOINT} cannot be reached. Check the network, HF_ENDPOINT and proxies"
