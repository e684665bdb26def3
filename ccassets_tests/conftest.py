"""Homes and studies of their own for every test; nothing of the machine's is read."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import alembic.script
import pytest
import sqlalchemy as sql
from dagster._core.execution import compute_logs
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

from ccassets.study.schema import Study
from ccassets_tests.made_studies import save_golden_weights, save_images, write_study


def pytest_configure() -> None:
    """Let Ctrl-C reach what tests start, also where a script started these tests with `&` and SIGINT ignored."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _keep_engines()
    compute_logs.execute_posix_tail = _no_tail


@contextmanager
def _no_tail(path: str, stream: object) -> Iterator[tuple[None, None]]:
    """Spare every run the four processes that copy the output of its steps from their files to a terminal."""
    yield None, None


def _keep_engines() -> None:
    """Spare Dagster's records what it does for every query: a new engine, and reading all its migrations again.

    A third of the time of a small build. The records stay real SQLite files; they need not outlive a power cut.
    """
    alembic.script.ScriptDirectory.from_config = functools.cache(alembic.script.ScriptDirectory.from_config)

    @functools.lru_cache(maxsize=64)
    def engine(address: str, timeout: float | None) -> sql.Engine:
        made = sql.create_engine(address, poolclass=sql.NullPool, connect_args={"timeout": timeout} if timeout else {})
        sql.event.listen(made, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
        return made

    def create_engine(address: str, poolclass: object, connect_args: dict[str, float] | None = None) -> sql.Engine:
        return engine(address, (connect_args or {}).get("timeout"))

    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        module.create_engine = create_engine


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and storage of the test's own; no hub, no token."""
    for name in ("DAGSTER_HOME", "CCASSETS_STORAGE", "CCASSETS_STUDIES", "HF_TOKEN", "CCASSETS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "home"
    monkeypatch.setenv("CCASSETS_HOME", str(folder))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """9 + 5 + 4 small pictures of three classes in a folder."""
    return save_images(tmp_path / "pictures")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """The golden ConceptCLIP of small size."""
    return save_golden_weights(tmp_path / "weights")


@pytest.fixture
def study(tmp_path: Path, image_folder: Path, weights: Path) -> Study:
    """A study of the pictures with the golden encoder, batches of 2 and shards of 4."""
    return write_study(tmp_path / "studies" / "cells", images=image_folder, encoder=weights)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with real images that tests may read and the project may not ship."""
    folder = os.environ.get("CCASSETS_TEST_DATA")
    if not folder:
        pytest.skip("CCASSETS_TEST_DATA is not set: the real blood-cell crops are not at hand")
    return Path(folder)
