"""Where things lie: home, storage, and the paths of parts, manifests and databases. Nothing here opens an HDF5 file."""

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


def storage_root() -> Path:
    """The folder of parts, databases and pages: `CCASSETS_STORAGE`, else `<home>/storage`."""
    chosen = os.environ.get("CCASSETS_STORAGE")
    return Path(chosen).expanduser().absolute() if chosen else home() / "storage"


@dataclass(frozen=True)
class Store:
    """The files of one study under a storage root; image and template parts are shared by all studies."""

    root: Path
    study: str
    database_file: str

    @classmethod
    def of(cls, study: Study, root: Path | None = None) -> Store:
        return cls(root or storage_root(), study.name, study.database_file)

    @property
    def folder(self) -> Path:
        return self.root / self.study

    @property
    def database(self) -> Path:
        return self.folder / self.database_file

    @property
    def encoder_card(self) -> Path:
        return self.folder / "encoder.json"

    @property
    def reports(self) -> Path:
        return self.folder / "reports"

    @property
    def analysis(self) -> Path:
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
        """Locks of the runs that are at work, shared by all studies."""
        return self.root / "runs"

    def manifest(self, split: str) -> Path:
        # Percent-escaped, so that any split name is a file name on any file system.
        return self.folder / "manifest" / f"{quote(split, safe=' ')}.parquet"

    def image_parts(self, identity: str) -> Path:
        return self.root / "features" / identity / "rows"

    def template_parts(self, identity: str) -> Path:
        return self.root / "features" / identity / "templates"

    def relative(self, path: Path) -> str:
        """A path as it is shown and stored: relative to the storage root, never absolute."""
        return path.relative_to(self.root).as_posix()
