"""A power cut: what was synced is there afterwards, and of everything else any part, or none.

The process that is about to die records what it syncs. Then its tree is copied as a disk may hold it: names that were
not synced with their folder are there or not, bytes that were not synced with their file are cut off, zeroed, older or
there, page by page. That is all POSIX promises; real file systems keep more.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ccassets.files import fingerprint
from ccassets_tests.campaigns.mutations import PAGE, Rng

FINISHED = (".h5", ".parquet", ".json", ".html")
"""Endings of names that only a whole file may have."""


@dataclass
class Disk:
    """A tree below the folder `root`: the inode of every name in every folder, and what is in the files, by inode."""

    root: int
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> Disk:
        """A tree as it is now."""
        disk = cls(root.stat().st_ino)
        for folder, _, _ in os.walk(root):
            entries = list(os.scandir(folder))
            disk.names[Path(folder).stat().st_ino] = {entry.name: entry.inode() for entry in entries}
            disk.contents |= {entry.inode(): Path(entry).read_bytes() for entry in entries if entry.is_file()}
        return disk

    def synced(self, record: Path) -> Disk:
        """What is sure to be on the disk: what was there before, and what a `SyncRecord` says was synced since."""
        names, contents = dict(self.names), dict(self.contents)
        lines = record.read_text(encoding="utf-8").split("\n") if record.exists() else []
        for line in lines[:-1]:  # A line without its end was being written when the process was killed.
            event = json.loads(line)
            if "folder" in event:
                names[event["folder"]] = event["names"]
            else:
                contents[event["file"]] = bytes.fromhex(event["content"])
        return Disk(self.root, names, contents)


class SyncRecord:
    """Records in a file, while a process works below a root, what it has the disk hold."""

    def __init__(self, root: Path, record: Path) -> None:
        self._root = str(root)
        self._record = os.open(record, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self._fsync = os.fsync
        self._held: list[int] = []
        os.fsync = self._sync
        sys.addaudithook(self._keep_inode)

    def _sync(self, fd: int) -> None:
        self._fsync(fd)
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if not path.is_relative_to(self._root):
            return
        stat = os.fstat(fd)
        if path.is_dir():
            listing = {entry.name: entry.inode() for entry in os.scandir(path)}
            event: dict[str, Any] = {"folder": stat.st_ino, "names": listing}
        else:
            event = {"file": stat.st_ino, "content": os.pread(fd, stat.st_size, 0).hex()}
        os.write(self._record, (json.dumps(event) + "\n").encode())

    def _keep_inode(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hold open what is about to lose its name: else its inode's number could be given to another file."""
        gone = {"os.rename": 1, "os.remove": 0}.get(event)
        if gone is not None and os.fspath(arguments[gone]).startswith(self._root):
            with suppress(OSError):
                self._held.append(os.open(arguments[gone], os.O_RDONLY))


def cut_power(root: Path, image: Path, sure: Disk, rng: Rng) -> list[str]:
    """Copy a tree as the disk may hold it after a power cut; the files that are not whole."""
    now = Disk.of(root)
    damaged = []

    def copy(folder: int, to: Path) -> None:
        to.mkdir()
        current, safe = now.names.get(folder, {}), sure.names.get(folder, {})
        for name in sorted(current.keys() | safe.keys()):
            inode = (current.get(name), safe.get(name))[int(rng.integers(2))]
            if inode in now.names or inode in sure.names:
                copy(inode, to / name)
            elif inode is not None:
                content, whole = _content(inode, now, sure, rng)
                (to / name).write_bytes(content)
                if not whole:
                    damaged.append((to / name).relative_to(image).as_posix())

    copy(now.root, image)
    carry_fingerprints(root, image)
    return damaged


def _content(inode: int, now: Disk, sure: Disk, rng: Rng) -> tuple[bytes, bool]:
    """What a file holds afterwards, and whether that is all that was written."""
    safe, current = sure.contents.get(inode, b""), now.contents.get(inode)
    if current is None:
        return safe, inode in sure.contents
    if inode in sure.contents and current == safe:
        return current, True
    content = (safe, current, _mixed(safe, current, rng))[int(rng.integers(3))]
    return content, content == current


def _mixed(safe: bytes, current: bytes, rng: Rng) -> bytes:
    """Any of the pages that were written since the last sync, and any length since then; never written is zero."""
    shorter, longer = sorted((len(safe), len(current)))
    size = int(rng.integers(shorter, longer + 1))
    pages = [
        (safe, current)[int(rng.integers(2))][first : first + PAGE].ljust(PAGE, b"\0") for first in range(0, size, PAGE)
    ]
    return b"".join(pages)[:size]


def carry_fingerprints(root: Path, copy: Path) -> None:
    """Let records of verified files hold for a copy as they hold for the tree: a power cut changes no inode."""
    for record in copy.rglob("verified*.jsonl"):
        original = root / record.relative_to(copy).parent
        lines = record.read_bytes().split(b"\n")
        record.write_bytes(b"\n".join(_carried(line, original, record.parent) for line in lines))


def _carried(line: bytes, original: Path, copy: Path) -> bytes:
    with suppress(ValueError, TypeError, OSError):
        name, seen, *read_at = json.loads(line)
        if seen == fingerprint(original / name):
            return json.dumps([name, fingerprint(copy / name), *read_at]).encode()
    return line


def lost(image: Path, sure: Disk) -> list[str]:
    """Finished files that were synced under their names, and are not there after all."""
    missing: list[str] = []

    def visit(folder: int, path: Path) -> None:
        for name, inode in sure.names[folder].items():
            if inode in sure.names:
                visit(inode, path / name)
            elif name.endswith(FINISHED) and not (path / name).is_file():
                missing.append((path / name).relative_to(image).as_posix())

    visit(sure.root, image)
    return missing
