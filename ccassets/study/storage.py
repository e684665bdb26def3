"""Paths: the home, the storage, and a study's parts, manifests and databases. Nothing here opens an HDF5 file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ccassets.study.schema import Study


def home(explicit: str | os.PathLike[str] | None = None) -> Path:
    """The folder of Dagster's records: the argument, else `CCASSETS_HOME`, `DAGSTER_HOME`, `./.ccassets`."""
    chosen = explicit or os.environ.get("CCASSETS_HOME") or os.environ.get("DAGSTER_HOME") or ".ccassets"
    return Path(chosen).expanduser().absolute()


def has_records(folder: Path) -> bool:
    """Whether a folder is a home that Dagster already uses: it has settings, or records made without any."""
    return (folder / "dagster.yaml").is_file() or (folder / "history").is_dir()


def storage_root() -> Path:
    """The folder of parts, databases and pages: `CCASSETS_STORAGE`, else `<home>/storage`."""
    chosen = os.environ.get("CCASSETS_STORAGE")
    return Path(chosen).expanduser().absolute() if chosen else home() / "storage"


@dataclass(frozen=True)
class Store:
    """The files of one study under a storage root; image and template parts are shared by all studies.

    Attributes:
        root: The storage root.
        study: The study's name.
        database_file: The file name of the database.
    """

    root: Path
    study: str
    database_file: str

    @classmethod
    def of(cls, study: Study, root: str | os.PathLike[str] | None = None) -> Store:
        """The store of a study.

        Args:
            study: The study.
            root: The storage root; by default `CCASSETS_STORAGE`, else `<home>/storage`.

        Returns:
            The paths of the study's files; nothing is made on disk.
        """
        return cls(Path(root) if root else storage_root(), study.name, study.database_file)

    @property
    def folder(self) -> Path:
        """The folder of the study's own files."""
        return self.root / self.study

    @property
    def database(self) -> Path:
        """The path of the database."""
        return self.folder / self.database_file

    @property
    def encoder_card(self) -> Path:
        """The encoder's identity card, a JSON file."""
        return self.folder / "encoder.json"

    @property
    def certificate(self) -> Path:
        """What `ccassets certify` found of the encoder, a JSON file."""
        return self.folder / "certificate.json"

    @property
    def study_record(self) -> Path:
        """The file that says which study the folder belongs to."""
        return self.folder / "study.json"

    @property
    def reports(self) -> Path:
        """The folder of validation reports."""
        return self.folder / "reports"

    @property
    def analysis(self) -> Path:
        """The folder of results and pages of the analyses."""
        return self.folder / "analysis"

    @property
    def downloads(self) -> Path:
        """Unpacked data sets, shared by all studies."""
        return self.root / "datasets"

    @property
    def cache(self) -> Path:
        """Digests of weight files by fingerprint, shared by all studies."""
        return self.root / "cache"

    @property
    def runs(self) -> Path:
        """Locks of active runs, shared by all studies."""
        return self.root / "runs"

    def manifest(self, split: str) -> Path:
        """The manifest of a split; its name is percent-escaped, so that any split name is a file name.

        Args:
            split: Name of a split.

        Returns:
            The path of the Parquet file.
        """
        return self.folder / "manifest" / f"{quote(split, safe=' ')}.parquet"

    def image_parts(self, identity: str) -> Path:
        """The folder of image parts of an encoder.

        Args:
            identity: The encoder's identity.

        Returns:
            The path; nothing is made on disk.
        """
        return self.root / "features" / identity / "rows"

    def template_parts(self, identity: str) -> Path:
        """The folder of template parts of an encoder.

        Args:
            identity: The encoder's identity.

        Returns:
            The path; nothing is made on disk.
        """
        return self.root / "features" / identity / "templates"

    def encoder_parts(self, identity: str) -> Path:
        """The folder of all parts of an encoder.

        Code that copies from parts holds its lock shared, and code that removes parts holds it exclusively.

        Args:
            identity: The encoder's identity.

        Returns:
            The path; nothing is made on disk.
        """
        return self.root / "features" / identity

    def relative(self, path: str | os.PathLike[str]) -> str:
        """A path relative to the storage root, as it is shown and stored.

        Args:
            path: A path below the storage root.

        Returns:
            The relative path, with `/` on every system.
        """
        return Path(path).relative_to(self.root).as_posix()
