"""Locks of runs: a process holds the lock of its run as long as it lives, so that a killed run is noticed.

Dagster itself learns of a killed run from its daemon, after minutes, and not at all where no daemon runs: the slot of
the encoders' pool would never be freed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from ccassets.files import lock_file, storage_error, storage_errors

WATCH_SECONDS = 5.0

_held: set[Path] = set()


@contextmanager
def hold_run_lock(folder: Path, run_id: str) -> Iterator[None]:
    """Hold the lock of a run as long as the block lasts and the process lives."""
    path = folder / f"{run_id}.lock"
    if path in _held:
        yield
        return
    with storage_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        lock_file(fd, path, wait=True)
        _held.add(path)
        yield
    finally:
        _held.discard(path)
        path.unlink(missing_ok=True)
        os.close(fd)


def fail_dead_runs(instance: dg.DagsterInstance, folder: Path) -> list[str]:
    """Mark runs whose process is gone as failed, and free their slots in pools; their ids."""
    failed = []
    for path in folder.glob("*.lock"):
        if path in _held or not _is_free(path):
            continue
        run = instance.get_run_by_id(path.stem)
        if run is None:
            continue  # A run of another home that shares the storage: it is marked there.
        if not run.is_finished:
            instance.report_run_failed(run, "The process of this run was killed.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        failed.append(run.run_id)
        path.unlink(missing_ok=True)
    return failed


@contextmanager
def watch_for_dead_runs(instance: dg.DagsterInstance, folder: Path) -> Iterator[None]:
    """Call `fail_dead_runs` now and every few seconds while the block lasts: nobody must wait for a run that died."""
    fail_dead_runs(instance, folder)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_SECONDS):
            fail_dead_runs(instance, folder)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _is_free(path: Path) -> bool:
    """Whether no process holds the lock; a lock of another user counts as held, since their home marks their runs."""
    try:
        fd = os.open(path, os.O_RDWR)
    except (FileNotFoundError, PermissionError):
        return False
    except OSError as error:
        raise storage_error(error, path) from error
    try:
        return lock_file(fd, path)
    finally:
        os.close(fd)
