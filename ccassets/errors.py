"""The exceptions of ccassets. Each message names the place, what was expected and found there, and what to do.

CcassetsError
├── StudyError
├── DatasetError
│   └── AbsentDataError
├── EncoderError
│   └── AbsentWeightsError
├── DatabaseError
│   ├── ccassets.h5.MissingFileError    also a FileNotFoundError
│   ├── ccassets.h5.ArgumentError       also a ValueError
│   ├── ccassets.h5.RowError            also an IndexError
│   ├── ccassets.h5.NameMissingError    also a KeyError
│   └── DamagedSourceError
├── StorageError
├── AdoptionError
├── AnalysisError
├── BuildError
│   └── InterruptedBuildError
├── TokenError
└── UiServerError
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ccassets.findings import Finding

__all__ = [
    "AbsentDataError",
    "AbsentWeightsError",
    "AdoptionError",
    "AnalysisError",
    "BuildError",
    "CcassetsError",
    "DamagedSourceError",
    "DatabaseError",
    "DatasetError",
    "EncoderError",
    "InterruptedBuildError",
    "StorageError",
    "StudyError",
    "TokenError",
    "UiServerError",
]


class CcassetsError(Exception):
    """Base of all errors that ccassets raises for its user; its text is meant to be read as it is.

    Args:
        message: The text.
        transient: Whether retrying later may succeed: a hub does not answer, a disk is busy.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class StudyError(CcassetsError):
    """A study file is missing, malformed, or asks for something that cannot be."""


class DatasetError(CcassetsError):
    """Images or labels of a data set are missing, unreadable, or not what the study says."""


class AbsentDataError(DatasetError):
    """The folder, table or archive of a data set is not on this machine, so nothing can be said about its rows."""


class EncoderError(CcassetsError):
    """Weights, tokenizer or device of an encoder are missing or do not fit."""


class AbsentWeightsError(EncoderError):
    """The folder that a study names for weights or tokenizer is not on this machine."""


class DatabaseError(CcassetsError):
    """A file is not the feature database, or the part of one, that was expected."""


class StorageError(CcassetsError):
    """The disk, a path or a lock does not allow what has to be done."""


class AdoptionError(CcassetsError):
    """A file does not fit the study that should adopt it.

    Args:
        message: What does not fit; the text of the exception adds every finding that is an error.
        findings: All the reasons, warnings too.
    """

    def __init__(self, message: str, findings: Sequence[Finding]) -> None:
        errors = [finding for finding in findings if finding.severity == "error"]
        super().__init__("\n".join([message, *(f"{f.check} at {f.where}: {f.message}" for f in errors)]))
        self.message = message
        self.findings = findings


class AnalysisError(CcassetsError):
    """Rows, labels or a stored classifier do not allow the analysis that was asked for."""


class BuildError(CcassetsError):
    """A run of a build failed; the text is that of the step that failed."""


class InterruptedBuildError(BuildError):
    """A signal ended a build; everything finished until then is kept."""


class TokenError(CcassetsError):
    """A token that is too short to be a secret, or that no cookie can carry."""


class UiServerError(CcassetsError):
    """The UI could not be started, or one of its processes ended."""


class DamagedSourceError(DatabaseError):
    """A source holds other bytes than were written to it.

    Args:
        path: The source.
        rows: The number of its rows that differ.
    """

    def __init__(self, path: Path, rows: int) -> None:
        super().__init__(
            f"{path}: {rows} rows are not the ones that were written. Build again: they are encoded again."
        )
        self.path = path
