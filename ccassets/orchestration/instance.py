"""The Dagster instance of the home: made with our settings if there is none, by one process at a time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ccassets.errors import StorageError
from ccassets.files import exclusive
from ccassets.study.storage import has_records, home

SHIPPED_DAGSTER_YAML = Path(__file__).parent / "dagster.yaml"


@contextmanager
def dagster_instance() -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of the home, which is made with our `dagster.yaml` if it is new.

    Yields:
        The instance, which is closed at the end of the block.

    Raises:
        StorageError: The home cannot be written or used, or its disk is full.
    """
    from sqlalchemy.exc import DBAPIError  # Not for definitions, which load with this module.

    folder = home()
    try:
        with _explained_refusals(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # Dagster makes its tables when it opens a home first; two that do so at once spoil them for good.
            with exclusive(folder):
                if not has_records(folder):
                    shutil.copyfile(SHIPPED_DAGSTER_YAML, folder / "dagster.yaml")
                instance = _open_instance(folder)
        with instance:
            yield instance
    except DBAPIError as error:
        raise StorageError(
            f"Dagster's records of the home {folder} cannot be written or read ({error.orig}). Free some space there, "
            "see that their server runs, or choose another home with --home; features and databases are not touched."
        ) from error


@contextmanager
def _explained_refusals(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"The home {folder} cannot be written ({error.strerror}); choose another with --home."
        ) from error


def _open_instance(folder: Path) -> dg.DagsterInstance:
    from sqlalchemy.exc import DBAPIError

    try:
        return dg.DagsterInstance.from_config(str(folder))
    except DBAPIError:
        raise
    except Exception as error:  # What a foreign dagster.yaml names may raise anything.
        first = error
        while first.__cause__ is not None:
            first = first.__cause__  # type: ignore[assignment]
        reason = str(first).strip() or type(first).__name__
        raise StorageError(
            f"Dagster cannot use the home {folder}: {reason}\nCorrect {folder / 'dagster.yaml'}, or choose another "
            "home with --home or CCASSETS_HOME."
        ) from error
