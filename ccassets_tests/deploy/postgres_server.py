"""A PostgreSQL server for the time of a test, where this machine has one."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ccassets_tests.orchestration.test_daemon import wait_for

SERVER_USER = "postgres" if os.geteuid() == 0 else None


@dataclass(frozen=True)
class PostgresServer:
    """Where the server is reached: by its socket in `folder`, or at a port of 127.0.0.1; its user is `dagster`."""

    folder: Path
    port: int

    def create_database(self, name: str) -> None:
        import psycopg2

        with closing(
            psycopg2.connect(host=self.folder, port=self.port, user="dagster", dbname="postgres")
        ) as connection:
            connection.autocommit = True
            connection.cursor().execute(f"CREATE DATABASE {name}")


@contextmanager
def postgres_server(*, with_port: bool = False) -> Iterator[PostgresServer]:
    """A server that only this test reaches; the test is skipped where there is none, or no library for it."""
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed")
    programs = [shutil.which(name) for name in ("initdb", "postgres")]
    if None in programs:
        pytest.skip("there is no PostgreSQL on this machine")
    initdb, server = map(str, programs)
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # A socket's path is short.
    if SERVER_USER:
        shutil.chown(folder, SERVER_USER)
    data, port = str(folder / "data"), free_port()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "user": SERVER_USER, "cwd": folder}
    subprocess.run([initdb, "-D", data, "-U", "dagster", "-A", "trust"], check=True, **quiet)  # type: ignore[call-overload]
    listening = f"listen_addresses={'127.0.0.1' if with_port else ''}"
    command = [server, "-D", data, "-k", str(folder), "-p", str(port), "-c", listening]
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    try:
        wait_for(lambda: list(folder.glob(".s.PGSQL.*")), 60)
        yield PostgresServer(folder, port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
