"""The exceptions of ccassets: every message says what was expected, what was found, where, and what to do."""


class CcassetsError(Exception):
    """Base of all errors that ccassets raises for its user; its text is meant to be read as it is.

    `transient` says that retrying later may succeed: a hub does not answer, a disk is busy.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class StudyError(CcassetsError):
    """A study file is missing, malformed, or asks for something that cannot be."""


class DatasetError(CcassetsError):
    """Images or labels of a data set are missing, unreadable, or not what the study says."""


class AbsentDataError(DatasetError):
    """The folder, table or archive of a data set is not on this machine: nothing can be said of it, good or bad."""


class EncoderError(CcassetsError):
    """Weights, tokenizer or device of an encoder are missing or do not fit."""


class DatabaseError(CcassetsError):
    """A file is not the feature database, or the part of one, that was expected."""


class StorageError(CcassetsError):
    """The disk, a path or a lock does not allow what has to be done."""


class AnalysisError(CcassetsError):
    """Rows, labels or a stored classifier do not allow the analysis that was asked for."""
